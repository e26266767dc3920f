"""Fetches the headers of shards in a store side by side, before they are read one by one.

A header is as long as its first eight bytes say, which nobody knows before: one guess is made for
all, and then what is missing is fetched.
"""

from collections.abc import Sequence

from prune_cli.checkpoint.tensors import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES
from prune_cli.stores import Location, StorePath
from prune_cli.stores.ranges import Extent, fetch_of

_GUESS = 100_000
"""Bytes: most headers are shorter."""


def fetch_heads(paths: Sequence[Location]) -> None:
    """Have the first bytes of objects in a store at hand; files of this machine need none of it.

    Raises:
        InputError: the store does not give them.
    """
    inside = [path for path in paths if isinstance(path, StorePath)]
    if not inside:
        return
    heads = inside[0].store.heads
    heads.clear()  # those before were read
    sizes = {path: path.stat().st_size for path in inside}
    guesses = [(path, Extent(0, min(_GUESS, sizes[path]))) for path in inside if sizes[path]]
    heads.update(_fetch(guesses))
    rest = [
        (path, Extent(len(heads[path.key]), stop))
        for path, _ in guesses
        if len(heads[path.key]) < (stop := min(_stop(heads[path.key]), sizes[path]))
    ]
    for key, more in _fetch(rest).items():
        heads[key] += more


def _fetch(wanted: Sequence[tuple[StorePath, Extent]]) -> dict[str, bytes]:
    found = fetch_of(wanted)
    return {path.key: some for (path, _), some in zip(wanted, found, strict=True)}


def _stop(head: bytes) -> int:
    """Return where the header of a safetensors file ends; 0 if this is none."""
    length = int.from_bytes(head[:HEADER_LENGTH_BYTES], "little")
    is_header = head[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + 1] == b"{"
    return HEADER_LENGTH_BYTES + length if is_header and length <= MAX_HEADER_BYTES else 0
