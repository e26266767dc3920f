"""`prune-cli random-structured`: the main job."""

from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups
from prune_cli.cli.choosing import Choosing
from prune_cli.cli.grouped import also_called, grouped
from prune_cli.cli.spreading import Spreading

if TYPE_CHECKING:
    from prune_cli.plan.facts import Plan

Bake = Annotated[
    bool,
    typer.Option(
        "--bake/--keep-masks",
        help="Write zeros, or NAME_orig and NAME_mask as torch has them.",
        rich_help_panel=groups.WHERE,
    ),
]


@grouped
def random_structured(
    checkpoint: groups.CheckpointPath,
    amounts: groups.Amounts,
    channels: groups.Channels,
    modules: groups.Modules,
    choosing: Choosing,
    names: groups.Names,
    draw: groups.Draw,
    running: groups.Running,
    spreading: Spreading,
    outputs: groups.Outputs,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
    bake: Bake = True,
) -> None:
    """Prune channels at random: write a checkpoint with zeros in them, and a JSON report.

    Examples:
        prune-cli random-structured model.pt --amount 0.25 --dim 0
        prune-cli random-structured llama/ -a 25% -d 0 -m 'model.layers.*.mlp.*' -n
        prune-cli random-structured model.safetensors --recipe layers.toml --seed 3
    """
    from prune_cli.cli.opening import open_input
    from prune_cli.cli.pipeline import carry_out

    amount, choice = amounts.parsed(), choosing.chosen()
    rules = amounts.rules(modules.patterns, channels.patterns, channels.dim)
    opened = open_input(checkpoint, loading, messages)

    def decide() -> "Plan":
        from prune_cli.api import plan_choice
        from prune_cli.plan.facts import Options

        options = Options(
            amount,
            channels.dim,
            draw.seed,
            modules=modules.patterns,
            exclude=modules.excluded,
            params=channels.patterns,
            bake=bake,
            with_bias=channels.with_bias,
            rules=rules,
            strip_prefixes=tuple(names.strip_prefix) or None,
            choice=choice,
        )
        return plan_choice(opened, options, choosing.scores, running.execution().threads)

    target = outputs.target(opened, reads=[amounts.recipe, choosing.scores])
    carry_out(opened, decide, target, running, spreading, shown, messages)


structured = also_called(
    random_structured,
    "structured",
    """Prune channels by a criterion: random-structured under the name for the others.

    Examples:
        prune-cli structured model.pt --criterion l1 --amount 0.5 --dim 0
        prune-cli structured model.pt --criterion l2 --global --amount 25% --dim 0
        prune-cli structured model.pt --allocate erk --target params=50% --dim 0
    """,
)
