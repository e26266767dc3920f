"""Several reports beside each other: what each pruned, and how far they pruned the same.

Compared are the channels that each run pruned itself (`PlanItem.pruned`), as plain numbers. Not
here: how it looks (`console`, `page`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import prod
from pathlib import Path

from prune_cli.amounts import Amount
from prune_cli.inspection.inspection import natural_key
from prune_cli.jsontext import encode
from prune_cli.plan.facts import PlanItem
from prune_cli.report.report import Report, read_report

SCHEMA = 1


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


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far sets of channels are the same.

    Attributes:
        shared: how many channels are in every set.
        union: how many are in any.
        jaccard: shared / union; 1.0 where nothing was pruned at all.
    """

    shared: int
    union: int
    jaccard: float


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
        reason: why there is no overlap.
    """

    name: str
    follows: str | None
    channels: int | None
    pruned: tuple[int | None, ...]
    overlap: Overlap | None
    by_chance: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two reports, by their numbers from 0, over all the tensors that both have and that fit.

    `overlap` is None where there is no such tensor.
    """

    first: int
    second: int
    tensors: int
    overlap: Overlap | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several reports; `tensors` are those of any of them, in the order of their names."""

    runs: tuple[Run, ...]
    pairs: tuple[Pair, ...]
    tensors: tuple[TensorComparison, ...]


def read_reports(paths: Iterable[Path]) -> dict[str, Report]:
    """The reports at `paths` by the names of their files; a second one of a name is "NAME (2)".

    Raises:
        InputError: one of them cannot be read.
    """
    reports: dict[str, Report] = {}
    for path in paths:
        name, count = path.name, 1
        while name in reports:
            count += 1
            name = f"{path.name} ({count})"
        reports[name] = read_report(path)
    return reports


def compare_reports(reports: Mapping[str, Report]) -> Comparison:
    """The Comparison of `reports`, by the names they are to have.

    Example:
        >>> compare_reports({"a": read_report(a), "b": read_report(b)}).pairs[0].overlap
        Overlap(shared=2, union=6, jaccard=0.3333333333333333)
    """
    rows = [{item.name: item for item in report.tensors} for report in reports.values()]
    names = sorted({name for row in rows for name in row}, key=natural_key)
    return Comparison(
        runs=tuple(_run(name, report) for name, report in reports.items()),
        pairs=tuple(_pair(rows, *numbers) for numbers in combinations(range(len(rows)), 2)),
        tensors=tuple(_compare(name, [row.get(name) for row in rows]) for name in names),
    )


def to_json(comparison: Comparison) -> str:
    """The comparison as JSON, a line for each tensor, ending in a newline."""
    facts = {key: list(value) for key, value in asdict(comparison).items()}
    return encode({"schema": SCHEMA, **facts})


def shared_channels(items: Sequence[PlanItem]) -> frozenset[int]:
    """The channels that each of `items` pruned."""
    return frozenset.intersection(*(frozenset(item.pruned) for item in items))


def why_unlike(items: Sequence[PlanItem]) -> str | None:
    """Why the channels of `items`, all of one tensor, cannot be compared; None if they can."""
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
    )


def _compare(name: str, items: Sequence[PlanItem | None]) -> TensorComparison:
    there = [item for item in items if item]
    reason = why_unlike(there)
    return TensorComparison(
        name=name,
        follows=there[0].follows,
        channels=there[0].channels if len({item.channels for item in there}) == 1 else None,
        pruned=tuple(len(item.pruned) if item else None for item in items),
        overlap=None if reason else _overlap(there),
        by_chance=None if reason else _by_chance(there),
        reason=reason,
    )


def _overlap(items: Sequence[PlanItem]) -> Overlap:
    shared = len(shared_channels(items))
    union = len(frozenset().union(*(item.pruned for item in items)))
    return Overlap(shared, union, shared / union if union else 1.0)


def _by_chance(items: Sequence[PlanItem]) -> float | None:
    """Of sets drawn from the same live channels: each is in all of them with the product's odds."""
    if len({item.already_pruned for item in items}) > 1:
        return None
    live = items[0].channels - len(items[0].already_pruned)
    return live * prod(len(item.pruned) / live for item in items) if live else 0.0


def _pair(rows: Sequence[Mapping[str, PlanItem]], first: int, second: int) -> Pair:
    """The sums over the tensors; a row that follows another repeats it, so it is left out."""
    both = [
        [item, rows[second][name]]
        for name, item in rows[first].items()
        if name in rows[second] and item.follows is None
    ]
    overlaps = [_overlap(items) for items in both if why_unlike(items) is None]
    shared = sum(overlap.shared for overlap in overlaps)
    union = sum(overlap.union for overlap in overlaps)
    jaccard = shared / union if union else 1.0
    total = Overlap(shared, union, jaccard) if overlaps else None
    return Pair(first, second, len(overlaps), total)
