"""Where the bytes of an input file come from: a file descriptor, or ranges of an object in a store.

See also: `write.sinks`, where bytes go.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

from prune_cli.errors import InputError
from prune_cli.stores import Location, StorePath
from prune_cli.stores.ranges import Extent, fetch

_PIECE_BYTES = 1 << 20
_FETCHED_BYTES = 32 << 20
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

    def ahead(self, extents: Sequence[Extent]) -> "Source":
        """Return a source of `extents` alone, for they will be wanted now; what is not read is 0."""

    def close(self) -> None:
        """End it."""


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

    def ahead(self, extents: Sequence[Extent]) -> "FileSource":  # noqa: ARG002 - a Source has it
        """Return itself: the kernel reads ahead."""
        return self

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class StoreSource:
    """A Source over an object in a store; a change since it was opened is an error."""

    def __init__(self, path: StorePath) -> None:
        self.path = path

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start`."""
        buffer[:] = fetch(self.path, [Extent(start, start + len(buffer))])[0]

    def pieces(self, start: int, nbytes: int) -> Iterator[bytes]:
        """Yield `nbytes` bytes from `start`, as many at a time as are fetched side by side."""
        for at in range(start, start + nbytes, _FETCHED_BYTES):
            yield fetch(self.path, [Extent(at, min(at + _FETCHED_BYTES, start + nbytes))])[0]

    def ahead(self, extents: Sequence[Extent]) -> "_Fetched":
        """Fetch `extents`, which are in order, side by side."""
        return _Fetched(extents, fetch(self.path, extents))

    def close(self) -> None:
        """Hold the object against what it was when it was opened.

        Raises:
            InputError: it is another one now, so what was read may be of both.
        """
        if self.path.store.ask(self.path.key) != self.path.fact:
            raise InputError(f"{self.path} changed while it was read; start again")


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

    def ahead(self, extents: Sequence[Extent]) -> "_Fetched":  # noqa: ARG002 - a Source has it
        """Return itself."""
        return self

    def close(self) -> None:
        """Do nothing: it holds no file."""


@contextlib.contextmanager
def open_source(path: Location) -> Iterator[Source]:
    """Yield the Source of the file or object at `path`.

    Raises:
        InputError: it cannot be read, or changed meanwhile.
    """
    if isinstance(path, StorePath):
        source = StoreSource(path)
        yield source
        source.close()
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        yield FileSource(descriptor)
    finally:
        os.close(descriptor)


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
    """Return when the file at `path` last changed, in nanoseconds; of a store that is never known.

    Raises:
        OSError: it is not there any more.
    """
    if isinstance(path, StorePath):
        return float("inf")
    return path.stat().st_mtime_ns
