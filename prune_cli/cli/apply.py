"""`prune-cli apply`: the channels of a report, in another checkpoint."""

from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups
from prune_cli.cli.completion import complete_report
from prune_cli.cli.grouped import grouped
from prune_cli.cli.locations import Location, locate
from prune_cli.cli.spreading import Spreading

if TYPE_CHECKING:
    from prune_cli.plan.facts import Plan

AppliedReport = Annotated[
    Location,
    typer.Argument(
        parser=locate,
        metavar="REPORT",
        help="A report of prune-cli, or what it is about: a pruned file or folder. An edited "
        "--dry-run report also works.",
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
    names: groups.Names,
    running: groups.Running,
    spreading: Spreading,
    outputs: groups.Outputs,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
    bake: Bake = None,
) -> None:
    """Prune in CHECKPOINT exactly the channels that REPORT names: the fine-tuned or EMA copy.

    Examples:
        prune-cli apply model.pruned.report.json ema.pt
        prune-cli apply model.pruned.safetensors finetuned.pt -o out.safetensors
        prune-cli random-structured a.pt -a 2 -n -r - | prune-cli apply - b.pt
    """
    from prune_cli.cli.opening import open_input, put_pruned_first
    from prune_cli.cli.pipeline import carry_out

    order = "REPORT comes before CHECKPOINT"
    applied, checkpoint = put_pruned_first(applied, checkpoint, messages, order)
    opened = open_input(checkpoint, loading, messages)

    def decide() -> "Plan":
        from prune_cli.plan.replay import replay
        from prune_cli.report.finding import find_report
        from prune_cli.report.report import read_report

        plan = read_report(find_report(applied)).plan
        return replay(plan, opened, bake=bake, prefixes=names.strip_prefix)

    target = outputs.target(opened, reads=[applied])
    carry_out(opened, decide, target, running, spreading, shown, messages)
