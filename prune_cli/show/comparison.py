"""Reports on stdout: one as its run showed it, several side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from prune_cli.show.console import escape, say, stdout_page
from prune_cli.show.numbers import format_count
from prune_cli.show.pruned import print_pruned
from prune_cli.show.shrunk import print_shrunk
from prune_cli.show.tables import MAX_ROWS, add_row, draw_bar, make_table, print_fitting

if TYPE_CHECKING:
    from prune_cli.report.comparison import Comparison, Pair, TensorComparison
    from prune_cli.report.report import Report

_MOST_RUNS = 4  # with a column each


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
        page.print(_run_table(comparison))
        page.print()
        _print_overlaps(comparison, page)
        page.print()
        for pair in comparison.pairs[:MAX_ROWS]:
            say(f"{pair.first + 1} and {pair.second + 1}: {_alike(pair)}", page)


def _run_table(comparison: "Comparison") -> Table:
    table = make_table("", "report", "amount", "dim", "seed", "tensors", "pruned", "sparsity")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    table.columns[1].overflow = "fold"
    for number, run in enumerate(comparison.runs, 1):
        amount = "-" if run.amount is None else str(run.amount)
        pruned = f"{run.channels_pruned:,}/{run.channels:,}"
        cells = [amount, str(run.dim), str(run.seed), f"{run.tensors:,}", pruned]
        table.add_row(str(number), escape(run.report), *cells, f"{run.sparsity:.1%}")
    return table


def _print_overlaps(comparison: "Comparison", page: Console) -> None:
    rows = [facts for facts in comparison.tensors if facts.follows is None]
    runs = len(comparison.runs)
    print_fitting(page, lambda with_bar: _overlap_table(rows[:MAX_ROWS], runs, with_bar))
    if len(rows) > MAX_ROWS:
        more = len(rows) - MAX_ROWS
        say(f"[dim]... and {more:,} more tensors; --json and --html have every one[/]", page)


def _overlap_table(rows: "Sequence[TensorComparison]", runs: int, with_bar: bool) -> Table:
    """Return how many channels each run pruned, with a bar for the part that all of them did."""
    shown = range(runs if runs <= _MOST_RUNS else 0)
    headings = (*(str(number + 1) for number in shown), "shared", "alike")
    table = make_table("tensor", "channels", *headings, with_bar=with_bar)
    for facts in rows:
        counts = (facts.channels, *(facts.pruned[number] for number in shown))
        cells = ["-" if count is None else f"{count:,}" for count in counts]
        if facts.overlap is None:
            add_row(table, facts.name, [*cells, "-", "-"], "" if with_bar else None)
            continue
        cells += [f"{facts.overlap.shared:,}", f"{facts.overlap.jaccard:.1%}"]
        bar = draw_bar(facts.overlap.shared, facts.overlap.union) if with_bar else None
        add_row(table, facts.name, cells, bar)
    return table


def _alike(pair: "Pair") -> str:
    if pair.overlap is None:
        return "no tensor in common that could be compared"
    shared, union = pair.overlap.shared, pair.overlap.union
    return (
        f"[bold]{pair.overlap.jaccard:.1%}[/] alike, {shared:,} of {union:,} channels in "
        f"{format_count(pair.tensors, 'tensor')}"
    )
