"""The one pipeline as a command runs it: with progress, and what came of it shown."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prune_cli.cli import groups, signals

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.plan.facts import Plan
    from prune_cli.write.target import Target


def carry_out(
    checkpoint: "Checkpoint",
    decide: "Callable[[], Plan]",
    target: "Target",
    running: groups.Workers,
    messages: groups.Messages,
) -> None:
    """Decide and write, with a progress bar, and show what came of it."""
    from prune_cli import api
    from prune_cli.plan.biases import count_emitting_biases
    from prune_cli.show.progress import progress
    from prune_cli.show.pruned import show_report

    with signals.Orderly(), progress(checkpoint.nbytes, quiet=messages.quiet) as on_tensor:
        report = api.carry_out(checkpoint, decide, target, running.execution(on_tensor))
    emitting = count_emitting_biases(checkpoint, report.plan)
    written = [target.output, target.report]
    show_report(report, written=written, emitting=emitting, quiet=messages.quiet)
