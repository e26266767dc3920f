r"""Rows of facts as text: a plain table, JSON, CSV, Markdown or LaTeX.

CSV and JSON hold the values themselves; the others show numbers as people read them.
See also: `prune_cli.show` for what a terminal shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prune_cli.checkpoint.names import make_printable
from prune_cli.jsontext import encode
from prune_cli.report.numbers import format_bytes

Cell = str | int | float | None
"""A value of a row; None where there is none."""

_NOTHING = "-"


class Format(StrEnum):
    """What rows can be rendered as."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


class Kind(StrEnum):
    """What the values of a column are: a part is a fraction, shown as percent."""

    TEXT = "text"
    NUMBER = "number"
    PART = "part"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `key` in JSON and CSV, `title` for people (the key with spaces, if it is None)."""

    key: str
    kind: Kind = Kind.NUMBER
    title: str | None = None

    @property
    def heading(self) -> str:
        """The title, or what the key gives."""
        return self.key.replace("_", " ") if self.title is None else self.title


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with a cell for each of `columns`."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def render_rows(rows: Rows, style: Format) -> str:
    r"""Return `rows` as text, ending in a newline.

    Example:
        >>> rows = Rows((Column("seed"), Column("accuracy", Kind.PART)), ((0, 0.913), (1, None)))
        >>> print(render_rows(rows, Format.MARKDOWN), end="")
        | seed | accuracy |
        | ---: | ---: |
        | 0 | 91.3% |
        | 1 | - |
    """
    return _RENDERERS[style](rows)


def _to_json(rows: Rows) -> str:
    keys = [column.key for column in rows.columns]
    found = [dict(zip(keys, map(_finite, row), strict=True)) for row in rows.rows]
    return encode({"schema": 1, "rows": found})


def _finite(cell: Cell) -> Cell:
    """Return `cell` as JSON can have it, which knows no NaN and no infinity."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _to_csv(rows: Rows) -> str:
    lines = ([column.key for column in rows.columns], *rows.rows)
    return "".join(",".join(map(_quote, line)) + "\n" for line in lines)


def _quote(cell: Cell) -> str:
    """Return a cell as RFC 4180 has it; Python's `csv` leaves a lone carriage return unquoted."""
    text = "" if cell is None else str(cell)
    is_plain = cell is None or (text and not any(c in text for c in ',"\r\n'))
    return text if is_plain else '"' + text.replace('"', '""') + '"'


def _to_markdown(rows: Rows) -> str:
    rule = ["---" if column.kind is Kind.TEXT else "---:" for column in rows.columns]
    shown = [[_escape_markdown(cell) for cell in row] for row in _shown(rows)]
    heading, *body = shown
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *body))


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\|`*_[]<>#&~" else c for c in text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _to_latex(rows: Rows) -> str:
    """Return a tabular for the package booktabs."""
    shown = [["".join(_LATEX.get(c, c) for c in cell) for cell in row] for row in _shown(rows)]
    heading, *body = (" & ".join(row) + r" \\" for row in shown)
    align = "".join("l" if column.kind is Kind.TEXT else "r" for column in rows.columns)
    top = [f"\\begin{{tabular}}{{{align}}}", r"\toprule", heading, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", ""])


def _to_table(rows: Rows) -> str:
    shown = _shown(rows)
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    return "".join(f"{_align(row, widths, rows.columns)}\n" for row in shown)


def _align(row: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    cells = (
        cell.ljust(width) if column.kind is Kind.TEXT else cell.rjust(width)
        for cell, width, column in zip(row, widths, columns, strict=True)
    )
    return "  ".join(cells).rstrip()


def _shown(rows: Rows) -> list[list[str]]:
    """Return the headings and every row, as people read them."""
    return [
        [column.heading for column in rows.columns],
        *(
            [show_cell(cell, column.kind) for cell, column in zip(row, rows.columns, strict=True)]
            for row in rows.rows
        ),
    ]


def show_cell(cell: Cell, kind: Kind) -> str:
    """Return a value as people read it: thousands with commas, parts in percent."""
    match cell:
        case None:
            return _NOTHING
        case str():
            return make_printable(cell)
        case _ if kind is Kind.PART:
            return f"{cell:.1%}"
        case _ if kind is Kind.BYTES:
            return format_bytes(cell)
        case int():
            return f"{cell:,}"
        case _:
            return f"{cell:,.4g}" if abs(cell) < 10_000 else f"{cell:,.0f}"


_RENDERERS: dict[Format, Callable[[Rows], str]] = {
    Format.TABLE: _to_table,
    Format.JSON: _to_json,
    Format.CSV: _to_csv,
    Format.MARKDOWN: _to_markdown,
    Format.LATEX: _to_latex,
}
