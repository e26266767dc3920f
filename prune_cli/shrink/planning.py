"""Decide what a shrunk model lacks. It runs in a child process (child.py) and needs no weights.

build on meta ─► trace ─► couple ─► draw (or take the zeros) ─► shrink the meta model ─► trace
                             ▲                                                            │
                             └──────── leave whole what does not agree ◄──────────────────┘
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from prune_cli.errors import AmountError, RequestError
from prune_cli.plan import derive_seed
from prune_cli.pruning import draw_channels, number_to_prune
from prune_cli.selection import Rule, Selection, select
from prune_cli.shrink.agreement import Disagreement, find_disagreements
from prune_cli.shrink.axes import Axes, Axis, Owner
from prune_cli.shrink.channels import Cut, NotSliceableError, changed_attributes
from prune_cli.shrink.coupling import Coupling, CouplingGraph
from prune_cli.shrink.effect import compare
from prune_cli.shrink.huggingface import ModelFolder, read_folder
from prune_cli.shrink.load import Resizing, resize
from prune_cli.shrink.model import Example, Inputs, build_model, make_inputs, parse_example
from prune_cli.shrink.plan import Group, ShrinkOptions, ShrinkPlan, Source, Whole, Zeros
from prune_cli.shrink.trace import Trace, named_tensors, trace
from prune_cli.tensors import Parameter, TensorInfo

Shapes = Mapping[str, tuple[int, ...]]

_NOT_SELECTED = "it is not selected"
_SAY_NOTHING = ("bias", "running_mean", "running_var", "in_proj_bias")
"""Tensors that are often zero without anything being pruned."""


@dataclass(frozen=True)
class Subject:
    """The whole model on meta, its example, a recording of both, and the names of its tensors.

    `first_names` maps each name to the first name of the same tensor, so tied ones meet there;
    `theirs` maps it to the name in the checkpoint, where from_pretrained renames.
    """

    model: nn.Module
    inputs: Inputs
    recording: Trace
    first_names: Mapping[str, str]
    theirs: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a named tensor."""
        return self.recording.shapes[self.recording.named[name].index]

    def outside(self, name: str) -> str:
        """What the checkpoint calls a tensor: users select by it, draws are keyed by it."""
        return self.theirs.get(name) or self.theirs.get(self.first_names.get(name, name), name)


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
    config: Mapping[str, int]

    @property
    def roots(self) -> frozenset[str]:
        """The names by which disagreements know the proposals."""
        return frozenset(proposal.coupling.root for proposal in self.proposals)


Build = Callable[[Sequence[Unit]], nn.Module]


def plan_shrink(source: Source, options: ShrinkOptions, checkpoint: Shapes | None) -> ShrinkPlan:
    """Plan to shrink the model of `source`.

    Args:
        source: The model.
        options: What to remove.
        checkpoint: The shape of each tensor of the checkpoint, which must be the model's; None
            to plan for the model alone.

    Raises:
        RequestError: The model cannot be followed, does not fit the checkpoint, or loses nothing.
    """
    folder = read_folder(source.model) if source.is_folder else None
    subject = _subject(source, folder)
    names = _checkpoint_names(subject, checkpoint, folder)
    subject = replace(subject, theirs=names)
    planner = _Planner(subject, options, _renamed_zeros(options.zeros, names, subject))
    units = planner.units_of_config(folder) if folder else planner.units()
    if not units:
        raise RequestError(_nothing_goes(planner.whole))
    return _to_plan(planner, units, names, folder)


def _subject(source: Source, folder: ModelFolder | None) -> Subject:
    model = folder.build() if folder else build_model(source.model, source.arguments)
    given = [parse_example(text) for text in source.examples]
    examples = folder.examples(model) if folder and not given else [given]
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(
                True
            )  # the graph is read off autograd, which skips frozen ones
    inputs, recording = _record(model, examples)
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model)}
    return Subject(model, inputs, recording, names)


def _record(model: nn.Module, alternatives: Iterable[Sequence[Example]]) -> tuple[Inputs, Trace]:
    """The first of the examples that the model runs on, and the recording."""
    for examples in alternatives:
        inputs = make_inputs(examples)
        recording = trace(model, inputs)
        if recording.failure is None:
            return inputs, recording
    error = recording.failure
    raise RequestError(
        f"the model does not run on its example ({type(error).__name__}: {error}); it runs "
        "without values, on torch's meta device, so it may not look at any; give inputs "
        "that fit with --example"
    ) from error


class _Planner:
    """Carries what was left whole from step to step. A class because every step adds to it."""

    def __init__(self, subject: Subject, options: ShrinkOptions, zeros: Zeros | None) -> None:
        self.subject, self.options, self.zeros = subject, options, zeros
        self.graph = CouplingGraph(subject.model, subject.inputs)
        self.whole: list[Whole] = []

    def units(self) -> list[Unit]:
        """The proposals that the model agrees with, each for itself."""
        units = [Unit((proposal,), {}) for proposal in self._proposals()]
        return self._agreed(units, self.resized)

    def units_of_config(self, folder: ModelFolder) -> list[Unit]:
        """The proposals that numbers of the config can express, by number."""
        units = self._by_number(folder, self._proposals())
        if self.zeros is not None:  # each layer may lose another number; the config wants one
            single = [Unit((p,), {}) for unit in units for p in unit.proposals]
            left = [p for unit in self._agreed(single, self.resized) for p in unit.proposals]
            units = self._by_number(folder, left)
        return self._agreed(units, lambda units: folder.build(_config(units)))

    def resized(self, units: Sequence[Unit]) -> nn.Module:
        """A copy of the model without the channels."""
        model = copy.deepcopy(self.subject.model)
        resize(model, self.resizing(units))
        return model

    def resizing(self, units: Sequence[Unit]) -> Resizing:
        """The shapes and attributes of the model without the channels."""
        shapes = {
            name: tuple(len(axis.kept) for axis in axes)
            for name, axes in self.axes(units).items()
            if any(axis.removed for axis in axes)
        }
        return Resizing(shapes, changed_attributes(self.subject.model, shapes))

    def axes(self, units: Sequence[Unit]) -> dict[str, Axes]:
        """The axes of every named tensor that loses channels or is known to have zeros."""
        removed: dict[str, dict[int, dict[int, Owner]]] = {}
        for proposal in (proposal for unit in units for proposal in unit.proposals):
            for tensor, dim, owners in proposal.owners:
                dims = removed.setdefault(self.subject.first_names[tensor], {})
                dims[dim] = {**dims[dim], **owners} if dim in dims else owners
        zeros = self.zeros or {}
        axes = {}
        for name, first in self.subject.first_names.items():
            if first in removed or first in zeros:
                axes[name] = tuple(
                    Axis(
                        size,
                        removed.get(first, {}).get(dim, {}),
                        frozenset(zeros.get(first, {}).get(dim, ())),
                    )
                    for dim, size in enumerate(self.subject.shape(name))
                )
        return axes

    # Proposals

    def _proposals(self) -> list[Proposal]:
        propose = self._draw if self.zeros is None else self._take_zeros
        proposals = []
        for coupling, rule in self._chosen(list(self.graph.couplings())):
            try:
                if coupling.obstacle:
                    raise NotSliceableError(coupling.obstacle)
                proposals.append(propose(coupling, rule))
            except NotSliceableError as error:
                self._leave(coupling, str(error))
        return self._without_tied(proposals)

    def _without_tied(self, proposals: list[Proposal]) -> list[Proposal]:
        """Leave whole what only a tied tensor couples, which the graph of layers does not show."""
        holders: dict[tuple[str, int], dict[str, str]] = {}
        for proposal in proposals:
            for tensor, dim in _places(proposal):
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
                self._leave(proposal.coupling, torn[proposal.coupling.root])
        return [proposal for proposal in proposals if proposal.coupling.root not in torn]

    def _chosen(self, couplings: list[Coupling]) -> Iterator[tuple[Coupling, Rule]]:
        """The couplings of which every layer is selected, each with the rule for its root."""
        outside = self.subject.outside
        makers = {
            c.root: [outside(f"{m}.weight" if m else "weight") for m in c.modules]
            for c in couplings
        }
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
            root = outside(coupling.root)
            if root in left_out:
                self._leave(coupling, _NOT_SELECTED)
            elif left_out:
                self._leave(coupling, f"it is coupled with {left_out[0]}, which is not selected")
            else:
                yield coupling, rules[root]

    def _leave(self, coupling: Coupling, reason: str, channels: int | None = None) -> None:
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
        return self._drawn(coupling, rule, count - left)

    def _drawn(self, coupling: Coupling, rule: Rule, k: int) -> Proposal:
        """The proposal to remove `k` channels, the same positions in each block."""
        if k % coupling.blocks:
            raise NotSliceableError(f"{k} channels do not fall into {coupling.blocks} equal blocks")
        width = len(coupling.channels) // coupling.blocks
        generator = torch.Generator().manual_seed(self.seed(coupling))
        positions = draw_channels(torch.arange(width), k // coupling.blocks, generator=generator)
        removed = tuple(
            coupling.channels[block * width + position]
            for block in range(coupling.blocks)
            for position in positions.tolist()
        )
        return Proposal(coupling, removed, tuple(self.graph.removal(coupling, removed)), rule)

    def seed(self, coupling: Coupling) -> int:
        """The seed of the coupling's own generator."""
        return derive_seed(self.options.seed, self.subject.outside(coupling.root))

    def _take_zeros(self, coupling: Coupling, rule: Rule) -> Proposal:
        """Every channel that is zero in some tensor; whether it can go, the check decides."""
        removed = _in_all_blocks(coupling, self._zero_channels(coupling))
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
            zero = self._zeros_of(cut)
            loud = {channel for index, channel in cut.channels.items() if index not in zero}
            if loud and cut.tensor.rpartition(".")[2] not in _SAY_NOTHING:
                found |= set(coupling.channels) & (set(cut.channels.values()) - loud)
        return found

    def _zeros_of(self, cut: Cut) -> frozenset[int]:
        first = self.subject.first_names[cut.tensor]
        return frozenset((self.zeros or {}).get(first, {}).get(cut.dim, ()))

    # Hugging Face configs

    def _by_number(self, folder: ModelFolder, proposals: list[Proposal]) -> list[Unit]:
        """Sort proposals by the numbers of the config that stand for them, as few as possible."""
        units: list[Unit] = []
        rest = {proposal.coupling.root: proposal for proposal in proposals}
        for keys, value in _combinations(folder.numbers()):
            counts = {count for p in rest.values() for count in _counts(p, value)}
            if counts:
                changes = dict.fromkeys(keys, value - min(counts))
                unit = self._unit_of_numbers(folder, changes, list(rest.values()))
                for root in unit.roots if unit else ():
                    del rest[root]
                units += [unit] if unit else []
        for proposal in rest.values():
            self._leave(proposal.coupling, "no number in config.json stands for it alone")
        return units

    def _unit_of_numbers(
        self, folder: ModelFolder, changes: Mapping[str, int], proposals: list[Proposal]
    ) -> Unit | None:
        """The proposals that these changes of the config come to, if they come to nothing else."""
        try:
            lost = _lost(self.subject, folder.build(changes))
            fitted = tuple(
                self._with_count(p, lost[(p.coupling.root, p.coupling.dim)])
                for p in proposals
                if _places(p) <= lost.keys()
            )
        except (RequestError, NotSliceableError):
            return None
        return Unit(fitted, changes) if fitted and _total(fitted) == lost else None

    def _with_count(self, proposal: Proposal, count: int) -> Proposal:
        """The same proposal for another number of channels."""
        if count == len(proposal.removed):
            return proposal
        if self.zeros is None:
            return self._drawn(proposal.coupling, proposal.rule, count)
        if count > len(proposal.removed):
            raise NotSliceableError("too few of its channels are zero")
        removed = proposal.removed[:count]
        return replace(
            proposal, removed=removed, cuts=tuple(self.graph.removal(proposal.coupling, removed))
        )

    # Agreement

    def _agreed(self, units: list[Unit], build: Build) -> list[Unit]:
        """Leave units whole until the shrunk model does what the whole one does.

        Where several were blamed at once, each is tried again at the end: one may be innocent.
        """
        suspects: list[tuple[Unit, Disagreement]] = []
        while units and (found := self._disagreements(units, build)):
            units, blamed = self._without(units, found)
            if not any(d.groups for d in found):
                raise RequestError(f"the model cannot be shrunk: {found[0]}")
            suspects += blamed
        for unit, blame in suspects:
            alone = sum(other is blame for _, other in suspects) == 1
            if not alone and not self._disagreements([*units, unit], build):
                units.append(unit)
            else:
                for proposal in unit.proposals:
                    self._leave(proposal.coupling, str(blame))
        return sorted(units, key=lambda unit: min(map(self._order, unit.roots)))

    def _order(self, name: str) -> int:
        return self.subject.recording.named[name].index

    def _disagreements(self, units: list[Unit], build: Build) -> list[Disagreement]:
        after = trace(build(units), self.subject.inputs)
        exact = self.zeros is not None
        return find_disagreements(
            self.subject.recording,
            after,
            self.axes(units),
            exact=exact,
            same_numbers=exact or any(unit.config for unit in units),
        )

    def _without(
        self, units: list[Unit], found: list[Disagreement]
    ) -> tuple[list[Unit], list[tuple[Unit, Disagreement]]]:
        """The units that nothing is said against, and the others."""
        left: list[Unit] = []
        blamed: list[tuple[Unit, Disagreement]] = []
        for unit in units:
            blame = next((d for d in found if d.groups & unit.roots), None)
            if blame is None:
                left.append(unit)
            elif blame.channels and len(unit.proposals) == 1:
                left.extend(self._without_channels(unit, found))
            else:
                blamed.append((unit, blame))
        return left, blamed

    def _without_channels(self, unit: Unit, found: list[Disagreement]) -> Iterator[Unit]:
        """Give back the channels that cannot go; the rest of the unit stays."""
        (proposal,) = unit.proposals
        root = proposal.coupling.root
        blocked = {owner.channel for d in found for owner in d.channels if owner.group == root}
        self._leave(proposal.coupling, self._what_emits(proposal, blocked), len(blocked))
        blocked = set(_in_all_blocks(proposal.coupling, blocked))
        removed = tuple(channel for channel in proposal.removed if channel not in blocked)
        if removed:
            cuts = tuple(self.graph.removal(proposal.coupling, removed))
            yield Unit((replace(proposal, removed=removed, cuts=cuts),), unit.config)

    def _what_emits(self, proposal: Proposal, blocked: set[int]) -> str:
        loud = []
        for cut in proposal.cuts:
            zero = self._zeros_of(cut)
            if cut.tensor.endswith("running_var"):
                continue  # it only scales
            if any(c in blocked and i not in zero for i, c in cut.channels.items()):
                loud.append(f"{self.subject.outside(cut.tensor)} (dim {cut.dim})")
        channels = ", ".join(map(str, sorted(blocked)[:8])) + (", ..." if len(blocked) > 8 else "")
        return f"channels {channels} still matter: not zero there are {', '.join(loud)}"


def _combinations(numbers: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each number of a config, then pairs and threes of equal ones: a ResNet's stem and first stage."""
    for size in (1, 2, 3):
        for value in dict.fromkeys(numbers.values()):
            keys = [key for key, other in numbers.items() if other == value]
            for chosen in itertools.combinations(keys, size):
                yield chosen, value


def _counts(proposal: Proposal, value: int) -> Iterator[int]:
    """How much less a number of the config would be, if it counts the channels or those of a block."""
    coupling = proposal.coupling
    for blocks in {1, coupling.blocks}:
        if len(coupling.channels) == value * blocks and len(proposal.removed) % blocks == 0:
            yield len(proposal.removed) // blocks


def _in_all_blocks(coupling: Coupling, channels: Iterable[int]) -> tuple[int, ...]:
    """The channels with all that stand at the same positions in other blocks, ascending."""
    width = len(coupling.channels) // coupling.blocks
    positions = {coupling.channels.index(channel) % width for channel in channels}
    return tuple(c for i, c in enumerate(coupling.channels) if i % width in positions)


def _places(proposal: Proposal) -> set[tuple[str, int]]:
    return {(cut.tensor, cut.dim) for cut in proposal.cuts}


def _total(proposals: Iterable[Proposal]) -> dict[tuple[str, int], int]:
    """How many indices each axis loses."""
    lost: dict[tuple[str, int], set[int]] = {}
    for proposal in proposals:
        for cut in proposal.cuts:
            lost.setdefault((cut.tensor, cut.dim), set()).update(cut.channels)
    return {place: len(indices) for place, indices in lost.items()}


def _lost(subject: Subject, changed: nn.Module) -> dict[tuple[str, int], int]:
    """How much shorter each axis is in `changed`; empty if it has other tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in changed.state_dict().items()}
    ours = {name: subject.shape(name) for name in subject.model.state_dict()}
    if shapes.keys() != ours.keys():
        return {}
    return {
        (name, dim): size - shapes[name][dim]
        for name, sizes in ours.items()
        for dim, size in enumerate(sizes)
        if len(shapes[name]) == len(sizes) and shapes[name][dim] != size
    }


def _config(units: Sequence[Unit]) -> dict[str, int]:
    return {key: value for unit in units for key, value in unit.config.items()}


# Names


def _checkpoint_names(
    subject: Subject, checkpoint: Shapes | None, folder: ModelFolder | None
) -> dict[str, str]:
    """Each tensor of the model by its name in the checkpoint, which is checked to fit.

    Raises:
        RequestError: The checkpoint is that of another model.
    """
    ours = list(subject.model.state_dict())
    if checkpoint is None:
        return {name: name for name in ours}
    renamed = (
        folder.model_names(subject.model, checkpoint) if folder else {n: n for n in checkpoint}
    )
    names = {ours_: theirs for theirs, ours_ in renamed.items() if ours_ in subject.first_names}
    there = {subject.first_names[name] for name in names}
    problems = [f"it lacks {name}" for name in ours if subject.first_names[name] not in there]
    problems += [
        f"{theirs} is {list(checkpoint[theirs])} and not {list(subject.shape(name))}"
        for name, theirs in names.items()
        if tuple(checkpoint[theirs]) != subject.shape(name)
    ]
    if folder is None:
        problems += [f"the model lacks {name}" for name in checkpoint if name not in names]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise RequestError(
            f"the checkpoint is not that of the model: {'; '.join(problems[:8])}{more}; "
            "build the model with the sizes that it was trained with (--model-arg)"
        )
    return names


def _renamed_zeros(zeros: Zeros | None, names: Mapping[str, str], subject: Subject) -> Zeros | None:
    if zeros is None:
        return None
    return {
        subject.first_names[ours]: zeros[theirs]
        for ours, theirs in names.items()
        if theirs in zeros
    }


# The plan


def _to_plan(
    planner: _Planner, units: list[Unit], names: Mapping[str, str], folder: ModelFolder | None
) -> ShrinkPlan:
    subject = planner.subject
    axes = {names[name]: axes for name, axes in planner.axes(units).items() if name in names}
    resizing = planner.resizing(units)
    shrunk = folder.build(_config(units)) if folder else planner.resized(units)
    return ShrinkPlan(
        kept={
            name: {dim: axis.kept for dim, axis in enumerate(axes) if axis.removed}
            for name, axes in axes.items()
            if any(axis.removed for axis in axes)
        },
        shapes={names[name]: shape for name, shape in resizing.shapes.items() if name in names},
        attributes={} if folder else resizing.attributes,
        config=_config(units),
        groups=tuple(_group(planner, p) for unit in units for p in unit.proposals),
        whole=tuple(planner.whole),
        effect=compare(subject.model, shrunk, subject.inputs),
    )


def _group(planner: _Planner, proposal: Proposal) -> Group:
    drawn = planner.zeros is None
    coupling, outside = proposal.coupling, planner.subject.outside
    return Group(
        root=outside(coupling.root),
        dim=coupling.dim,
        amount=proposal.rule.amount if drawn else None,
        seed=planner.seed(coupling) if drawn else None,
        channels=len(coupling.channels),
        blocks=coupling.blocks,
        removed=proposal.removed,
        members=tuple(sorted({(outside(tensor), dim) for tensor, dim in _places(proposal)})),
    )


def _nothing_goes(whole: Sequence[Whole]) -> str:
    whole = sorted(whole, key=lambda item: item.reason == _NOT_SELECTED)  # the others tell more
    reasons = "; ".join(f"{item.root}: {item.reason}" for item in whole[:6])
    more = f"; and {len(whole) - 6} more" if len(whole) > 6 else ""
    return f"nothing can be removed ({reasons}{more}); choose other modules or another amount"
