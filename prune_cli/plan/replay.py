"""Plans that draw nothing: the channels of a report again, and the masks that are there.

They are Plans like any other, so the same streaming path carries them out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import ParameterError, RequestError, SelectionError
from prune_cli.plan import masks
from prune_cli.plan.facts import CHOSEN, REMOVED, REPLAYED, Options, Plan, PlanItem, in_order
from prune_cli.plan.prunable import find_problems


def replay(plan: Plan, checkpoint: Checkpoint, *, bake: bool | None = None) -> Plan:
    """`plan` for another checkpoint: the very channels of its rows, whatever a seed would draw.

    A tensor is found by any of its names; if those are several tensors there, each loses the
    channels.

    Args:
        plan: of a report, perhaps edited by hand.
        checkpoint: with tensors of the same names and shapes.
        bake: None keeps that of `plan`.

    Raises:
        RequestError: a row does not fit; every such row is named.
    """
    if plan.method not in (*CHOSEN, REPLAYED):
        raise RequestError(f"the report is of {plan.method!r}, which chooses no channels to prune")
    rows = {item.name: item for item in plan.items}
    problems = [problem for item in plan.items for problem in misfits(item, checkpoint)]
    problems += [problem for item in plan.items for problem in _strays(item, rows)]
    placed = [(name, item) for item in plan.items for name in _stored_names(item, checkpoint)]
    counts = Counter(name for name, _ in placed)
    problems += [f"{name}: the report has {n} rows of it" for name, n in counts.items() if n > 1]
    if problems:
        raise ParameterError("\n".join(problems))
    options = plan.options if bake is None else replace(plan.options, bake=bake)
    items = (_replayed(name, item, checkpoint) for name, item in placed)
    return Plan(REPLAYED, options, in_order(items))


def plan_removal(checkpoint: Checkpoint) -> Plan:
    """The plan that makes every mask of `checkpoint` permanent, and prunes nothing more.

    A row shows the dim along which its mask has the most channels that are all zero.

    Raises:
        SelectionError: there is no mask.
    """
    masked = [parameter for parameter in checkpoint.parameters if parameter.mask]
    if not masked:
        raise SelectionError(
            f"{checkpoint.path} has no masks: no NAME_orig with a NAME_mask of its shape, of 0 "
            "and 1 alone; there is nothing to remove"
        )
    options = Options(amount=None, modules=(), params=())
    items = (_removed(checkpoint, parameter) for parameter in masked)
    return Plan(REMOVED, options, in_order(items))


def misfits(item: PlanItem, checkpoint: Checkpoint) -> Iterator[str]:
    """Why the row `item` cannot be carried out on `checkpoint`; nothing if it can."""
    names = _stored_names(item, checkpoint)
    if not names:
        yield f"{item.name}: the checkpoint has no such tensor"
    for parameter in (checkpoint.parameter_of[name] for name in names):
        if parameter.tensor.shape != item.shape:
            there, told = list(parameter.tensor.shape), list(item.shape)
            yield f"{item.name}: its shape is {there} in the checkpoint and {told} in the report"
        else:
            yield from _unprunable(item, checkpoint, parameter)
    if len(set(item.pruned)) < len(item.pruned):
        yield f"{item.name}: the report prunes a channel twice"


def _unprunable(item: PlanItem, checkpoint: Checkpoint, parameter: Parameter) -> Iterator[str]:
    if not 0 <= item.dim < len(item.shape):
        yield f"{item.name}: the report prunes dim {item.dim}, but its shape is {list(item.shape)}"
    elif any(not 0 <= channel < item.shape[item.dim] for channel in item.pruned):
        last = item.shape[item.dim] - 1
        yield f"{item.name}: the report prunes channels outside 0 to {last}"
    is_bias = item.follows is not None and len(item.shape) == 1
    yield from find_problems(checkpoint, parameter, is_bias=is_bias)


def _strays(item: PlanItem, rows: Mapping[str, PlanItem]) -> Iterator[str]:
    """That a bias loses other channels than the weight it follows: the two are one decision."""
    if item.follows is None:
        return
    leader = rows.get(item.follows)
    if leader is None or sorted(leader.pruned) != sorted(item.pruned):
        yield (
            f"{item.name}: its channels in the report are not those of {item.follows}, which it "
            "follows; edit both, or remove its row"
        )


def _stored_names(item: PlanItem, checkpoint: Checkpoint) -> list[str]:
    """The parameters of `checkpoint` that the names of `item` lead to, each once."""
    names = (checkpoint.parameter_aliases.get(name, name) for name in (item.name, *item.aliases))
    return [name for name in dict.fromkeys(names) if name in checkpoint.parameter_of]


def _replayed(name: str, item: PlanItem, checkpoint: Checkpoint) -> PlanItem:
    parameter = checkpoint.parameter_of[name]
    info = parameter.tensor
    dead = () if item.follows else masks.dead(checkpoint, parameter, item.dim)
    return replace(
        item,
        name=name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        seed=None,
        channels=info.shape[item.dim],
        already_pruned=tuple(sorted({*dead} - {*item.pruned})),
        pruned=tuple(sorted(item.pruned)),
    )


def _removed(checkpoint: Checkpoint, parameter: Parameter) -> PlanItem:
    info = parameter.tensor
    dead = {dim: masks.dead(checkpoint, parameter, dim) for dim in range(len(info.shape))}
    dead = dead or {0: ()}
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
