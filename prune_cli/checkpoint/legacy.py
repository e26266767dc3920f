"""The format of torch.save before 1.6: five pickles, and then the storages one after the other.

The pickles are a magic number, a version, the system, the object, and the keys of the storages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from prune_cli.checkpoint.pickled import CorruptPickleError, Octets, RefusedPickleError
from prune_cli.checkpoint.pickles import Program, run_pickle
from prune_cli.checkpoint.torch_names import Storage, StorageType
from prune_cli.stores.ranges import Extent, StoreBytes

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number; the protocol of the pickle precedes it, and from 4 on a frame."""

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass
class _Storages:
    """The storages that a pickle names, before it is known where they are.

    torch keeps views and the storages that they are of under keys of one kind, and takes each as it
    was first named; what would be another one by then is refused.
    """

    by_key: dict[str, Storage] = field(default_factory=dict)
    views: dict[str, "_View"] = field(default_factory=dict)

    def find(self, saved: object) -> object:
        """Return what a persistent id means."""
        match saved:
            case ("module", made, _, _):
                return made
            case ("storage", StorageType() as kind, str(key), _, int(elements), view):
                root = self._root(key, _storage(kind, elements))
                return self._view(root, kind, view) if view is not None else root
            case ("storage", StorageType() as kind, str(key), _, int(elements)):
                return self._root(key, _storage(kind, elements))
        raise CorruptPickleError("it refers to an unknown kind of object")

    def _root(self, key: str, named: Storage) -> Storage:
        first = self.by_key.setdefault(key, named)
        is_same = first.nbytes == named.nbytes and (first.dtype == named.dtype or not named.nbytes)
        if key in self.views or not is_same:
            raise CorruptPickleError(f"its storage {key[:40]!r} is said to be two")
        return first if first.dtype == named.dtype else named

    def _view(self, root: Storage, kind: StorageType, view: object) -> Storage:
        match view:
            case (str(key), int(offset), int(elements)) if offset >= 0:
                start = offset * _itemsize(kind)
                named = _View(_storage(kind, elements), root, start)
            case _:
                raise CorruptPickleError("a view of a storage is none")
        if start + named.part.nbytes > root.nbytes:
            raise CorruptPickleError("a view reaches out of its storage")
        first = self.views.setdefault(key, named)
        if key in self.by_key or first != named or first.root is not root:
            raise CorruptPickleError(f"its storage {key[:40]!r} is said to be two")
        return first.part


@dataclass(frozen=True)
class _View:
    """A storage that is `part` of `root`, from byte `start` of it."""

    part: Storage
    root: Storage
    start: int


def _storage(kind: StorageType, elements: int) -> Storage:
    if not 0 <= elements < 1 << 62:
        raise CorruptPickleError("a storage has a size below 0")
    return Storage(kind.dtype, -1, elements * _itemsize(kind))


def _itemsize(kind: StorageType) -> int:
    return kind.dtype.itemsize if kind.dtype else 1


def read_legacy(program: Program, table: Mapping[tuple[str, str], object]) -> Any:
    """Return the object in a file of the legacy format; its storages know where they lie.

    Raises:
        CorruptPickleError: it is truncated or none.
        RefusedPickleError: it was written on a big-endian machine.
    """
    values, at = [], program.start
    for _ in range(3):
        value, at = run_pickle(_from(program, at), {})
        values.append(value)
    match values:
        case [int(magic), int(version), dict(system)]:
            if (magic, version) != (_MAGIC, _VERSION):
                raise CorruptPickleError("it has the wrong magic number or version")
        case _:
            raise CorruptPickleError("it does not begin as the legacy format does")
    if not system.get("little_endian", True):
        raise RefusedPickleError("was written on a big-endian machine; save it again on this one")
    storages = _Storages()
    value, at = run_pickle(_from(program, at), table, storages.find)
    keys, at = run_pickle(_from(program, at), {})
    _locate(program, at, keys, storages)
    return value


def _from(program: Program, at: int) -> Program:
    return Program(program.buffer, at, program.stop, program.base)


def _locate(program: Program, at: int, keys: object, storages: _Storages) -> None:
    """Fill in where each storage begins: the sizes of those before it say so."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise CorruptPickleError("its list of storages is none")
    _look_ahead(program, at, [storages.by_key[key] for key in keys if key in storages.by_key])
    for key in keys:
        storage = storages.by_key.get(key)
        if storage is None or storage.start >= 0:
            raise CorruptPickleError("it holds a storage twice, or one that nothing refers to")
        count = int.from_bytes(program.buffer[at : at + 8], "little")
        itemsize = storage.dtype.itemsize if storage.dtype else 1
        if count * itemsize != storage.nbytes or at + 8 + storage.nbytes > program.stop:
            raise CorruptPickleError(f"its storage {key[:40]!r} ends outside the file")
        storage.start = program.base + at + 8
        at += 8 + storage.nbytes
    if any(storage.start < 0 for storage in storages.by_key.values()):
        raise CorruptPickleError("it refers to a storage that it does not hold")
    for view in storages.views.values():
        view.part.start = view.root.start + view.start


def _look_ahead(program: Program, at: int, storages: Sequence[Storage]) -> None:
    """Have the counts before all storages read at once, where that is a way to a store each."""
    if isinstance(program.buffer, StoreBytes):
        starts = accumulate((8 + storage.nbytes for storage in storages), initial=at)
        program.buffer.ask_ahead([Extent(start, start + 8) for start in starts])


def bytes_as_legacy(
    program: Program, content: object, table: Mapping[tuple[str, str], object]
) -> object:
    """Return what the legacy file holds that a plain pickle has in place of a storage."""
    if not isinstance(content, Octets) or content.is_latin1:
        raise RefusedPickleError(
            "holds tensors as text, as pickle.dump with a protocol before 3 does; save it with "
            "torch.save"
        )
    start = content.at - program.base
    inner = Program(program.buffer, start, start + content.nbytes, program.base)
    return read_legacy(inner, table)
