"""Objects written to a store: in order, with little memory, and there only when they are whole.

An upload replaces what was at its path when it began, and nothing else: where the store takes
conditions, it refuses to commit what another run has changed since; elsewhere it is looked at last.

See also: `s3`, uploads in parts that are sent at once; `requests`, what is written by one request.
"""

import contextlib
import io
import threading
from typing import Any, Protocol

from prune_cli.errors import OutputError
from prune_cli.stores.paths import StorePath
from prune_cli.stores.requests import S3
from prune_cli.stores.store import Fact
from prune_cli.stores.traffic import note_sent

BUFFERED_BYTES = 32 << 20
"""What all uploads of a run have on its way, besides the part that each is filling."""

_FILES = ("gs", "gcs", "az", "abfs", "abfss", "adl")
_BLOCK_BYTES = 8 << 20


class Upload(Protocol):
    """One object that is being written."""

    def write(self, data: memoryview | bytes) -> None:
        """Add `data` to it."""

    def copy(self, source: StorePath, start: int, nbytes: int) -> bool:
        """Have the store itself add bytes of another object; False: it cannot, nothing is added."""

    @property
    def least_before_copy(self) -> int:
        """How many bytes more have to be written before the store can copy."""

    def commit(self) -> None:
        """Make it appear.

        Raises:
            FileExistsError: another run changed what was there.
        """

    def discard(self) -> None:
        """Leave nothing of it; to be called unless it was committed, even if it never began."""


def begin_upload(
    path: StorePath,
    before: Fact | None,
    *,
    nbytes: int = 0,
    shared_by: int = 1,
    stopped: threading.Event | None = None,
) -> Upload:
    """Return an Upload to `path`.

    Args:
        path: where it will be.
        before: what is there; None for nothing.
        nbytes: how many bytes it will have at most.
        shared_by: how many uploads there are at a time.
        stopped: when it is set, the upload no longer waits for a store that keeps silent.

    Raises:
        OutputError: prune-cli cannot write to such a store.
    """
    problem = why_not_writable(path)
    if problem:
        raise OutputError(problem)
    if path.scheme in S3:
        from prune_cli.stores.s3 import S3Upload  # and with it asyncio

        buffered = BUFFERED_BYTES // shared_by
        return S3Upload(path, before, nbytes, buffered, stopped or threading.Event())
    if path.scheme in _FILES:
        return FileUpload(path, before)
    return MemoryUpload(path, before)


def why_not_writable(path: StorePath) -> str | None:
    """Return why nothing is written to such a store, and what to do instead."""
    if path.scheme in (*S3, *_FILES, "memory"):
        return None
    return (
        f"{path} cannot be written: prune-cli writes to {', '.join((*S3, *_FILES))} and hf, which "
        "show an object only when it is whole; write to a folder, and upload that"
    )


# --- stores without parts of their own ------------------------------------------------------


class FileUpload:
    """An object of a store that fsspec writes as a file: of Google or of Azure."""

    least_before_copy = 0

    def __init__(self, path: StorePath, before: Fact | None) -> None:
        self._path, self._mode = path, "wb" if before else "xb"
        self._file: Any = None

    def write(self, data: memoryview | bytes) -> None:
        """Add `data`; what fills a block is sent."""
        self._opened().write(data)
        note_sent(len(data))

    def copy(self, source: StorePath, start: int, nbytes: int) -> bool:  # noqa: ARG002
        """Return False: it has no parts."""
        return False

    def commit(self) -> None:
        """Send the rest. Azure commits when the file is closed, Google when it is told to."""
        file = self._opened()
        file.close()
        file.commit()
        self._file = None

    def discard(self) -> None:
        """Drop it, and keep its finalizer from closing it: that would commit what there is."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):
                file.discard()
            file.closed = True

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._path.store.filesystem.open(
                self._path.place, self._mode, block_size=_BLOCK_BYTES, autocommit=False
            )
        return self._file


class MemoryUpload:
    """An object of fsspec's own memory, where a file is visible as soon as it is opened."""

    least_before_copy = 0

    def __init__(self, path: StorePath, before: Fact | None) -> None:
        self._path, self._before, self._content = path, before, io.BytesIO()

    def write(self, data: memoryview | bytes) -> None:
        """Add `data`."""
        self._content.write(data)

    def copy(self, source: StorePath, start: int, nbytes: int) -> bool:  # noqa: ARG002
        """Return False: it is here already."""
        return False

    def commit(self) -> None:
        """Put it there."""
        mode = "overwrite" if self._before else "create"
        content = self._content.getvalue()
        self._path.store.filesystem.pipe_file(self._path.place, content, mode=mode)

    def discard(self) -> None:
        """Forget it."""
        self._content = io.BytesIO()
