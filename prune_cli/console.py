"""What people see: messages, tables and progress on stderr. stdout is for data.

The only file that knows Rich. NO_COLOR, a narrow terminal and no terminal at all are Rich's to
handle; `quiet` is handled here.
"""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from prune_cli.errors import PruneError

if TYPE_CHECKING:
    from prune_cli.plan import Options, PlanItem
    from prune_cli.report import Report
    from prune_cli.stream import OnTensor

MAX_ROWS = 40
"""A table of more rows is collapsed: rows that differ in numbers only become one."""

_BAR_WIDTH = 10
_LONG_WORK_BYTES = 64 << 20

_stderr = Console(stderr=True, highlight=False)


def show_error(error: PruneError) -> None:
    """The message, each of its lines a problem."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    _print(f"[bold red]error:[/] {escape(first)}")
    for line in rest:
        _print(f"       {escape(line)}")


def show_interrupted() -> None:
    """That a signal ended it, and what is left."""
    _print("[bold red]interrupted:[/] no output; of a folder, --resume takes up what is finished")


def write_stdout(text: str) -> None:
    """Data for the next program in the pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def progress(nbytes: int, *, quiet: bool) -> "Iterator[OnTensor | None]":
    """A bar of bytes and rate for long work on a terminal; elsewhere nothing."""
    if quiet or nbytes < _LONG_WORK_BYTES or not _stderr.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_stderr, transient=True) as bar:
        task = bar.add_task("writing", total=nbytes)
        yield lambda _name, count: bar.advance(task, count)


# --- the main command ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table of pruned tensors; `count` tensors that look alike share one."""

    name: str
    shape: tuple[int, ...]
    dim: int
    channels: int
    pruned: int
    already: int
    count: int = 1


def show_report(
    report: "Report",
    *,
    written: Sequence[Path] = (),
    emitting: int = 0,
    quiet: bool = False,
) -> None:
    """The table of pruned tensors, the totals, what was left out, and where the files are."""
    if quiet:
        return
    rows = collapse(rows_of(report.tensors), MAX_ROWS)
    _stderr.print(_table(rows[:MAX_ROWS]))
    if len(rows) > MAX_ROWS:
        _print(f"[dim]... and {len(rows) - MAX_ROWS} more rows; the report has every tensor[/]")
    for line in _summary(report, emitting):
        _print(line)
    for path in written:
        _print(f"[bold]wrote[/] {escape(str(path))} ({_size(path)})")


def rows_of(items: "Iterable[PlanItem]") -> list[Row]:
    """A Row for each of `items`."""
    return [
        Row(
            item.name,
            item.shape,
            item.dim,
            item.channels,
            len(item.pruned),
            len(item.already_pruned),
        )
        for item in items
    ]


def collapse(rows: Sequence[Row], limit: int) -> list[Row]:
    """`rows`, or if there are more than `limit`: those that differ only in numbers made one.

    Example:
        >>> [row.name for row in collapse([Row("l.0.w", (2, 2), 0, 2, 1, 0),
        ...                                Row("l.1.w", (2, 2), 0, 2, 1, 0)], limit=1)]
        ['l.*.w']
    """
    if len(rows) <= limit:
        return list(rows)
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        name = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", row.name)
        groups.setdefault((name, row.shape, row.dim), []).append(row)
    return [
        Row(
            str(name) if len(group) > 1 else group[0].name,
            group[0].shape,
            group[0].dim,
            sum(row.channels for row in group),
            sum(row.pruned for row in group),
            sum(row.already for row in group),
            len(group),
        )
        for (name, *_), group in groups.items()
    ]


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    collapsed = any(row.count > 1 for row in rows)
    before = any(row.already for row in rows)
    table.add_column("tensor", overflow="fold", ratio=1)
    if collapsed:
        table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("dim", justify="right", no_wrap=True)
    if before:
        table.add_column("before", justify="right", no_wrap=True)
    table.add_column("pruned", justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for row in rows:
        cells: list[str | ProgressBar] = [escape(row.name)]
        cells += [str(row.count)] if collapsed else []
        cells += ["x".join(map(str, row.shape)), str(row.dim)]
        cells += [str(row.already)] if before else []
        cells += [f"{row.pruned}/{row.channels}", _bar(row.pruned + row.already, row.channels)]
        table.add_row(*cells)
    return table


def _bar(part: int, whole: int) -> ProgressBar:
    return ProgressBar(
        total=max(whole, 1),
        completed=part,
        width=_BAR_WIDTH,
        complete_style="red",
        finished_style="red",
    )


def _summary(report: "Report", emitting: int) -> Iterator[str]:
    totals, options = report.totals, report.options
    verb = "pruned" if report.output else "would prune"
    yield (
        f"[bold]{verb} {totals.channels_pruned:,} of {totals.channels:,} channels[/] in "
        f"{totals.tensors_pruned:,} tensor(s); {totals.sparsity:.1%} of their "
        f"{totals.elements:,} elements are zero"
    )
    yield f"[dim]{describe_options(options)}[/]"
    if emitting:
        yield (
            f"[yellow]note:[/] in {emitting} module(s) the bias of a pruned channel still emits; "
            "--with-bias prunes it too"
        )
    for note in report.notes:
        yield f"[yellow]note:[/] {escape(note)}"
    if report.skipped:
        yield f"skipped {_some([skip.name for skip in report.skipped])}: {report.skipped[0].reason}"
    if report.dropped:
        yield f"[yellow]dropped[/] {_some([drop.key for drop in report.dropped])}: no tensors"


def describe_options(options: "Options") -> str:
    """The amount as it was understood, the dim and the seed."""
    match options.amount:
        case None:
            amount = "amounts of the recipe"
        case int():
            amount = f"amount {options.amount}: {options.amount} channel(s) of each tensor"
        case float():
            amount = f"amount {options.amount}: {options.amount:.6g} of each tensor's live channels"
    recipe = f", {len(options.rules)} rule(s)" if options.rules else ""
    return f"{amount}, dim {options.dim}, seed {options.seed}{recipe}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(escape(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(path: Path) -> str:
    if path.is_dir():
        return f"{sum(1 for _ in path.iterdir())} files"
    return format_bytes(path.stat().st_size)


def format_bytes(nbytes: float) -> str:
    """A size as people say it, in powers of 1000.

    Example:
        >>> format_bytes(1_963_008)
        '2.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"


def _print(text: str) -> None:
    _stderr.print(text, soft_wrap=not _stderr.is_terminal)
