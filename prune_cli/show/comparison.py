"""Reports on stdout: one as its run showed it, several side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table

from prune_cli.report.numbers import format_count
from prune_cli.show.choices import name_amount, name_choice
from prune_cli.show.console import escape, say, stdout_page
from prune_cli.show.pruned import print_pruned
from prune_cli.show.shrunk import print_shrunk
from prune_cli.show.tables import MAX_ROWS, Name, add_row, draw_bar, make_table, print_fitting

if TYPE_CHECKING:
    from prune_cli.report.comparison import Comparison, Pair, Run, TensorComparison
    from prune_cli.report.overlap import Likeness
    from prune_cli.report.report import Report

_MOST_RUNS = 4  # with a column each
_MOST_PAIRS = 15


def print_report(report: "Report") -> None:
    """Print on stdout what show_report or show_shrunk shows: here it is what was asked for."""
    with stdout_page() as page:
        if report.shrink is None:
            print_pruned(report, page)
        else:
            print_shrunk(report, page)


def print_comparison(comparison: "Comparison") -> None:
    """Print several reports side by side, on stdout."""
    with stdout_page() as page:
        runs = comparison.runs[:MAX_ROWS]
        print_fitting(page, lambda with_tensors: _run_table(runs, with_tensors))
        _say_more(len(comparison.runs) - MAX_ROWS, "runs", page)
        page.print()
        _print_overlaps(comparison, page)
        page.print()
        if any(group.likeness for group in comparison.groups):
            page.print(_group_table(comparison))
            page.print()
        _print_pairs(comparison.pairs, page)


def _say_more(count: int, what: str, page: Console) -> None:
    if count > 0:
        say(f"[dim]... and {count:,} more {what}; --json and --html have every one[/]", page)


def _run_table(runs: "Sequence[Run]", with_tensors: bool) -> Table:
    tensors = ["tensors"] if with_tensors else []
    how = ["chosen"] if any(run.choice for run in runs) else []
    table = make_table("", "report", "amount", "dim", "seed", *tensors, "pruned", "sparsity", *how)
    for column in table.columns[1:2] + table.columns[len(table.columns) - len(how) :]:
        column.justify, column.no_wrap = "left", False
    for number, run in enumerate(runs, 1):
        cells = [escape(name_amount(run.amount, run.choice)), str(run.dim), str(run.seed)]
        cells += [f"{run.tensors:,}"] if with_tensors else []
        cells += [f"{run.channels_pruned:,}/{run.channels:,}", f"{run.sparsity:.1%}"]
        cells += [escape(name_choice(run.choice))] if how else []
        table.add_row(str(number), Name(escape(run.report)), *cells)
    return table


def _print_overlaps(comparison: "Comparison", page: Console) -> None:
    rows = [facts for facts in comparison.tensors if facts.follows is None]
    runs = len(comparison.runs)
    print_fitting(page, lambda with_bar: _overlap_table(rows[:MAX_ROWS], runs, with_bar))
    _say_more(len(rows) - MAX_ROWS, "tensors", page)


def _overlap_table(rows: "Sequence[TensorComparison]", runs: int, with_bar: bool) -> Table:
    """Return how many channels each run pruned, with a bar for the part that all of them did.

    For more runs than have a column it is the mean of each two of them.
    """
    shown = range(runs if runs <= _MOST_RUNS else 0)
    headings = ("shared", "alike") if shown else ("each two alike", "by chance")
    numbers = (str(number + 1) for number in shown)
    table = make_table("tensor", "channels", *numbers, *headings, with_bar=with_bar)
    for facts in rows:
        counts = (facts.channels, *(facts.pruned[number] for number in shown))
        cells = ["-" if count is None else f"{count:,}" for count in counts]
        cells += _overlap_cells(facts) if shown else _likeness_cells(facts.likeness)
        add_row(table, facts.name, cells, _overlap_bar(facts, bool(shown)) if with_bar else None)
    return table


def _overlap_cells(facts: "TensorComparison") -> tuple[str, str]:
    if facts.overlap is None:
        return "-", "-"
    return f"{facts.overlap.shared:,}", f"{facts.overlap.jaccard:.1%}"


def _likeness_cells(likeness: "Likeness | None") -> tuple[str, str]:
    if likeness is None:
        return "-", "-"
    sigma = "" if likeness.sigma is None else f" \u00b1 {100 * likeness.sigma:.1f}"
    chance = "-" if likeness.by_chance is None else f"{likeness.by_chance:.1%}"
    return f"{likeness.mean:.1%}{sigma}", chance


def _overlap_bar(facts: "TensorComparison", is_exact: bool) -> RenderableType:
    if is_exact and facts.overlap:
        return draw_bar(facts.overlap.shared, facts.overlap.union)
    if not is_exact and facts.likeness:
        return draw_bar(round(100 * facts.likeness.mean), 100)
    return ""


def _group_table(comparison: "Comparison") -> Table:
    """Return a row for each amount and dim: how alike its runs are, and how alike by chance."""
    how = ["chosen"] if any(group.choice for group in comparison.groups) else []
    table = make_table("amount", "dim", "runs", "pairs", "each two alike", "by chance", *how)
    for column in table.columns[len(table.columns) - len(how) :]:
        column.justify, column.no_wrap = "left", False
    for group in comparison.groups:
        pairs = f"{group.likeness.pairs:,}" if group.likeness else "-"
        counts = (str(group.dim), f"{len(group.runs):,}", pairs)
        cells = [*counts, *_likeness_cells(group.likeness)]
        cells += [escape(name_choice(group.choice))] if how else []
        table.add_row(escape(name_amount(group.amount, group.choice)), *cells)
    return table


def _print_pairs(pairs: "Sequence[Pair]", page: Console) -> None:
    """Print every pair, or of many those of which one contains the other."""
    shown = pairs if len(pairs) <= _MOST_PAIRS else [pair for pair in pairs if pair.is_nested]
    for pair in shown[:_MOST_PAIRS]:
        say(f"{pair.first + 1} and {pair.second + 1}: {_alike(pair)}", page)
    _say_more(len(pairs) - len(shown[:_MOST_PAIRS]), "pairs", page)


def _alike(pair: "Pair") -> str:
    if pair.overlap is None:
        return "no tensor in common that could be compared"
    shared, union = pair.overlap.shared, pair.overlap.union
    chance = "" if pair.by_chance is None else f"; {pair.by_chance:.1%} by chance"
    nested = ", one contains the other" if pair.is_nested and shared < union else ""
    return (
        f"[bold]{pair.overlap.jaccard:.1%}[/] alike{nested}, {shared:,} of {union:,} channels in "
        f"{format_count(pair.tensors, 'tensor')}{chance}"
    )
