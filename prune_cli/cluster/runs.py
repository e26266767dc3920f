"""How units on other machines learn that the run they belong to is over.

A run that is interrupted leaves the units that others have begun behind, and one that is killed
leaves all of them. So each run puts a token of its own into a file that every worker sees, and
takes it away at its end; the next run puts another there. A unit that does not find its token ends,
without a trace.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOK = 1.0  # seconds between two looks at the file


@dataclass(frozen=True)
class RunMark:
    """The file of a run that is on, and its token; it can be pickled."""

    path: Path
    token: bytes

    @property
    def is_there(self) -> bool:
        """Whether the run is on."""
        try:
            return self.path.read_bytes() == self.token
        except OSError:
            return False


@contextlib.contextmanager
def marked(path: Path) -> Iterator[RunMark]:
    """Yield the mark of a run that is on until the end of the context; its folder must be there."""
    mark = RunMark(path.absolute(), secrets.token_hex(8).encode())
    path.write_bytes(mark.token)
    try:
        yield mark
    finally:
        if mark.is_there:  # else another run has begun
            path.unlink(missing_ok=True)


class RunEnded(threading.Event):
    """Is set when the mark of the run is gone. A class, for it looks no more than once a second."""

    def __init__(self, mark: RunMark) -> None:
        super().__init__()
        self._mark = mark
        self._next = 0.0

    def is_set(self) -> bool:
        """Whether the run is over."""
        if not super().is_set() and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK
            if not self._mark.is_there:
                self.set()
        return super().is_set()
