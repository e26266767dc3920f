"""What stands on the page of several reports, as facts for several.html."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prune_cli.checkpoint.names import network_key
from prune_cli.plan.facts import PlanItem
from prune_cli.report.comparison import (
    Comparison,
    Pair,
    TensorComparison,
    compare_reports,
    why_unlike,
)
from prune_cli.report.groups import show_groups_as_tensors
from prune_cli.report.overlap import shared_channels
from prune_cli.report.report import Report, Tool
from prune_cli.show.page.bars import Bar, count_elements, make_bars
from prune_cli.show.page.pictures import (
    FEWEST_SQUARES,
    MEDIUM,
    MOST_SQUARES,
    Layer,
    Picture,
    draw,
    squares_each,
)
from prune_cli.show.page.sections import Section, divide, take_fitting

MAX_RUNS = 200
"""A page shows no more runs."""

_MOST_IN_MATRIX = 24
_FEW_RUNS = 4  # with large pictures


class RunOfTensor(NamedTuple):
    """One run's row of a tensor and its picture; both None where it does not have the tensor."""

    item: PlanItem | None
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in every run; `first` is the row of the first run that has it."""

    facts: TensorComparison
    first: PlanItem
    runs: tuple[RunOfTensor, ...]

    @property
    def name(self) -> str:
        """Its dotted name."""
        return self.facts.name

    @property
    def reserve(self) -> int:
        """About how many bytes of the page it takes."""
        pictures = sum(run.picture.nbytes for run in self.runs if run.picture)
        return 800 + pictures + 150 * len(self.runs)


@dataclass(frozen=True, slots=True)
class View:
    """The page of several reports.

    Attributes:
        comparison: of the reports that are shown; `more_runs` are not.
        matrix: a row of pairs for each run, None on the diagonal; empty for too many runs.
        bars: a layer each: its parameters, and how many went on average.
        sections: the tensors that are shown; `more` are not.
        has_before: whether channels were pruned before.
        largest: the most channels that a tensor has; squares: the most squares of a picture.
        tools: what wrote the reports.
    """

    comparison: Comparison
    more_runs: int
    matrix: tuple[tuple[Pair | None, ...], ...]
    bars: tuple[Bar, ...]
    sections: tuple[Section[Tensor], ...]
    more: int
    has_before: bool
    largest: int
    squares: int
    tools: tuple[Tool, ...]


def view_reports(reports: Mapping[str, Report]) -> View:
    """Return the View of `reports`, by name."""
    names = [*reports][:MAX_RUNS]
    shown = {name: show_groups_as_tensors(reports[name]) for name in names}
    comparison = compare_reports(shown)
    ordered = sorted(comparison.tensors, key=lambda facts: network_key(facts.name))
    rows = [{item.name: item for item in report.tensors} for report in shown.values()]
    items = [item for row in rows for item in row.values()]
    squares = _squares(len(comparison.tensors), len(shown))
    tensors = take_fitting(
        (_tensor(facts, rows, squares) for facts in ordered), lambda each: each.reserve
    )
    return View(
        comparison=comparison,
        more_runs=len(reports) - len(names),
        matrix=_matrix(comparison) if len(names) <= _MOST_IN_MATRIX else (),
        bars=tuple(make_bars(_sizes(ordered, rows))),
        sections=tuple(divide(tensors)),
        more=len(comparison.tensors) - len(tensors),
        has_before=any(item.already_pruned for item in items),
        largest=max((item.channels for item in items), default=0),
        squares=squares,
        tools=tuple(dict.fromkeys(report.tool for report in shown.values())),
    )


def _squares(tensors: int, runs: int) -> int:
    return squares_each(tensors * runs, MOST_SQUARES if runs <= _FEW_RUNS else FEWEST_SQUARES)


def _matrix(comparison: Comparison) -> tuple[tuple[Pair | None, ...], ...]:
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    numbers = range(len(comparison.runs))
    return tuple(
        tuple(pairs.get((min(row, column), max(row, column))) for column in numbers)
        for row in numbers
    )


def _tensor(
    facts: TensorComparison, rows: Sequence[Mapping[str, PlanItem]], squares: int
) -> Tensor:
    items = [row.get(facts.name) for row in rows]
    there = [item for item in items if item]
    shared = frozenset() if why_unlike(there) else shared_channels(there)
    runs = tuple(
        RunOfTensor(item, _picture(item, shared, squares) if item else None) for item in items
    )
    return Tensor(facts, there[0], runs)


def _picture(item: PlanItem, shared: frozenset[int], squares: int) -> Picture | None:
    own = [channel for channel in item.pruned if channel not in shared]
    layers = [Layer("", own), Layer("s", sorted(shared)), Layer("b", item.already_pruned)]
    return draw(item.channels, layers, squares, largest=MEDIUM)


def _sizes(
    tensors: Sequence[TensorComparison], rows: Sequence[Mapping[str, PlanItem]]
) -> list[tuple[str, int, int]]:
    """Return the name of each tensor, its elements, and how many went in a run on average."""
    sizes = []
    for facts in tensors:
        there = [row[facts.name] for row in rows if facts.name in row]
        counts = [count_elements(item) for item in there]
        gone = sum(gone for _, gone in counts) // len(counts)
        sizes.append((facts.name, max(elements for elements, _ in counts), gone))
    return sizes
