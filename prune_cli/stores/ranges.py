"""Bytes of objects by exact ranges, many at once; what is short, late or changed is an error.

See also: `store`, which objects there are.
"""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

from prune_cli.errors import InputError
from prune_cli.stores.paths import StorePath
from prune_cli.stores.store import _ATTEMPTS, _FIRST_WAIT, describe, is_final

_LARGEST_REQUEST = 8 << 20
_LEAST_REQUEST = 256 << 10
_AT_ONCE = 16


class Extent(NamedTuple):
    """Bytes `start` to `stop` of an object."""

    start: int
    stop: int


def fetch(path: StorePath, extents: Sequence[Extent]) -> list[bytes]:
    """Return the bytes of each of `extents`, which are fetched at once.

    Raises:
        InputError: they cannot be had, or are fewer than the object should have.
    """
    return fetch_of([(path, extent) for extent in extents])


def fetch_of(wanted: Sequence[tuple[StorePath, Extent]]) -> list[bytes]:
    """`fetch` of several objects of one store."""
    cut = [
        (number, path, Extent(start, min(start + _LARGEST_REQUEST, extent.stop)))
        for number, (path, extent) in enumerate(wanted)
        for start in range(extent.start, extent.stop, _LARGEST_REQUEST)
    ]
    pieces = _fetch_patiently([(path, extent) for _, path, extent in cut])
    found: list[list[bytes]] = [[] for _ in wanted]
    for (number, _, _), piece in zip(cut, pieces, strict=True):
        found[number].append(piece)
    return [some[0] if len(some) == 1 else b"".join(some) for some in found]


def _fetch_patiently(wanted: Sequence[tuple[StorePath, Extent]]) -> list[bytes]:
    """Fetch all; what failed but may succeed is asked for again, ever later."""
    found: dict[int, bytes] = {}
    wait = _FIRST_WAIT
    for attempt in range(_ATTEMPTS):
        missing = [number for number in range(len(wanted)) if number not in found]
        for number, answer in zip(
            missing, _ask([wanted[number] for number in missing]), strict=True
        ):
            problem = _problem(answer, wanted[number][1])
            if problem is None:
                assert isinstance(answer, bytes)
                found[number] = answer
            elif attempt == _ATTEMPTS - 1 or (isinstance(answer, Exception) and is_final(answer)):
                raise InputError(f"{wanted[number][0]} cannot be read: {problem}")
        if len(found) == len(wanted):
            break
        time.sleep(wait)
        wait *= 3
    return [found[number] for number in range(len(wanted))]


def _ask(wanted: Sequence[tuple[StorePath, Extent]]) -> Iterable[bytes | Exception]:
    """Return what the store gives for each: its bytes, or the exception that it raised."""
    if not wanted:
        return []
    store = wanted[0][0].store
    try:
        answers: list[bytes | Exception] = store.filesystem.cat_ranges(
            [path.place for path, _ in wanted],
            [extent.start for _, extent in wanted],
            [extent.stop for _, extent in wanted],
            batch_size=_AT_ONCE,
            on_error="return",
        )
    except Exception as error:  # noqa: BLE001 - a store raises what its library does
        return [error] * len(wanted)
    return answers


def _problem(answer: bytes | Exception, extent: Extent) -> str | None:
    if isinstance(answer, FileNotFoundError):
        return "it is not there any more"
    if isinstance(answer, Exception):
        return describe(answer)
    if len(answer) != extent.stop - extent.start:
        return (
            f"the store gave {len(answer):,} bytes instead of {extent.stop - extent.start:,} from "
            f"byte {extent.start:,}"
        )
    return None


class StoreBytes:
    """An object as if it were bytes; what was read of it is kept, for readers that go to and fro."""

    def __init__(self, path: StorePath, nbytes: int) -> None:
        self.path, self._nbytes = path, nbytes
        self._kept: list[tuple[int, bytes]] = []
        head = path.store.heads.get(path.key)
        if head:
            self._kept.append((0, head))

    def __len__(self) -> int:
        return self._nbytes

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, int):
            return self._read(at, at + 1)[0]
        start, stop, _ = at.indices(self._nbytes)
        return self._read(start, stop) if stop > start else b""

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where `wanted` begins between `start` and `stop`; -1 if it does not."""
        while start < stop:
            some = self[start : min(start + _LEAST_REQUEST, stop)]
            place = some.find(wanted)
            if place >= 0:
                return start + place
            start += max(len(some) - len(wanted) + 1, 1)
        return -1

    def ask_ahead(self, extents: Iterable[Extent]) -> None:
        """Read `extents` at once, for they will be wanted one by one."""
        wanted = [
            Extent(max(one.start, 0), min(one.stop, self._nbytes))
            for one in extents
            if self._holding(one) is None
        ]
        found = fetch(self.path, wanted)
        self._kept += [(one.start, some) for one, some in zip(wanted, found, strict=True)]

    def _read(self, start: int, stop: int) -> bytes:
        held = self._holding(Extent(start, stop))
        if held is None:
            end = min(max(stop, start + _LEAST_REQUEST), self._nbytes)
            held = (start, fetch(self.path, [Extent(start, end)])[0])
            self._kept.insert(0, held)
        return held[1][start - held[0] : stop - held[0]]

    def _holding(self, extent: Extent) -> tuple[int, bytes] | None:
        for one in self._kept:
            if one[0] <= extent.start and extent.stop <= one[0] + len(one[1]):
                return one
        return None
