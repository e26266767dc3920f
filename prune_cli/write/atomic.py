"""Where bytes go: a file that appears whole or not at all, or a stream that only goes forward.

Bytes and paths only: what they mean is `apply`'s to know.
"""

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from prune_cli.errors import InputError, OutputError

STDOUT = Path("-")
"""Means standard output, where a file is meant."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_PIECE_BYTES = 1 << 20
_WRITE_BYTES = 128 << 10
"""What the kernel gets at once, from one multiple of it in the file to the next, which it then holds
in one piece of memory. For more it looks for larger pieces: those are what a virtual machine gave
back to its host, and to have them again takes ten times as long as the copy."""

_FILL_BYTES = 16 << 20
"""What a file is filled with at once: nobody waits for longer than this takes."""

_MODE = 0o666
"""The mode bits of a new file, less what the umask bars."""


class Sink(Protocol):
    """Takes the bytes of one output file, each at its place."""

    @property
    def seekable(self) -> bool:
        """Whether bytes may come in any order and from any thread."""

    @property
    def is_sparse(self) -> bool:
        """Whether bytes that never come are zero."""

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Puts `data` at byte `at`."""

    def copy(self, source: int, start: int, nbytes: int, at: int) -> None:
        """Puts `nbytes` of the file descriptor `source`, from its byte `start`, at byte `at`."""


class FileSink:
    """A Sink over a regular file that has its full size already.

    One that `is_near` is on this machine, so that reading from it costs little.
    """

    seekable = True

    def __init__(
        self, path: Path, descriptor: int, *, is_sparse: bool = True, is_near: bool = False
    ) -> None:
        self._path, self._descriptor = path, descriptor
        self.is_sparse, self._is_near = is_sparse, is_near
        self._writing = threading.Lock()

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Puts `data` at byte `at`.

        The kernel lets threads write to a file one by one, but read from it together. So whoever has
        to wait reads what is at its place now, for which the kernel finds memory; the writing then
        needs no more. On a virtual machine, finding it can take ten times as long as the writing.
        """
        rest = memoryview(data)
        if self._is_near and self._writing.locked():
            _read_to_nowhere(self._descriptor, at, len(data))
        with output_errors(self._path), self._writing:
            while rest:
                written = os.pwrite(self._descriptor, rest[: _WRITE_BYTES - at % _WRITE_BYTES], at)
                rest, at = rest[written:], at + written

    def copy(self, source: int, start: int, nbytes: int, at: int) -> None:
        """Lets the kernel copy, which may share the blocks instead; by hand what it cannot."""
        with output_errors(self._path):
            done = self._copy_in_kernel(source, start, nbytes, at)
        for piece in read_pieces(source, start + done, nbytes - done):
            self.write(piece, at + done)
            done += len(piece)

    def _copy_in_kernel(self, source: int, start: int, nbytes: int, at: int) -> int:
        done = 0
        if not hasattr(os, "copy_file_range"):  # it is Linux's
            return done
        while done < nbytes:
            try:
                copied = os.copy_file_range(
                    source, self._descriptor, nbytes - done, start + done, at + done
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
    is_sparse = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._position = 0

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Puts `data` at byte `at`, which must be where the last write ended."""
        if at != self._position:
            raise ValueError(f"a stream is at byte {self._position}, and cannot go to {at}")
        rest = memoryview(data)
        with output_errors(self._path):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self._position += len(data)

    def copy(self, source: int, start: int, nbytes: int, at: int) -> None:
        """Puts `nbytes` of `source` there, piece by piece."""
        for piece in read_pieces(source, start, nbytes):
            self.write(piece, at)
            at += len(piece)


def read_pieces(source: int, start: int, nbytes: int) -> Iterator[memoryview]:
    """`nbytes` of the file descriptor `source` from byte `start`, in pieces of at most 1 MiB.

    A piece is good until the next one is asked for.

    Raises:
        InputError: the file ended before.
    """
    buffer = memoryview(bytearray(min(nbytes, _PIECE_BYTES)))
    while nbytes:
        piece = buffer[: min(nbytes, len(buffer))]
        read_exactly(source, piece, start)
        yield piece
        start, nbytes = start + len(piece), nbytes - len(piece)


def read_exactly(source: int, buffer: memoryview, start: int) -> None:
    """Fills `buffer` with what the file descriptor `source` has from byte `start`.

    Raises:
        InputError: that cannot be read, or the file ends before.
    """
    while buffer:
        try:
            count = os.preadv(source, [buffer], start)
        except OSError as error:
            raise InputError(f"the input cannot be read: {error.strerror}") from error
        if not count:
            raise InputError(f"the input ended at byte {start:,}: it changed while it was read")
        buffer, start = buffer[count:], start + count


def _read_to_nowhere(source: int, start: int, nbytes: int) -> None:
    """Has the kernel read, and copies nothing; where it cannot do that, nothing is lost."""
    with contextlib.suppress(OSError), Path(os.devnull).open("wb", 0) as nowhere:
        os.sendfile(nowhere.fileno(), source, start, nbytes)


# --- files that appear whole -----------------------------------------------------------------


class PendingFile:
    """A file without a name, in the folder of its own, until `commit` gives it its name.

    However the process ends, nothing is left of it. Where the file system has no such files, it has
    a temporary name until then. A path that is a device or a pipe is written to directly: it cannot
    be replaced.

    A class, because between its beginning and its two possible ends it is written by others.
    """

    sink: FileSink | StreamSink

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_regular = False
        self._temporary: Path | None = None
        self._descriptor: int | None = None
        self._filling: _Filling | None = None

    def open(self) -> None:
        """Begins it. Not done by the constructor: a signal in the midst must still find `close`."""
        with output_errors(self.path):
            self._descriptor = self._open()
        kind = FileSink if self._is_regular else StreamSink
        self.sink = kind(self.path, self._descriptor)

    def _open(self) -> int:
        if self.path == STDOUT:
            return os.dup(1)  # of the process, whatever sys.stdout is
        if is_special(self.path):
            return os.open(self.path, os.O_WRONLY)
        self._is_regular = True
        self.path = resolve(self.path)  # a link stays one, and what it leads to is replaced
        with contextlib.suppress(OSError):
            return _open_nameless(self.path.parent)
        self._temporary = self._hidden()
        return os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)

    def _hidden(self) -> Path:
        return self.path.with_name(f".prune-cli-{secrets.token_hex(6)}.tmp")

    def fill(self, source: Path) -> None:
        """Begins to fill a file without a name with `source`, until `set_size`.

        What is in it then is to be written over; but the kernel has found memory and blocks for it,
        which takes as long as the writing. A file system without such files may be far away, where
        writing twice costs more than it saves.
        """
        if self._is_regular and self._temporary is None and self._descriptor is not None:
            self._filling = _Filling(source, self._descriptor)
            self._filling.start()

    def set_size(self, nbytes: int) -> None:
        """Makes a regular file that long, so that it can be written in any order."""
        is_filled = self._stop_filling()
        if self._is_regular and self._descriptor is not None:
            with output_errors(self.path):
                if not is_filled:  # where there is no room for the input there may be for zeros
                    os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, nbytes)
            is_near = self._temporary is None  # see `fill`
            self.sink = FileSink(
                self.path, self._descriptor, is_sparse=not is_filled, is_near=is_near
            )

    def _stop_filling(self) -> bool:
        """Whether there is anything in the file."""
        return self._filling is not None and self._filling.stop()

    def commit(self) -> None:
        """Gives the file its own name, in place of what had it before."""
        if not self._is_regular or self._descriptor is None:
            return
        with output_errors(self.path):
            if self._temporary is None:
                with contextlib.suppress(FileExistsError):
                    _link(self._descriptor, self.path)
                    return
                self._temporary = self._hidden()  # only a name can take the place of another
                _link(self._descriptor, self._temporary)
            self._temporary.replace(self.path)
        self._temporary = None

    def close(self) -> None:
        """Closes it, and removes it unless it was committed."""
        self._stop_filling()
        with output_errors(self.path):
            if self._temporary:
                self._temporary.unlink(missing_ok=True)
            if self._descriptor is not None:
                os.close(self._descriptor)


class _Filling:
    """A thread in which the kernel copies a file to another, from where that one stands."""

    def __init__(self, source: Path, target: int) -> None:
        self._source, self._target = source, target
        self._stopped = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._copy)

    def start(self) -> None:
        """Begins. Not done by the constructor: a signal in the midst must still find `stop`."""
        try:
            self._thread.start()
        except RuntimeError:  # the process may have no more threads
            self._failed = True

    def _copy(self) -> None:
        # Not by copy_file_range, which may share the blocks instead of finding new ones.
        try:
            with self._source.open("rb") as source:
                while not self._stopped.is_set():
                    if not os.sendfile(self._target, source.fileno(), None, _FILL_BYTES):
                        return
        except OSError:
            self._failed = True

    def stop(self) -> bool:
        """Ends it, at the end of the piece that it is at, and tells whether all went well."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        return not self._failed


def _open_nameless(folder: Path) -> int:
    """A new file in `folder` that has no name yet, and that `_link` can give one.

    Raises:
        OSError: the system has none, or not there.
    """
    if not hasattr(os, "O_TMPFILE"):  # it is Linux's
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, _MODE)
    if not _path_of(descriptor).exists():  # /proc is not mounted
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc")
    return descriptor


def _link(descriptor: int, path: Path) -> None:
    """Gives a file without a name its first one; Python follows links only from a src_dir_fd."""
    os.link(_path_of(descriptor), path, src_dir_fd=descriptor, follow_symlinks=True)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


@contextlib.contextmanager
def pending(path: Path) -> Iterator[PendingFile]:
    """A PendingFile that is closed, and removed unless committed, whatever happens.

    Raises:
        OutputError: it cannot be written.
    """
    file = PendingFile(path)
    try:
        file.open()
        yield file
    finally:
        file.close()


def write_file(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with pending(path) as file:
        file.sink.write(content, 0)
        file.commit()


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into an OutputError that names `path`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputError(f"{_shown(path)} was closed before everything was written") from error
    except OSError as error:
        raise OutputError(f"{_shown(path)} cannot be written: {error.strerror or error}") from error


def check_can_write(paths: Iterable[Path], inputs: Iterable[Path], *, force: bool) -> None:
    """Refuses outputs that are inputs, that exist (unless `force`), or that have no folder.

    Raises:
        OutputError: any of these; all are named at once.
    """
    paths, inputs, problems = list(paths), list(inputs), []
    for number, path in enumerate(paths):
        with output_errors(path):
            problems += list(_problems(path, inputs, force))
            if path != STDOUT and resolve(path) in map(resolve, paths[:number]):
                problems.append(f"{path} cannot be two outputs at once; choose another --report")
    if problems:
        raise OutputError("\n".join(problems))


def resolve(path: Path) -> Path:
    """`path` without links, whether it is there or not.

    Raises:
        OSError: the links lead around in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:  # what Python 3.11 and 3.12 raise
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def is_special(path: Path) -> bool:
    """Whether `path` is there and is a device, a pipe or a socket."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _problems(path: Path, inputs: list[Path], force: bool) -> Iterator[str]:
    if path == STDOUT or is_special(path):
        return
    if any(_is_same(path, other) for other in inputs):
        yield f"{path} is read, so it is never written; name another output"
    elif path.is_dir():
        yield f"{path} is a folder; name a file in it"
    elif path.exists() and not force:
        yield f"{path} exists; --force replaces it"
    if not path.parent.is_dir():
        fact = "is a file" if path.parent.exists() else "does not exist"
        yield f"{path} has no folder to be in: {path.parent} {fact}"
    elif not os.access(resolve(path).parent, os.W_OK | os.X_OK):
        yield f"{path} cannot be written: {path.parent} allows no new files"


def _is_same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.samefile(other)
    return False


def _shown(path: Path) -> str:
    return "stdout" if path == STDOUT else str(path)
