"""The one pipeline as a command runs it: with progress, and what came of it shown."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prune_cli.cli import groups, signals
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
    shown: groups.ShownInRows,
    messages: groups.Messages,
) -> "Report":
    """Decide and write, with a progress bar, show what came of it, and return that."""
    from prune_cli import api
    from prune_cli.plan.biases import count_emitting_biases
    from prune_cli.show.progress import progress
    from prune_cli.show.pruned import show_report

    refuse_two_on_stdout(target, shown)
    began = time.perf_counter()
    with signals.Orderly(), progress(checkpoint.nbytes, quiet=messages.quiet) as on_tensor:
        report = api.carry_out(checkpoint, decide, target, running.execution(on_tensor))
    emitting = count_emitting_biases(checkpoint, report.plan)
    written = [target.output, target.report]
    show_report(report, written=written, emitting=emitting, quiet=messages.quiet)
    if messages.verbose:
        messages.tell("planned, written and reported" if target.output else "planned", since=began)
    write_facts(report, shown)
    return report


def refuse_two_on_stdout(target: "Target", shown: groups.ShownInRows) -> None:
    """Raise a UsageError where stdout is wanted for --json or --format and for a file too."""
    from prune_cli.write.paths import STDOUT

    wanted = "--format" if shown.rendering() else "--json" if shown.as_json else None
    if wanted and STDOUT in (target.output, target.report):
        raise UsageError(f"{wanted} and an output or a report cannot both go to stdout")


def write_facts(report: "Report", shown: groups.ShownInRows) -> None:
    """Write to stdout what --json or --format ask for."""
    form = shown.rendering()
    if shown.as_json:
        from prune_cli.report.report import to_json
        from prune_cli.show.console import write_stdout

        write_stdout(to_json(report))
    elif form:
        from prune_cli.report.groups import show_groups_as_tensors
        from prune_cli.report.rows import list_tensors
        from prune_cli.show.listing import print_rows

        print_rows(list_tensors(show_groups_as_tensors(report)), form)
