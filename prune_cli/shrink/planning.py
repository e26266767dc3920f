"""Decide what a shrunk model lacks. It runs in a child process (child.py) and needs no weights.

build on meta ─► trace ─► couple ─► draw (or take the zeros) ─► shrink the meta model ─► trace
                             ▲                                                            │
                             └──────── leave whole what does not agree ◄──────────────────┘
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from prune_cli.errors import RequestError
from prune_cli.plan.budget import Target, parse_target
from prune_cli.plan.scores import Ranks
from prune_cli.plan.shrink import Effect, Group, Latency, Resizing, ShrinkPlan, Whole
from prune_cli.shrink.agreement import Disagreement, find_disagreements
from prune_cli.shrink.axes import Axes, Axis, Owner
from prune_cli.shrink.channels import NotSliceableError, changed_attributes
from prune_cli.shrink.config import NO_NUMBER, by_number, config_of
from prune_cli.shrink.effect import count_flops
from prune_cli.shrink.huggingface import ModelFolder, read_folder
from prune_cli.shrink.load import resize
from prune_cli.shrink.model import count_parameters
from prune_cli.shrink.proposals import (
    NOT_SELECTED,
    Proposal,
    Proposer,
    Unit,
    in_all_blocks,
    places,
)
from prune_cli.shrink.request import OnStage, Request, Score, Site, Source
from prune_cli.shrink.sizing import Candidate, Cost, find_candidates, set_sizes
from prune_cli.shrink.subject import (
    Shapes,
    Subject,
    checkpoint_names,
    make_subject,
    renamed_zeros,
    thaw,
)
from prune_cli.shrink.trace import trace

Build = Callable[[Sequence[Unit]], nn.Module]


def no_scores(_: Sequence[Site]) -> Sequence[Ranks]:
    """Refuse, where no checkpoint ranks the channels."""
    raise RequestError("channels are ranked by their weights, and there is no checkpoint")


def plan_by_channels(
    source: Source,
    options: Request,
    checkpoint: Shapes | None,
    on_stage: OnStage = lambda _: None,
    score: Score = no_scores,
) -> ShrinkPlan:
    """Plan to remove channels alone; the arguments and the errors are those of `plan_shrink`."""
    on_stage("recording what the model does")
    folder = read_folder(source.model) if source.is_folder else None
    subject = make_subject(source, folder)
    converted = folder.converted(subject.model, checkpoint) if folder and checkpoint else {}
    names = checkpoint_names(subject, checkpoint, folder, made={*converted.values()})
    subject = replace(subject, theirs=names)
    on_stage("following which channels depend on each other")
    planner = _Planner(subject, options, renamed_zeros(options.zeros, names, subject))
    described = None if options.as_code else folder
    units = planner.units_of_config(described) if described else planner.units()
    if options.looks_only:
        return _look(planner, units)
    if options.choice and units:
        on_stage("solving how much of each group goes")
        units = _Chooser(planner, described, source).units(units, score)
    if not any(proposal.removed for unit in units for proposal in unit.proposals):
        raise RequestError(_nothing_goes(planner.whole, _other_ways(planner, described)))
    if options.as_code:
        refuse_other_names(names)
    return _to_plan(planner, units, names, described)


def plan_subject(subject: Subject, options: Request) -> ShrinkPlan:
    """Plan to shrink a model that is recorded and has no config, and whose channels are drawn.

    Raises:
        RequestError: It cannot be followed, or loses nothing.
    """
    planner = _Planner(subject, options, None)
    units = planner.units()
    if not units:
        raise RequestError(_nothing_goes(planner.whole))
    return _to_plan(planner, units, subject.theirs, None)


def plan_channels(subject: Subject, folder: ModelFolder | None, options: Request) -> ShrinkPlan:
    """Plan to remove channels of a model that other units have left already.

    Raises:
        RequestError: It cannot be followed, or loses nothing.
    """
    planner = _Planner(subject, options, None)
    units = planner.units_of_config(folder) if folder else planner.units()
    if not any(proposal.removed for unit in units for proposal in unit.proposals):
        raise RequestError(_nothing_goes(planner.whole))
    stored = {subject.first_names[name] for name in subject.theirs}
    odd = [
        name
        for name, axes in planner.axes(units).items()
        if subject.first_names[name] not in stored and any(axis.removed for axis in axes)
    ]
    if odd:
        raise RequestError(
            f"channels of {odd[0]} cannot be removed: it is stored in another form than the model has it"
        )
    return _to_plan(planner, units, subject.theirs, folder)


def folder_build(folder: ModelFolder) -> Build:
    """Return what builds the model that the config describes without some units."""
    return lambda units: folder.build(config_of(units))


class _Chooser:
    """Sizes what the model agrees with. A class because all of it needs the same three."""

    def __init__(self, planner: _Planner, folder: ModelFolder | None, source: Source) -> None:
        self.planner, self.folder, self.source = planner, folder, source
        assert planner.options.choice is not None
        self.choice = planner.options.choice

    def units(self, tried: Sequence[Unit], score: Score) -> list[Unit]:
        """The units as the choice sizes them; what does not agree at that size is left whole.

        Then the others make up for it, so all is solved again.
        """
        left = find_candidates(self.planner, tried, self._numbers(), score)
        while left:
            sized = self._sized(left)
            going = [unit for unit in sized if any(p.removed for p in unit.proposals)]
            agreed = self.planner.agreed(going, self.build)
            if len(agreed) == len(going):
                return self.planner.in_order(sized)
            roots = {root for unit in going for root in unit.roots}
            roots -= {root for unit in agreed for root in unit.roots}
            left = [each for each in left if not each.unit.roots & roots]
        return []

    def build(self, units: Sequence[Unit]) -> nn.Module:
        """Return the model without the channels of the units."""
        return self.folder.build(config_of(units)) if self.folder else self.planner.resized(units)

    def _numbers(self) -> Mapping[str, int | float | None]:
        return self.folder.numbers() if self.folder else {}

    def _sized(self, candidates: Sequence[Candidate]) -> list[Unit]:
        target = parse_target(self.choice.target) if self.choice.target else None
        return set_sizes(
            candidates, self.choice, self.planner.options.seed, target, self._cost(target)
        )

    def _cost(self, target: Target | None) -> Cost:
        match target.metric if target else "params":
            case "params":
                return lambda units: count_parameters(self.build(units))
            case "flops":
                return self._flops
            case "bytes":
                return self._bytes
            case _:
                return _Clock(self)

    def _flops(self, units: Sequence[Unit]) -> float:
        return count_flops(trace(self.build(units), self.planner.subject.inputs))

    def _bytes(self, units: Sequence[Unit]) -> float:
        """Return those of the tensors that the checkpoint stores."""
        shapes = {**self.planner.subject.shapes, **self.planner.resizing(units).shapes}
        each = self.planner.options.item_bytes
        outside = self.planner.subject.outside
        return sum(
            math.prod(shape) * each.get(outside(name), 0.0)
            for name, shape in shapes.items()
            if self.planner.subject.first_names[name] == name
        )

    def measure(self, units: Sequence[Unit]) -> Latency:
        """Return the time of the whole model and of that without the units, in turns."""
        from prune_cli.shrink.live import measure_effect

        plan = _to_plan(self.planner, list(units), self.planner.subject.theirs, self.folder)
        return measure_effect(self.source, plan)


class _Clock:
    """Milliseconds of a model, as a part of those of the whole one at its first measurement.

    A class because that is kept: a machine gets slower and faster, for both of them alike.
    """

    def __init__(self, chooser: _Chooser) -> None:
        self._chooser = chooser
        self._whole = 0.0

    def __call__(self, units: Sequence[Unit]) -> float:
        """Return the time without the channels of the units."""
        if not units:
            self._whole = self._chooser.measure(units).milliseconds["before"]
            return self._whole
        measured = self._chooser.measure(units).milliseconds
        return self._whole * measured["after"] / measured["before"]


class _Planner(Proposer):
    """Proposes, and takes back what the model does not agree with."""

    def units(self) -> list[Unit]:
        """Return the proposals that the model agrees with, each for itself."""
        units = [Unit((proposal,), {}) for proposal in self.proposals()]
        return self.agreed(units, self.resized)

    def units_of_config(self, folder: ModelFolder) -> list[Unit]:
        """Return the proposals that numbers of the config can express, by number."""
        units = by_number(self, folder, self.proposals())
        if self.zeros is not None:  # each layer may lose another number; the config wants one
            single = [Unit((p,), {}) for unit in units for p in unit.proposals]
            left = [p for unit in self.agreed(single, self.resized) for p in unit.proposals]
            units = by_number(self, folder, left)
        return self._second_chance(folder, units, self.agreed(units, folder_build(folder)))

    def _second_chance(
        self, folder: ModelFolder, tried: list[Unit], agreed: list[Unit]
    ) -> list[Unit]:
        """Try by other numbers what went down with its number: the MLP that a width also counts."""
        refused = [unit for unit in tried if not any(unit.roots & u.roots for u in agreed)]
        if self.zeros is not None or not refused:
            return agreed
        told, keys = list(self.whole), {key for unit in refused for key in unit.config}
        proposals = [proposal for unit in refused for proposal in unit.proposals]
        again = by_number(self, folder, proposals, without=keys)
        units = self.agreed([*agreed, *again], folder_build(folder)) if again else agreed
        going = {self.subject.outside(root) for unit in units for root in unit.roots}
        self.whole = [whole for whole in told if whole.root not in going]
        return units

    def resized(self, units: Sequence[Unit]) -> nn.Module:
        """Return a copy of the model without the channels."""
        model = copy.deepcopy(self.subject.model)
        resize(model, self.resizing(units))
        return model

    def resizing(self, units: Sequence[Unit]) -> Resizing:
        """Return the shapes and attributes of the model without the channels."""
        shapes = {
            name: tuple(len(axis.kept) for axis in axes)
            for name, axes in self.axes(units).items()
            if any(axis.removed for axis in axes)
        }
        return Resizing(shapes, changed_attributes(self.subject.model, shapes))

    def axes(self, units: Sequence[Unit]) -> dict[str, Axes]:
        """Return the axes of every named tensor that loses channels or is known to have zeros.

        What is broadcast along an axis of one index has none to lose; nothing goes there.
        """
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
                        {i: o for i, o in removed.get(first, {}).get(dim, {}).items() if i < size},
                        frozenset(zeros.get(first, {}).get(dim, ())),
                    )
                    for dim, size in enumerate(self.subject.shape(name))
                )
        return axes

    def agreed(self, units: list[Unit], build: Build) -> list[Unit]:
        """Leave units whole until the shrunk model does what the whole one does.

        Where several were blamed together, each is tried again at the end: one may be innocent.
        """
        suspects: list[tuple[Unit, Disagreement]] = []
        while units and (found := self._disagreements(units, build)):
            if not any(d.groups for d in found):
                units = self._alone(units, build, found[0])
                continue
            units, blamed = self._without(units, found)
            suspects += blamed
        for unit, blame in suspects:
            alone = blame.groups <= unit.roots
            if not alone and not self._disagreements([*units, unit], build):
                units.append(unit)
            else:
                for proposal in unit.proposals:
                    self.leave(proposal.coupling, str(blame))
        return self.in_order(units)

    def _alone(self, units: list[Unit], build: Build, found: Disagreement) -> list[Unit]:
        """Return the units that the model agrees with alone, where nobody can be blamed.

        Raises:
            RequestError: Each for itself would do.
        """
        left: list[Unit] = []
        for unit in units:
            blame = next(iter(self._disagreements([unit], build)), None)
            if blame is None:
                left.append(unit)
            for proposal in unit.proposals if blame else ():
                self.leave(proposal.coupling, str(blame))
        if len(left) == len(units):
            raise RequestError(f"the model cannot be shrunk: {found}")
        return left

    def in_order(self, units: Iterable[Unit]) -> list[Unit]:
        """Return the units in the order in which the model has their roots."""
        return sorted(units, key=lambda unit: min(map(self._order, unit.roots)))

    def _order(self, name: str) -> int:
        return self.subject.recording.named[name].index

    def _disagreements(self, units: list[Unit], build: Build) -> list[Disagreement]:
        shrunk, axes, inputs = build(units), self.axes(units), self.subject.inputs
        thaw(shrunk)
        found = find_disagreements(
            self.subject.recording, trace(shrunk, inputs), axes, exact=self.zeros is not None
        )
        if not found and self.subject.training:
            inputs = self.subject.training_inputs or inputs
            return find_disagreements(self.subject.training, trace(shrunk.train(), inputs), axes)
        return found

    def _without(
        self, units: list[Unit], found: list[Disagreement]
    ) -> tuple[list[Unit], list[tuple[Unit, Disagreement]]]:
        """Return the units that nothing is said against, and the others."""
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
        self.leave(proposal.coupling, self._what_emits(proposal, blocked), len(blocked))
        blocked = set(in_all_blocks(proposal.coupling, blocked))
        removed = tuple(channel for channel in proposal.removed if channel not in blocked)
        if not removed:
            return
        try:
            cuts = tuple(self.graph.removal(proposal.coupling, removed))
        except NotSliceableError as error:
            self.leave(proposal.coupling, str(error), len(removed))
        else:
            yield Unit((replace(proposal, removed=removed, cuts=cuts),), unit.config)

    def _what_emits(self, proposal: Proposal, blocked: set[int]) -> str:
        loud = []
        for cut in proposal.cuts:
            zero = self.zeros_of(cut)
            if cut.tensor.endswith("running_var"):
                continue  # it only scales
            if any(c in blocked and i not in zero for i, c in cut.channels.items()):
                loud.append(f"{self.subject.outside(cut.tensor)} (dim {cut.dim})")
        channels = ", ".join(map(str, sorted(blocked)[:8])) + (", ..." if len(blocked) > 8 else "")
        which = f": not zero there are {', '.join(loud)}" if loud else ""
        return f"channels {channels} still matter{which}"


def _to_plan(
    planner: _Planner, units: list[Unit], names: Mapping[str, str], folder: ModelFolder | None
) -> ShrinkPlan:
    subject = planner.subject
    axes = {names[name]: axes for name, axes in planner.axes(units).items() if name in names}
    resizing = planner.resizing(units)
    shrunk = folder.build(config_of(units)) if folder else planner.resized(units)
    return ShrinkPlan(
        kept={
            name: {dim: axis.kept for dim, axis in enumerate(axes) if axis.removed}
            for name, axes in axes.items()
            if any(axis.removed for axis in axes)
        },
        shapes={names[name]: shape for name, shape in resizing.shapes.items() if name in names},
        attributes={} if folder else resizing.attributes,
        config=config_of(units),
        groups=tuple(_group(planner, p) for unit in units for p in unit.proposals),
        whole=tuple(planner.whole),
        effect=Effect(
            count_parameters(subject.model),
            count_parameters(shrunk),
            count_flops(subject.recording),
            count_flops(trace(shrunk, subject.inputs)),
        ),
    )


def _look(planner: _Planner, units: Sequence[Unit]) -> ShrinkPlan:
    """Return the plan that removes nothing, with the groups that could go."""
    parameters = count_parameters(planner.subject.model)
    flops = count_flops(planner.subject.recording)
    tried = [_group(planner, proposal) for unit in units for proposal in unit.proposals]
    groups = tuple(replace(group, removed=(), amount=None, seed=None) for group in tried)
    effect = Effect(parameters, parameters, flops, flops)
    return ShrinkPlan({}, {}, {}, {}, groups, tuple(planner.whole), effect)


def _group(planner: _Planner, proposal: Proposal) -> Group:
    drawn, choice = planner.zeros is None, planner.options.choice
    is_random = drawn and (choice is None or choice.criterion == "random")
    coupling, outside = proposal.coupling, planner.subject.outside
    return Group(
        root=outside(coupling.root),
        dim=coupling.dim,
        amount=proposal.rule.amount if drawn else None,
        seed=planner.seed(coupling) if is_random else None,
        channels=len(coupling.channels),
        blocks=coupling.blocks,
        removed=proposal.removed,
        members=tuple(sorted({(outside(tensor), dim) for tensor, dim in places(proposal)})),
    )


def refuse_other_names(names: Mapping[str, str]) -> None:
    """Refuse to write for load_shrunk what the checkpoint calls otherwise than the model.

    Raises:
        RequestError: It does.
    """
    renamed = next((ours for ours, theirs in names.items() if ours != theirs), None)
    if renamed is not None:
        raise RequestError(
            f"--as-code writes what load_shrunk reads, by the names of the model, and the checkpoint "
            f"calls {renamed} {names[renamed]}; leave it out, or store model.state_dict()"
        )


_ROUNDINGS = (2, 4, 8, 16, 32, 64)


def _other_ways(planner: _Planner, folder: ModelFolder | None) -> str:
    """Return what could be asked for where no number of the config stands for what would go."""
    if (
        folder is None
        or planner.zeros is not None
        or not any(w.reason == NO_NUMBER for w in planner.whole)
    ):
        return ""
    return (
        _rounding_that_works(planner, folder)
        or ", or --as-code, which leaves the config as it is and writes what load_shrunk reads"
    )


def _rounding_that_works(planner: _Planner, folder: ModelFolder) -> str:
    for step in _ROUNDINGS:
        if step > planner.options.round_to and planner.options.choice is None:
            again = _Planner(planner.subject, replace(planner.options, round_to=step), None)
            if again.units_of_config(folder):
                return f", or --round-to {step}, with which config.json can say it"
    return ""


def _nothing_goes(whole: Sequence[Whole], other_ways: str = "") -> str:
    if not whole:
        return "nothing is removed: the amount or target leaves every group whole"
    whole = sorted(whole, key=lambda item: item.reason == NOT_SELECTED)  # the others tell more
    reasons = "; ".join(f"{item.root}: {item.reason}" for item in whole[:6])
    more = f"; and {len(whole) - 6} more" if len(whole) > 6 else ""
    return (
        f"nothing can be removed ({reasons}{more}); choose other modules or another amount"
        f"{other_ways}"
    )
