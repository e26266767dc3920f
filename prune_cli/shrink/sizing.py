"""How many channels of each group go, and which, where a choice says it: budgets over groups.

A group goes with all that is coupled to it, so a budget is solved on what really remains: the
model is built without the channels, and counted. See also: the arithmetic (plan/allocation.py,
plan/quotas.py, plan/budget.py), and whether the model agrees (planning.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np
from torch import nn

from prune_cli.channels import uniform_draws
from prune_cli.plan.allocation import Layer, fractions, reach_of, whole_channels
from prune_cli.plan.budget import Target, solve_budget
from prune_cli.plan.choice import Choice
from prune_cli.plan.quotas import Quota, set_quotas
from prune_cli.plan.scores import Ranks
from prune_cli.shrink.channels import Cut, NotSliceableError
from prune_cli.shrink.proposals import Proposal, Proposer, Unit
from prune_cli.shrink.request import Score, Site
from prune_cli.shrink.subject import Subject

Cost = Callable[[Sequence[Unit]], float]
"""What remains of the model without the channels of some units."""

_RANKED = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""Modules whose weights say how much a channel matters; biases and statistics do not."""

_NEAR_ENOUGH = 0.005  # of the target; the promise is 1 %, or one channel
_FEW = 8  # layers, of which two can be changed at a time
_UNITS = {"params": "parameters", "flops": "FLOPs", "bytes": "bytes", "latency": "ms"}


@dataclass(frozen=True)
class Going:
    """A proposal with everything that could go of it.

    `ranks` has a number for each position in a block: the smallest go first. `cuts` are those of
    all channels of the group.
    """

    proposal: Proposal
    cuts: tuple[Cut, ...]
    ranks: Ranks

    def sized(self, k: int, quota: Quota) -> Proposal:
        """Return the proposal to remove the first `k` channels.

        Raises:
            NotSliceableError: They do not fall into equal blocks.
        """
        coupling = self.proposal.coupling
        if k % coupling.blocks:
            raise NotSliceableError(f"{k} channels do not fall into {coupling.blocks} equal blocks")
        first = self.ranks.argsort(kind="stable")[: k // coupling.blocks]
        positions = {int(position) for position in first}
        removed = tuple(
            sorted(
                channel
                for index, channel in enumerate(coupling.channels)
                if index % len(self.ranks) in positions
            )
        )
        rule = replace(self.proposal.rule, amount=quota.amount)
        return Proposal(coupling, removed, tuple(_within(self.cuts, set(removed))), rule)


@dataclass(frozen=True)
class Candidate:
    """A unit that can lose channels: the numbers that an allocation wants, and who goes first.

    Attributes:
        unit: as it was tried, without as few channels as can go.
        layer: stands for the whole unit, by the proposal that lost the fewest.
        going: the proposals, that one first.
        config: for each number of a config that the unit changes, what it is without changes.
    """

    unit: Unit
    layer: Layer
    going: tuple[Going, ...]
    config: Mapping[str, int | float]

    @property
    def ranks(self) -> Ranks:
        """A number for each channel of the layer; of several proposals the mean."""
        sorts = [np.sort(each.ranks) for each in self.going if len(each.ranks) == self._width]
        mean = sorts[0] if len(sorts) == 1 else np.mean(sorts, axis=0)
        return np.repeat(mean, self.going[0].proposal.coupling.blocks)

    @property
    def _width(self) -> int:
        return len(self.going[0].ranks)

    def sized(self, quota: Quota) -> Unit:
        """Return the unit without as many channels as its quota says.

        Raises:
            NotSliceableError: They do not fall into equal blocks.
        """
        tried = len(self.going[0].proposal.removed)
        proposals = tuple(
            each.sized(quota.channels * len(each.proposal.removed) // tried, quota)
            for each in self.going
        )
        if not quota.channels:
            return Unit(proposals, {})
        config = {
            key: _less(before, self.unit.config[key], quota.channels, tried, self.layer.live)
            for key, before in self.config.items()
        }
        return Unit(proposals, config)


def find_candidates(
    proposer: Proposer,
    units: Sequence[Unit],
    numbers: Mapping[str, int | float | None],
    score: Score,
) -> list[Candidate]:
    """Return the units that can lose channels, by the names of their layers.

    Args:
        proposer: Of the units.
        units: Each without as few channels as can go.
        numbers: Of the config before any change; empty where there is none.
        score: What ranks channels that are not drawn.
    """
    proposals = [proposal for unit in units for proposal in unit.proposals]
    cuts = [tuple(proposer.graph.removal(p.coupling, p.coupling.channels)) for p in proposals]
    ranks = _ranks(proposer, proposals, cuts, score)
    going = {
        each[0].coupling.root: Going(*each) for each in zip(proposals, cuts, ranks, strict=True)
    }
    found = [_candidate(proposer, unit, going, numbers) for unit in units]
    return sorted(found, key=lambda candidate: candidate.layer.name)


def set_sizes(
    candidates: Sequence[Candidate], choice: Choice, seed: int, target: Target | None, cost: Cost
) -> list[Unit]:
    """Return the units without as many channels as the choice says, in the same order.

    Raises:
        AmountError: That cannot be had; the message says what can.
        NotSliceableError: A number of channels does not fall into equal blocks.
    """
    if target is None:
        amounts = [candidate.going[0].proposal.rule.amount for candidate in candidates]
        layers = [candidate.layer for candidate in candidates]
        quotas = set_quotas(layers, amounts, choice, seed, lambda: _all_ranks(candidates))
    else:
        quotas = _solve(candidates, replace(choice, target=None), seed, target, cost)
    return _sized(candidates, quotas)


def _sized(candidates: Sequence[Candidate], quotas: Sequence[Quota]) -> list[Unit]:
    return [each.sized(quota) for each, quota in zip(candidates, quotas, strict=True)]


def _all_ranks(candidates: Sequence[Candidate]) -> list[Ranks]:
    return [candidate.ranks for candidate in candidates]


# --- a target --------------------------------------------------------------------------------


def _solve(
    candidates: Sequence[Candidate], choice: Choice, seed: int, target: Target, cost: Cost
) -> tuple[Quota, ...]:
    """The quotas with which nearest to the target remains, by bisection on what does remain."""
    layers = [candidate.layer for candidate in candidates]

    def quotas_of(amount: float) -> tuple[Quota, ...]:
        if choice.is_global:
            amounts = [amount] * len(layers)
            return set_quotas(layers, amounts, choice, seed, lambda: _all_ranks(candidates))
        return _share_out(layers, choice, seed, amount)

    @cache
    def remains(numbers: tuple[int, ...]) -> float:
        return cost(_sized(candidates, [Quota(0, k) for k in numbers]))

    wanted = target.of(cost([]))
    found = solve_budget(
        lambda amount: remains(_numbers(quotas_of(amount))),
        wanted,
        least=_least(layers, choice, seed),
        most=_most(layers, choice, seed),
        unit=_UNITS[target.metric],
    )
    quotas = quotas_of(found.amount)
    if choice.is_global or target.metric == "latency":
        return quotas
    numbers = _refine(layers, _numbers(quotas), lambda ks: abs(remains(ks) / wanted - 1))
    return tuple(q._replace(channels=k) for q, k in zip(quotas, numbers, strict=True))


def _numbers(quotas: Sequence[Quota]) -> tuple[int, ...]:
    return tuple(quota.channels for quota in quotas)


def _refine(
    layers: Sequence[Layer], numbers: tuple[int, ...], miss: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """Where layers are so few that a channel is much: one step more or less of some, each once."""
    best, rest = numbers, set(range(len(layers)))
    while rest and miss(best) > _NEAR_ENOUGH:
        nearest = min(_moves(layers, best, sorted(rest)), key=lambda ks: (miss(ks), ks))
        if miss(nearest) >= miss(best):
            break
        rest -= {index for index in rest if nearest[index] != best[index]}
        best = nearest
    return best


def _moves(
    layers: Sequence[Layer], numbers: tuple[int, ...], rest: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """The numbers with a step more or less of one layer; where they are few, of two."""
    for size in (1, 2) if len(rest) <= _FEW else (1,):
        for some in combinations(rest, size):
            for steps in product(*(_beside(layers[index], numbers[index]) for index in some)):
                changed = dict(zip(some, steps, strict=True))
                yield tuple(changed.get(index, k) for index, k in enumerate(numbers))


def _beside(layer: Layer, k: int) -> Iterator[int]:
    left = layer.live - k
    for other in (left - (left % layer.step or layer.step), left + layer.step):
        yield max(0, min(layer.live - other, layer.most))


def _share_out(
    layers: Sequence[Layer], choice: Choice, seed: int, amount: float
) -> tuple[Quota, ...]:
    """As allocation.share_out, with the fractions before they are rounded."""
    gone = amount * sum(layer.elements for layer in layers)
    wanted = fractions(layers, choice.allocation(seed), gone)
    numbers = whole_channels(layers, wanted, gone)
    return tuple(Quota(part, k) for part, k in zip(wanted, numbers, strict=True))


def _least(layers: Sequence[Layer], choice: Choice, seed: int) -> float:
    if choice.is_global:
        return 0.0
    reach = reach_of(layers, choice.allocation(seed))
    return reach.least / sum(layer.elements for layer in layers)


def _most(layers: Sequence[Layer], choice: Choice, seed: int) -> float:
    if choice.is_global:
        return sum(layer.most for layer in layers) / sum(layer.live for layer in layers)
    reach = reach_of(layers, choice.allocation(seed))
    return reach.most / sum(layer.elements for layer in layers)


# --- candidates ------------------------------------------------------------------------------


def _candidate(
    proposer: Proposer,
    unit: Unit,
    going: Mapping[str, Going],
    numbers: Mapping[str, int | float | None],
) -> Candidate:
    own = [going[proposal.coupling.root] for proposal in unit.proposals]
    own.sort(key=lambda each: len(each.proposal.removed))
    tried = len(own[0].proposal.removed)
    config = {key: _before(numbers[key], new, tried) for key, new in unit.config.items()}
    return Candidate(unit, _layer(proposer, own, config, unit.config), tuple(own), config)


def _layer(
    proposer: Proposer,
    going: Sequence[Going],
    before: Mapping[str, int | float],
    after: Mapping[str, int | float],
) -> Layer:
    options, subject = proposer.options, proposer.subject
    coupling = going[0].proposal.coupling
    shape = subject.shape(coupling.root)
    alone = Layer(subject.outside(coupling.root), shape, coupling.dim, len(coupling.channels))
    elements = sum(_elements(subject, each.proposal) for each in going)
    return replace(
        alone,
        step=math.lcm(options.round_to, *_steps(going, before, after)),
        at_least=max(1, options.choice.at_least if options.choice else 1),
        copies=max(1, round(elements / alone.elements)),
    )


def _elements(subject: Subject, proposal: Proposal) -> int:
    coupling = proposal.coupling
    shape = subject.shape(coupling.root)
    return len(coupling.channels) * math.prod(shape) // shape[coupling.dim]


def _steps(
    going: Sequence[Going], before: Mapping[str, int | float], after: Mapping[str, int | float]
) -> Iterator[int]:
    """How many channels of the first proposal go at a time, so that all else is whole numbers."""
    tried = len(going[0].proposal.removed)
    yield from (each.proposal.coupling.blocks for each in going)
    yield from (tried // math.gcd(tried, len(each.proposal.removed)) for each in going)
    for key, value in before.items():
        if isinstance(value, int):
            yield tried // math.gcd(tried, int(value - after[key]))


def _before(value: float | None, after: float, tried: int) -> int | float:
    """What a number of the config is without changes; one that is not set counts channels."""
    return after + tried if value is None else value


def _less(before: float, after: float, k: int, tried: int, live: int) -> int | float:
    """The number of a config without `k` of `live` channels, if `after` is that without `tried`."""
    if isinstance(before, int):
        return before - int(before - after) * k // tried
    return before * (live - k) / live  # a ratio


# --- what ranks channels ---------------------------------------------------------------------


def _ranks(
    proposer: Proposer,
    proposals: Sequence[Proposal],
    cuts: Sequence[Sequence[Cut]],
    score: Score,
) -> list[Ranks]:
    choice = proposer.options.choice
    if choice is None or choice.criterion == "random":
        return [uniform_draws(_width(p), proposer.seed(p.coupling)) for p in proposals]
    sites = [_sites(proposer.subject, p, own) for p, own in zip(proposals, cuts, strict=True)]
    wanted = list(dict.fromkeys(site for own in sites for site in own))
    scores = dict(zip(wanted, score(wanted), strict=True))
    added = [_add_up(p, own, scores) for p, own in zip(proposals, sites, strict=True)]
    return [np.sqrt(each) for each in added] if choice.criterion == "l2" else added


def _width(proposal: Proposal) -> int:
    return len(proposal.coupling.channels) // proposal.coupling.blocks


def _sites(subject: Subject, proposal: Proposal, cuts: Iterable[Cut]) -> dict[Site, Cut]:
    """Return the weights that a group is ranked by; tied ones once."""
    root = (proposal.coupling.root, proposal.coupling.dim)
    found: dict[tuple[str, int], tuple[Site, Cut]] = {}
    for cut in cuts:
        path, _, leaf = cut.tensor.rpartition(".")
        module = subject.model.get_submodule(path)
        if leaf in ("weight", "in_proj_weight") and isinstance(module, _RANKED):
            site = Site(subject.outside(cut.tensor), cut.dim, (cut.tensor, cut.dim) == root)
            found.setdefault((subject.first_names[cut.tensor], cut.dim), (site, cut))
    return dict(found.values())


def _add_up(proposal: Proposal, sites: Mapping[Site, Cut], scores: Mapping[Site, Ranks]) -> Ranks:
    """The scores of each position in a block, over all blocks and all weights of the group."""
    channels, width = proposal.coupling.channels, _width(proposal)
    position = {channel: index % width for index, channel in enumerate(channels)}
    total = np.zeros(width)
    for site, cut in sites.items():
        inside = {i: c for i, c in cut.channels.items() if i < len(scores[site])}
        where = np.fromiter((position[c] for c in inside.values()), np.intp, len(inside))
        np.add.at(total, where, scores[site][np.fromiter(inside, np.intp, len(inside))])
    return total


def _within(cuts: Iterable[Cut], gone: set[int]) -> Iterator[Cut]:
    for cut in cuts:
        channels = {index: channel for index, channel in cut.channels.items() if channel in gone}
        if channels:
            yield Cut(cut.tensor, cut.dim, channels)
