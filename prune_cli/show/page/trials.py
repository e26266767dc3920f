"""What stands on the page of a sweep, or of several, as facts for trials.html."""

from collections.abc import Sequence
from dataclasses import dataclass

import prune_cli
from prune_cli.show.figure import Drawn, Picture, can_draw, draw_pictures
from prune_cli.sweep.methods import describe_protocol
from prune_cli.sweep.record import Record
from prune_cli.sweep.series import Series
from prune_cli.sweep.summary import Summary
from prune_cli.sweep.tables import number, to_table

_MOST_SEEDS = 12  # that are spelt out


@dataclass(frozen=True, slots=True)
class SweepView:
    """One sweep; texts as they are shown."""

    name: str
    trials: int
    done: int
    failed: int
    skipped: int
    metric: str
    base: str
    draws: int
    seeds: str
    table: Sequence[Sequence[str]]
    sections: Sequence[tuple[str, Sequence[str]]]
    methods: str
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class View:
    """The page."""

    title: str
    sweeps: Sequence[SweepView]
    pictures: Sequence[Picture]
    can_draw: bool
    version: str


def render_sweeps(sweeps: Sequence[Drawn], others: Sequence[Series] = ()) -> str:
    """Return the page of `sweeps`; `others` are drawn beside them.

    Example:
        >>> render_sweeps([Drawn(summary, records)]).startswith("<!DOCTYPE html>")
        True
    """
    from prune_cli.show.page.templates import fill_in

    drawn = can_draw()
    [first, *rest] = sweeps
    title = f"{len(sweeps)} sweeps compared" if rest else f"Sweep of {first.summary.settings.input}"
    view = View(
        title,
        [_view(each) for each in sweeps],
        draw_pictures(sweeps, others) if drawn else [],
        drawn,
        prune_cli.__version__,
    )
    return fill_in("trials.html", view)


def _view(drawn: Drawn) -> SweepView:
    summary = drawn.summary
    return SweepView(
        name=drawn.name or summary.settings.input,
        trials=summary.trials,
        done=summary.trials - summary.failed - summary.skipped,
        failed=summary.failed,
        skipped=summary.skipped,
        metric=summary.metric or "metric",
        base=number(summary.base),
        draws=len(summary.settings.seeds),
        seeds=_seeds(summary),
        table=to_table(summary),
        sections=_sections(summary),
        methods=describe_protocol(summary),
        records=drawn.records,
    )


def _seeds(summary: Summary) -> str:
    seeds = [str(seed) for seed in summary.settings.seeds]
    return ", ".join(seeds[:_MOST_SEEDS]) + (", ..." if len(seeds) > _MOST_SEEDS else "")


def _sections(summary: Summary) -> list[tuple[str, list[str]]]:
    verdicts = [
        f"{'holds' if verdict.holds else 'does not hold'}: {verdict.text} ({verdict.reason})"
        for verdict in summary.assertions
    ]
    return [
        ("Differences", [difference.sentence for difference in summary.differences]),
        ("Keep in mind", list(summary.warnings)),
        ("Assertions", verdicts),
    ]
