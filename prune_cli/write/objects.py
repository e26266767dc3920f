"""Objects in a store that appear whole or not at all, whatever ends the process.

See also: `atomic`, files; `stores.uploads`, how the bytes get there.
"""

import contextlib
import threading
from collections.abc import Iterator

from prune_cli.checkpoint.source import Source, StoreSource
from prune_cli.errors import OutputError
from prune_cli.stores import StorePath
from prune_cli.stores.requests import find_now, writing
from prune_cli.stores.store import Fact
from prune_cli.stores.uploads import Upload, begin_upload
from prune_cli.write.sinks import write_pieces, write_zeros


class ObjectSink:
    """A Sink over an object of a store, which takes its bytes in order only."""

    seekable = False

    def __init__(self, path: StorePath, upload: Upload) -> None:
        self._path, self._upload, self.position = path, upload, 0

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put `data` at byte `at`, which must be the next."""
        if at != self.position:
            raise ValueError(f"an upload is at byte {self.position}, and cannot go to {at}")
        with writing(self._path):
            self._upload.write(data)
        self.position += len(data)

    def zero(self, nbytes: int, at: int) -> None:
        """Put `nbytes` zeros at byte `at`."""
        write_zeros(self, nbytes, at)

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Let the store copy what it has itself; send it piece by piece where it does not."""
        if isinstance(source, StoreSource):
            few = min(self._upload.least_before_copy, nbytes)
            write_pieces(self, source, start, few, at)
            start, nbytes, at = start + few, nbytes - few, at + few
            with writing(self._path):
                is_copied = self._upload.copy(source.path, start, nbytes)
            if is_copied:
                self.position += nbytes
                return
        write_pieces(self, source, start, nbytes, at)


class PendingObject:
    """An object that is there only after `commit`, in place of what was there at `open`.

    If another run changed that meanwhile, this one is not committed. A class, because between its
    beginning and its two possible ends it is written by others.
    """

    sink: ObjectSink

    def __init__(
        self, path: StorePath, *, shared_by: int = 1, stopped: threading.Event | None = None
    ) -> None:
        self.path, self._shared_by, self._stopped = path, shared_by, stopped
        self._before: Fact | None = None
        self._upload: Upload | None = None

    def open(self) -> None:
        """Begin it. Not done by the constructor: a signal in the midst must still find `close`."""
        self._before = find_now(self.path)
        self.set_size(0)

    def set_size(self, nbytes: int) -> None:
        """Note how long it will be; to be called before anything is written."""
        self._upload = begin_upload(
            self.path,
            self._before,
            nbytes=nbytes,
            shared_by=self._shared_by,
            stopped=self._stopped,
        )
        self.sink = ObjectSink(self.path, self._upload)

    def commit(self) -> Fact:
        """Make it appear, and return what the store says of it.

        Raises:
            OutputError: it cannot, or another run was here.
        """
        assert self._upload
        with writing(self.path):
            if find_now(self.path) != self._before:
                raise FileExistsError
            self._upload.commit()
        self._upload = None
        fact = find_now(self.path)
        if fact is None or fact.nbytes != self.sink.position:
            size = "nothing" if fact is None else f"{fact.nbytes:,} bytes"
            raise OutputError(
                f"{self.path} cannot be relied on: of {self.sink.position:,} bytes that were "
                f"written, the store has {size}"
            )
        return fact

    def close(self) -> None:
        """Leave nothing of it unless it was committed."""
        upload, self._upload = self._upload, None
        if upload:
            upload.discard()


@contextlib.contextmanager
def pending_object(
    path: StorePath, *, shared_by: int = 1, stopped: threading.Event | None = None
) -> Iterator[PendingObject]:
    """Yield a PendingObject of which nothing is left unless it was committed.

    Args:
        path: where it will be.
        shared_by: how many of them are written at a time.
        stopped: set when all work is to end.

    Raises:
        OutputError: it cannot be written.
    """
    file = PendingObject(path, shared_by=shared_by, stopped=stopped)
    try:
        file.open()
        yield file
    finally:
        file.close()
