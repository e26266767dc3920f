"""The one pipeline as a command runs it: with progress, and what came of it shown."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from prune_cli.cli import groups, signals
from prune_cli.cli.spreading import Spreading
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.plan.facts import Plan
    from prune_cli.report.report import Report
    from prune_cli.write.target import Target


def carry_out(
    checkpoint: "Checkpoint",
    decide: "Callable[[], Plan]",
    target: "Target",
    running: groups.Workers,
    spreading: Spreading,
    shown: groups.Shown,
    messages: groups.Messages,
) -> None:
    """Decide and write, with a progress bar, and show what came of it."""
    from prune_cli import api
    from prune_cli.show.progress import progress
    from prune_cli.show.pruned import show_report

    refuse_two_on_stdout(target, shown)
    spread = spreading.chosen(target, messages)
    target = spread.continuing(target)
    began = time.perf_counter()
    with (
        signals.Orderly(),
        progress(checkpoint.nbytes, quiet=messages.quiet) as on_tensor,
        spread.engine(checkpoint, target, messages) as engine,
    ):
        execution = replace(running.execution(on_tensor), **spread.facts, engine=engine)
        report = api.carry_out(checkpoint, decide, target, execution)
    if spread.part:
        spread.tell_part(report, target, messages)
        return
    show_report(report, written=[target.output, target.report], quiet=messages.quiet)
    if messages.verbose:
        messages.tell("planned, written and reported" if target.output else "planned", since=began)
    write_facts(report, shown)


def refuse_two_on_stdout(target: "Target", shown: groups.Shown) -> None:
    """Raise a UsageError where stdout is wanted for --json and for a file too."""
    from prune_cli.write.paths import STDOUT

    if shown.as_json and STDOUT in (target.output, target.report):
        raise UsageError("--json and an output or a report cannot both go to stdout")


def write_facts(report: "Report", shown: groups.Shown) -> None:
    """Write to stdout what --json asks for."""
    from prune_cli.report.report import to_json
    from prune_cli.show.console import write_stdout

    if shown.as_json:
        write_stdout(to_json(report))
