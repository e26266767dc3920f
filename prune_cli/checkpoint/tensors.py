"""TensorInfo and header arithmetic: what can be known of tensors without their elements.

Everything here is integers and names, so it is tested with plain ints and starts without torch.
Not here: reading a file (`checkpoint`) or holding an element (`pruning`, `apply`).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prune_cli.errors import DimError

HEADER_LENGTH_BYTES = 8
"""A safetensors file starts with the length of its header, as a little-endian u64."""

MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors reads (`MAX_HEADER_SIZE` in its tensor.rs)."""

MASK_SUFFIX, ORIG_SUFFIX = "_mask", "_orig"
"""What torch.nn.utils.prune appends to a parameter's name while it is pruned."""


class Dtype(NamedTuple):
    """One dtype of safetensors: its width, and its name in torch (None: torch has none)."""

    bits: int
    torch: str | None
    holds_zero: bool = True


# In the order of safetensors' own enum (tensor.rs), which is the order in which it lays
# tensors out in a file, last first.
DTYPES: dict[str, Dtype] = {
    "BOOL": Dtype(8, "bool"),
    "F4": Dtype(4, "float4_e2m1fn_x2"),
    "F6_E2M3": Dtype(6, None),
    "F6_E3M2": Dtype(6, None),
    "U8": Dtype(8, "uint8"),
    "I8": Dtype(8, "int8"),
    "F8_E5M2": Dtype(8, "float8_e5m2"),
    "F8_E4M3": Dtype(8, "float8_e4m3fn"),
    "F8_E8M0": Dtype(8, "float8_e8m0fnu", holds_zero=False),
    "F8_E4M3FNUZ": Dtype(8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": Dtype(8, "float8_e5m2fnuz"),
    "I16": Dtype(16, "int16"),
    "U16": Dtype(16, "uint16"),
    "F16": Dtype(16, "float16"),
    "BF16": Dtype(16, "bfloat16"),
    "I32": Dtype(32, "int32"),
    "U32": Dtype(32, "uint32"),
    "F32": Dtype(32, "float32"),
    "C64": Dtype(64, "complex64"),
    "F64": Dtype(64, "float64"),
    "I64": Dtype(64, "int64"),
    "U64": Dtype(64, "uint64"),
}

_LAYOUT_ORDER = {name: order for order, name in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor.

    `shard` is the index of its file in `Checkpoint.shards`, `offset` that of its first byte in
    the file (None: the tensor lives in memory). `strides`, in elements, are None where the
    elements lie in order without gaps, as they always do in safetensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int = 0
    offset: int | None = None
    strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that the elements take, packed."""
        return nbytes(self.dtype, self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether the bytes in the file are, in order, the bytes of the tensor."""
        return self.offset is not None and self.strides is None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as its module knows it: a tensor, and its mask where torch pruned it.

    `name` is the full dotted name without `_orig`: "layer1.0.conv1.weight".
    """

    name: str
    tensor: TensorInfo
    mask: TensorInfo | None = None

    @property
    def module(self) -> str:
        """The dotted name of its module; the root module's is empty."""
        return self.name.rpartition(".")[0]

    @property
    def param(self) -> str:
        """Its own name within the module."""
        return self.name.rpartition(".")[2]


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a packed tensor of `dtype` and `shape`; sub-byte dtypes round up."""
    return (math.prod(shape) * DTYPES[dtype].bits + 7) // 8


def pair_masks(tensors: Iterable[TensorInfo]) -> list[Parameter]:
    """The parameters that `tensors` make up: NAME_orig and NAME_mask of one shape are one NAME.

    The order of `tensors` is kept. An `_orig` without a fitting `_mask`, or whose plain name is
    taken, is a tensor like any other.
    """
    by_name = {info.name: info for info in tensors}
    masks = {
        name: by_name[mask]
        for name in by_name
        if (mask := _mask_of(name)) in by_name
        and by_name[mask].shape == by_name[name].shape
        and name.removesuffix(ORIG_SUFFIX) not in by_name
    }
    used = {mask.name for mask in masks.values()}
    return [
        Parameter(name.removesuffix(ORIG_SUFFIX), info, masks[name])
        if name in masks
        else Parameter(name, info)
        for name, info in by_name.items()
        if name not in used
    ]


def _mask_of(name: str) -> str | None:
    if not name.endswith(ORIG_SUFFIX):
        return None
    return name.removesuffix(ORIG_SUFFIX) + MASK_SUFFIX


def resolve_dim(dim: int, shape: Sequence[int], name: str) -> int:
    """`dim` counted from the front: -1 of a 4-D shape is 3.

    Raises:
        DimError: the tensor has no such dim.
    """
    if not -len(shape) <= dim < len(shape):
        raise DimError(
            f"{name} has shape {list(shape)}, so its dims are {-len(shape)} to "
            f"{len(shape) - 1}; there is no dim {dim}"
        )
    return dim % len(shape)


def in_layout_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """`tensors` in the order safetensors lays them out: widest dtype first, then by name."""
    return sorted(tensors, key=lambda info: (-_LAYOUT_ORDER[info.dtype], info.name))


def encode_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header, length included, of a file that holds `tensors` in that order.

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


class Block(NamedTuple):
    """A contiguous piece of a tensor that is worked on at once, seen from one dim.

    Its bytes are `start` to `stop` of the tensor; as elements they have the shape
    (rows, channels.stop - channels.start, -1) with the dim in the middle.
    """

    start: int
    stop: int
    rows: int
    channels: range


def blocks(shape: Sequence[int], dim: int, itemsize: int, limit: int) -> Iterator[Block]:
    """A contiguous tensor cut into Blocks of at most `limit` bytes each, in the order they lie.

    `dim` counts from the front, `itemsize` and `limit` are in bytes. One element is the least
    that a block can be.

    Example:
        >>> [b[:2] for b in blocks((4, 3), 0, itemsize=4, limit=24)]
        [(0, 24), (24, 48)]
    """
    outer, channels = math.prod(shape[:dim]), shape[dim]
    channel_bytes = math.prod(shape[dim + 1 :]) * itemsize
    row_bytes = channels * channel_bytes
    if 0 < row_bytes <= limit:
        step = limit // row_bytes
        for first in range(0, outer, step):
            last = min(first + step, outer)
            yield Block(first * row_bytes, last * row_bytes, last - first, range(channels))
    elif row_bytes:
        for row in range(outer):
            yield from _row_blocks(row * row_bytes, channels, channel_bytes, itemsize, limit)


def _row_blocks(
    base: int, channels: int, channel_bytes: int, itemsize: int, limit: int
) -> Iterator[Block]:
    step = limit // channel_bytes
    if step:
        for first in range(0, channels, step):
            last = min(first + step, channels)
            start, stop = base + first * channel_bytes, base + last * channel_bytes
            yield Block(start, stop, 1, range(first, last))
        return
    piece = max(limit // itemsize, 1) * itemsize
    for channel in range(channels):
        start, stop = base + channel * channel_bytes, base + (channel + 1) * channel_bytes
        for at in range(start, stop, piece):
            yield Block(at, min(at + piece, stop), 1, range(channel, channel + 1))
