"""Finds the members of a zip file as torch's own reader finds them, and refuses what is ambiguous.

torch compresses code alone, so everything else lies in the file as it is. A file in which
the directory and what it points to disagree, in which members overlap or have the same name, can
be read in more than one way: it is refused.

Format: APPNOTE.TXT of PKWARE; torch's reader: caffe2/serialize/inline_container.cc.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prune_cli.errors import InputError
from prune_cli.stores.ranges import Extent

if TYPE_CHECKING:
    from prune_cli.checkpoint.contents import Mapped

ZIP_MAGIC = b"PK\x03\x04"

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 1 << 16
_BEHIND = 24  # bytes at most that can follow a member: they stand before the next header
_LONGEST_ENTRY = 256  # of torch's own, whose names are short
_UNKNOWN = 0xFFFFFFFF
_TOPS = (0xFFFF, _UNKNOWN, _UNKNOWN)
_ENCRYPTED = 0x2061  # a flag: as a whole, patched, strongly, or the directory alone
_HAS_DESCRIPTOR = 8  # a flag
_IS_FOLDER = 0x10  # an external attribute; torch leaves the memory of such a member as it was
_DESCRIPTOR = b"PK\x07\x08"
_CRC_OF_ENTRY, _CRC_OF_LOCAL = 16, 14  # where in a record
_STORED, _DEFLATED = 0, 8


class Member(NamedTuple):
    """A member of the archive: where its bytes are, and how many it means once unpacked.

    `checksums` are the places of its CRC-32 in the file: before it, behind it, in the directory.
    """

    start: int
    stop: int
    nbytes: int
    is_compressed: bool = False
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True)
class Archive:
    """The members of a zip file that lie in its first folder, by their names within it."""

    members: Mapping[str, Member]

    def stored(self, name: str) -> Member | None:
        """Return a member that has to lie in the file as it is, if it is there.

        Raises:
            CompressedMemberError: it does not.
        """
        found = self.members.get(name)
        if found and found.is_compressed:
            raise CompressedMemberError(f"{name!r} is compressed; save it with torch.save")
        return found


class CompressedMemberError(Exception):
    """A member is compressed that torch does not compress."""


def read_member(content: "Mapped", member: Member) -> bytes:
    """Return what a member means.

    Raises:
        CompressedMemberError: it is compressed, but not as its size says.
    """
    packed = bytes(content[member.start : member.stop])
    if not member.is_compressed:
        return packed
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(packed, member.nbytes + 1)
    except zlib.error as error:
        raise CompressedMemberError(f"its compressed code is damaged: {error}") from None
    if len(unpacked) != member.nbytes:
        raise CompressedMemberError("its compressed code has another size than it says")
    return unpacked


def _unpack(record: struct.Struct, content: "Mapped", at: int) -> tuple[Any, ...]:
    return record.unpack(content[at : at + record.size])


class _Entry(NamedTuple):
    """What the directory says of a member."""

    name: bytes
    flags: int
    method: int
    packed: int
    nbytes: int
    header: int
    at: int


def read_archive(content: "Mapped", path: object, *, most: int | None = None) -> Archive:
    """Return the members of the zip file that `content` is.

    Args:
        content: the file.
        path: what an error calls it.
        most: how many members it may have at the most.

    Raises:
        InputError: it is no zip file of torch's, is truncated, or is ambiguous.
    """
    try:
        start, entries = _directory(content, most)
        _look_ahead(content, entries)
        members = {entry.name: _locate(content, entry) for entry in entries}
        _refuse_overlaps(members, entries, start)
    except (_UnreadableError, struct.error) as error:
        raise InputError(
            f"{path}: it is corrupt or truncated, so copy or download it again: {error}"
        ) from None
    root = entries[0].name.partition(b"/")[0] + b"/" if entries else b""
    return Archive(
        {
            str(name[len(root) :], "utf-8", "replace"): extent
            for name, extent in members.items()
            if name.startswith(root)
        }
    )


def _look_ahead(content: "Mapped", entries: list[_Entry]) -> None:
    """Have what is around each local header read at once, where that is a way to a store each."""
    if isinstance(content, memoryview):
        return
    content.ask_ahead(
        [Extent(e.header - _BEHIND, e.header + _LOCAL.size + len(e.name)) for e in entries]
    )


class _UnreadableError(Exception):
    """Why the archive cannot be read."""


def _directory(content: "Mapped", most: int | None) -> tuple[int, list[_Entry]]:
    """Return where the directory begins, and its entries."""
    tail = max(0, len(content) - _LONGEST_COMMENT - _END.size)
    found = bytes(content[tail:]).rfind(b"PK\x05\x06")
    if found < 0:
        raise _UnreadableError("it has no zip directory")
    ends = _ends(content, tail + found)
    if most is not None and ends.nbytes > most * _LONGEST_ENTRY:
        raise _UnreadableError("it has more zip members than torch gives it")
    entries = [
        entry._replace(at=ends.start + entry.at)
        for entry in _entries(memoryview(content[ends.start : ends.start + ends.nbytes]))
    ]
    if len(entries) != ends.members:
        raise _UnreadableError(
            f"its zip directory has {len(entries):,} entries instead of {ends.members:,}"
        )
    if len({entry.name for entry in entries}) < len(entries):
        raise _UnreadableError("two of its zip members have the same name")
    return ends.start, entries


class _Ends(NamedTuple):
    """What the records at the end say of the directory."""

    members: int
    nbytes: int
    start: int


def _ends(content: "Mapped", end: int) -> _Ends:
    """Return where the directory is; torch writes it twice, for readers with 64 bits and without."""
    _, disk, first, here, count, nbytes, start, _ = _unpack(_END, content, end)
    found = _Ends(count, nbytes, start)
    at = end - _LOCATOR_64.size
    if at >= 0 and bytes(content[at : at + 4]) == b"PK\x06\x07":
        wide = _ends_64(content, at)
        if any(n not in (m, top) for n, m, top in zip(found, wide, _TOPS, strict=True)):
            raise _UnreadableError("its two zip directories differ")
        found, end = wide, at - _END_64.size
    elif here != count or disk or first:
        raise _UnreadableError("it is a part of a zip file")
    if found.start + found.nbytes > end:
        raise _UnreadableError("its zip directory is not where it says")
    return found


def _ends_64(content: "Mapped", locator: int) -> _Ends:
    _, disk, at, disks = _unpack(_LOCATOR_64, content, locator)
    if at + _END_64.size != locator or disk or disks != 1:
        raise _UnreadableError("its zip directory is not where it says")
    magic, size, _, _, disk, first, here, count, nbytes, start = _unpack(_END_64, content, at)
    if magic != b"PK\x06\x06" or size != _END_64.size - 12:
        raise _UnreadableError("its zip directory is not where it says")
    if here != count or disk or first:
        raise _UnreadableError("it is a part of a zip file")
    return _Ends(count, nbytes, start)


def _entries(directory: memoryview) -> Iterator[_Entry]:
    at = 0
    while at < len(directory):
        fields = _ENTRY.unpack_from(directory, at)
        magic, _, _, flags, method, _, _, _, packed, nbytes, name, extra, comment = fields[:13]
        if magic != b"PK\x01\x02" or fields[13]:  # the number of a disk
            raise _UnreadableError("its zip directory is damaged")
        entry, at = at, at + _ENTRY.size
        text = bytes(directory[at : at + name])
        more = bytes(directory[at + name : at + name + extra])
        nbytes, packed, header = _sizes_64(more, nbytes, packed, fields[-1])
        at += name + extra + comment
        if at > len(directory) or (fields[15] & _IS_FOLDER and nbytes):
            raise _UnreadableError("its zip directory is damaged")
        yield _Entry(text, flags, method, packed, nbytes, header, entry)


def _sizes_64(extra: bytes, *sizes: int) -> list[int]:
    """Return `sizes`, those that do not fit 32 bits out of the extra field 1."""
    if _UNKNOWN not in sizes:
        return list(sizes)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(wide, size) if size == _UNKNOWN else size for size in sizes]
        at += 4 + length
    return list(sizes)


def _locate(content: "Mapped", entry: _Entry) -> Member:
    """Return where the bytes of a member are, which its local header has to confirm."""
    name = str(entry.name[:80], "utf-8", "replace")
    if entry.flags & _ENCRYPTED or entry.method not in (_STORED, _DEFLATED):
        raise _UnreadableError(f"{name!r} is encrypted, or compressed in an unknown way")
    if entry.method == _STORED and entry.packed != entry.nbytes:
        raise _UnreadableError(f"{name!r} has two sizes")
    if entry.header + _LOCAL.size > len(content):
        raise _UnreadableError(f"{name!r} is not where the zip directory says")
    magic, _, _, method, _, _, _, packed, nbytes, name_length, extra = _unpack(
        _LOCAL, content, entry.header
    )
    at = entry.header + _LOCAL.size
    if magic != ZIP_MAGIC or content[at : at + name_length] != entry.name:
        raise _UnreadableError(f"{name!r} is not where the zip directory says")
    if method != entry.method or not all(
        here in (there, 0, _UNKNOWN)  # where the sizes follow the member, or are in an extra field
        for here, there in ((packed, entry.packed), (nbytes, entry.nbytes))
    ):
        raise _UnreadableError(f"{name!r} has another size than the zip directory says")
    start = at + name_length + extra
    stop = start + entry.packed
    checksums = (entry.at + _CRC_OF_ENTRY, *_checksums(content, entry, stop))
    return Member(start, stop, entry.nbytes, entry.method == _DEFLATED, checksums)


def _checksums(content: "Mapped", entry: _Entry, stop: int) -> Iterator[int]:
    """Yield where the CRC-32 of a member stands beside it: in its header, or behind it."""
    if not entry.flags & _HAS_DESCRIPTOR:
        yield entry.header + _CRC_OF_LOCAL
    elif content[stop : stop + len(_DESCRIPTOR)] == _DESCRIPTOR:
        yield stop + len(_DESCRIPTOR)
    else:
        yield stop


def _refuse_overlaps(
    members: Mapping[bytes, Member], entries: list[_Entry], directory: int
) -> None:
    """Raise where two members have bytes in common, or one reaches into the directory."""
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < at:
            name = str(entry.name[:80], "utf-8", "replace")
            raise _UnreadableError(f"{name!r} overlaps another zip member")
        member = members[entry.name]
        behind = (place + 4 for place in member.checksums if member.stop <= place < directory)
        at = max((member.stop, *behind))
    if at > directory:
        raise _UnreadableError("its zip members reach into the directory")
