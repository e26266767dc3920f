"""Checkpoint: what is in a checkpoint, whatever its format, as frozen facts.

The formats (`safetensors_file`, `torch_file`, `folder`) make these; nothing here knows them.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from prune_cli.checkpoint.encodings import Encoding, find_encodings
from prune_cli.checkpoint.liveness import Liveness
from prune_cli.checkpoint.tensors import (
    DTYPES,
    ORIG_SUFFIX,
    Parameter,
    Piece,
    TensorInfo,
    pair_masks,
)
from prune_cli.errors import InputError
from prune_cli.stores import Location, StorePath

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from prune_cli.stores.ranges import StoreBytes

    Buffer: TypeAlias = mmap.mmap | StoreBytes
    Mapped: TypeAlias = memoryview | StoreBytes
    Bits = npt.NDArray[np.unsignedinteger[Any]]


MOST_OPEN = 128
"""Files with pieces of tensors that are mapped at a time; each takes a file descriptor."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry of the input that the output cannot hold, and why."""

    key: str
    reason: str


@dataclass(frozen=True, repr=False)
class Shard:
    """One file of tensors. A class with a cached property, so that it is mapped at most once."""

    name: str
    path: Location
    nbytes: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    owner: object = None
    """An unnamed temporary file to keep open, where `path` leads to one."""
    parts: tuple["Shard", ...] = ()
    """Further files, without tensors of their own, that pieces of its tensors lie in."""
    folder: str = ""
    """The Part that it is of, where the checkpoint has several."""

    def __repr__(self) -> str:
        return f"<Shard {self.name}: tensors={len(self.tensors)}>"

    @cached_property
    def mapped(self) -> "Mapped":
        """The whole file, mapped to be read: its pages are the kernel's to take back.

        Read-only: a mapping for writing is refused for a file larger than the memory of the machine.
        """
        return memoryview(self.buffer) if isinstance(self.buffer, mmap.mmap) else self.buffer

    @cached_property
    def buffer(self) -> "Buffer":
        """`mapped`, with the methods of bytes."""
        return map_file(self.path, self.nbytes)


def map_file(path: Location, nbytes: int) -> "Buffer":
    """Map a file to be read; an object in a store is read where it is looked at.

    Raises:
        InputError: it is not there any more, or is shorter.
    """
    if isinstance(path, StorePath):
        return path.content(nbytes)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is shorter
        raise InputError(
            f"{path} cannot be read any more: it changed since it was opened ({error})"
        ) from error


@dataclass(frozen=True, slots=True)
class Index:
    """The index file of a folder: its name and its `metadata`."""

    name: str
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Part:
    """The checkpoint of one subfolder, where several are read as one.

    Attributes:
        folder: what its files' names begin with: "unet/"; "" for the folder itself.
        index: its index file, if it has one, by its name in the subfolder.
    """

    folder: str
    index: Index | None = None

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with, and do not in its files: "unet."."""
        return self.folder.replace("/", ".")


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint whose headers were read, and nothing else.

    Attributes:
        path: the file or folder as the user named it ("-" for stdin).
        format: "safetensors", "torch", "torch-legacy", "module", "torchscript", "pickle" or "dcp".
        shards: its files, in the order of their names.
        aliases: further names of a tensor -> the one it is stored under.
        overlaps: tensors whose memory another tensor shares in part -> that tensor.
        dropped: entries that are no tensors.
        is_folder: whether it is a folder; then `others` are its other files, relative to it.
        index: its index file, if it has one.
        notes: what a user should be told about how it was read.
        state_dict_keys: which of several state dicts were picked; empty for the only one.
        unwritable: tensors that were left out because they cannot be had from bytes -> why.
        parts: the subfolders that it is read from, if there are several.
        unpaired: tensors called NAME_orig whose NAME_mask is no mask, by its values.
    """

    path: Location
    format: str
    shards: tuple[Shard, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    overlaps: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    is_folder: bool = False
    others: tuple[str, ...] = ()
    index: Index | None = None
    notes: tuple[str, ...] = ()
    unwritable: Mapping[str, str] = field(default_factory=dict)
    state_dict_keys: tuple[str, ...] = ()
    unpaired: frozenset[str] = frozenset()
    parts: tuple[Part, ...] = ()

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """Its parts, or itself as the only one."""
        return self.parts or (Part("", self.index),)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {self.format}, tensors={len(self.tensors)}>"

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its name, shard by shard."""
        return {info.name: info for shard in self.shards for info in shard.tensors}

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, with its mask where torch pruned it."""
        return tuple(pair_masks(self.tensors.values(), self.unpaired))

    @cached_property
    def parameter_of(self) -> dict[str, Parameter]:
        """Every parameter by its name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def encodings(self) -> dict[str, Encoding]:
        """What is no weight by itself, by the name of the parameter: packed, a scale, a norm."""
        return find_encodings(self.parameter_of)

    @cached_property
    def liveness(self) -> Liveness:
        """What is known of channels in a store."""
        return Liveness()

    @cached_property
    def parameter_aliases(self) -> dict[str, str]:
        """`aliases` as modules know them: further names of a parameter -> its name.

        Those of its mask are not among them: they follow from these.
        """
        by_tensor = {parameter.tensor.name: parameter for parameter in self.parameters}
        masks = {parameter.mask.name for parameter in self.parameters if parameter.mask}
        found: dict[str, str] = {}
        for alias, name in self.aliases.items():
            parameter = by_tensor.get(name)
            if parameter and parameter.mask:
                found[alias.removesuffix(ORIG_SUFFIX)] = parameter.name
            elif name not in masks:
                found[alias] = name
        return found

    @cached_property
    def names_of(self) -> dict[str, tuple[str, ...]]:
        """The aliases of each parameter that has any, by the name of its tensor, sorted."""
        names: dict[str, list[str]] = {}
        for alias, name in sorted(self.parameter_aliases.items()):
            names.setdefault(self.parameter_of[name].tensor.name, []).append(alias)
        return {name: tuple(aliases) for name, aliases in names.items()}

    @property
    def nbytes(self) -> int:
        """The size of its files, in bytes."""
        return sum(file.nbytes for file in self.files)

    @property
    def files(self) -> tuple[Shard, ...]:
        """Its shards, and the further files that parts of their tensors lie in."""
        return tuple(file for shard in self.shards for file in (shard, *shard.parts))

    def bits(self, info: TensorInfo) -> "Bits":
        """Return the elements of a tensor as unsigned integers of their width; nothing is read yet.

        Returns:
            An array of `info.shape`, read-only, mapped from the file (read, from a store), in the
            strides that the elements have there. Of a tensor with a `flip` it is a copy, with the bits inverted.

        Raises:
            InputError: an element is no whole number of bytes.
        """
        if len(info.pieces) > 1 or not info.elements:
            return self.rows(info, 0, info.shape[0] if info.shape else 1).reshape(info.shape)
        found = self._mapped_bits(info)
        return found ^ found.dtype.type(info.flip) if info.flip else found

    def rows(self, info: TensorInfo, first: int, last: int) -> "Bits":
        """Return a copy of the bits of rows `first` to `last`, put together of a tensor's pieces.

        A tensor without dims is one row.

        Returns:
            An array of the shape (last - first, *info.shape[1:]), without gaps, that is the
            caller's to write.

        Raises:
            InputError: an element is no whole number of bytes.
        """
        import numpy as np

        dtype = _unsigned(element_bytes(info))
        made: Bits = np.empty((last - first, *info.shape[1:]), dtype)
        if made.size and len(info.pieces) > 1:
            for piece in info.pieces:
                self._copy_rows(made, first, info, piece)
        elif made.size:
            made[...] = self._mapped_rows(info, first, last)
        return np.bitwise_xor(made, dtype.type(info.flip), out=made) if info.flip else made

    def _mapped_bits(self, info: TensorInfo) -> "Bits":
        """Return the bits of a tensor that lies in one piece, as they are in the file."""
        lies = self._where(info)
        return _view(lies.buffer, info, lies.offset, info.shape, lies.strides)

    def _mapped_rows(self, info: TensorInfo, first: int, last: int) -> "Bits":
        """Return rows of such a tensor, and look at no other; without dims it is one row."""
        if not info.shape:
            return self._mapped_bits(info)
        lies = self._where(info)
        return _rows(lies, info, info.shape, first, last)

    def _where(self, info: TensorInfo) -> "_Lies":
        if info.pieces:
            return self._where_piece(info, info.pieces[0])
        return _Lies(self.shards[info.shard].buffer, info.offset or 0, info.strides)

    def _where_piece(self, info: TensorInfo, piece: Piece) -> "_Lies":
        part = self.shards[info.shard].parts[piece.part]
        return _Lies(self._map_part(part.path, part.nbytes), piece.offset, piece.strides)

    def _copy_rows(self, made: "Bits", first: int, info: TensorInfo, piece: Piece) -> None:
        """Copy to `made`, which begins at row `first` of the tensor, what `piece` has of it."""
        start = piece.start[0]
        low, high = max(first, start), min(first + len(made), start + piece.shape[0])
        if low >= high:
            return
        inner = (
            slice(begin, begin + size)
            for begin, size in zip(piece.start[1:], piece.shape[1:], strict=True)
        )
        lies = self._where_piece(info, piece)
        bits = _rows(lies, info, piece.shape, low - start, high - start)
        made[(slice(low - first, high - first), *inner)] = bits

    @cached_property
    def _map_part(self) -> "Callable[[Location, int], Buffer]":
        """map_file, for the last files: a cluster writes more of them than can be open at once."""
        return lru_cache(MOST_OPEN)(map_file)


class _Lies(NamedTuple):
    """Where elements lie: the first in `buffer` at byte `offset`, the others by `strides`."""

    buffer: "Buffer"
    offset: int
    strides: tuple[int, ...] | None


def _rows(lies: _Lies, info: TensorInfo, shape: tuple[int, ...], first: int, last: int) -> "Bits":
    stride = math.prod(shape[1:]) if lies.strides is None else lies.strides[0]
    offset = lies.offset + first * stride * element_bytes(info)
    return _view(lies.buffer, info, offset, (last - first, *shape[1:]), lies.strides)


def _view(
    buffer: "Buffer",
    info: TensorInfo,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
) -> "Bits":
    import numpy as np

    dtype = _unsigned(element_bytes(info))
    steps = None if strides is None else [dtype.itemsize * stride for stride in strides]
    if isinstance(buffer, mmap.mmap):
        return np.ndarray(shape, dtype, buffer, offset, steps)
    span = dtype.itemsize * _span(shape, strides) if math.prod(shape) else 0
    return np.ndarray(shape, dtype, buffer.read(offset, offset + span), 0, steps)


@cache
def _unsigned(itemsize: int) -> "np.dtype[np.unsignedinteger[Any]]":
    import numpy as np

    return np.dtype(f"<u{itemsize}")


def _span(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Return how many elements lie from the first to the last, both included."""
    if strides is None:
        return math.prod(shape)
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def element_bytes(info: TensorInfo) -> int:
    """Return the bytes of one element of `info`.

    Raises:
        InputError: it has no whole number of them.
    """
    bits = DTYPES[info.dtype].bits
    if bits < 8:
        raise InputError(f"{info.name} is {info.dtype}, packed below a byte: it cannot be changed")
    return bits // 8
