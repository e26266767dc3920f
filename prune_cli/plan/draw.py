"""The plan of a run: the channels of each selected tensor, drawn before any weight flows.

It is made from headers; of the weights it reads only what tells that a channel is already zero.

See also: `replay`, plans that draw nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from prune_cli.amounts import Amount, number_to_prune
from prune_cli.channels import draw_channels, k_smallest, other_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import resolve_dim
from prune_cli.errors import (
    ParameterError,
    PruneError,
    RequestError,
    SelectionError,
    UsageError,
)
from prune_cli.plan import masks
from prune_cli.plan.allocation import Layer
from prune_cli.plan.biases import bias_items
from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import RANDOM, Options, Plan, PlanItem, Skipped, in_order
from prune_cli.plan.prefixes import find_prefixes
from prune_cli.plan.prunable import find_problems, scale_of, why_passed_over
from prune_cli.plan.quotas import Quota, set_quotas
from prune_cli.plan.scores import Ranks, Weight, rank_channels
from prune_cli.plan.selection import Rule, Selected, Selection, select


def make_plan(
    checkpoint: Checkpoint,
    options: Options,
    *,
    scores: Checkpoint | None = None,
    workers: int = 1,
) -> Plan:
    """Decide what `options` prune in `checkpoint`.

    Args:
        checkpoint: the input.
        options: what is asked for.
        scores: the score file, for the criterion "scores".
        workers: threads, where channels are ranked by their weights.

    Raises:
        RequestError: they do not fit it; every problem is named at once.
    """
    names = (parameter.name for parameter in checkpoint.parameters)
    prefixes = find_prefixes(names, options.strip_prefixes or ())
    options = replace(options, strip_prefixes=prefixes or None)
    rules = options.rules or (_only_rule(options),)
    refuse_two_budgets(options)
    if not checkpoint.parameters:
        raise SelectionError(f"{checkpoint.path} holds no tensors")
    selection = Selection(rules, options.exclude)
    selected = select(
        checkpoint.parameters, selection, aliases=checkpoint.names_of, prefixes=prefixes
    )
    prunable, skipped = _split_off_unprunable(checkpoint, selected)
    choice = options.choice
    candidates = _gather(lambda pick: _candidate(checkpoint, choice, pick), prunable)
    if not candidates:
        raise SelectionError(_nothing_left(skipped))
    if choice is None:
        items = [_draw(candidate, options) for candidate in candidates]
    else:
        items = _choose(checkpoint, options, choice, candidates, scores, workers)
    skipped += [Skipped(name, reason) for name, reason in _scales(checkpoint, items)]
    if options.with_bias:
        biases, without = bias_items(checkpoint, items)
        items, skipped = items + biases, skipped + without
    left = {skip.name: skip for skip in skipped} | dict.fromkeys(item.name for item in items)
    return Plan(
        method_of(options),
        options,
        in_order(items),
        in_order(filter(None, left.values())),
    )


def channels_to_prune(item: PlanItem, choice: Choice | None = None) -> tuple[int, ...]:
    """Return the channels that the seed of `item` gives: its `pruned`, if it was drawn.

    With a `choice` the amount is not the whole of it, and the number is that of the row.
    """
    live = other_channels(item.already_pruned, item.channels)
    amount = len(item.pruned) if choice else item.amount
    return draw_channels(live, number_to_prune(amount, len(live), item.name), item.seed or 0)


def method_of(options: Options) -> str:
    """Return what a plan with these options is called."""
    return f"{options.choice.criterion}_structured" if options.choice else RANDOM


def layer_of(item: PlanItem, options: Options, choice: Choice) -> Layer:
    """Return the row `item` as an allocation sees it."""
    live = item.channels - len(item.already_pruned)
    name = options.plain_name(item.name)
    return Layer(name, item.shape, item.dim, live, choice.round_to, choice.at_least)


# --- what is not planned ---------------------------------------------------------------------


def _only_rule(options: Options) -> Rule:
    has_target = options.choice is not None and options.choice.target is not None
    if options.amount is None and not has_target:
        raise UsageError("no amount is given; say how much to prune: --amount 0.25")
    return Rule(options.modules, options.params, options.amount or 0, options.dim)


def refuse_two_budgets(options: Options) -> None:
    """Raise UsageError where both an amount and a target say how much goes."""
    has_target = options.choice is not None and options.choice.target is not None
    if has_target and (options.rules or options.amount is not None):
        given = "the amounts of a recipe" if options.rules else "--amount"
        raise UsageError(f"--target takes the place of {given}; give one of them")


def _split_off_unprunable(
    checkpoint: Checkpoint, selected: list[Selected]
) -> tuple[list[Selected], list[Skipped]]:
    """Wildcards skip what why_passed_over tells; naming one exactly is an error."""
    prunable: list[Selected] = []
    skipped: list[Skipped] = []
    for pick in selected:
        reason = None if pick.by_name else _why_passed_over(checkpoint, pick)
        if reason:
            skipped.append(Skipped(pick.parameter.name, reason))
        else:
            prunable.append(pick)
    return prunable, skipped


def _why_passed_over(checkpoint: Checkpoint, pick: Selected) -> str | None:
    is_spelt_out = pick.parameter.param in pick.rule.params
    return why_passed_over(checkpoint, pick.parameter, is_spelt_out=is_spelt_out)


def _refuse_problems(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise ParameterError("\n".join(found))


def _nothing_left(skipped: list[Skipped]) -> str:
    if not skipped:
        return "nothing is left to prune: what the patterns match is excluded again"
    names = "; ".join(f"{skip.name} ({skip.reason})" for skip in skipped[:5])
    return f"nothing that matches can be pruned: {names}{'; ...' if len(skipped) > 5 else ''}"


def _scales(checkpoint: Checkpoint, items: list[PlanItem]) -> Iterator[tuple[str, str]]:
    planned = {item.name for item in items}
    for name in checkpoint.encodings:
        weight = scale_of(checkpoint, name)
        if weight in planned:
            yield name, f"a scale of {weight}: left alone, 0 stays 0"


# --- what is planned -------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """A weight that can lose channels, with the amount of its rule and what that means by itself."""

    weight: Weight
    amount: Amount
    quota: Quota


def _gather(find: Callable[[Selected], _Candidate], picks: list[Selected]) -> list[_Candidate]:
    """`find` of each, or one error that names all the problems."""
    found: list[_Candidate] = []
    errors: list[PruneError] = []
    for pick in picks:
        try:
            found.append(find(pick))
        except RequestError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        raise (kinds.pop() if len(kinds) == 1 else RequestError)("\n".join(map(str, errors)))
    return found


def _candidate(checkpoint: Checkpoint, choice: Choice | None, pick: Selected) -> _Candidate:
    parameter, amount = pick.parameter, pick.rule.amount
    info = parameter.tensor
    _refuse_problems(find_problems(checkpoint, parameter))
    dim = resolve_dim(pick.rule.dim, info.shape, parameter.name)
    live = masks.live(checkpoint, parameter, dim)
    k = 0 if choice else number_to_prune(amount, len(live), parameter.name)
    names = (parameter.name, *checkpoint.names_of.get(info.name, ()))
    return _Candidate(Weight(parameter, names, dim, live), amount, Quota(amount, k))


def _draw(candidate: _Candidate, options: Options) -> PlanItem:
    """Draw as many channels as the amount of its own rule means."""
    weight = candidate.weight
    own_seed = options.seed_of(weight.parameter.name)
    drawn = draw_channels(weight.live, candidate.quota.channels, own_seed)
    return _item(weight, candidate.amount, own_seed, drawn)


def _choose(
    checkpoint: Checkpoint,
    options: Options,
    choice: Choice,
    candidates: Sequence[_Candidate],
    scores: Checkpoint | None,
    workers: int,
) -> list[PlanItem]:
    """Rank the channels of each weight, and let as many go as the choice gives it."""
    candidates = sorted(candidates, key=lambda candidate: candidate.weight.parameter.name)
    weights = [candidate.weight for candidate in candidates]

    @cache
    def ranks() -> list[Ranks]:
        return rank_channels(
            checkpoint,
            weights,
            choice.criterion,
            seed_of=options.seed_of,
            scores=scores,
            workers=workers,
        )

    quotas = set_quotas(
        [_layer(weight, options, choice) for weight in weights],
        [None if choice.target else candidate.amount for candidate in candidates],
        choice,
        options.seed,
        ranks,
    )
    return [
        _item(weight, quota.amount, _own_seed(weight, options, choice), _take(weight, quota, own))
        for weight, quota, own in zip(weights, quotas, ranks(), strict=True)
    ]


def _take(weight: Weight, quota: Quota, ranks: Ranks) -> tuple[int, ...]:
    return tuple(weight.live[position] for position in k_smallest(ranks, quota.channels))


def _own_seed(weight: Weight, options: Options, choice: Choice) -> int | None:
    is_drawn = choice.criterion == "random"
    return options.seed_of(weight.parameter.name) if is_drawn else None


def _layer(weight: Weight, options: Options, choice: Choice) -> Layer:
    info = weight.parameter.tensor
    name, live = options.plain_name(weight.parameter.name), len(weight.live)
    return Layer(name, info.shape, weight.dim, live, choice.round_to, choice.at_least)


def _item(weight: Weight, amount: Amount, seed: int | None, pruned: tuple[int, ...]) -> PlanItem:
    parameter, info = weight.parameter, weight.parameter.tensor
    channels = info.shape[weight.dim]
    return PlanItem(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=weight.names[1:],
        dtype=info.dtype,
        shape=info.shape,
        dim=weight.dim,
        amount=amount,
        seed=seed,
        channels=channels,
        already_pruned=other_channels(weight.live, channels),
        pruned=pruned,
    )
