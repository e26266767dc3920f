"""What the pictures of a sweep show, as numbers: one Series for each allocation and criterion.

See also: `show.figure`, which draws them.
"""

import csv
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prune_cli.errors import InputError
from prune_cli.sweep.grid import RANDOM, UNIFORM, Point
from prune_cli.sweep.record import Record
from prune_cli.sweep.statistics import Interval, describe

Axis = Literal["amount", "parameters", "flops", "latency"]
"""What a metric is drawn against."""

AXES: Mapping[Axis, str] = {
    "amount": "channels pruned",
    "parameters": "parameters left",
    "flops": "FLOPs left",
    "latency": "latency (ms)",
}


@dataclass(frozen=True, slots=True)
class Dot:
    """One trial."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Mean:
    """The trials of one point; `interval` is None for a single one."""

    x: float
    y: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Series:
    """The trials of one allocation and criterion, along the axis."""

    label: str
    dots: tuple[Dot, ...]
    means: tuple[Mean, ...]


def series_of(records: Sequence[Record], axis: Axis, name: str = "") -> list[Series]:
    """Return the Series of a sweep; `name` goes before their labels, where several are shown."""
    kinds = dict.fromkeys(
        (record.allocation, record.criterion, record.point.tuned)
        for record in records
        if not record.point.is_unpruned
    )
    return [
        _series(_label(kind, len(kinds), name), _by_point(records, kind, axis)) for kind in kinds
    ]


def axes_of(records: Sequence[Record]) -> tuple[Axis, ...]:
    """Return what the metric can be drawn against: an axis along which the trials differ."""
    return tuple(
        axis for axis in AXES if len({_x(record, axis) for record in records} - {None}) > 1
    )


def read_series(path: Path, metric: str | None) -> list[Series]:
    """Return the Series in a CSV file: a results.csv, or any with the columns amount and metric.

    Args:
        path: the file; a column "label", "allocation" or "criterion" tells its series apart.
        metric: another name for the column of the metric.

    Raises:
        InputError: it cannot be read, or lacks these columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    column = next((each for each in _columns(metric) if rows and each in rows[0]), None)
    if column is None or "amount" not in rows[0]:
        raise InputError(f"{path} has no columns amount and {' or '.join(_columns(metric))}")
    found: dict[str, dict[float, list[Dot]]] = {}
    for label, dot in _dots(rows, column):
        found.setdefault(label, {}).setdefault(dot.x, []).append(dot)
    return [
        _series(f"{path.stem} {label}".strip(), points.values()) for label, points in found.items()
    ]


def _columns(metric: str | None) -> list[str]:
    return ["metric", *([metric, f"metrics.{metric}"] if metric else [])]


def _dots(rows: Iterable[Mapping[str, str]], column: str) -> Iterator[tuple[str, Dot]]:
    for row in rows:
        x, y = _number(row["amount"]), _number(row[column])
        if x and y is not None:  # an amount of 0 is the unpruned model
            words = [row.get(name) or "" for name in ("label", "allocation", "criterion")]
            yield " ".join(word for word in words if word not in ("", UNIFORM, RANDOM)), Dot(x, y)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _label(kind: tuple[str, str, bool], count: int, name: str) -> str:
    allocation, criterion, tuned = kind
    words = [word for word in (allocation, criterion) if word not in (UNIFORM, RANDOM)]
    words += ["fine-tuned"] if tuned else []
    words = words or ([RANDOM] if count > 1 or not name else [])
    return " ".join([name, *words]).strip()


def _by_point(
    records: Sequence[Record], kind: tuple[str, str, bool], axis: Axis
) -> list[list[Dot]]:
    points: dict[Point, list[Dot]] = {}
    for record in records:
        x = _x(record, axis)
        if (record.allocation, record.criterion, record.point.tuned) != kind:
            continue
        if record.metric is None or x is None or record.point.is_unpruned or record.module:
            continue
        points.setdefault(record.point, []).append(Dot(x, record.metric))
    return list(points.values())


def _series(label: str, points: Iterable[Sequence[Dot]]) -> Series:
    """Return the dots of each point and their mean, from the smallest x to the largest."""
    ordered = sorted(points, key=_mean_x)
    means = [(_mean_x(dots), describe([dot.y for dot in dots])) for dots in ordered]
    return Series(
        label,
        tuple(dot for dots in ordered for dot in dots),
        tuple(Mean(x, spread.mean, spread.interval) for x, spread in means),
    )


def _mean_x(dots: Sequence[Dot]) -> float:
    return statistics.fmean(dot.x for dot in dots)


def _x(record: Record, axis: Axis) -> float | None:
    if axis != "amount":
        value = getattr(record.achieved, axis)
        scale = 1000 if axis == "latency" else 1
        return None if value is None else float(value) * scale
    if isinstance(record.amount, float) or record.amount == 0:
        return float(record.amount)
    return record.achieved.amount
