"""`prune-cli remove`: masks made permanent."""

from typing import TYPE_CHECKING

from prune_cli.cli import groups
from prune_cli.cli.grouped import grouped
from prune_cli.cli.spreading import Spreading

if TYPE_CHECKING:
    from prune_cli.plan.facts import Plan


@grouped
def remove(
    checkpoint: groups.CheckpointPath,
    workers: groups.Workers,
    spreading: Spreading,
    outputs: groups.Outputs,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Make the masks of a checkpoint permanent: NAME_orig and NAME_mask become NAME.

    Examples:
        prune-cli remove finetuned.pt
        prune-cli remove finetuned.pt -o finetuned.safetensors
        prune-cli remove checkpoints/ --max-shard-size 5GB
    """
    from prune_cli.cli.opening import open_input
    from prune_cli.cli.pipeline import carry_out

    opened = open_input(checkpoint, loading, messages)

    def decide() -> "Plan":
        from prune_cli.plan.replay import plan_removal

        return plan_removal(opened)

    carry_out(opened, decide, outputs.target(opened), workers, spreading, shown, messages)
