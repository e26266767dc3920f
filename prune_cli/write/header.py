"""The first bytes of a safetensors file: which tensors it holds, of which type, and where they lie.

See also: `checkpoint.safetensors_file`, which reads them.
"""

import json
from collections.abc import Iterable, Mapping

from prune_cli.checkpoint.tensors import DTYPES, HEADER_LENGTH_BYTES, TensorInfo

_LAYOUT_ORDER = {name: order for order, name in enumerate(DTYPES)}


def in_layout_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Return `tensors` in the order safetensors lays them out: widest dtype first, then by name."""
    return sorted(tensors, key=lambda info: (-_LAYOUT_ORDER[info.dtype], info.name))


def encode_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors header, length included, of a file that holds `tensors` in that order.

    Byte-identical to what `safetensors.torch.save_file` writes, which leaves the order of
    several metadata keys to chance; here they are sorted.
    """
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for info in tensors:
        stop = start + info.nbytes
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": info.shape,
            "data_offsets": (start, stop),
        }
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_LENGTH_BYTES)
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text
