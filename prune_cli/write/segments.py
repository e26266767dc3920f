"""What an output file is made of, part by part: facts that `stream` carries out.

Each segment knows the byte of the output that it begins `at`, and how many bytes it has.
"""

from dataclasses import dataclass
from typing import TypeAlias

from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.stores import Location


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output, and how its bytes come about.

    Attributes:
        info: its name, dtype and shape in the output.
        source: the tensor of the input that it is made of; None: a mask, all ones.
        keep: for each dim that gets shorter, the indices of `source` that stay, ascending.
        mask: of the input; where it is 0, so is this tensor.
        dim, zero: the channels that are zeroed.
    """

    info: TensorInfo
    source: TensorInfo | None
    keep: tuple[tuple[int, tuple[int, ...]], ...] = ()
    mask: TensorInfo | None = None
    dim: int = 0
    zero: tuple[int, ...] = ()

    @property
    def is_contiguous_source(self) -> bool:
        """Whether its bytes are those of the source but for the zeros."""
        plain = self.source is not None and self.source.is_plain
        return plain and not self.keep and self.mask is None


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor, packed."""

    at: int
    tensor: OutputTensor

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.tensor.info.nbytes


@dataclass(frozen=True, slots=True)
class New:
    """Bytes that are known before anything is read: a header."""

    at: int
    content: bytes

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Bytes of an input file, from `start`, as they are."""

    at: int
    nbytes: int
    file: Location
    start: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels of a tensor that are zeroed where it lies.

    Attributes:
        name, dtype: of the tensor.
        offset: of its first byte in its input file.
        shape: of the tensor, or of the piece of it that lies there.
        strides: in elements; None where the elements lie in order without gaps.
        dim, channels: what is zeroed, counted within `shape`.
    """

    name: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dim: int
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Zeroed:
    """Bytes of an input file, from `start`, as they are but for the zeros of `cuts`."""

    at: int
    nbytes: int
    file: Location
    start: int
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 of the bytes `start` to `stop` of the output, little-endian."""

    at: int
    start: int
    stop: int
    nbytes: int = 4


Segment: TypeAlias = Place | New | Verbatim | Zeroed | Checksum
