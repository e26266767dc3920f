"""What the code of a model tells of a checkpoint: its size, its FLOPs, and which channels go together.

See also: shrink.py, which removes some; inspection/, what the checkpoint alone tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune_cli.checkpoint import Checkpoint
from prune_cli.inspection.facts import CoupledGroup, ModelFacts, WholeGroup
from prune_cli.plan.choice import USUAL
from prune_cli.plan.selection import Rule
from prune_cli.shrink.child import DEFAULT_TIME_LIMIT, PlanningChild
from prune_cli.shrink.request import OnStage, Request
from prune_cli.shrink.shrink import find_source, shapes_of


def look_at_model(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    examples: Sequence[str] = (),
    time_limit: float = DEFAULT_TIME_LIMIT,
    on_stage: OnStage | None = None,
) -> ModelFacts:
    """Return the parameters, FLOPs and coupled groups of the model of a checkpoint.

    Args:
        checkpoint: Its shapes must be the model's.
        model: As for `shrink_checkpoint`; so are the rest.
        model_arguments: For the factory.
        examples: The model's inputs.
        time_limit: In seconds.
        on_stage: Called with what is being done.

    Raises:
        UsageError: The model is not named, or is not there.
        RequestError: It cannot be followed, or does not fit the checkpoint.
    """
    source = find_source(checkpoint, model, model_arguments or {}, tuple(examples))
    everything = Rule(("*",), ("weight",), 1, 0)
    asked = Request((everything,), choice=USUAL, looks_only=True)
    with PlanningChild() as child:
        plan = child.plan(
            source, asked, shapes_of(checkpoint), time_limit=time_limit, on_stage=on_stage
        )
    return ModelFacts(
        plan.effect.parameters_before,
        plan.effect.flops_before,
        tuple(CoupledGroup(g.root, g.dim, g.channels, g.blocks, g.members) for g in plan.groups),
        tuple(WholeGroup(w.root, w.dim, w.channels, w.reason) for w in plan.whole),
    )
