"""The plan of a run: the channels of each selected tensor, drawn before any weight flows.

It is made from headers; of the weights it reads only what tells that a channel is already zero.

See also: `replay`, plans that draw nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prune_cli.amounts import Amount, number_to_prune
from prune_cli.channels import draw_channels, other_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter, resolve_dim
from prune_cli.errors import (
    ParameterError,
    PruneError,
    RequestError,
    SelectionError,
    UsageError,
)
from prune_cli.plan import masks
from prune_cli.plan.biases import bias_items
from prune_cli.plan.facts import RANDOM, Options, Plan, PlanItem, Skipped, derive_seed
from prune_cli.plan.masks import refuse_odd_masks
from prune_cli.plan.prunable import find_problems, scaled_by
from prune_cli.plan.selection import Rule, Selected, Selection, select


def make_plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Decide what `options` prune in `checkpoint`.

    Raises:
        RequestError: they do not fit it; every problem is named at once.
    """
    rules = options.rules or (_only_rule(options),)
    if not checkpoint.parameters:
        raise SelectionError(f"{checkpoint.path} holds no tensors")
    selection = Selection(rules, options.exclude)
    selected = select(checkpoint.parameters, selection, aliases=checkpoint.names_of)
    prunable, skipped = _split_off_unprunable(checkpoint, selected)
    items = _gather(lambda pick: _plan_item(checkpoint, options.seed, pick), prunable)
    if not items:
        raise SelectionError(_nothing_left(skipped))
    skipped += [Skipped(name, reason) for name, reason in _scales(checkpoint, items)]
    if options.with_bias:
        biases, without = bias_items(checkpoint, items)
        items, skipped = items + biases, skipped + without
    if options.bake:
        refuse_odd_masks(checkpoint)
    left = {skip.name: skip for skip in skipped} | dict.fromkeys(item.name for item in items)
    return Plan(
        RANDOM,
        options,
        tuple(sorted(items, key=lambda item: item.name)),
        tuple(skip for _, skip in sorted(left.items()) if skip),
    )


def channels_to_prune(item: PlanItem) -> tuple[int, ...]:
    """Return the channels that the seed of `item` gives: its `pruned`, if it was drawn."""
    live = other_channels(item.already_pruned, item.channels)
    return _draw(live, item.amount, item.seed or 0, item.name)


# --- what is not planned ---------------------------------------------------------------------


def _only_rule(options: Options) -> Rule:
    if options.amount is None:
        raise UsageError("no amount is given; say how much to prune: --amount 0.25")
    return Rule(options.modules, options.params, options.amount, options.dim)


def _split_off_unprunable(
    checkpoint: Checkpoint, selected: list[Selected]
) -> tuple[list[Selected], list[Skipped]]:
    """Norms have no channels to prune, torch refuses them too; scales belong to what they scale.

    Wildcards skip these; naming one exactly is an error.
    """
    prunable: list[Selected] = []
    skipped: list[Skipped] = []
    for pick in selected:
        reason = None if pick.by_name else _why_passed_over(checkpoint, pick.parameter)
        if reason:
            skipped.append(Skipped(pick.parameter.name, reason))
        else:
            prunable.append(pick)
    return prunable, skipped


def _why_passed_over(checkpoint: Checkpoint, parameter: Parameter) -> str | None:
    if scaled_by(parameter.name) in checkpoint.parameter_of:
        return "a scale, and no weight"
    dims = len(parameter.tensor.shape)
    return f"{dims}-D: it has no channels to prune" if dims < 2 else None


def _refuse_problems(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ParameterError("\n".join(found))


def _nothing_left(skipped: list[Skipped]) -> str:
    if not skipped:
        return "nothing is left to prune: what the patterns match is excluded again"
    names = "; ".join(f"{skip.name} ({skip.reason})" for skip in skipped[:5])
    return f"nothing that matches can be pruned: {names}{'; ...' if len(skipped) > 5 else ''}"


def _scales(checkpoint: Checkpoint, items: list[PlanItem]) -> Iterator[tuple[str, str]]:
    planned = {item.name for item in items}
    for name in checkpoint.tensors:
        weight = scaled_by(name)
        if weight in planned:
            yield name, f"a scale of {weight}: left alone, 0 stays 0"


# --- what is planned -------------------------------------------------------------------------


def _gather(plan: Callable[[Selected], PlanItem], picks: list[Selected]) -> list[PlanItem]:
    """`plan` of each, or one error that names all the problems."""
    items: list[PlanItem] = []
    errors: list[PruneError] = []
    for pick in picks:
        try:
            items.append(plan(pick))
        except RequestError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        raise (kinds.pop() if len(kinds) == 1 else RequestError)("\n".join(map(str, errors)))
    return items


def _plan_item(checkpoint: Checkpoint, seed: int, pick: Selected) -> PlanItem:
    parameter, rule = pick.parameter, pick.rule
    info = parameter.tensor
    _refuse_problems(find_problems(checkpoint, parameter))
    dim = resolve_dim(rule.dim, info.shape, parameter.name)
    channels = info.shape[dim]
    live = masks.live(checkpoint, parameter, dim)
    own_seed = derive_seed(seed, parameter.name)
    return PlanItem(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        shape=info.shape,
        dim=dim,
        amount=rule.amount,
        seed=own_seed,
        channels=channels,
        already_pruned=other_channels(live, channels),
        pruned=_draw(live, rule.amount, own_seed, parameter.name),
    )


def _draw(live: Sequence[int], amount: Amount, seed: int, name: str) -> tuple[int, ...]:
    return draw_channels(live, number_to_prune(amount, len(live), name), seed)
