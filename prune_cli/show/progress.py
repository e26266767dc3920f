"""What a terminal shows while work takes long: its phase, and a bar once bytes flow.

Of work with stores also what comes from them and goes to them.

Work that is done sooner than anybody would wonder shows nothing, nor does any on no terminal.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from prune_cli.show.console import stderr

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 0.2
"""Seconds until something has to be on the screen."""


class Phases:
    """Shows one phase of long work after the other; called with a tensor's name and its bytes.

    A class, because a timer and the threads that write share what it knows.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._timer = threading.Timer(_PATIENCE, self._show)
        self._timer.daemon = True
        self._is_shown = False
        self._bar: Progress | None = None
        self._doing, self._total, self._done = "", 0, 0
        self._following: tuple[str, int] | None = None

    def begin(self, doing: str, nbytes: int = 0) -> None:
        """Begin a phase, of so many bytes if that is known (0: it is not)."""
        with self._lock:
            self._doing, self._total, self._done = doing, nbytes, 0
            self._following = None
            if self._is_shown:
                self._draw()

    def begin_with_bytes(self, doing: str, nbytes: int) -> None:
        """Have this phase begin as soon as bytes are told."""
        with self._lock:
            self._following = (doing, nbytes)

    def __call__(self, _name: str, nbytes: int) -> None:
        """Note that so many more bytes are done; from any thread."""
        with self._lock:
            if self._following:
                self.begin(*self._following)
            self._done += nbytes
            if self._bar:
                self._bar.update(self._bar.task_ids[0], completed=self._done)

    def start(self) -> None:
        """Show the phase in a moment, unless `stop` is called before."""
        self._timer.start()

    def stop(self) -> None:
        """Take everything off the screen."""
        self._timer.cancel()
        with self._lock:
            self._is_shown = False
            self._erase()

    def _show(self) -> None:
        with self._lock:
            if not self._timer.finished.is_set():
                self._is_shown = True
                self._draw()

    def _draw(self) -> None:
        self._erase()
        self._bar = _make_bar(self._console, has_total=bool(self._total))
        self._bar.add_task(self._doing, total=self._total or None, completed=self._done)
        self._bar.start()

    def _erase(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def progress(
    nbytes: int,
    *,
    quiet: bool,
    doing: str = "writing",
    before: str = "planning",
    console: Console = stderr,
) -> Iterator[Phases]:
    """Show `before` until bytes are told, then `doing`, with a bar if `nbytes` is known.

    Example:
        >>> with progress(checkpoint.nbytes, quiet=False) as on_tensor:
        ...     carry_out(checkpoint, decide, target, Execution(on_tensor=on_tensor))
    """
    phases = Phases(console)
    phases.begin(before)
    phases.begin_with_bytes(doing, nbytes)
    if not quiet and console.is_terminal:
        phases.start()
    try:
        yield phases
    finally:
        phases.stop()


def _make_bar(console: Console, *, has_total: bool) -> "Progress":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from prune_cli.show.traffic import TrafficColumn

    phase = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), phase, TimeElapsedColumn(), TrafficColumn())
    if has_total:
        amount = (DownloadColumn(), TrafficColumn(), TimeRemainingColumn())
        return Progress(phase, BarColumn(None), *amount, console=console, transient=True)
    return Progress(*columns, console=console, transient=True)
