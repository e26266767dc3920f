"""`prune-cli apply`: the channels of a report, in another checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups
from prune_cli.cli.completion import complete_report
from prune_cli.cli.grouped import grouped

if TYPE_CHECKING:
    from prune_cli.plan.facts import Plan

AppliedReport = Annotated[
    Path,
    typer.Argument(
        metavar="REPORT",
        help="A report of prune-cli; an edited --dry-run report also works.",
        autocompletion=complete_report,
    ),
]
Bake = Annotated[
    bool | None,
    typer.Option(
        "--bake/--keep-masks",
        help="Write zeros, or NAME_orig and NAME_mask.",
        show_default="as the report has it",
        rich_help_panel=groups.WHERE,
    ),
]


@grouped
def apply(
    applied: AppliedReport,
    checkpoint: groups.CheckpointPath,
    running: groups.Running,
    messages: groups.Messages,
    outputs: groups.Outputs,
    loading: groups.Loading,
    bake: Bake = None,
) -> None:
    """Prune in CHECKPOINT exactly the channels that REPORT names: the fine-tuned or EMA copy.

    [bold]Example:[/] prune-cli apply model.pruned.report.json ema.pt -o ema.pruned.safetensors
    """
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.cli.pipeline import carry_out

    opened = open_checkpoint(checkpoint, loading.chosen())

    def decide() -> "Plan":
        from prune_cli.plan.replay import replay
        from prune_cli.report.report import read_report

        return replay(read_report(applied).plan, opened, bake=bake)

    target = outputs.target(opened, reads=[applied])
    carry_out(opened, decide, target, running, messages)
