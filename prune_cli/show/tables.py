"""Tables on a console: names that fold at their dots, numbers to the right, a bar if there is room."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prune_cli.report.formats import Rows, show_cell
from prune_cli.show.console import escape

MAX_ROWS = 40
"""A longer table is cut, and a line below it says so."""

BAR_WIDTH = 10


class Name:
    """Markup with a dotted name, folded after a dot where its column is narrow.

    A class, because Rich tells the width only to an object that it draws.
    """

    def __init__(self, label: str) -> None:
        self._text = Text.from_markup(label)
        self._indent = len(self._text.plain) - len(self._text.plain.lstrip())

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, _parts(self._text.plain)), default=0) + self._indent
        return Measurement(min(longest, options.max_width), self._text.cell_len)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        plain, indent = self._text.plain, self._indent
        first, *rest = self._text.divide(find_folds(plain, options.max_width, indent))
        lines = [first, *(Text(" " * indent) + line for line in rest)]
        yield Text("\n", overflow="fold").join(lines)


def find_folds(name: str, width: int, indent: int = 0) -> list[int]:
    """Return where to cut `name`, after dots, so that no line is wider than `width` if possible.

    Lines after the first are `indent` wider than what they hold.

    Example:
        >>> find_folds("layers.0.mlp.weight", width=9)
        [9, 13]
    """
    folds: list[int] = []
    start = at = 0
    for part in _parts(name):
        used = indent if start else 0
        if at > start and used + at - start + len(part) > width:
            folds.append(at)
            start = at
        at += len(part)
    return folds


def _parts(name: str) -> list[str]:
    *parts, last = name.split(".")
    return [*(f"{part}." for part in parts), last]


def make_table(name: str, *numbers: str, with_bar: bool = False) -> Table:
    """Return a table without rows: a column of names, columns of numbers, and one of bars."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(name, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    if with_bar:
        table.add_column("", width=BAR_WIDTH, no_wrap=True)
    return table


def print_fitting(console: Console, build: Callable[[bool], Table]) -> None:
    """Print `build(True)`, a table with bars; without them if it would be wider than `console`."""
    table = build(True)
    is_wide = console.measure(table, options=console.options.update(max_width=1 << 16)).maximum
    console.print(build(False) if is_wide > console.width else table)


def draw_bar(part: int, whole: int) -> ProgressBar:
    """Return a bar, `part` of `whole` of it red: legible on light and dark."""
    return ProgressBar(
        total=max(whole, 1),
        completed=part,
        width=BAR_WIDTH,
        style="dim",
        complete_style="red",
        finished_style="red",
    )


def tabulate(rows: Rows) -> Table:
    """Return `rows` as a table: names fold, text is to the left, numbers to the right."""
    first, *others = rows.columns
    table = make_table(first.heading, *(column.heading for column in others))
    for row in rows.rows:
        name, *cells = (
            show_cell(cell, column.kind) for cell, column in zip(row, rows.columns, strict=True)
        )
        table.add_row(Name(escape(name)), *map(escape, cells))
    return table


def add_row(table: Table, name: str, numbers: Sequence[str], bar: RenderableType | None) -> None:
    """Add a row to a table of make_table: a name, cells of numbers, and a bar if it has them."""
    table.add_row(Name(escape(name)), *numbers, *([] if bar is None else [bar]))
