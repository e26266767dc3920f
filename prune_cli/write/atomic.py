"""Files that appear whole or not at all, whatever ends the process.

See also: `sinks`, what takes their bytes; `objects`, what does the same in a store.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from prune_cli.stores import Location, StorePath
from prune_cli.stores.hub import is_on_hub
from prune_cli.write.objects import PendingObject
from prune_cli.write.paths import STDOUT, is_special, output_errors, resolve
from prune_cli.write.sinks import FileSink, StreamSink

_MODE = 0o666
"""The mode bits of a new file, less what the umask bars."""


class PendingFile:
    """A file without a name, in the folder of its own, until `commit` gives it its name.

    However the process ends, nothing is left of it. Where the file system has no such files, it has
    a temporary name until then. A path that is a device or a pipe is written to directly: it cannot
    be replaced.

    A class, because between its beginning and its two possible ends it is written by others.
    """

    sink: FileSink | StreamSink

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        self._is_regular = False
        self._temporary: Path | None = None
        self._descriptor: int | None = None

    def open(self) -> None:
        """Begin it. Not done by the constructor: a signal in the midst must still find `close`."""
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

    def set_size(self, nbytes: int) -> None:
        """Make a regular file that long, all zeros, so that it can be written in any order."""
        if self._is_regular and self._descriptor is not None:
            with output_errors(self.path):
                os.ftruncate(self._descriptor, nbytes)

    def commit(self) -> None:
        """Return the file its own name, in place of what had it before."""
        if not self._is_regular or self._descriptor is None:
            return
        with output_errors(self.path):
            if self._fsync:
                os.fsync(self._descriptor)
            self._give_name(self._descriptor)
            if self._fsync:
                sync_folder(self.path.parent)

    def _give_name(self, descriptor: int) -> None:
        if self._temporary is None:
            with contextlib.suppress(FileExistsError):
                _link(descriptor, self.path)
                return
            self._temporary = self._hidden()  # only a name can take the place of another
            _link(descriptor, self._temporary)
        self._temporary.replace(self.path)
        self._temporary = None

    def close(self) -> None:
        """Close it, and removes it unless it was committed."""
        with output_errors(self.path):
            if self._temporary:
                self._temporary.unlink(missing_ok=True)
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


def _open_nameless(folder: Path) -> int:
    """Return a new file in `folder` that has no name yet, and that `_link` can give one.

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
    """Return a file without a name its first one; Python follows links only from a src_dir_fd."""
    os.link(_path_of(descriptor), path, src_dir_fd=descriptor, follow_symlinks=True)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


@contextlib.contextmanager
def pending(path: Location, *, fsync: bool = False) -> Iterator[PendingFile | PendingObject]:
    """Yield a pending file or object that is closed, and removed unless committed, come what may.

    Args:
        path: its name, once it is committed.
        fsync: commit it to the disk too: its bytes, then its name.

    Raises:
        OutputError: it cannot be written.
    """
    file = PendingObject(path) if isinstance(path, StorePath) else PendingFile(path, fsync=fsync)
    try:
        file.open()
        yield file
    finally:
        file.close()


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk.

    Raises:
        OSError: that cannot be known.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Location, content: bytes | memoryview, *, fsync: bool = False) -> None:
    """Put `content` at `path`, whole or not at all; `fsync` as for `pending`.

    Raises:
        OutputError: it cannot be written.
    """
    if is_on_hub(path):
        from prune_cli.stores.hub_commit import write_alone

        write_alone(path, bytes(content))
        return
    with pending(path, fsync=fsync) as file:
        file.sink.write(content, 0)
        file.commit()
