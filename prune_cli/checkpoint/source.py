"""Where the bytes of an input file come from: a file descriptor, or ranges of an object in a store.

See also: `write.sinks`, where bytes go.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from prune_cli.checkpoint.liveness import Watch
from prune_cli.errors import InputError
from prune_cli.stores import Location, StorePath
from prune_cli.stores.ranges import Extent, fetch

_PIECE_BYTES = 1 << 20
_FETCHED_BYTES = 16 << 20
"""What is asked of a store at once: some requests side by side, and memory for each thread."""


class Source(Protocol):
    """The bytes of one input file, each at its place."""

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start`.

        Raises:
            InputError: they cannot be read, or there are fewer.
        """

    def pieces(self, start: int, nbytes: int) -> Iterator[memoryview | bytes]:
        """Yield `nbytes` bytes from `start` in pieces; each is good until the next is asked for.

        Raises:
            InputError: they cannot be read, or there are fewer.
        """

    def ahead(self, extents: Iterable[Extent]) -> "Source":
        """Return a source of `extents` alone, for they will be wanted now; what is not read is 0."""


class FileSource:
    """A Source over a file of this machine, whose descriptor the kernel can copy from."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start`."""
        while buffer:
            try:
                count = os.preadv(self.descriptor, [buffer], start)
            except OSError as error:
                raise InputError(f"the input cannot be read: {error.strerror}") from error
            if not count:
                raise InputError(f"the input ended at byte {start:,}: it changed while it was read")
            buffer, start = buffer[count:], start + count

    def pieces(self, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield `nbytes` bytes from `start`, at most 1 MiB at a time."""
        buffer = memoryview(bytearray(min(nbytes, _PIECE_BYTES)))
        while nbytes:
            piece = buffer[: min(nbytes, len(buffer))]
            self.read_into(piece, start)
            yield piece
            start, nbytes = start + len(piece), nbytes - len(piece)

    def ahead(self, extents: Iterable[Extent]) -> "FileSource":  # noqa: ARG002 - a Source has it
        """Return itself: the kernel reads ahead."""
        return self

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class StoreSource:
    """A Source over an object in a store; a change since it was opened is an error."""

    def __init__(self, path: StorePath, watch: Watch | None = None) -> None:
        self.path, self._watch = path, watch

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start`."""
        buffer[:] = self._fetch([Extent(start, start + len(buffer))])[0]

    def pieces(self, start: int, nbytes: int) -> Iterator[bytes]:
        """Yield `nbytes` bytes from `start`, as many at a time as are fetched side by side."""
        for at in range(start, start + nbytes, _FETCHED_BYTES):
            yield self._fetch([Extent(at, min(at + _FETCHED_BYTES, start + nbytes))])[0]

    def ahead(self, extents: Iterable[Extent]) -> "_Fetched":
        """Fetch `extents`, which are in order, side by side."""
        wanted = _joined(extents)
        return _Fetched(wanted, self._fetch(wanted))

    def _fetch(self, extents: Sequence[Extent]) -> list[bytes]:
        found = fetch(self.path, extents)
        if self._watch:
            for extent, content in zip(extents, found, strict=True):
                self._watch.see(extent.start, content)
        return found

    def check(self) -> None:
        """Check what was assumed of the object: that it stays as it is, and that its rows are live.

        Raises:
            InputError: it is another one now, so what was read may be of both.
            DeadRowError: a row is dead that the plan took as live.
        """
        if self._watch:
            self._watch.settle(self.path)
        if self.path.store.ask(self.path.key) != self.path.fact:
            raise InputError(f"{self.path} changed while it was read; start again")


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Return `extents` in fewer: one where several follow each other without a gap."""
    found: list[Extent] = []
    for one in extents:
        if found and found[-1].stop == one.start:
            found[-1] = Extent(found[-1].start, one.stop)
        else:
            found.append(one)
    return found


class _Fetched:
    """A Source of what was fetched; between that all is zero."""

    def __init__(self, extents: Sequence[Extent], contents: Sequence[bytes]) -> None:
        self._starts = [extent.start for extent in extents]
        self._contents = contents

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with what is at hand of the bytes from `start`, and zeros."""
        stop = start + len(buffer)
        buffer[:] = bytes(len(buffer))
        number = max(bisect_right(self._starts, start) - 1, 0)
        for at, content in zip(self._starts[number:], self._contents[number:], strict=True):
            if at >= stop:
                break
            low, high = max(at, start), min(at + len(content), stop)
            if low < high:
                buffer[low - start : high - start] = content[low - at : high - at]

    def pieces(self, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield `nbytes` bytes from `start`."""
        piece = memoryview(bytearray(nbytes))
        self.read_into(piece, start)
        yield piece

    def ahead(self, extents: Iterable[Extent]) -> "_Fetched":  # noqa: ARG002 - a Source has it
        """Return itself."""
        return self


@contextlib.contextmanager
def open_source(path: Location, watch: Watch | None = None) -> Iterator[Source]:
    """Yield the Source of the file or object at `path`, of which `watch` sees what is read.

    Raises:
        InputError: it cannot be read, or changed meanwhile.
        DeadRowError: a row is dead that the plan took as live.
    """
    if isinstance(path, StorePath):
        source = StoreSource(path, watch)
        yield source
        source.check()
        return
    try:
        file = FileSource(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with contextlib.closing(file):
        yield file


def is_same_content(one: Location, other: Location) -> bool:
    """Return whether two files hold the same bytes.

    Raises:
        InputError: one of them cannot be read.
    """
    nbytes = one.stat().st_size
    if nbytes != other.stat().st_size:
        return False
    with open_source(one) as first, open_source(other) as second:
        for start in range(0, nbytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, nbytes - start)
            some = [b"".join(map(bytes, source.pieces(start, size))) for source in (first, second)]
            if some[0] != some[1]:
                return False
    return True


def identity_of(path: Location) -> str:
    """Return what changes when the file at `path` does: its size, and its time or version.

    Raises:
        OSError: it is not there any more.
    """
    if isinstance(path, StorePath):
        return f"{path.stat().st_size}:{path.fact.version if path.fact else ''}"
    facts = path.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def changed_at(path: Location) -> float:
    """Return when the file at `path` last changed, in nanoseconds; infinity if nobody knows.

    Raises:
        OSError: it is not there any more.
    """
    if isinstance(path, StorePath):
        return path.store.changed_at(path.key) * 1e9
    return path.stat().st_mtime_ns
