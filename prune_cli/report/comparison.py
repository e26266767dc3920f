"""Several reports side by side: what each pruned, and how far they pruned the same.

Compared are the channels that each run pruned itself (`PlanItem.pruned`).
See also: overlap.py for the arithmetic; `prune_cli.show` for how it looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from prune_cli.amounts import Amount
from prune_cli.checkpoint.names import natural_key
from prune_cli.jsontext import encode
from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import PlanItem
from prune_cli.report.overlap import (
    Likeness,
    Overlap,
    PairCount,
    count_pair,
    expect_shared,
    make_overlap,
    measure_likeness,
    measure_overlap,
    to_bits,
)
from prune_cli.report.report import Report

SCHEMA = 2
"""1 had no groups, and of pairs and tensors no more than their overlap."""


@dataclass(frozen=True, slots=True)
class Run:
    """One report: what was asked for and what came of it. `output` is None after a dry run."""

    report: str
    method: str
    input: str
    output: str | None
    amount: Amount | None
    dim: int
    seed: int
    tensors: int
    channels: int
    channels_pruned: int
    sparsity: float
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class RunGroup:
    """The runs of one amount and dim, chosen in the same way, by their numbers from 0.

    `likeness` is None where no two of them can be compared, `choice` where it is the usual way.
    """

    amount: Amount | None
    dim: int
    runs: tuple[int, ...]
    likeness: Likeness | None
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """One tensor in every report.

    Attributes:
        name: of the tensor.
        follows: the weight whose channels these are, for a bias.
        channels: how many it has; None where the reports do not agree on it.
        pruned: for each report how many it pruned; None where it does not have the tensor.
        overlap: over the reports that have it; None if that is one, or they do not fit.
        by_chance: how many channels independent draws of these sizes share on average.
        likeness: of any two reports that have it and fit; None if there are none.
        reason: why there is no overlap.
    """

    name: str
    follows: str | None
    channels: int | None
    pruned: tuple[int | None, ...]
    overlap: Overlap | None
    by_chance: float | None
    likeness: Likeness | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two reports, by their numbers from 0, over all the tensors that both have and that fit.

    Attributes:
        tensors: how many these are.
        overlap: None where there is no such tensor.
        by_chance: the Jaccard index that independent draws of these sizes have.
        is_nested: whether one pruned all the channels that the other did.
    """

    first: int
    second: int
    tensors: int
    overlap: Overlap | None
    by_chance: float | None
    is_nested: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several reports; `tensors` are those of any of them, in the order of their names."""

    runs: tuple[Run, ...]
    groups: tuple[RunGroup, ...]
    pairs: tuple[Pair, ...]
    tensors: tuple[TensorComparison, ...]


def compare_reports(reports: Mapping[str, Report]) -> Comparison:
    """Return the Comparison of `reports` by name.

    Example:
        >>> compare_reports({"a": read_report(a), "b": read_report(b)}).pairs[0].overlap
        Overlap(shared=2, union=6, jaccard=0.3333333333333333)
    """
    rows = [{item.name: item for item in report.tensors} for report in reports.values()]
    names = sorted({name for row in rows for name in row}, key=natural_key)
    totals: dict[_Pair, PairCount] = {}
    tensors = [_compare(name, [row.get(name) for row in rows], totals) for name in names]
    runs = tuple(_run(name, report) for name, report in reports.items())
    return Comparison(
        runs=runs,
        groups=tuple(_groups(runs, [_how(report) for report in reports.values()], totals)),
        pairs=tuple(_pair(*pair, totals.get(pair)) for pair in combinations(range(len(runs)), 2)),
        tensors=tuple(tensors),
    )


def comparison_to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, a line for each run, pair and tensor, ending in a newline."""
    facts = {key: list(value) for key, value in asdict(comparison).items()}
    return encode({"schema": SCHEMA, **facts})


def why_unlike(items: Sequence[PlanItem]) -> str | None:
    """Return why the channels of `items`, rows of one tensor, do not compare; None if they do."""
    if len(items) < 2:
        return "only one report has it"
    if len({item.dim for item in items}) > 1:
        return f"pruned along different dims: {_listed(item.dim for item in items)}"
    if len({item.channels for item in items}) > 1:
        return f"different numbers of channels: {_listed(item.channels for item in items)}"
    return None


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _run(name: str, report: Report) -> Run:
    return Run(
        report=name,
        method=report.method,
        input=report.input.path,
        output=report.output.path if report.output else None,
        amount=report.options.amount,
        dim=report.options.dim,
        seed=report.options.seed,
        tensors=report.totals.tensors_pruned,
        channels=report.totals.channels,
        channels_pruned=report.totals.channels_pruned,
        sparsity=report.totals.sparsity,
        choice=report.options.choice,
    )


# --- pairs -----------------------------------------------------------------------------------

_Pair = tuple[int, int]
"""The numbers of two runs, the smaller first."""


def _count_pairs(items: Sequence[PlanItem | None]) -> dict[_Pair, PairCount]:
    """Return the counts of each two runs that have a tensor and fit."""
    there = [(number, item) for number, item in enumerate(items) if item]
    bits = to_bits([item for _, item in there])
    rows = [(number, item, own) for (number, item), own in zip(there, bits, strict=True)]
    return {
        (first, second): count_pair(one, other, bits_of_one, bits_of_other)
        for (first, one, bits_of_one), (second, other, bits_of_other) in combinations(rows, 2)
        if (one.dim, one.channels) == (other.dim, other.channels)
    }


def _pair(first: int, second: int, total: PairCount | None) -> Pair:
    if total is None:
        return Pair(first, second, tensors=0, overlap=None, by_chance=None, is_nested=False)
    return Pair(
        first=first,
        second=second,
        tensors=total.tensors,
        overlap=make_overlap(total.shared, total.union),
        by_chance=total.by_chance,
        is_nested=total.is_nested,
    )


def _how(report: Report) -> str:
    """What runs of a group have in common: how channels were chosen, how many and along which dim.

    As text, in which 1 is not 1.0.
    """
    options = report.options
    return repr((report.method, options.choice, options.amount, options.dim))


def _groups(
    runs: Sequence[Run], ways: Sequence[str], totals: Mapping[_Pair, PairCount]
) -> Iterable[RunGroup]:
    """Yield the runs that were chosen in the same way, in the order of the first of them."""
    groups: dict[str, list[int]] = {}
    for number, way in enumerate(ways):
        groups.setdefault(way, []).append(number)
    for numbers in groups.values():
        run = runs[numbers[0]]
        pairs = [totals[pair] for pair in combinations(numbers, 2) if pair in totals]
        likeness = measure_likeness(pairs)
        yield RunGroup(run.amount, run.dim, tuple(numbers), likeness, run.choice)


# --- tensors ---------------------------------------------------------------------------------


def _compare(
    name: str, items: Sequence[PlanItem | None], totals: dict[_Pair, PairCount]
) -> TensorComparison:
    """Return the comparison of one tensor, and add its pairs to `totals`."""
    there = [item for item in items if item]
    reason = why_unlike(there)
    counts = _count_pairs(items)
    if there[0].follows is None:  # a row that follows another repeats its channels
        for pair, count in counts.items():
            totals[pair] = totals[pair] + count if pair in totals else count
    return TensorComparison(
        name=name,
        follows=there[0].follows,
        channels=there[0].channels if len({item.channels for item in there}) == 1 else None,
        pruned=tuple(len(item.pruned) if item else None for item in items),
        overlap=None if reason else measure_overlap(there),
        by_chance=None if reason else expect_shared(there),
        likeness=measure_likeness(counts.values()),
        reason=reason,
    )
