"""Reads what torch.save and torch.jit.save write, without reading the weights.

The pickle runs through torch's own restricted unpickler, the one behind `weights_only=True`; its
storages are slices of the mapped file, so a tensor knows where in the file it lies and its bytes
can be streamed. This holds for the zip format (torch >= 1.6) and for the legacy one before it.
`--unsafe-load` hands the file to torch.load instead and keeps its tensors in memory.

Not here: which part of what was unpickled is the state dict (`state_dict`).
"""

import contextlib
import importlib
import io
import os
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import torch
from torch import _weights_only_unpickler as restricted
from torch.storage import TypedStorage, UntypedStorage

from prune_cli.errors import InputError, UnsafePickleError, UsageError

_ZIP_MAGIC = b"PK\x03\x04"
_NEWEST_PROTOCOL = 3
"""Of pickle; the next one puts everything into frames, which torch's unpickler does not know."""


class Extent(NamedTuple):
    """A part of a file, in bytes."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class _Container:
    """Where a file of torch.save keeps things: the pickled object, and each storage by its key."""

    format: str
    pickle: bytes
    storages: Mapping[str, Extent]


@dataclass(frozen=True)
class Loaded:
    """What a torch file held, and in which format."""

    content: object
    format: str


def load_safely(path: Path, mapped: UntypedStorage, *, allow_globals: Sequence[str] = ()) -> Loaded:
    """Unpickles the file at `path` with `weights_only` semantics; its tensors lie in `mapped`.

    Args:
        path: a file of torch.save, in the zip or the legacy format.
        mapped: the whole file.
        allow_globals: dotted names of what the pickle may use besides torch's own list. A class
            that is not here needs no more: its objects are no tensors, and are dropped.

    Raises:
        UnsafePickleError: the pickle asks for other globals.
        InputError: the file is truncated or corrupt, or is a TorchScript archive.
        UsageError: a name in `allow_globals` is none.
    """
    allowed = torch.serialization.safe_globals(_import_globals(allow_globals))
    with allowed, _quiet_and_final(path):
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            container = _read_zip(path, file) if is_zip else _read_legacy(path, file)
        storages = {
            key: mapped[extent.start : extent.start + extent.nbytes]
            for key, extent in container.storages.items()
        }
        return Loaded(_unpickle(path, container.pickle, storages.__getitem__), container.format)


def load_unsafely(path: Path) -> Loaded:
    """Loads the file at `path` with torch.load or torch.jit.load, which run the code in it.

    Raises:
        InputError: that failed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            is_zip = zipfile.is_zipfile(path)
            if is_zip and _is_torchscript(zipfile.ZipFile(path).namelist()):
                return Loaded(torch.jit.load(str(path), map_location="cpu"), "torchscript")
            content = torch.load(path, map_location="cpu", weights_only=False, mmap=is_zip)
    except Exception as error:  # code of the file's author ran: it can raise anything
        raise InputError(
            f"{path}: loading it failed: {type(error).__name__}: {error}; a class it needs must "
            "be importable here (PYTHONPATH=. prune-cli ...)"
        ) from error
    if isinstance(content, torch.nn.Module):
        return Loaded(content, "module")
    return Loaded(content, "torch" if is_zip else "torch-legacy")


@contextlib.contextmanager
def _quiet_and_final(path: Path) -> Any:
    """Turns whatever reading a corrupt file raises into an InputError."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (InputError, OSError):
        raise
    except Exception as error:  # a corrupt pickle raises what the opcode it runs into raises
        raise InputError(
            f"{path}: it is corrupt or truncated, so copy or download it again: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


# --- the two formats ------------------------------------------------------------------------


def _read_zip(path: Path, file: IO[bytes]) -> _Container:
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    if _is_torchscript(members):
        raise InputError(
            f"{path} is a TorchScript archive, which holds code; --unsafe-load runs it "
            "(do so only if you trust where it comes from)"
        )
    root = next((name.split("/")[0] for name in members if _is_data_pickle(name)), None)
    if root is None:
        raise InputError(f"{path} is a zip file, but not one of torch.save: it has no data.pkl")
    extents = {name: _stored(path, file, member) for name, member in members.items()}
    if b"big" in _read(file, extents.get(f"{root}/byteorder")):
        raise InputError(f"{path} was written on a big-endian machine; save it again on this one")
    prefix = f"{root}/data/"
    storages = {
        name.removeprefix(prefix): extent
        for name, extent in extents.items()
        if name.startswith(prefix)
    }
    return _Container("torch", _read(file, extents[f"{root}/data.pkl"]), storages)


def _is_data_pickle(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _is_torchscript(names: Any) -> bool:
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names)


def _stored(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> Extent:
    """Where the bytes of `member` are; torch never compresses, so they can be mapped.

    Its checksum is not looked at, because torch can be told not to write one.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{path}: {member.filename!r} is compressed; save it with torch.save")
    file.seek(member.header_offset)
    header = file.read(zipfile.sizeFileHeader)  # type: ignore[attr-defined]
    name_length, extra_length = header[26:28], header[28:30]
    start = member.header_offset + len(header)
    start += int.from_bytes(name_length, "little") + int.from_bytes(extra_length, "little")
    if not header.startswith(_ZIP_MAGIC) or start + member.file_size > _size(file):
        raise InputError(f"{path}: {member.filename!r} is not where the zip directory says")
    return Extent(start, member.file_size)


def _read_legacy(path: Path, file: IO[bytes]) -> _Container:
    """The legacy format: five pickles (magic, version, system, object, storage keys), storages.

    Where a storage lies follows from the sizes of those before it, and these from the object's
    pickle, so that one runs twice: here over storages that only note what is asked of them.
    """
    file.seek(0)
    pickles = [_next_pickle(file) for _ in range(5)]
    if not _unpickle(path, pickles[2], _no_storage).get("little_endian", True):
        raise InputError(f"{path} was written on a big-endian machine; save it again on this one")
    itemsizes: dict[str, int] = {}
    _unpickle(path, pickles[3], lambda _: UntypedStorage(0, device="meta"), itemsizes)
    storages: dict[str, Extent] = {}
    for key in _unpickle(path, pickles[4], _no_storage):
        elements = int.from_bytes(file.read(8), "little")
        extent = Extent(file.tell(), elements * itemsizes[key])
        if sum(extent) > _size(file):
            raise InputError(f"{path} is truncated: its storage {key!r} ends outside the file")
        storages[key] = extent
        file.seek(sum(extent))
    return _Container("torch-legacy", pickles[3], storages)


def _no_storage(key: str) -> UntypedStorage:
    raise ValueError(f"storage {key!r} is asked for where none can be")


def _next_pickle(file: IO[bytes]) -> bytes:
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    return _read(file, Extent(start, file.tell() - start))


def _read(file: IO[bytes], extent: Extent | None) -> bytes:
    if extent is None:
        return b""
    file.seek(extent.start)
    return file.read(extent.nbytes)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


# --- the restricted unpickler ---------------------------------------------------------------


class _Unpickler(restricted.Unpickler):
    """torch's, which fills no mapping but its own: here also those that the user has allowed."""

    def _check_set_item_target(self, opcode: str) -> None:
        if type(self.stack[-1]) not in restricted._get_user_allowed_globals().values():
            super()._check_set_item_target(opcode)


def _unpickle(
    path: Path,
    pickle: bytes,
    storage_of: Callable[[str], UntypedStorage],
    itemsizes: dict[str, int] | None = None,
) -> Any:
    """The object that `pickle` describes, its storages taken from `storage_of(key)`.

    `itemsizes`, if given, receives the bytes per element of each storage, by key.
    """

    def persistent_load(saved_id: tuple[Any, ...]) -> TypedStorage:
        kind, storage_type, key, _location, _elements, *view = saved_id
        if kind not in ("storage", b"storage"):
            raise ValueError(f"unknown persistent id {kind!r}")
        dtype = torch.uint8 if storage_type is UntypedStorage else storage_type.dtype
        storage = storage_of(key)
        if itemsizes is not None:
            itemsizes[key] = dtype.itemsize
        elif view and view[0] is not None:
            _, offset, elements = view[0]
            storage = storage[offset * dtype.itemsize : (offset + elements) * dtype.itemsize]
        return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    unpickler: Any = _Unpickler(io.BytesIO(pickle), encoding="utf-8")
    unpickler.persistent_load = persistent_load
    try:
        return unpickler.load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        if unread := _why_unread(pickle, error):
            raise InputError(
                f"{path} {unread}, which torch's restricted unpickler does not read; --unsafe-load "
                "does, if you trust where the file comes from"
            ) from error
        if wanted := _unsafe_globals(pickle) or _unsafe_class(error):
            raise UnsafePickleError(_unsafe_message(path, wanted), wanted) from error
        if absent := _absent_globals():
            raise InputError(
                f"{path} cannot be read without {', '.join(absent)}, which cannot be imported here; "
                f"install what defines it ({type(error).__name__}: {_first_line(error)})"
            ) from error
        raise


def _why_unread(pickle: bytes, error: Exception) -> str | None:
    """What the restricted unpickler lacks for `pickle`, whatever is allowed."""
    protocol = pickle[1] if pickle.startswith(b"\x80") else 0
    if protocol > _NEWEST_PROTOCOL:
        return f"was saved with pickle_protocol={protocol} instead of torch's own"
    if "Only persistent_load of storage" in str(error):
        return "holds a whole module in the legacy format"
    filled = re.search(r"Can only (?:append|extend|SETITEM).* but got <class '([\w.]+)", str(error))
    return f"holds a {filled[1]} with entries" if filled else None


def _unsafe_message(path: Path, wanted: Sequence[str]) -> str:
    flags = " ".join(f"--allow-global {name}" for name in wanted)
    return (
        f"{path} asks for {len(wanted)} global(s) that are not allowed: {', '.join(wanted)}\n"
        f"to let exactly these through: {flags}\n"
        "to load it whatever it does, if you trust where it comes from: --unsafe-load"
    )


def _unsafe_globals(pickle: bytes) -> list[str]:
    """The globals that `pickle` names and that are not allowed, sorted; it is not run."""
    allowed = {*restricted._get_allowed_globals(), *restricted._get_user_allowed_globals()}
    found: set[str] = set()
    strings: list[str] = []
    with contextlib.suppress(Exception):  # a corrupt pickle: those up to the fault are named
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL":
                found.add(_python3_name(*str(argument).split(" ", 1)))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return sorted(found - allowed)


def _unsafe_class(error: Exception) -> list[str]:
    """The class that an allowed function made and the unpickler would not fill."""
    named = re.search(r"Can only (?:build|create).* but got <class '([\w.]+)'", str(error))
    return [named[1]] if named else []


def _python3_name(module: str, name: str) -> str:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


# --- what is allowed ------------------------------------------------------------------------


def _import_globals(names: Sequence[str]) -> list[Any]:
    """What `names` lead to, with the names; where that is not here, something in its place."""
    malformed = [name for name in names if not re.fullmatch(r"\w+(\.\w+)+", name)]
    if malformed:
        raise UsageError(f"--allow-global {malformed[0]}: that is no name; write module.Name")
    found = {part: thing for name in names for part, thing in _find_global(name).items()}
    return [(thing, name) for name, thing in found.items()]


def _find_global(name: str) -> dict[str, Any]:
    if name != "numpy.dtype":
        return {name: _import(name)}
    import numpy as np  # each kind of dtype is of a class of its own

    kinds = {f"numpy.dtypes.{kind}": getattr(np.dtypes, kind) for kind in np.dtypes.__all__}
    return {name: np.dtype, **kinds}


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        told = f"{attribute}, which cannot be imported here"
        return _OfStandIns(told, (_StandIn,), {"__module__": module})
    except Exception as error:  # the module runs: it can raise anything
        raise UsageError(
            f"--allow-global {name}: importing it failed: {type(error).__name__}: {error}"
        ) from error


def _absent_globals() -> list[str]:
    """Those of the user's that have a stand-in."""
    allowed = restricted._get_user_allowed_globals()
    return sorted(name for name, thing in allowed.items() if isinstance(thing, _OfStandIns))


_HOLDING_VALUES = (torch.Tensor, TypedStorage, UntypedStorage)


class _OfStandIns(type):
    """Their attributes, such as a class within the class, are not here either."""

    def __getattr__(cls, name: str) -> "_OfStandIns":
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _StandIn(metaclass=_OfStandIns):
    """In place of an object whose class is not here: nothing of it is kept, and nothing is run."""

    def __new__(cls, *parts: object) -> Self:
        cls._refuse_tensors(parts)
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self._refuse_tensors(state)

    def __setitem__(self, key: object, value: object) -> None:
        self._refuse_tensors((key, value))

    @classmethod
    def _refuse_tensors(cls, parts: object) -> None:
        """What is lost without a word must not be what somebody wants pruned."""
        if any(isinstance(part, _HOLDING_VALUES) for part in _walk(parts)):
            raise InputError(
                f"there are tensors in a {cls.__module__}.{cls.__name__}; install what defines it, or name its "
                "folder: PYTHONPATH=. prune-cli ..."
            )


def _walk(value: object) -> Iterator[object]:
    """`value` and all that it holds."""
    waiting, seen = [value], set()
    for part in waiting:  # grows while it is walked
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        elif not isinstance(part, type):
            waiting += getattr(part, "__dict__", {}).values()
