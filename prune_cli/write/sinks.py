"""Where the bytes of an output file go: to a file in any order, to a stream, or into a checksum.

See also: `atomic`, files that appear whole; `stream`, which fills them.
"""

import errno
import os
import zlib
from pathlib import Path
from typing import Protocol

from prune_cli.checkpoint.source import FileSource, Source
from prune_cli.write.paths import output_errors

_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_WRITE_BYTES = 128 << 10
"""What the kernel gets at once, from one multiple of it in the file to the next, which it then holds
in one piece of memory. For more it looks for larger pieces: those are what a virtual machine gave
back to its host, and to have them again takes ten times as long as the copy."""

_ZEROS = bytes(1 << 20)


class Sink(Protocol):
    """Takes the bytes of one output file, each at its place."""

    @property
    def seekable(self) -> bool:
        """Whether bytes may come in any order and from any thread."""

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put `data` at byte `at`."""

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Put `nbytes` of `source`, from its byte `start`, at byte `at`."""

    def zero(self, nbytes: int, at: int) -> None:
        """Put `nbytes` zeros at byte `at`."""


def write_zeros(sink: Sink, nbytes: int, at: int) -> None:
    """Write `nbytes` zeros to `sink` from byte `at`, a piece at a time."""
    for start in range(0, nbytes, len(_ZEROS)):
        sink.write(_ZEROS[: min(nbytes - start, len(_ZEROS))], at + start)


def write_pieces(sink: Sink, source: Source, start: int, nbytes: int, at: int) -> None:
    """Write `nbytes` of `source`, from its byte `start`, to `sink` from byte `at`."""
    for piece in source.pieces(start, nbytes):
        sink.write(piece, at)
        at += len(piece)


class FileSink:
    """A Sink over a regular file that has its full size already, all of it zero."""

    seekable = True

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put `data` at byte `at`."""
        rest = memoryview(data)
        with output_errors(self._path):
            while rest:
                written = os.pwrite(self._descriptor, rest[: _WRITE_BYTES - at % _WRITE_BYTES], at)
                rest, at = rest[written:], at + written

    def zero(self, nbytes: int, at: int) -> None:
        """Do nothing: what is never written is a hole in the file, and reads as zeros."""

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Let the kernel copy, which may share the blocks instead; by hand what it cannot."""
        with output_errors(self._path):
            done = self._copy_in_kernel(source, start, nbytes, at)
        for piece in source.pieces(start + done, nbytes - done):
            self.write(piece, at + done)
            done += len(piece)

    def _copy_in_kernel(self, source: Source, start: int, nbytes: int, at: int) -> int:
        done = 0
        if not isinstance(source, FileSource) or not hasattr(
            os, "copy_file_range"
        ):  # it is Linux's
            return done
        while done < nbytes:
            try:
                copied = os.copy_file_range(
                    source.descriptor, self._descriptor, nbytes - done, start + done, at + done
                )
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    break
                raise
            if not copied:
                break
            done += copied
        return done


class StreamSink:
    """A Sink over a pipe, a terminal or a device: it takes bytes in order only."""

    seekable = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._position = 0

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put `data` at byte `at`, which must be where the last write ended."""
        if at != self._position:
            raise ValueError(f"a stream is at byte {self._position}, and cannot go to {at}")
        rest = memoryview(data)
        with output_errors(self._path):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self._position += len(data)

    def zero(self, nbytes: int, at: int) -> None:
        """Put `nbytes` zeros at byte `at`."""
        write_zeros(self, nbytes, at)

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Put `nbytes` of `source` there, piece by piece."""
        write_pieces(self, source, start, nbytes, at)


class ChecksumSink:
    """A Sink that keeps nothing but the CRC-32 of what it is given, in order."""

    seekable = False

    def __init__(self) -> None:
        self._sum = 0

    @property
    def digest(self) -> bytes:
        """The checksum of all that came so far, as a zip file has it."""
        return self._sum.to_bytes(4, "little")

    def write(self, data: memoryview | bytes, at: int) -> None:  # noqa: ARG002 - a Sink has it
        """Take `data`."""
        self._sum = zlib.crc32(data, self._sum)

    def zero(self, nbytes: int, at: int) -> None:
        """Take `nbytes` zeros."""
        write_zeros(self, nbytes, at)

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Take `nbytes` of `source`."""
        write_pieces(self, source, start, nbytes, at)
