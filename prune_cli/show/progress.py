"""What a terminal shows while long work goes on: its phase at once, and a bar once bytes flow."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prune_cli.show.console import stderr

if TYPE_CHECKING:
    from rich.progress import Progress

    from prune_cli.write.progress import OnTensor

_LONG_WORK_BYTES = 64 << 20


@contextlib.contextmanager
def progress(nbytes: int, *, quiet: bool, doing: str = "writing") -> "Iterator[OnTensor | None]":
    """Show a bar of bytes and rate during long work on a terminal; elsewhere nothing."""
    if quiet or nbytes < _LONG_WORK_BYTES or not stderr.is_terminal:
        yield None
        return
    with _bar() as bar:
        task = bar.add_task(doing, total=nbytes)
        yield lambda _name, count: bar.advance(task, count)


def _bar() -> "Progress":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )
