"""`prune-cli remove`: masks made permanent."""

from typing import TYPE_CHECKING

from prune_cli.cli import groups
from prune_cli.cli.grouped import grouped

if TYPE_CHECKING:
    from prune_cli.plan.facts import Plan


@grouped
def remove(
    checkpoint: groups.CheckpointPath,
    workers: groups.Workers,
    messages: groups.Messages,
    outputs: groups.Outputs,
    loading: groups.Loading,
) -> None:
    """Make the masks of a checkpoint permanent: NAME_orig and NAME_mask become NAME.

    [bold]Example:[/] prune-cli remove finetuned.pt -o finetuned.safetensors
    """
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.cli.pipeline import carry_out

    opened = open_checkpoint(checkpoint, loading.chosen())

    def decide() -> "Plan":
        from prune_cli.plan.replay import plan_removal

        return plan_removal(opened)

    carry_out(opened, decide, outputs.target(opened), workers, messages)
