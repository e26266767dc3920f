"""Plans that draw nothing: the channels of a report again, and the masks that are there.

They are Plans like any other, so the same streaming path carries them out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import ParameterError, RequestError, SelectionError
from prune_cli.plan import masks
from prune_cli.plan.facts import CHOSEN, REMOVED, REPLAYED, Options, Plan, PlanItem, in_order
from prune_cli.plan.prefixes import find_prefixes, strip_prefixes
from prune_cli.plan.prunable import find_problems


@dataclass(frozen=True)
class _Names:
    """How the rows of a report find their tensors in a checkpoint.

    A class, because the names without prefixes are found once for all rows.
    """

    checkpoint: Checkpoint
    prefixes: tuple[str, ...] = ()

    def of(self, item: PlanItem) -> list[str]:
        """Return the parameters that the names of `item` lead to, each once."""
        aliases, stored = self.checkpoint.parameter_aliases, self.checkpoint.parameter_of
        names = [aliases.get(name, name) for name in (item.name, *item.aliases)]
        found = [name for name in dict.fromkeys(names) if name in stored]
        if found or not self.prefixes:
            return found
        plain = [strip_prefixes(name, self.prefixes) for name in names]
        return [self._plain[name] for name in dict.fromkeys(plain) if name in self._plain]

    @cached_property
    def _plain(self) -> dict[str, str]:
        names = self.checkpoint.parameter_of
        return {strip_prefixes(name, self.prefixes): name for name in names}


def replay(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    bake: bool | None = None,
    prefixes: Sequence[str] = (),
) -> Plan:
    """`plan` for another checkpoint: the very channels of its rows, whatever a seed would draw.

    A tensor is found by any of its names; if those are several tensors there, each loses the
    channels.

    Args:
        plan: of a report, perhaps edited by hand.
        checkpoint: with tensors of the same names and shapes.
        bake: None keeps that of `plan`.
        prefixes: of wrappers, in the checkpoint or in the report: names fit without them too.

    Raises:
        RequestError: a row does not fit; every such row is named.
    """
    if plan.method not in (*CHOSEN, REPLAYED):
        raise RequestError(f"the report is of {plan.method!r}, which chooses no channels to prune")
    rows = {item.name: item for item in plan.items}
    stripped = {*find_prefixes(checkpoint.parameter_of, prefixes), *find_prefixes(rows, prefixes)}
    names = _Names(checkpoint, tuple(sorted({*stripped, *(plan.options.strip_prefixes or ())})))
    problems = [problem for item in plan.items for problem in _misfits(item, names)]
    problems += [problem for item in plan.items for problem in _strays(item, rows)]
    placed = [(name, item) for item in plan.items for name in names.of(item)]
    counts = Counter(name for name, _ in placed)
    problems += [f"{name}: the report has {n} rows of it" for name, n in counts.items() if n > 1]
    if problems:
        raise ParameterError("\n".join(problems))
    options = plan.options if bake is None else replace(plan.options, bake=bake)
    renamed = {item.name: name for name, item in placed}
    items = (_replayed(name, item, checkpoint, renamed) for name, item in placed)
    return Plan(REPLAYED, options, in_order(items))


def plan_removal(checkpoint: Checkpoint) -> Plan:
    """Return the plan that makes every mask of `checkpoint` permanent, and prunes nothing more.

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
    """Yield why the row `item` cannot be carried out on `checkpoint`; nothing if it can."""
    yield from _misfits(item, _Names(checkpoint))


def _misfits(item: PlanItem, names: _Names) -> Iterator[str]:
    checkpoint, found = names.checkpoint, names.of(item)
    if not found:
        yield f"{item.name}: the checkpoint has no such tensor"
    for parameter in (checkpoint.parameter_of[name] for name in found):
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


def _replayed(
    name: str, item: PlanItem, checkpoint: Checkpoint, renamed: Mapping[str, str]
) -> PlanItem:
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
        follows=item.follows and renamed[item.follows],
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
