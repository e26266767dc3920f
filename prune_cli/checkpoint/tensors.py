"""TensorInfo and header arithmetic: what can be known of tensors without their elements.

Everything here is integers and names, so it is tested with plain ints and starts without torch.
See also: `contents`, whole checkpoints.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from prune_cli.errors import DimError

HEADER_LENGTH_BYTES = 8
"""A safetensors file starts with the length of its header, as a little-endian u64."""

MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors reads (`MAX_HEADER_SIZE` in its tensor.rs)."""

MAX_DIMS = 64
"""As many as NumPy takes. The product of a shape without a limit can take forever."""

MASK_SUFFIX, ORIG_SUFFIX = "_mask", "_orig"
"""What torch.nn.utils.prune appends to a parameter's name while it is pruned."""


class Dtype(NamedTuple):
    """One dtype of safetensors.

    Attributes:
        bits: the width of an element.
        torch: its name in torch; None: torch has none.
        one: the bits of the value 1.
        sign: the bits that a zero may have set: -0.0 is zero.
        holds_zero: whether there is a zero at all.
    """

    bits: int
    torch: str | None
    one: int = 1
    sign: int = 0
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
    "F8_E5M2": Dtype(8, "float8_e5m2", one=0x3C, sign=0x80),
    "F8_E4M3": Dtype(8, "float8_e4m3fn", one=0x38, sign=0x80),
    "F8_E8M0": Dtype(8, "float8_e8m0fnu", one=0x7F, holds_zero=False),
    "F8_E4M3FNUZ": Dtype(8, "float8_e4m3fnuz", one=0x40),  # FNUZ: what would be -0 is NaN
    "F8_E5M2FNUZ": Dtype(8, "float8_e5m2fnuz", one=0x40),
    "I16": Dtype(16, "int16"),
    "U16": Dtype(16, "uint16"),
    "F16": Dtype(16, "float16", one=0x3C00, sign=0x8000),
    "BF16": Dtype(16, "bfloat16", one=0x3F80, sign=0x8000),
    "I32": Dtype(32, "int32"),
    "U32": Dtype(32, "uint32"),
    "F32": Dtype(32, "float32", one=0x3F800000, sign=1 << 31),
    "C64": Dtype(64, "complex64", one=0x3F800000, sign=1 << 63 | 1 << 31),
    "F64": Dtype(64, "float64", one=0x3FF0000000000000, sign=1 << 63),
    "I64": Dtype(64, "int64"),
    "U64": Dtype(64, "uint64"),
}


class Summed(NamedTuple):
    """Bytes `start` to `stop` of a file, and where in it their CRC-32 stands."""

    start: int
    stop: int
    checksums: tuple[int, ...]


class Piece(NamedTuple):
    """A part of a tensor that lies in another file than its shard's own.

    `part` is the index of the file in `Shard.parts`, `offset` that of its first byte there;
    `start` and `shape` are where in the tensor it goes, `strides` as in TensorInfo; `summed` are the
    bytes around it that have a checksum.
    """

    part: int
    offset: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    summed: Summed | None = None


class TensorInfo(NamedTuple):
    """What a header says of one tensor.

    `shard` is the index of its file in `Checkpoint.shards`, `offset` that of its first byte in
    the file (None: it is made up of `pieces`). `strides`, in elements, are None where the
    elements lie in order without gaps, as they always do in safetensors. `flip` are the bits of
    each element that are inverted when it is read: the sign of a view that torch left negated.

    A tuple, as there can be a hundred thousand of them: a frozen dataclass takes three times as
    long to make.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int = 0
    offset: int | None = None
    strides: tuple[int, ...] | None = None
    flip: int = 0
    pieces: tuple[Piece, ...] = ()

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
        return self.offset is not None and self.strides is None and not self.flip


class Parameter(NamedTuple):
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
    """Return the bytes of a packed tensor of `dtype` and `shape`; sub-byte dtypes round up."""
    return (math.prod(shape) * DTYPES[dtype].bits + 7) // 8


def pair_masks(tensors: Iterable[TensorInfo], unpaired: Collection[str] = ()) -> list[Parameter]:
    """The parameters that `tensors` make up: NAME_orig and NAME_mask of one shape are one NAME.

    The order of `tensors` is kept. An `_orig` without a fitting `_mask`, or whose plain name is
    taken, or that is one of `unpaired`, is a tensor like any other.
    """
    by_name = {info.name: info for info in tensors}
    masks = {
        name: by_name[mask]
        for name in by_name
        if name not in unpaired
        and (mask := _mask_of(name)) in by_name
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
