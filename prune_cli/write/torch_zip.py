"""A file of torch.save with a plain state dict, from tensors that are not in one yet.

What `torch.load(weights_only=True)` reads: a zip file with a pickle that says how each tensor is
made of a storage, and the storages. Written without torch.

Format: APPNOTE.TXT of PKWARE; torch/serialization.py; torch/_utils.py (_rebuild_tensor_v2, _v3).
See also: `in_kind`, files of torch with zeros in them.
"""

import pickle
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.errors import RequestError
from prune_cli.plan.facts import Plan
from prune_cli.write.layout import further_names, lay_out
from prune_cli.write.segments import Checksum, New, OutputTensor, Place, Segment

_ALIGNMENT = 64  # of storages, as torch has it, so that they can be mapped
_VERSION = b"3\n"

_STORAGES = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "C64": "ComplexFloat",
    "I64": "Long", "I32": "Int", "I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip
"""The typed storages that torch has; of any other dtype it stores bytes."""

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_DESCRIPTOR_64 = struct.Struct("<2Q")
_UTF8, _HAS_DESCRIPTOR = 1 << 11, 1 << 3
_DATE = 1 << 5 | 1  # 1980-01-01, the first that a zip file knows
_MANY, _LARGE = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.save.

    Attributes:
        name: of the file.
        content: its tensors; the same order as in the state dict.
        aliases: further names of a tensor -> the name it has in `content`.
    """

    name: str
    content: tuple[OutputTensor, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        """How many tensors it holds."""
        return len(self.content)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        last = self.segments[-1]
        return last.at + last.nbytes

    @property
    def head(self) -> bytes:
        """Its first bytes: the header of its pickle, and the pickle."""
        return b"".join(one.content for one in self.segments[:2] if isinstance(one, New))

    @cached_property
    def segments(self) -> Sequence[Segment]:
        """The members of the zip file one after the other, and their directory."""
        return list(_archive(self._members()))

    def _members(self) -> Iterator["_Member"]:
        names = {tensor.info.name: number for number, tensor in enumerate(self.content)}
        entries = [(tensor.info, number) for number, tensor in enumerate(self.content)]
        by_name = {tensor.info.name: tensor.info for tensor in self.content}
        entries += [(_called(by_name[of], alias), names[of]) for alias, of in self.aliases.items()]
        yield _Member("data.pkl", _state_dict(entries))
        yield _Member("byteorder", b"little")
        for number, tensor in enumerate(self.content):
            yield _Member(f"data/{number}", tensor)
        yield _Member("version", _VERSION)


def _called(info: TensorInfo, name: str) -> TensorInfo:
    return TensorInfo(name, info.dtype, info.shape)


def lay_out_torch(checkpoint: Checkpoint, plan: Plan, name: str) -> TorchFile:
    """Return the file of torch.save, called `name`, that `plan` makes of `checkpoint`.

    Raises:
        RequestError: torch has no dtype for a tensor, or the output is a smaller model.
    """
    if plan.shrink:
        raise RequestError("a smaller model is written as safetensors: -o x.safetensors")
    [file] = lay_out(checkpoint, plan, max_shard_size=sys.maxsize)
    problems = [
        f"{tensor.info.name} is {tensor.info.dtype}, which torch.save does not write"
        for tensor in file.content
        if DTYPES[tensor.info.dtype].torch is None or DTYPES[tensor.info.dtype].bits < 8
    ]
    if problems:
        raise RequestError("\n".join(problems) + "\nwrite safetensors instead")
    names = {tensor.info.name for tensor in file.content}
    return TorchFile(name, file.content, dict(further_names(checkpoint, names)))


# --- the pickle ------------------------------------------------------------------------------


def _state_dict(entries: Iterable[tuple[TensorInfo, int]]) -> bytes:
    """Return the pickle of an OrderedDict of tensors, each with the number of its storage."""
    ordered_dict = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = b"".join(_plain(info.name) + _tensor(info, key, ordered_dict) for info, key in entries)
    return pickle.PROTO + b"\2" + ordered_dict + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(info: TensorInfo, key: int, ordered_dict: bytes) -> bytes:
    """Return the opcodes that make one tensor: torch._utils._rebuild_tensor_v2, or _v3."""
    typed = _STORAGES.get(info.dtype)
    kind = _global("torch", f"{typed}Storage" if typed else "storage.UntypedStorage")
    if typed is None:
        kind = _global("torch.storage", "UntypedStorage")
    count = prod(info.shape) if typed else info.nbytes
    storage = (
        (pickle.MARK + _plain("storage") + kind + _plain(str(key)) + _plain("cpu") + _plain(count))
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    strides = tuple(prod(info.shape[dim + 1 :]) for dim in range(len(info.shape)))
    layout = _plain(0) + _plain(info.shape) + _plain(strides) + pickle.NEWFALSE + ordered_dict
    rebuild = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
    dtype = b"" if typed else _global("torch", str(DTYPES[info.dtype].torch))
    arguments = pickle.MARK + storage + layout + dtype + pickle.TUPLE
    return _global("torch._utils", rebuild) + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """Return the opcodes of a value without references: its pickle, without begin and end."""
    return pickle.dumps(value, 2)[2:-1]


# --- the zip file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A member of the archive, and its content."""

    name: str
    content: bytes | OutputTensor

    @property
    def path(self) -> bytes:
        return f"archive/{self.name}".encode()

    @property
    def nbytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.info.nbytes

    def place(self, at: int) -> Segment:
        """Return the content at byte `at`."""
        return New(at, self.content) if isinstance(self.content, bytes) else Place(at, self.content)


def _archive(members: Iterable[_Member]) -> Iterator[Segment]:
    at, entries = 0, []
    for member in members:
        header = _local_header(member, at)
        yield New(at, header)
        start = at + len(header)
        stop = start + member.nbytes
        if member.nbytes:
            yield member.place(start)
        yield New(stop, b"PK\x07\x08")
        yield Checksum(stop + 4, start, stop)
        yield New(stop + 8, _DESCRIPTOR_64.pack(member.nbytes, member.nbytes))
        entries.append((member, at, start, stop))
        at = stop + 8 + _DESCRIPTOR_64.size
    directory = at
    for member, header_at, start, stop in entries:
        before, after = _entry(member, header_at)
        yield New(at, before)
        yield Checksum(at + len(before), start, stop)
        yield New(at + len(before) + 4, after)
        at += len(before) + 4 + len(after)
    yield New(at, _end(len(entries), directory, at))


def _local_header(member: _Member, at: int) -> bytes:
    """Return what stands before a member; the padding in it aligns the content."""
    path = member.path
    wide = struct.pack("<2H2Q", 1, 16, member.nbytes, member.nbytes)
    length = _LOCAL.size + len(path) + len(wide) + 4
    padding = -(at + length) % _ALIGNMENT
    extra = wide + b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    flags = _UTF8 | _HAS_DESCRIPTOR
    fields = (b"PK\x03\x04", 45, flags, 0, 0, _DATE, 0, _LARGE, _LARGE, len(path), len(extra))
    return _LOCAL.pack(*fields) + path + extra


def _entry(member: _Member, at: int) -> tuple[bytes, bytes]:
    """Return what the directory says of a member, before its checksum and after."""
    path = member.path
    wide = struct.pack("<2H3Q", 1, 24, member.nbytes, member.nbytes, at)
    flags = _UTF8 | _HAS_DESCRIPTOR
    entry = _ENTRY.pack(
        b"PK\x01\x02", 45, 45, flags, 0, 0, _DATE, 0, _LARGE, _LARGE,
        len(path), len(wide), 0, 0, 0, 0, _LARGE,
    )  # fmt: skip
    return entry[:16], entry[20:] + path + wide


def _end(count: int, directory: int, stop: int) -> bytes:
    size = stop - directory
    wide = _END_64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, directory)
    locator = _LOCATOR_64.pack(b"PK\x06\x07", 0, stop, 1)
    few, small = min(count, _MANY), min(size, _LARGE)
    return wide + locator + _END.pack(b"PK\x05\x06", 0, 0, few, few, small, _LARGE, 0)
