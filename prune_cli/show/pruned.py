"""What a run pruned: a table of its tensors, the totals, and what a user should know.

See also: shrunk.py for runs that removed channels; comparison.py for several runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from prune_cli.checkpoint.names import natural_key
from prune_cli.report.numbers import format_count, format_shape, list_some
from prune_cli.show.choices import describe_amount, describe_choice
from prune_cli.show.console import escape, say, show_written, stderr
from prune_cli.show.tables import MAX_ROWS, add_row, draw_bar, make_table, print_fitting
from prune_cli.stores import Location

if TYPE_CHECKING:
    from prune_cli.plan.facts import PlanItem
    from prune_cli.report.report import Report


_MOST_REASONS = 3


class Row(NamedTuple):
    """A line of the table of pruned tensors; `tensors` that look alike share one."""

    name: str
    shape: tuple[int, ...]
    dim: int
    channels: int
    pruned: int
    already: int
    tensors: int = 1


def show_report(
    report: "Report",
    *,
    written: Iterable[Location | None] = (),
    quiet: bool = False,
) -> None:
    """Show what a run did, and where its files are."""
    if not quiet:
        print_pruned(report, stderr)
        show_written(written)


def print_pruned(report: "Report", console: Console) -> None:
    """Print the table of pruned tensors, the totals, and what was left out."""
    items = sorted(report.tensors, key=lambda item: natural_key(item.name))
    rows = collapse(rows_of(items), MAX_ROWS)
    with_part = report.options.choice is not None
    print_fitting(console, lambda with_bar: _table(rows[:MAX_ROWS], with_bar, with_part))
    if len(rows) > MAX_ROWS:
        more = len(rows) - MAX_ROWS
        say(f"[dim]... and {more:,} more rows; the report has every tensor[/]", console)
    for line in _summary(report):
        say(line, console)


def rows_of(items: "Iterable[PlanItem]") -> list[Row]:
    """Return a Row for each of `items`."""
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
    """Return `rows`; if there are more than `limit`, with those that differ only in numbers merged.

    Example:
        >>> [row.name for row in collapse([Row("l.0.w", (2, 2), 0, 2, 1, 0),
        ...                                Row("l.1.w", (2, 2), 0, 2, 1, 0)], limit=1)]
        ['l.*.w']
    """
    if len(rows) <= limit:
        return list(rows)
    groups: dict[tuple[str, tuple[int, ...], int], list[Row]] = {}
    for row in rows:
        groups.setdefault((_without_numbers(row.name), row.shape, row.dim), []).append(row)
    return [_merge(name, group) for (name, *_), group in groups.items()]


def _without_numbers(name: str) -> str:
    """Return "l.*.w" for "l.0.w"."""
    *modules, param = name.split(".")
    return ".".join(["*" if part.isdecimal() else part for part in modules] + [param])


def _merge(name: str, group: Sequence[Row]) -> Row:
    return Row(
        name if len(group) > 1 else group[0].name,
        group[0].shape,
        group[0].dim,
        sum(row.channels for row in group),
        sum(row.pruned for row in group),
        sum(row.already for row in group),
        len(group),
    )


def _table(rows: Sequence[Row], with_bar: bool, with_part: bool) -> Table:
    merged = ["tensors"] if any(row.tensors > 1 for row in rows) else []
    before = ["before"] if any(row.already for row in rows) else []
    part = ["of live"] if with_part else []
    headers = ("tensor", *merged, "shape", "dim", *before, "pruned", *part)
    table = make_table(*headers, with_bar=with_bar)
    for row in rows:
        cells = [f"{row.tensors:,}"] if merged else []
        cells += [format_shape(row.shape), str(row.dim)]
        cells += [f"{row.already:,}"] if before else []
        cells += [f"{row.pruned:,}/{row.channels:,}"]
        cells += [f"{row.pruned / max(row.channels - row.already, 1):.1%}"] if part else []
        bar = draw_bar(row.pruned + row.already, row.channels) if with_bar else None
        add_row(table, row.name, cells, bar)
    return table


def _summary(report: "Report") -> Iterator[str]:
    totals = report.totals
    share = f": {totals.sparsity:.1%} of their {totals.elements:,} elements"
    yield f"[bold]{_what_was_done(report)}[/]{'' if report.method == 'remove' else share}"
    yield f"[dim]{describe_options(report)}[/]"
    for note in report.notes:
        yield f"[bold magenta]note:[/] {escape(note)}"
    yield from _by_reason("skipped", [(skip.reason, skip.name) for skip in report.skipped])
    yield from tell_dropped(report)


def tell_dropped(report: "Report") -> Iterator[str]:
    """Yield lines that name the entries that the output does not hold, and why."""
    dropped = [(drop.reason, drop.key) for drop in report.dropped]
    yield from _by_reason("[bold magenta]dropped[/]", dropped)


def _by_reason(verb: str, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each of a few reasons, of most names first, and one for the others."""
    reasons: dict[str, list[str]] = {}
    for reason, name in sorted(pairs, key=lambda pair: natural_key(pair[1])):
        reasons.setdefault(reason, []).append(name)
    ranked = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    for reason, names in ranked[:_MOST_REASONS]:
        yield f"{verb} {escape(list_some(names))}: {escape(reason)}"
    if others := sum(len(names) for _, names in ranked[_MOST_REASONS:]):
        yield f"{verb} {others:,} more, for other reasons; the report has them"


def _what_was_done(report: "Report") -> str:
    totals = report.totals
    if report.method == "remove":
        verb = "made" if report.output else "would make"
        count = len(report.tensors)
        return f"{verb} the mask{'' if count == 1 else 's'} of {format_count(count, 'tensor')} permanent"
    verb = "pruned" if report.output else "would prune"
    return (
        f"{verb} {totals.channels_pruned:,} of {totals.channels:,} channels in "
        f"{format_count(totals.tensors_pruned, 'tensor')}"
    )


def describe_options(report: "Report") -> str:
    """Return the amount as it was understood, the dim and the seed; or where the channels are from."""
    options = report.options
    match report.method:
        case "remove":
            return "the masks in the checkpoint"
        case "apply":
            return "the channels of the report that was applied"
    parts = [describe_amount(options), f"dim {options.dim}", f"seed {options.seed}"]
    if options.rules:
        parts.append(format_count(len(options.rules), "rule"))
    return ", ".join([*parts, *describe_choice(options.choice)])
