"""What shrink removed: the groups of channels that went, what stayed whole and why, and the gain.

See also: pruned.py for runs that write zeros.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from prune_cli.report.numbers import format_change, format_count, list_some
from prune_cli.show.choices import describe_amount, describe_choice
from prune_cli.show.console import escape, say, show_written, stderr
from prune_cli.show.pruned import tell_dropped
from prune_cli.show.tables import MAX_ROWS, add_row, draw_bar, make_table, print_fitting
from prune_cli.stores import Location

if TYPE_CHECKING:
    from prune_cli.plan.facts import Options
    from prune_cli.plan.shrink import Latency, ShrinkPlan
    from prune_cli.report.report import Report

_SINGULAR = {"heads": "head", "head-dim": "head dim", "experts": "expert", "layers": "layer"}


def show_shrunk(
    report: "Report", *, written: Iterable[Location | None] = (), quiet: bool = False
) -> None:
    """Show what shrink did, and where its files are."""
    if not quiet:
        print_shrunk(report, stderr)
        show_written(written)


def print_shrunk(report: "Report", console: Console) -> None:
    """Print the table of groups that lost channels, and the totals; nothing for other reports."""
    plan = report.shrink
    if plan is None:
        return
    print_fitting(console, lambda with_bar: _table(report, with_bar))
    if len(plan.groups) > MAX_ROWS:
        more = len(plan.groups) - MAX_ROWS
        say(f"[dim]... and {more:,} more groups; the report has them[/]", console)
    for line in _summary(report, plan):
        say(line, console)


def _table(report: "Report", with_bar: bool) -> Table:
    """A row for each group, with the part of it that went."""
    groups = report.shrink.groups[:MAX_ROWS] if report.shrink else ()
    columns = ("dim", "before", "after", "removed", "coupled")
    table = make_table("channels of", *columns, with_bar=with_bar)
    for group in groups:
        gone = len(group.removed)
        cells = [f"{n:,}" for n in (group.dim, group.channels, group.channels - gone)]
        cells += [f"{gone / group.channels:.1%}", f"{len(group.members):,}"]
        bar = draw_bar(gone, group.channels) if with_bar else None
        name = f"{group.root} ({group.unit})" if group.unit else group.root
        add_row(table, name, cells, bar)
    return table


def _summary(report: "Report", plan: "ShrinkPlan") -> Iterator[str]:
    effect, output = plan.effect, report.output
    verb = "removed" if output else "would remove"
    for unit in dict.fromkeys(group.unit for group in plan.groups) or (None,):
        yield f"[bold]{verb} {_count_removed(plan, unit)}[/]"
    yield from _tell_choice(report.options)
    yield "parameters " + format_change(effect.parameters_before, effect.parameters_after)
    yield "FLOPs of one forward pass " + format_change(effect.flops_before, effect.flops_after)
    if output:
        yield "bytes " + format_change(report.input.bytes, output.bytes)
    yield from _tell_latency(plan)
    for reason, roots in _by_reason(plan):
        yield f"left whole {escape(list_some(roots))}: {escape(reason)}"
    yield from tell_dropped(report)


def _count_removed(plan: "ShrinkPlan", unit: str | None) -> str:
    groups = [group for group in plan.groups if group.unit == unit]
    gone = sum(len(group.removed) for group in groups)
    losing = sum(bool(group.removed) for group in groups)
    name = _SINGULAR.get(unit or "", "channel")
    return f"{format_count(gone, name)} in {format_count(losing, 'group')}"


def _tell_choice(options: "Options") -> Iterator[str]:
    """Yield the budget and how it was spread, where that is not the usual way."""
    if choice := options.choice:
        words = [describe_amount(options, "group"), *describe_choice(choice)]
        yield escape(", ".join(words))


def _tell_latency(plan: "ShrinkPlan") -> Iterator[str]:
    if latency := plan.latency:
        before, after = latency.milliseconds["before"], latency.milliseconds["after"]
        yield (
            f"latency {before:.2f} ms -> {after:.2f} ms ([bold]{before / after:.2f}x[/] as fast; "
            f"medians of {latency.rounds} alternating runs{_tell_spread(latency)}, "
            f"{format_count(latency.threads, 'thread')}{_tell_batch(latency)})"
        )
        if latency.memory:
            held = (latency.memory["before"], latency.memory["after"])
            yield "bytes that one pass holds beyond the model " + format_change(*held)
        if latency.tokens:
            before, after = latency.tokens["before"], latency.tokens["after"]
            yield f"tokens a second {before:.1f} -> {after:.1f} ([bold]{after / before:.2f}x[/])"


def _tell_batch(latency: "Latency") -> str:
    return "" if latency.batch is None else f", batch of {latency.batch} on {latency.device}"


def _tell_spread(latency: "Latency") -> str:
    if latency.spread is None:
        return ""
    before, after = latency.spread["before"], latency.spread["after"]
    return f", half of them within {before:.2f} and {after:.2f} ms"


def _by_reason(plan: "ShrinkPlan") -> list[tuple[str, list[str]]]:
    """Return the groups that were left whole, by the reason."""
    reasons: dict[str, list[str]] = {}
    for group in plan.whole:
        reasons.setdefault(group.reason, []).append(group.root)
    return list(reasons.items())
