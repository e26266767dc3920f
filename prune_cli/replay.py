"""Plans that draw nothing: the channels of a report again, and the masks that are there.

They are Plans like any other, so the same streaming path carries them out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import ParameterError, SelectionError
from prune_cli.plan import Options, Plan, PlanItem, all_but
from prune_cli.prunable import find_problems
from prune_cli.pruning import live_channels
from prune_cli.tensors import Parameter

REPLAYED, REMOVED = "apply", "remove"
"""The methods of these plans, as a report names them."""


def replay(plan: Plan, checkpoint: Checkpoint, *, bake: bool | None = None) -> Plan:
    """`plan` for another checkpoint: the very channels of its rows, whatever a seed would draw.

    Args:
        plan: of a report, perhaps edited by hand.
        checkpoint: with tensors of the same names and shapes.
        bake: None keeps that of `plan`.

    Raises:
        RequestError: a row does not fit; every such row is named.
    """
    problems = [problem for item in plan.items for problem in _misfits(item, checkpoint)]
    names = Counter(item.name for item in plan.items)
    problems += [f"{name}: the report names it twice" for name, n in names.items() if n > 1]
    if problems:
        raise ParameterError("\n".join(problems))
    options = plan.options if bake is None else replace(plan.options, bake=bake)
    items = tuple(_replayed(item, checkpoint) for item in plan.items)
    return Plan(REPLAYED, options, tuple(sorted(items, key=lambda item: item.name)))


def plan_removal(checkpoint: Checkpoint) -> Plan:
    """The plan that makes every mask of `checkpoint` permanent, and prunes nothing more.

    A row shows the dim along which its mask has the most channels that are all zero.

    Raises:
        SelectionError: there is no mask.
    """
    masked = [parameter for parameter in checkpoint.parameters if parameter.mask]
    if not masked:
        raise SelectionError(
            f"{checkpoint.path} has no masks: no NAME_orig with a NAME_mask of its shape; "
            "there is nothing to remove"
        )
    options = Options(amount=None, modules=(), params=())
    items = (_removed(checkpoint, parameter) for parameter in masked)
    return Plan(REMOVED, options, tuple(sorted(items, key=lambda item: item.name)))


def _misfits(item: PlanItem, checkpoint: Checkpoint) -> Iterator[str]:
    parameter = checkpoint.parameter_of.get(item.name)
    if parameter is None:
        yield f"{item.name}: the checkpoint has no such tensor"
        return
    if parameter.tensor.shape != item.shape:
        there, told = list(parameter.tensor.shape), list(item.shape)
        yield f"{item.name}: its shape is {there} in the checkpoint and {told} in the report"
    elif not 0 <= item.dim < len(item.shape):
        yield f"{item.name}: the report prunes its dim {item.dim}, which {list(item.shape)} has not"
    elif any(not 0 <= channel < item.shape[item.dim] for channel in item.pruned):
        last = item.shape[item.dim] - 1
        yield f"{item.name}: the report prunes channels outside 0 to {last}"
    if len(set(item.pruned)) < len(item.pruned):
        yield f"{item.name}: the report prunes a channel twice"
    if item.follows is None:
        yield from find_problems(checkpoint, parameter)


def _replayed(item: PlanItem, checkpoint: Checkpoint) -> PlanItem:
    parameter = checkpoint.parameter_of[item.name]
    info = parameter.tensor
    live = live_channels(checkpoint.tensor(parameter.mask or info), item.dim)
    dead = all_but(live, info.shape[item.dim])
    pruned = tuple(sorted(item.pruned))
    return replace(
        item,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        seed=None,
        channels=info.shape[item.dim],
        already_pruned=tuple(sorted({*dead} - {*pruned})) if item.follows is None else (),
        pruned=pruned,
    )


def _removed(checkpoint: Checkpoint, parameter: Parameter) -> PlanItem:
    info = parameter.tensor
    mask = checkpoint.tensor(parameter.mask or info)
    dead = {
        dim: all_but(live_channels(mask, dim), size) for dim, size in enumerate(info.shape)
    } or {0: ()}
    dim = max(dead, key=lambda dim: (len(dead[dim]), -dim))
    return PlanItem(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        shape=info.shape,
        dim=dim,
        amount=0,
        seed=None,
        channels=info.shape[dim] if info.shape else 1,
        already_pruned=dead[dim],
        pruned=(),
    )
