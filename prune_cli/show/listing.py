"""Rows on stdout: what --sort, --top, --depth and --format of a command ask for."""

from prune_cli.inspection.facts import Inspection
from prune_cli.report.formats import Format, Rows, render_rows
from prune_cli.report.numbers import format_bytes, format_count
from prune_cli.show.console import say, stdout_page, write_stdout
from prune_cli.show.tables import tabulate


def print_rows(rows: Rows, style: Format = Format.TABLE, *, footer: str | None = None) -> None:
    """Print `rows` on stdout in a format; only the table has a footer."""
    if style is not Format.TABLE:
        write_stdout(render_rows(rows, style))
        return
    with stdout_page() as page:
        page.print(tabulate(rows))
        if footer:
            page.print()
            say(footer, page)


def total_of(inspection: Inspection, shown: int) -> str:
    """Return a line that says how much there is in all, of which `shown` rows are shown."""
    parameters = inspection.parameters
    elements = sum(facts.elements for facts in parameters)
    nbytes = sum(facts.bytes for facts in parameters)
    return (
        f"{format_count(elements, 'parameter')} in all, in {format_count(len(parameters), 'tensor')}, "
        f"{format_bytes(nbytes)}; {format_count(shown, 'row')} shown"
    )
