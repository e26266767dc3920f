"""The report and the source: does deciding again give the same."""

from collections.abc import Iterable, Iterator

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import RequestError, UsageError
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import (
    REMOVED,
    REPLAYED,
    SHRUNK,
    Plan,
    Skipped,
)
from prune_cli.plan.replay import plan_removal, replay
from prune_cli.plan.scores import open_scores
from prune_cli.report.report import Report
from prune_cli.stores import Location
from prune_cli.verify.facts import Disagreement
from prune_cli.verify.in_kind import is_in_kind
from prune_cli.verify.rows import differing_fields, is_same
from prune_cli.verify.shrink import size_problems


def check_decisions(
    report: Report, original: Checkpoint, scores: str | Location | None, workers: int
) -> Iterator[Disagreement]:
    """Check that planning the source again gives this report."""
    told = _facts(report.input.format, report.input.tensors, report.input.bytes)
    there = _facts(original.format, len(original.tensors), original.nbytes)
    if told != there:
        yield Disagreement(f"the report says that its input is {told}; the source is {there}")
    if report.dropped != (() if is_in_kind(report, original) else original.dropped):
        yield Disagreement("the report does not name what of the source was dropped")
    try:
        plan = _decide_again(report, original, scores, workers)
    except (RequestError, UsageError) as error:
        yield Disagreement(f"the report does not fit the source: {error}")
        return
    if report.shrink is not None:
        shapes = {parameter.name: parameter.tensor.shape for parameter in original.parameters}
        yield from map(Disagreement, size_problems(report.shrink, report.options, shapes))
    if not is_same(plan.options, report.options):
        yield Disagreement(f"the options of the report are not those of {report.method}")
    if _known(plan.skipped, original) != _known(report.skipped, original):
        yield Disagreement("the report does not name what was skipped")
    rows = {item.name: item for item in report.tensors}
    planned = {item.name: item for item in plan.items}
    for name in sorted(rows.keys() | planned.keys()):
        if name not in rows:
            yield Disagreement("the report has no row of it, but its options prune it", name)
        elif name not in planned:
            yield Disagreement("the report has a row of it, but its options do not prune it", name)
        elif keys := differing_fields(rows[name], planned[name]):
            yield Disagreement(
                f"the report's {', '.join(keys)} are not what the source gives", name
            )


def _known(skipped: Iterable[Skipped], original: Checkpoint) -> list[Skipped]:
    """Leave out scales and the like, of which older versions knew fewer."""
    return [skip for skip in skipped if skip.name not in original.encodings]


def _facts(format: str, tensors: int, nbytes: int) -> str:
    return f"{format} of {tensors:,} tensors in {nbytes:,} bytes"


def _decide_again(
    report: Report, original: Checkpoint, scores: str | Location | None, workers: int
) -> Plan:
    match report.method:
        case method if method == REPLAYED:
            return replay(report.plan, original)
        case method if method == REMOVED:
            return plan_removal(original)
        case method if method == SHRUNK:
            return report.plan  # deciding that again takes the model's code
    opened = open_scores(scores) if scores else None
    return make_plan(original, report.options, scores=opened, workers=workers)
