"""A report as a notebook shows it: a table in HTML.

See also: `prune_cli.show.page`, a whole page with pictures.
"""

from html import escape

from prune_cli.report.formats import Column, Kind, Rows, show_cell
from prune_cli.report.numbers import format_count

_MOST_ROWS = 30


def to_html(title: str, rows: Rows) -> str:
    """Return a table of `rows`, of which the first 30 are shown, under its title."""
    body = "".join(_row(row, rows.columns) for row in rows.rows[:_MOST_ROWS])
    more = len(rows.rows) - _MOST_ROWS
    below = f"<p>and {format_count(more, 'more tensor')}</p>" if more > 0 else ""
    heading = "".join(f"<th>{escape(column.heading)}</th>" for column in rows.columns)
    return (
        f"<p>{escape(title)}</p>"
        f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>{below}"
    )


def _row(row: tuple[str | int | float | None, ...], columns: tuple[Column, ...]) -> str:
    cells = (
        f'<td style="text-align: {"left" if column.kind is Kind.TEXT else "right"}">'
        f"{escape(show_cell(cell, column.kind))}</td>"
        for cell, column in zip(row, columns, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
