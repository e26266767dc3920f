"""Temporary files without a name: for what arrives in a pipe, and for bytes that are packed."""

import codecs
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from prune_cli.checkpoint.contents import Shard
from prune_cli.checkpoint.pickled import CorruptPickleError, Octets
from prune_cli.errors import OutputError

_PIECE_BYTES = 1 << 20
_MOST_BYTES_PER_BYTE = 64
"""Packed bytes are twice as long as they mean; a pickle may still name the same ones many times."""


def spool_stream(stream: IO[bytes], name: str) -> Shard:
    """Return a Shard without tensors that holds what is left of `stream`.

    Raises:
        OutputError: the temporary folder has no room for it.
    """
    try:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            return _shard(file, name)
    except OSError as error:
        raise _no_room(name, error) from error


def _no_room(name: str, error: OSError) -> OutputError:
    return OutputError(
        f"{name} could not be copied to {tempfile.gettempdir()} ({error.strerror}); "
        "set TMPDIR to a folder with room"
    )


def _shard(file: IO[bytes], name: str) -> Shard:
    file.flush()
    nbytes = file.seek(0, os.SEEK_END)
    owner = _Descriptor(os.dup(file.fileno()))
    return Shard(name, Path(f"/dev/fd/{owner.number}"), nbytes, (), owner=owner)


class _Descriptor:
    """A file descriptor that lives as long as somebody holds this: the Shards of its file do."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Spool:
    """The bytes of arrays that a file holds as text, unpacked into a temporary file.

    Whoever makes one closes it; the Shard that `parts` returns keeps the file open for itself.
    """

    def __init__(self, source: Shard) -> None:
        self._source = source
        self._file: IO[bytes] | None = None
        self._starts: dict[object, int] = {}

    def close(self) -> None:
        """Close the temporary file, if there is one."""
        if self._file:
            self._file.close()

    def put(self, content: object, nbytes: int) -> int:
        """Return where the `nbytes` bytes that `content` means begin; the same ones once.

        Raises:
            CorruptPickleError: it means another number of bytes.
            OutputError: the temporary folder has no room for them.
        """
        if isinstance(content, str):  # a string of Python 2
            content = content.encode("utf-8", "surrogatepass")
        if not isinstance(content, bytes | Octets):
            raise CorruptPickleError("an array has no bytes")
        if content in self._starts:
            return self._starts[content]
        try:
            start = self._append(content)
            stop = self._file.tell() if self._file else 0
        except OSError as error:
            raise _no_room(self._source.name, error) from error
        if stop - start != nbytes:
            raise CorruptPickleError("an array has another size than its shape says")
        self._starts[content] = start
        return start

    def _append(self, content: bytes | Octets) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, `close` closes it
        start = self._file.tell()
        if start > _MOST_BYTES_PER_BYTE * self._source.nbytes:
            raise CorruptPickleError("its arrays take more room than it has")
        if isinstance(content, bytes):
            self._file.write(content)
        else:
            self._decode(content, self._file)
        return start

    def _decode(self, content: Octets, file: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for at in range(content.at, content.at + content.nbytes, _PIECE_BYTES):
            stop = min(at + _PIECE_BYTES, content.at + content.nbytes)
            try:
                file.write(decoder.decode(bytes(self._source.mapped[at:stop])).encode("latin-1"))
            except UnicodeError:
                raise CorruptPickleError("the text of an array means no bytes") from None

    def parts(self) -> tuple[Shard, ...]:
        """Return the temporary file, if there is anything in it."""
        if self._file is None:
            return ()
        return (_shard(self._file, f"{self._source.name} (unpacked)"),)
