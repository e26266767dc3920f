"""Which channels are to go: drawn, or zero already; of every group that is selected and can lose some.

See also: whether the model survives it (planning.py), and which channels are coupled (coupling.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from prune_cli.amounts import number_to_prune
from prune_cli.channels import draw_channels
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.errors import AmountError, RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.selection import Rule, Selection, select
from prune_cli.plan.shrink import Whole
from prune_cli.shrink.axes import Owner
from prune_cli.shrink.channels import Cut, NotSliceableError
from prune_cli.shrink.coupling import Coupling, Couplings
from prune_cli.shrink.request import Request, Zeros
from prune_cli.shrink.subject import Subject

NOT_SELECTED = "it is not selected"

_SAY_NOTHING = ("bias", "running_mean", "running_var", "in_proj_bias")
"""Tensors that are often zero without anything being pruned."""


@dataclass(frozen=True)
class Proposal:
    """A coupling, the channels of its root that are to go, and everything that goes with them."""

    coupling: Coupling
    removed: tuple[int, ...]
    cuts: tuple[Cut, ...]
    rule: Rule

    @cached_property
    def owners(self) -> tuple[tuple[str, int, dict[int, Owner]], ...]:
        """For each tensor and axis, which channel of the root each index goes with."""
        owner = {channel: Owner(self.coupling.root, channel) for channel in self.removed}
        return tuple(
            (cut.tensor, cut.dim, {index: owner[c] for index, c in cut.channels.items()})
            for cut in self.cuts
        )


@dataclass(frozen=True)
class Unit:
    """Proposals that stand or fall together; with a Hugging Face config, those of one number."""

    proposals: tuple[Proposal, ...]
    config: Mapping[str, int | float]

    @property
    def roots(self) -> frozenset[str]:
        """The names by which disagreements know the proposals."""
        return frozenset(proposal.coupling.root for proposal in self.proposals)


class Proposer:
    """Carries what was left whole from step to step. A class because every step adds to it."""

    def __init__(self, subject: Subject, options: Request, zeros: Zeros | None) -> None:
        self.subject, self.options, self.zeros = subject, options, zeros
        self.graph = Couplings(subject)
        self.whole: list[Whole] = []

    def proposals(self) -> list[Proposal]:
        """One for every group that is selected and can lose channels; the others are left whole."""
        usual = self._draw if self.options.choice is None else self._draw_few
        propose = usual if self.zeros is None else self._take_zeros
        proposals = []
        for coupling, rule in self._chosen(list(self.graph.all())):
            try:
                if coupling.obstacle:
                    raise NotSliceableError(coupling.obstacle)
                proposals.append(propose(coupling, rule))
            except NotSliceableError as error:
                self.leave(coupling, str(error))
        return self._without_tied(proposals)

    def _without_tied(self, proposals: list[Proposal]) -> list[Proposal]:
        """Leave whole what only a tied tensor couples, which the graph of layers does not show."""
        holders: dict[tuple[str, int], dict[str, str]] = {}
        for proposal in proposals:
            for tensor, dim in places(proposal):
                place = (self.subject.first_names[tensor], dim)
                holders.setdefault(place, {})[tensor] = proposal.coupling.root
        torn = {
            root: f"{self.subject.outside(first)} is tied, and its other use couples it with other channels"
            for (first, _), roots in holders.items()
            if len(set(roots.values())) > 1 and len(roots) > 1
            for root in roots.values()
        }
        for proposal in proposals:
            if proposal.coupling.root in torn:
                self.leave(proposal.coupling, torn[proposal.coupling.root])
        return [proposal for proposal in proposals if proposal.coupling.root not in torn]

    def _chosen(self, couplings: list[Coupling]) -> Iterator[tuple[Coupling, Rule]]:
        """Yield the couplings of which every layer is selected, each with the rule for its root."""
        outside = self.subject.outside
        makers = {c.root: [outside(_weight_of(m)) for m in c.modules] for c in couplings}
        parameters = [
            Parameter(name, TensorInfo(name, "F32", ()))
            for name in dict.fromkeys(name for names in makers.values() for name in names)
        ]
        if not parameters:
            raise RequestError(
                "no layer of the model leads to an output that autograd can follow; a forward "
                "under torch.no_grad hides everything"
            )
        picked = select(parameters, Selection(self.options.rules, self.options.exclude))
        rules = {pick.parameter.name: pick.rule for pick in picked}
        for coupling in couplings:
            left_out = [name for name in makers[coupling.root] if name not in rules]
            root = outside(_weight_of(coupling.root.rpartition(".")[0]))
            if root in left_out:
                self.leave(coupling, NOT_SELECTED)
            elif left_out:
                self.leave(coupling, f"it is coupled with {left_out[0]}, which is not selected")
            else:
                yield coupling, rules[root]

    def leave(self, coupling: Coupling, reason: str, channels: int | None = None) -> None:
        """Note that a group stays whole, or how many of its channels stay, and why."""
        count = len(coupling.channels) if channels is None else channels
        root = self.subject.outside(coupling.root)
        self.whole.append(Whole(root, coupling.dim, count, reason))

    def _draw(self, coupling: Coupling, rule: Rule) -> Proposal:
        count = len(coupling.channels)
        root = self.subject.outside(coupling.root)
        k = number_to_prune(rule.amount, count, root)
        if k == count:
            raise AmountError(
                f"{root}: amount={rule.amount} would remove all of its {count} channels, "
                "which leaves no model; give a smaller one"
            )
        step = math.lcm(self.options.round_to, coupling.blocks)
        left = min(count, -(-(count - k) // step) * step)
        if left == count:
            raise NotSliceableError(
                f"of {count} channels, amount={rule.amount} in steps of {step} is none"
            )
        return self.drawn(coupling, rule, count - left)

    def _draw_few(self, coupling: Coupling, rule: Rule) -> Proposal:
        """As few channels as can go, to try whether any can; how many do go, the choice says."""
        count, choice = len(coupling.channels), self.options.choice
        step = math.lcm(self.options.round_to, coupling.blocks)
        k = count % step or step
        if choice and count - k < max(1, choice.at_least):
            raise NotSliceableError(
                f"of {count} channels none can go, in steps of {step} and with at least "
                f"{max(1, choice.at_least)} left"
            )
        return self.drawn(coupling, rule, k)

    def drawn(self, coupling: Coupling, rule: Rule, k: int) -> Proposal:
        """Return the proposal to remove `k` channels, the same positions in each block."""
        if k % coupling.blocks:
            raise NotSliceableError(f"{k} channels do not fall into {coupling.blocks} equal blocks")
        width = len(coupling.channels) // coupling.blocks
        positions = draw_channels(range(width), k // coupling.blocks, self.seed(coupling))
        removed = tuple(
            coupling.channels[block * width + position]
            for block in range(coupling.blocks)
            for position in positions
        )
        removed = tuple(sorted(removed))
        return Proposal(coupling, removed, tuple(self.graph.removal(coupling, removed)), rule)

    def seed(self, coupling: Coupling) -> int:
        """Return the seed of the coupling's own generator."""
        return derive_seed(self.options.seed, self.subject.outside(coupling.root))

    def _take_zeros(self, coupling: Coupling, rule: Rule) -> Proposal:
        """Every channel that is zero in some tensor; whether it can go, the check decides."""
        removed = in_all_blocks(coupling, self._zero_channels(coupling))
        if not removed:
            raise NotSliceableError("no channel of it is zero")
        if len(removed) == len(coupling.channels):
            raise NotSliceableError(
                "all of its channels are zero somewhere, and none would be left"
            )
        return Proposal(coupling, removed, tuple(self.graph.removal(coupling, removed)), rule)

    def _zero_channels(self, coupling: Coupling) -> set[int]:
        """Channels that are zero in some weight; a weight that is zero all over says nothing."""
        found: set[int] = set()
        for cut in self.graph.removal(coupling, coupling.channels):
            zero = self.zeros_of(cut)
            loud = {channel for index, channel in cut.channels.items() if index not in zero}
            if loud and cut.tensor.rpartition(".")[2] not in _SAY_NOTHING:
                found |= set(coupling.channels) & (set(cut.channels.values()) - loud)
        return found

    def zeros_of(self, cut: Cut) -> frozenset[int]:
        """Return the indices at which the cut tensor is known to be zero."""
        first = self.subject.first_names[cut.tensor]
        return frozenset((self.zeros or {}).get(first, {}).get(cut.dim, ()))


def _weight_of(module: str) -> str:
    """Return the name by which a layer is selected, whatever its tensors are called."""
    return f"{module}.weight" if module else "weight"


def in_all_blocks(coupling: Coupling, channels: Iterable[int]) -> tuple[int, ...]:
    """Return the channels with all that stand at the same positions in other blocks, ascending."""
    width = len(coupling.channels) // coupling.blocks
    positions = {coupling.channels.index(channel) % width for channel in channels}
    chosen = (c for i, c in enumerate(coupling.channels) if i % width in positions)
    return tuple(sorted(chosen))


def places(proposal: Proposal) -> set[tuple[str, int]]:
    """Return every tensor and axis that gets shorter."""
    return {(cut.tensor, cut.dim) for cut in proposal.cuts}
