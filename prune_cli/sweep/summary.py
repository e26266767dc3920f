"""What the trials of a sweep say together: a Summary, plain facts without times or paths.

See also: `statistics`, the formulas; `tables`, how it is written.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prune_cli.jsontext import encode
from prune_cli.sweep.assertions import Results, Verdict
from prune_cli.sweep.grid import RANDOM, UNIFORM, Point
from prune_cli.sweep.metric import METRIC
from prune_cli.sweep.record import Achieved, Record
from prune_cli.sweep.settings import Settings
from prune_cli.sweep.statistics import (
    FEW,
    Noise,
    Ranks,
    Spread,
    describe,
    differences,
    rank_correlation,
    separate_noise,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PointSummary:
    """One point of the grid.

    Attributes:
        point: which one.
        failed, skipped: how many trials were.
        metric: over those that succeeded; None where none did.
        before: the same before the fine-tune.
        noise: the evaluation's and the draw's, with --eval-repeats.
        achieved: the mean over the trials.
    """

    point: Point
    failed: int
    skipped: int
    metric: Spread | None
    before: Spread | None
    noise: Noise | None
    achieved: Achieved


@dataclass(frozen=True, slots=True)
class Difference:
    """Two points that differ in one thing, seed by seed.

    Attributes:
        kind: "criterion", "allocation" or "amount".
        point, reference: the two; `spread` is of the first minus the second.
        verdict: "better", "worse" or "not told apart".
        sentence: all of it in words.
    """

    kind: str
    point: Point
    reference: Point
    spread: Spread
    verdict: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Summary:
    """All of it.

    Attributes:
        settings: what was asked for.
        metric: the name of the one that counts; None where no trial gave one.
        base: the unpruned checkpoint's value.
        metrics: all its numbers.
        trials, failed, skipped: how many.
        points: in the order of the grid.
        differences: in pairs.
        tuning: Spearman's rho of the metric before and after the fine-tune.
        warnings: what should be kept in mind, in sentences.
        assertions: and whether they hold.
    """

    settings: Settings
    metric: str | None
    base: float | None
    metrics: Mapping[str, float | None]
    trials: int
    failed: int
    skipped: int
    points: tuple[PointSummary, ...]
    differences: tuple[Difference, ...]
    tuning: Ranks | None
    warnings: tuple[str, ...]
    assertions: tuple[Verdict, ...] = field(default=())

    @property
    def is_good(self) -> bool:
        """Whether no trial failed and every assertion holds."""
        return not self.failed and all(verdict.holds for verdict in self.assertions)


def summarize(settings: Settings, records: Sequence[Record]) -> Summary:
    """Return the Summary of `records`, which are in the order of the grid."""
    points = tuple(dict.fromkeys(record.point for record in records))
    base = next((record for record in records if record.point.is_unpruned), None)
    summaries = tuple(_summarize_point(point, _of(records, point)) for point in points)
    compared = tuple(_differences(settings, records, points))
    tuning = _tuning(records)
    return Summary(
        settings=settings,
        metric=next((record.metric_name for record in records if record.metric_name), None),
        base=base.metric if base else None,
        metrics=base.metrics if base else {},
        trials=len(records),
        failed=sum(record.status == "failed" for record in records),
        skipped=sum(record.status == "skipped" for record in records),
        points=summaries,
        differences=compared,
        tuning=tuning,
        warnings=tuple(_warnings(settings, summaries, records, tuning)),
    )


def results_of(summary: Summary, records: Sequence[Record]) -> Results:
    """Return what assertions are held against."""
    values: dict[Point, dict[str, list[float]]] = {}
    for record in records:
        found = values.setdefault(record.point, {})
        for name, value in _numbers(record).items():
            found.setdefault(name, []).append(value)
    base = next((_numbers(record) for record in records if record.point.is_unpruned), {})
    return Results(summary.metric or METRIC, base, values)


def loss(summary: Summary, spread: Spread) -> float | None:
    """Return by how much the mean is worse than the unpruned checkpoint."""
    if summary.base is None:
        return None
    drop = summary.base - spread.mean
    return -drop if summary.settings.is_minimized else drop


def spell_amount(point: Point) -> str:
    """Return how tables and sentences name an amount: "50%", "3 channels", "flops=0.5"."""
    match point.amount:
        case None:
            return point.how_much
        case int() as count:
            return "unpruned" if count == 0 else f"{count} channels"
        case fraction:
            return "unpruned" if fraction == 0 else f"{100 * fraction:.4g}%"


def to_json(summary: Summary) -> str:
    """Return the summary as JSON, a line for each point, ending in a newline."""
    facts = {entry.name: getattr(summary, entry.name) for entry in fields(summary)}
    settings = asdict(facts.pop("settings"))
    facts["points"] = [_row(point) for point in summary.points]
    facts["differences"] = [_difference_row(each) for each in summary.differences]
    facts["tuning"] = summary.tuning and asdict(summary.tuning)
    facts["assertions"] = [asdict(verdict) for verdict in summary.assertions]
    facts["warnings"] = [*summary.warnings]
    return encode({"schema": SCHEMA, "settings": settings, **facts})


# --- points ----------------------------------------------------------------------------------


def _of(records: Sequence[Record], point: Point) -> list[Record]:
    return [record for record in records if record.point == point]


def _summarize_point(point: Point, records: Sequence[Record]) -> PointSummary:
    done = sorted((record for record in records if record.status == "ok"), key=_seed)
    values = [record.metric for record in done if record.metric is not None]
    before = [record.before for record in done if record.before is not None]
    return PointSummary(
        point=point,
        failed=sum(record.status == "failed" for record in records),
        skipped=sum(record.status == "skipped" for record in records),
        metric=describe(values) if values else None,
        before=describe(before) if before else None,
        noise=separate_noise([record.repeats for record in done]),
        achieved=_mean_achieved([record.achieved for record in records]),
    )


def _seed(record: Record) -> int:
    return record.seed


def _mean_achieved(achieved: Sequence[Achieved]) -> Achieved:
    means: dict[str, Any] = {}
    for entry in fields(Achieved):
        values = [getattr(each, entry.name) for each in achieved]
        known = [value for value in values if value is not None]
        means[entry.name] = _mean(known) if known else None
    return Achieved(**means)


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def _numbers(record: Record) -> dict[str, float]:
    if record.status != "ok":
        return {}
    return {name: value for name, value in record.metrics.items() if value is not None}


# --- differences -----------------------------------------------------------------------------


def _differences(
    settings: Settings, records: Sequence[Record], points: Sequence[Point]
) -> Iterator[Difference]:
    for kind, point, reference in _pairs(points):
        values, others = (by_seed(_of(records, each)) for each in (point, reference))
        found = differences(values, others)
        if found:
            yield _difference(settings, kind, point, reference, describe(found))


def _pairs(points: Sequence[Point]) -> Iterator[tuple[str, Point, Point]]:
    """Every point with the one that differs in one thing: random, uniform, the next amount."""
    drawn = [point for point in points if not point.is_unpruned and not point.recipe]
    for kind, default in (("criterion", RANDOM), ("allocation", UNIFORM)):
        for point in drawn:
            reference = _with(point, **{kind: default})
            if point != reference and reference in drawn:
                yield kind, point, reference
    fractions = [point for point in drawn if isinstance(point.amount, float)]
    for point in fractions:
        smaller = [
            other
            for other in fractions
            if _with(other, amount=point.amount) == point and _amount(other) < _amount(point)
        ]
        if smaller:
            yield "amount", point, max(smaller, key=_amount)


def _with(point: Point, **changes: Any) -> Point:
    return Point(**{**asdict(point), **changes})


def _amount(point: Point) -> float:
    return float(point.amount or 0)


def by_seed(records: Sequence[Record]) -> dict[int, float]:
    """Return the metric of each trial that has one."""
    return {
        record.seed: record.metric
        for record in records
        if record.status == "ok" and record.metric is not None
    }


def _difference(
    settings: Settings, kind: str, point: Point, reference: Point, spread: Spread
) -> Difference:
    verdict = judge_difference(spread, is_minimized=settings.is_minimized)
    ours, theirs = ((_name(kind, each)) for each in (point, reference))
    where = "" if kind == "amount" else f" at {spell_amount(point)}"
    where += "" if point.module is None else f" of {point.module}"
    if kind != "allocation" and point.allocation != UNIFORM:
        where += f", {point.allocation}"
    if kind != "criterion" and point.criterion != RANDOM:
        where += f", {point.criterion}"
    sentence = spell_verdict(verdict, ours, theirs, spread)
    sentence = f"{sentence}{where}, {spell_seeds(spread)}"
    return Difference(kind, point, reference, spread, verdict, sentence)


def spell_seeds(spread: Spread) -> str:
    """Return how many seeds a difference is over; where none of them matters, it says so."""
    if spread.n > 1 and spread.sd == 0:
        return "the same for every seed"
    return f"{spread.n} seed{'s' * (spread.n != 1)}"


def _name(kind: str, point: Point) -> str:
    return spell_amount(point) if kind == "amount" else str(getattr(point, kind))


def judge_difference(spread: Spread, *, is_minimized: bool) -> str:
    """Return "better", "worse" or "not told apart" for differences with this spread.

    They are told apart where at least three differ, their interval excludes 0, and the mean is
    further from 0 than half of the interval is wide.
    """
    interval = spread.interval
    if spread.n < FEW or interval is None or not interval.excludes_zero:
        return "not told apart"
    if abs(spread.mean) <= interval.half_width:
        return "not told apart"
    return "better" if (spread.mean > 0) != is_minimized else "worse"


def spell_verdict(verdict: str, ours: str, theirs: str, spread: Spread) -> str:
    """Return what `judge_difference` found, with its figures: "l1 beats random by 1.3 ± 0.4"."""
    width = spread.interval.half_width if spread.interval else None
    if verdict == "better":
        return f"{ours} beats {theirs} by {_plus_minus(abs(spread.mean), width)}"
    if verdict == "worse":
        return f"{ours} is worse than {theirs} by {_plus_minus(abs(spread.mean), width)}"
    found = _plus_minus(spread.mean, width)
    return f"{ours} and {theirs} are not told apart (difference {found})"


def _plus_minus(mean: float, width: float | None) -> str:
    return f"{mean:.3g} ± {width:.2g}" if width else f"{mean:.3g}"


# --- the fine-tune, and warnings -------------------------------------------------------------


def _tuning(records: Sequence[Record]) -> Ranks | None:
    pairs = [
        (record.before, record.metric)
        for record in records
        if record.before is not None and record.metric is not None
        if not record.point.is_unpruned
    ]
    return rank_correlation(pairs) if pairs else None


def _warnings(
    settings: Settings,
    points: Sequence[PointSummary],
    records: Sequence[Record],
    tuning: Ranks | None,
) -> Iterator[str]:
    unpruned = [record for record in records if record.point.is_unpruned]
    if unpruned and unpruned[0].status != "ok":
        yield f"the unpruned checkpoint {unpruned[0].status}: {unpruned[0].reason}"
    fewest = [each.metric.n for each in points if each.metric and not each.point.is_unpruned]
    if fewest and min(fewest) == 1:
        yield "a point with 1 trial has no spread: one draw is a sample, not a result; add --seeds"
    elif fewest and min(fewest) < FEW:
        yield f"with fewer than {FEW} trials a point's spread means little; add --seeds"
    failed = sum(record.status == "failed" for record in records)
    if failed:
        yield f"{failed} of {len(records)} trials failed and are in no mean; --resume runs them"
    if tuning and settings.keep_best is not None:
        yield from _selection_warning(tuning)


def _selection_warning(tuning: Ranks) -> Iterator[str]:
    is_backed = tuning.interval is not None and tuning.interval.low > 0
    if not is_backed:
        rho = "is not defined" if tuning.rho is None else f"is {tuning.rho:.2f}"
        yield (
            "the draws were selected by the metric before the fine-tune, which does not tell the "
            f"one after it: Spearman's rho {rho} over {tuning.n} draws, and its interval does not "
            "exclude 0"
        )


# --- to JSON ---------------------------------------------------------------------------------


def _row(summary: PointSummary) -> dict[str, Any]:
    facts = asdict(summary)
    return {**facts.pop("point"), **facts}


def _difference_row(difference: Difference) -> dict[str, Any]:
    return asdict(difference)
