"""Heads of attention: which tensors hold them, and whether the model without some is the masked one.

A head that has its own keys and values is a unit; where several share them, they go together. A head
is masked by zeros in the columns of the projection that reads it: with those known to be zero,
agreement.py proves that the model without the head gives what the whole one does. How heads lie in a
fused projection is not known but tried. A dim of the heads is masked in all projections.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import nn

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.shrink import Attribute, Group, Resizing, Whole
from prune_cli.plan.units import HEAD_DIM, HEADS
from prune_cli.shrink.agreement import Disagreement, find_disagreements
from prune_cli.shrink.attention import (
    Attention,
    Counted,
    counted_by_config,
    found_in_recording,
    possible_counts,
)
from prune_cli.shrink.axes import Axes, Axis, Owner
from prune_cli.shrink.channels import changed_attributes
from prune_cli.shrink.copies import without_copies
from prune_cli.shrink.equality import needed
from prune_cli.shrink.fewer_heads import can_lose_heads, let_lose_heads
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.load import resize
from prune_cli.shrink.proposals import NOT_SELECTED
from prune_cli.shrink.step import Step, Work, count_units, draw_units
from prune_cli.shrink.subject import record_subject
from prune_cli.shrink.trace import Trace, trace


def plan_heads(work: Work, amount: Amount) -> Step:
    """Return what goes with heads: so many of each attention.

    Raises:
        RequestError: there are none that can go.
    """
    return _plan(work, amount, HEADS)


def plan_head_dim(work: Work, amount: Amount) -> Step:
    """Return what goes with dims of heads: the same ones of all heads of an attention.

    Where scores are divided by the root of the width, or rotated by the place in it, none can go.

    Raises:
        RequestError: there are none that can go.
    """
    return _plan(work, amount, HEAD_DIM)


def _plan(work: Work, amount: Amount, unit: str) -> Step:
    plan = _plan_by_attributes if work.folder is None else _plan_by_config
    return plan(work, amount, unit)


# --- models that a config describes ------------------------------------------------------------


def _plan_by_config(work: Work, amount: Amount, unit: str) -> Step:
    assert work.folder is not None
    problems: list[str] = []
    for counted in counted_by_config(work.subject, work.folder, unit):
        left = [each for each in counted.attentions if not work.is_chosen(each.modules)]
        if left:
            raise RequestError(
                f"config.json has one number for all heads, and those of {left[0].path} are not "
                "selected; select all of them"
            )
        k = count_units(amount, counted.units, unit, counted.key)
        if not k:
            raise RequestError(_too_little(counted.key, counted.units, amount, unit))
        changes = counted.changes(k)
        model = _built(work.folder, counted, k)
        for trial in _trials(work, counted.attentions, k):
            problem = _problem(work, model, trial)
            if problem is None:
                return replace(_step(work, amount, trial, model), config=changes)
            problems.append(problem)
    raise RequestError(
        f"no {unit} can be removed: {'; '.join(dict.fromkeys(problems)) or _UNCOUNTED[unit]}"
    )


def _built(folder: ModelFolder, counted: Counted, k: int) -> nn.Module:
    """Return the model that the config describes without `k` units.

    Raises:
        RequestError: transformers refuses that number; the message has those that it takes.
    """
    try:
        return folder.build(counted.changes(k))
    except RequestError as error:
        possible = ", ".join(map(str, possible_counts(folder, counted)))
        raise RequestError(f"{error}; of {counted.units}, {possible} can be removed") from error


_UNCOUNTED = {
    HEADS: "no number in config.json counts heads alone: where the config has no head_dim, the width "
    "of a head follows from their number; --as-code leaves the config as it is and writes what "
    "load_shrunk reads",
    HEAD_DIM: "no number in config.json can make heads narrower; what rotates or scales by their width "
    "needs all of it",
}


# --- models of code ----------------------------------------------------------------------------


def _plan_by_attributes(work: Work, amount: Amount, unit: str) -> Step:
    work = _with_own_attention(work)
    found = found_in_recording(work.subject, unit)
    chosen = [each for each in found if work.is_chosen(each.modules)]
    whole = [
        Whole(_root(work, each), each.reader.dim, each.units, NOT_SELECTED)
        for each in found
        if each not in chosen
    ]
    if not chosen:
        raise RequestError(
            "no attention was found whose heads could go: a softmax between projections that "
            "make its heads and one that reads them"
            if not found
            else "no heads are selected"
        )
    counts = {e.path: count_units(amount, e.units, unit, _root(work, e)) for e in chosen}
    if not any(counts.values()):
        raise RequestError(_too_little(_root(work, chosen[0]), chosen[0].units, amount, unit))
    steps: list[Step] = []
    problems: list[str] = []
    for each in chosen:
        step, found_problems = _alone(work, each, counts[each.path], amount)
        if step is None:
            reason = "; ".join(dict.fromkeys(found_problems))
            whole.append(Whole(_root(work, each), each.reader.dim, each.units, reason))
            problems.append(f"{_root(work, each)}: {reason}")
        else:
            steps.append(step)
    if not steps:
        raise RequestError(f"no {unit} can be removed: {'; '.join(problems[:4])}")
    return replace(_together(work, steps), whole=tuple(whole))


def _with_own_attention(work: Work) -> Work:
    """Return the model with attentions that can have fewer heads in the place of torch's own."""
    if not any(map(can_lose_heads, work.subject.model.modules())):
        return work
    model = copy.deepcopy(work.subject.model)
    for module in model.modules():
        if can_lose_heads(module):
            let_lose_heads(module)
    subject = record_subject(model, [work.subject.inputs])
    return replace(work, subject=replace(subject, theirs=work.subject.theirs))


def _alone(
    work: Work, attention: Attention, k: int, amount: Amount
) -> tuple[Step | None, list[str]]:
    """Return the step for one attention, or why there is none."""
    problems = []
    for trial, values in product(_trials(work, [attention], k), attention.counts(k)):
        model = _resized(work, trial, values)
        problem = _problem(work, model, trial)
        if problem is None:
            return replace(_step(work, amount, trial, model), attributes=values), []
        problems.append(problem)
    return None, problems


def _together(work: Work, steps: Sequence[Step]) -> Step:
    """Return the steps as one; they are of different tensors."""
    model = copy.deepcopy(work.subject.model)
    kept = {name: dims for step in steps for name, dims in step.kept.items()}
    attributes: dict[str, dict[str, Attribute]] = {}
    for step in steps:
        for path, values in step.attributes.items():
            attributes.setdefault(path, {}).update(values)
    shapes = {
        name: tuple(
            len(dims.get(dim, range(size))) for dim, size in enumerate(work.subject.shape(name))
        )
        for name, dims in kept.items()
    }
    for path, counts in changed_attributes(model, shapes).items():
        attributes.setdefault(path, {}).update(counts)
    resize(model, Resizing(shapes, attributes))
    groups = tuple(group for step in steps for group in step.groups)
    return Step(model, kept=kept, attributes=attributes, groups=groups)


def _resized(work: Work, trial: Trial, values: Mapping[str, Mapping[str, Attribute]]) -> nn.Module:
    model = copy.deepcopy(work.subject.model)
    shapes = {
        name: tuple(len(axis.kept) for axis in axes) for name, axes in trial.axes(work).items()
    }
    counted = changed_attributes(model, shapes)
    for path, own in values.items():
        counted[path] = {**counted.get(path, {}), **own}
    resize(model, Resizing(shapes, counted))
    return model


# --- what is tried -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """Units that are to go of some attentions that lose the same ones."""

    root: str
    attentions: tuple[Attention, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """What is to go, and how it may lie: whether fused projections have one block for each part."""

    removals: tuple[Removal, ...]
    in_parts: bool

    def axes(self, work: Work) -> dict[str, Axes]:
        """Return the axes of every named tensor that gets shorter, zero where a head is read."""
        first = work.subject.first_names
        cuts: dict[str, dict[int, tuple[dict[int, Owner], bool]]] = {}
        for removal in self.removals:
            for attention in removal.attentions:
                for axis in attention.axes:
                    owners = {
                        index: Owner(removal.root, unit)
                        for unit in removal.removed
                        for index in axis.indices(unit, attention, in_parts=self.in_parts)
                    }
                    is_zero = axis.reads or attention.unit == HEAD_DIM
                    cuts.setdefault(first[axis.tensor], {})[axis.dim] = (owners, is_zero)
        return {
            name: tuple(
                self._axis(size, *cuts[own].get(dim, ({}, False)))
                for dim, size in enumerate(work.subject.shape(name))
            )
            for name, own in first.items()
            if own in cuts
        }

    @staticmethod
    def _axis(size: int, owners: Mapping[int, Owner], reads: bool) -> Axis:
        return Axis(size, owners, frozenset(owners) if reads else frozenset())


def _trials(work: Work, attentions: Sequence[Attention], k: int) -> Iterator[Trial]:
    """Yield what is to go: of each attention other heads, or (where they are coupled) the same."""
    for in_parts in (False, True):
        yield Trial(tuple(_removal(work, [attention], k) for attention in attentions), in_parts)
    if len(attentions) > 1:
        for in_parts in (False, True):
            yield Trial((_removal(work, attentions, k),), in_parts)


def _removal(work: Work, attentions: Sequence[Attention], k: int) -> Removal:
    root = _root(work, attentions[0])
    units, unit = attentions[0].units, attentions[0].unit
    return Removal(root, tuple(attentions), draw_units(work, root, [*range(units)], k, unit))


def _root(work: Work, attention: Attention) -> str:
    return work.subject.outside(attention.reader.tensor)


def _problem(work: Work, model: nn.Module, trial: Trial) -> str | None:
    """Return why the model is not the whole one with the heads masked; None if it is."""
    axes, inputs = trial.axes(work), work.subject.inputs
    odd = [
        name
        for name, tensor in model.state_dict().items()
        if tuple(tensor.shape) != _shape(work, axes, name)
    ]
    if odd or model.state_dict().keys() != work.subject.model.state_dict().keys():
        return f"{odd[0] if odd else 'the model'} would have another shape than is left of it"
    found = _disagreements(work.subject.recording, trace(model, inputs), axes)
    if not found and work.training is not None:
        found = _disagreements(work.training, trace(model.train(), inputs), axes)
        model.eval()
    return str(found[0]) if found else None


def _disagreements(before: Trace, after: Trace, axes: Mapping[str, Axes]) -> list[Disagreement]:
    if after.failure is not None:  # then it is not known what its output depends on
        return find_disagreements(without_copies(before), without_copies(after), axes, exact=True)
    before, after = (needed(without_copies(recording)) for recording in (before, after))
    return find_disagreements(before, after, axes, exact=True)


def _shape(work: Work, axes: Mapping[str, Axes], name: str) -> tuple[int, ...]:
    if name in axes:
        return tuple(len(axis.kept) for axis in axes[name])
    return work.subject.shape(name)


def _step(work: Work, amount: Amount, trial: Trial, model: nn.Module) -> Step:
    kept = {
        name: {dim: axis.kept for dim, axis in enumerate(axes) if axis.removed}
        for name, axes in trial.axes(work).items()
    }
    groups = tuple(_group(work, amount, removal) for removal in trial.removals)
    return Step(model, kept=kept, groups=groups)


def _group(work: Work, amount: Amount, removal: Removal) -> Group:
    first = removal.attentions[0]
    reader, units, unit = first.reader, first.units, first.unit
    members = {
        (work.subject.outside(axis.tensor), axis.dim)
        for attention in removal.attentions
        for axis in attention.axes
    }
    return Group(
        root=removal.root,
        dim=reader.dim,
        amount=amount,
        seed=derive_seed(work.options.seed, removal.root),
        channels=units,
        blocks=1,
        removed=removal.removed,
        members=tuple(sorted(members)),
        unit=unit,
        width=reader.width if unit == HEADS else None,
    )


def _too_little(name: str, units: int, amount: Amount, unit: str) -> str:
    return f"no {unit} is removed: {name}: of {units}, amount={amount} is none"
