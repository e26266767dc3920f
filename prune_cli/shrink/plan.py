"""The plan of what goes of a model: channels, or units of several kinds."""

from __future__ import annotations

from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.planning import no_scores, plan_by_channels
from prune_cli.shrink.request import OnStage, Request, Score, Source
from prune_cli.shrink.subject import Shapes
from prune_cli.shrink.units import plan_units


def plan_shrink(
    source: Source,
    options: Request,
    checkpoint: Shapes | None,
    on_stage: OnStage = lambda _: None,
    score: Score = no_scores,
) -> ShrinkPlan:
    """Plan to shrink the model of `source`.

    Args:
        source: The model.
        options: What to remove.
        checkpoint: The shape of each tensor of the checkpoint, which must be the model's; None
            to plan for the model alone.
        on_stage: Called with what is being done.
        score: What ranks channels that are not drawn.

    Raises:
        RequestError: The model cannot be followed, does not fit the checkpoint, or loses nothing.
    """
    if options.units:
        return plan_units(source, options, checkpoint, on_stage)
    return plan_by_channels(source, options, checkpoint, on_stage, score)
