"""Several finished sweeps beside each other: the same points, seed by seed.

See also: `summary`, the differences within one sweep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prune_cli.sweep.grid import RANDOM, UNIFORM, Point
from prune_cli.sweep.record import Record
from prune_cli.sweep.statistics import Spread, describe, differences
from prune_cli.sweep.summary import (
    Summary,
    by_seed,
    judge_difference,
    spell_amount,
    spell_seeds,
    spell_verdict,
)

_USUAL = (UNIFORM, RANDOM)


@dataclass(frozen=True, slots=True)
class Finished:
    """A sweep that was read from its folder; `name` is the folder's."""

    name: str
    summary: Summary
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Row:
    """One point in every sweep; None where a sweep does not have it."""

    point: Point
    spreads: tuple[Spread | None, ...]


def compare_sweeps(sweeps: Sequence[Finished]) -> list[Row]:
    """Return a row for each point that any of `sweeps` has, in the order of their grids."""
    tables = [{each.point: each.metric for each in sweep.summary.points} for sweep in sweeps]
    points = dict.fromkeys(point for table in tables for point in table)
    return [Row(point, tuple(table.get(point) for table in tables)) for point in points]


def tell_apart(sweeps: Sequence[Finished]) -> Iterator[str]:
    """Yield how each sweep compares with the first, in sentences, at each point they share."""
    first, *others = sweeps
    for other in others:
        if other.summary.metric != first.summary.metric:
            yield (
                f"{other.name} measures {other.summary.metric}, {first.name} "
                f"{first.summary.metric}: not compared"
            )
            continue
        yield from _tell_apart(first, other)


def _tell_apart(first: Finished, other: Finished) -> Iterator[str]:
    ours, theirs = _values(other), _values(first)
    for point in filter(theirs.__contains__, ours):
        found = differences(ours[point], theirs[point])
        if found and not point.is_unpruned:
            spread = describe(found)
            verdict = judge_difference(spread, is_minimized=first.summary.settings.is_minimized)
            sentence = spell_verdict(verdict, other.name, first.name, spread)
            yield f"{sentence} at {name_point(point)}, {spell_seeds(spread)}"


def _values(sweep: Finished) -> Mapping[Point, Mapping[int, float]]:
    found: dict[Point, list[Record]] = {}
    for record in sweep.records:
        found.setdefault(record.point, []).append(record)
    return {point: by_seed(records) for point, records in found.items()}


def name_point(point: Point) -> str:
    """Return how a table of several sweeps names a point: "50% erk l1"."""
    words = [spell_amount(point)]
    words += [point.module] if point.module is not None else []
    words += [word for word in (point.allocation, point.criterion) if word not in _USUAL]
    return " ".join(words)
