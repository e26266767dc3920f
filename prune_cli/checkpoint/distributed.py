"""Reads the folders of torch.distributed.checkpoint (DCP): `.metadata` and its *.distcp files.

FSDP and torchtitan write these. A tensor lies there in chunks, each a file of torch.save inside of
a larger file; the metadata says which. Here each chunk becomes a Piece, so nothing is copied.

Format: torch/distributed/checkpoint/metadata.py and filesystem.py.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from prune_cli.checkpoint.archive import CompressedMemberError, read_archive
from prune_cli.checkpoint.contents import MOST_OPEN, Checkpoint, Shard, map_file
from prune_cli.checkpoint.folder import METADATA
from prune_cli.checkpoint.layouts import is_inside
from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.pickled import CorruptPickleError, Key, RefusedPickleError, StandIn
from prune_cli.checkpoint.pickles import Program, run_pickle
from prune_cli.checkpoint.placing import is_packed
from prune_cli.checkpoint.state_dict import Content
from prune_cli.checkpoint.strided import boxes_meet
from prune_cli.checkpoint.surroundings import list_files
from prune_cli.checkpoint.tensors import Piece, Summed, TensorInfo
from prune_cli.checkpoint.torch_file import (
    ZipStorages,
    allowed_steps,
    read_member_program,
    unique_weights,
)
from prune_cli.checkpoint.torch_names import (
    DTYPE_NAMES,
    TABLE,
    Size,
    Tensor,
    TorchDtype,
)
from prune_cli.checkpoint.unwritable import problems_of, refuse_unwritable
from prune_cli.errors import InputError
from prune_cli.stores import Location

if TYPE_CHECKING:
    from prune_cli.checkpoint.contents import Mapped

_MOST_MEMBERS, _LONGEST_PICKLE = 16, 16384
"""What a file of torch.save with one tensor has at the most; there can be many of them."""


class _Record(NamedTuple):
    """Where a chunk was written: a range of a file of the folder."""

    file: str
    offset: int
    nbytes: int


class _Chunk(NamedTuple):
    """A part of a tensor: where in it, and of which shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Metadata:
    """What `.metadata` says.

    Attributes:
        tensors: by their flat names.
        chunks: of each of them.
        records: where each chunk of a name is.
        others: flat names that are no tensors.
        paths: where in the state dict that was saved each flat name stood.
    """

    tensors: Mapping[str, Tensor]
    chunks: Mapping[str, tuple[_Chunk, ...]]
    records: Mapping[tuple[str, tuple[int, ...]], _Record]
    others: Mapping[str, object]
    paths: Mapping[str, tuple[str, ...]]


def read_distributed(folder: Location, loading: Loading) -> Checkpoint:
    """Return the Checkpoint that `folder` holds, as one shard in pieces.

    Raises:
        InputError: the metadata or a chunk is corrupt or missing, or there is no state dict.
    """
    path = folder / METADATA
    file = Shard(f"{folder.resolve().name}.distcp", path, path.stat().st_size, ())
    try:
        metadata = _read_metadata(file)
        return _to_checkpoint(folder, file, metadata, loading)
    except RefusedPickleError as error:
        raise InputError(f"{folder} {error}") from error
    except (CorruptPickleError, CompressedMemberError) as error:
        raise InputError(
            f"{folder}: it is corrupt or incomplete, so copy or download it again: {error}"
        ) from error


# --- The metadata -----------------------------------------------------------------------------


def _read_metadata(file: Shard) -> _Metadata:
    top = run_pickle(Program(file.buffer, 0, file.nbytes), TABLE).value
    state = _state(top, "Metadata")
    entries, stored = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        raise CorruptPickleError(f"{METADATA} says neither what was saved nor where")
    named = {name: entry for name, entry in entries.items() if type(name) is str}
    budget = _Budget(file.nbytes // 8)
    tensors = {
        name: entry
        for name, entry in named.items()
        if isinstance(entry, StandIn) and entry.class_name == "TensorStorageMetadata"
    }
    return _Metadata(
        tensors={name: _tensor(_state(entry)) for name, entry in tensors.items()},
        chunks={name: tuple(_chunks(_state(entry), budget)) for name, entry in tensors.items()},
        records=dict(_records(stored)),
        others={name: entry for name, entry in named.items() if name not in tensors},
        paths=dict(_paths(state.get("planner_data"))),
    )


def _state(value: object, class_name: str | None = None) -> Mapping[Any, Any]:
    if not isinstance(value, StandIn) or class_name not in (None, value.class_name):
        raise CorruptPickleError(f"{METADATA} is none of torch.distributed.checkpoint")
    if isinstance(value.state, dict):
        return value.state
    raise CorruptPickleError(f"{METADATA} is none of torch.distributed.checkpoint")


def _tensor(state: Mapping[Any, Any]) -> Tensor:
    properties = state.get("properties")
    match properties.state if isinstance(properties, StandIn) else None:
        case (TorchDtype() as dtype, *_) | {"dtype": TorchDtype() as dtype}:
            return Tensor(dtype, _sizes(state.get("size")))
    raise CorruptPickleError(f"{METADATA} has a tensor without a dtype")


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, Size):
        raise CorruptPickleError(f"{METADATA} has a tensor without a shape")
    return tuple(value)


@dataclass
class _Budget:
    """How many chunks may be named: each takes more than 8 bytes, if it is named once."""

    chunks: int

    def spend(self) -> None:
        """Count one more."""
        self.chunks -= 1
        if self.chunks < 0:
            raise CorruptPickleError(f"{METADATA} names the same chunks too often")


def _chunks(state: Mapping[Any, Any], budget: _Budget) -> Iterator[_Chunk]:
    chunks = state.get("chunks")
    for chunk in chunks if isinstance(chunks, list) else []:
        budget.spend()
        found = _state(chunk)
        yield _Chunk(_sizes(found.get("offsets")), _sizes(found.get("sizes")))


def _records(stored: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, tuple[int, ...]], _Record]]:
    for key, value in stored.items():
        index, info = _state(key.value if isinstance(key, Key) else key), _state(value)
        if info.get("transform_descriptors"):
            raise RefusedPickleError("has compressed chunks; save it without extensions")
        offset = index.get("offset")
        match index.get("fqn"), offset, info:
            case str(name), None | Size(), {
                "relative_path": str(path),
                "offset": int(at),
                "length": int(nbytes),
            }:
                if not is_inside(path) or at < 0 or nbytes < 0:
                    raise CorruptPickleError(f"{METADATA} names a file outside of the folder")
                yield (name, tuple(offset or ())), _Record(path, at, nbytes)
            case _:
                raise CorruptPickleError(f"{METADATA} does not say where a chunk is")


def _paths(planner: object) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield where each flat name came from, as _flatten_state_dict.py notes it."""
    for name, path in planner.items() if isinstance(planner, dict) else ():
        if type(name) is str and _is_path(path):
            yield name, tuple(str(part) for part in path)


def _is_path(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and 0 < len(value) <= 64
        and all(
            type(part) is str or (type(part) is int and part.bit_length() < 64) for part in value
        )
    )


# --- The checkpoint ---------------------------------------------------------------------------


def _to_checkpoint(
    folder: Location, file: Shard, metadata: _Metadata, loading: Loading
) -> Checkpoint:
    content = Content(_nested(metadata), steps=allowed_steps(file.nbytes))
    found = content.find(folder, loading.state_dict_keys)
    weights = {
        name: tensor
        for name, tensor in unique_weights(folder, found).items()
        if isinstance(tensor, Tensor)
    }
    unwritable = problems_of(content.value, weights)
    refuse_unwritable(folder, unwritable, loading)
    flat_name = {id(tensor): name for name, tensor in metadata.tensors.items()}
    parts = _Parts(folder)
    infos = [
        _info(parts, metadata, name, flat_name[id(tensor)], tensor)
        for name, tensor in weights.items()
        if name not in unwritable
    ]
    shard = replace(file, tensors=tuple(infos), parts=parts.files())
    return Checkpoint(
        path=folder,
        format="dcp",
        shards=(shard,),
        others=tuple(_others(folder, shard)),
        dropped=tuple(content.dropped(found)),
        unwritable=unwritable,
    )


def _others(folder: Location, shard: Shard) -> Iterator[str]:
    """Yield the files of the folder that no tensor lies in."""
    known = {METADATA, *(part.name for part in shard.parts)}
    yield from (name for name in list_files(folder) if name not in known)


def _nested(metadata: _Metadata) -> dict[str, Any]:
    """Return the state dict that was saved, as it was nested, with Tensors as leaves."""
    top: dict[str, Any] = {}
    for name, leaf in (*metadata.tensors.items(), *metadata.others.items()):
        path = metadata.paths.get(name, (name,))
        inner = top
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise CorruptPickleError(f"{METADATA} has {name[:80]!r} inside of a tensor")
        inner[path[-1]] = leaf
    return top


class _Parts:
    """The files of the folder that pieces lie in, each opened once."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._files: list[Shard] = []
        self._numbers: dict[str, int] = {}
        self._map = lru_cache(MOST_OPEN)(map_file)

    def number(self, name: str) -> int:
        """Return the place of the file `name` in `files`."""
        if name not in self._numbers:
            path = self._folder / name
            if not path.is_file():
                raise InputError(
                    f"{self._folder / METADATA} names {name}, which is not there; the copy is "
                    "incomplete"
                )
            self._numbers[name] = len(self._files)
            self._files.append(Shard(name, path, path.stat().st_size, ()))
        return self._numbers[name]

    def files(self) -> tuple[Shard, ...]:
        """Return all of them."""
        return tuple(self._files)

    def bytes_of(self, record: _Record) -> "Mapped":
        """Return the bytes of a record, mapped."""
        file = self._files[self.number(record.file)]
        if record.offset + record.nbytes > file.nbytes:
            raise CorruptPickleError(f"{record.file} ends before its last chunk")
        content, stop = self._map(file.path, file.nbytes), record.offset + record.nbytes
        if isinstance(content, mmap.mmap):
            return memoryview(content)[record.offset : stop]
        return content.part(record.offset, stop)


def _info(parts: _Parts, metadata: _Metadata, name: str, flat: str, tensor: Tensor) -> TensorInfo:
    assert tensor.dtype
    dtype = DTYPE_NAMES[tensor.dtype.name]
    chunks = [chunk for chunk in metadata.chunks[flat] if math.prod(chunk.shape)]
    _check_cover(name, tensor.shape, chunks)
    if not chunks:
        return TensorInfo(name, dtype, tensor.shape, 0, 0)
    pieces = tuple(_piece(parts, metadata, flat, chunk, tensor.dtype) for chunk in chunks)
    return TensorInfo(name, dtype, tensor.shape, 0, pieces=pieces)


def _check_cover(name: str, shape: tuple[int, ...], chunks: list[_Chunk]) -> None:
    """Raise unless the chunks make up the whole tensor, each element once."""
    ranges = [
        tuple((start, start + size) for start, size in zip(*chunk, strict=True))
        for chunk in chunks
        if len(chunk.start) == len(chunk.shape) == len(shape)
    ]
    inside = all(stop <= size for box in ranges for (_, stop), size in zip(box, shape, strict=True))
    volume = sum(math.prod(chunk.shape) for chunk in chunks)
    whole = len(ranges) == len(chunks) and inside and volume == math.prod(shape)
    if not whole or boxes_meet(ranges):
        raise CorruptPickleError(f"the chunks of {name[:80]!r} do not make up its shape")


def _piece(
    parts: _Parts, metadata: _Metadata, flat: str, chunk: _Chunk, dtype: TorchDtype
) -> Piece:
    record = metadata.records.get((flat, chunk.start)) or metadata.records.get((flat, ()))
    if record is None:
        raise CorruptPickleError(f"{METADATA} does not say where a chunk of {flat[:80]!r} is")
    saved, summed = _saved_tensor(parts, record, flat)
    if (saved.dtype, saved.shape) != (dtype, chunk.shape) or saved.is_conj or saved.is_neg:
        raise CorruptPickleError(
            f"a chunk of {flat[:80]!r} has another dtype or shape than it should"
        )
    strides = None if is_packed(saved.shape, saved.strides) else saved.strides
    number = parts.number(record.file)
    offset = record.offset + saved.start
    return Piece(number, offset, chunk.start, chunk.shape, strides, summed)


def _saved_tensor(parts: _Parts, record: _Record, flat: str) -> tuple[Tensor, Summed]:
    """Return the tensor that a record holds, a file of torch.save by itself, and its storage."""
    parts.number(record.file)
    content = parts.bytes_of(record)
    archive = read_archive(content, f"{record.file}, {flat[:80]!r}", most=_MOST_MEMBERS)
    pickled = archive.stored("data.pkl")
    if pickled is None or pickled.nbytes > _LONGEST_PICKLE:
        raise CorruptPickleError(f"a chunk of {flat[:80]!r} is no file of torch.save")
    program = read_member_program(content, pickled)
    saved = run_pickle(program, TABLE, ZipStorages(archive).find).value
    if not isinstance(saved, Tensor) or saved.problem:
        raise CorruptPickleError(f"a chunk of {flat[:80]!r} holds no plain tensor")
    place = saved.storage.start if saved.storage else -1
    storage = next(one for one in archive.members.values() if one.start == place)
    at = record.offset
    sums = tuple(at + checksum for checksum in storage.checksums)
    return saved, Summed(at + storage.start, at + storage.stop, sums)
