"""Remove units of several kinds, one kind after the other: layers, experts, heads, then channels.

Each step works on the model that the one before left, and proves of its own that its output is that
of the model with its units masked; so the last is that of the first with all of them masked. What
the steps find is told by the names and indices of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prune_cli.errors import RequestError
from prune_cli.plan.config import edit_config
from prune_cli.plan.lists import names_before
from prune_cli.plan.shrink import Effect, Group, Kept, ShrinkPlan
from prune_cli.plan.units import CHANNELS, EXPERTS, HEAD_DIM, HEADS, LAYERS
from prune_cli.shrink.effect import count_flops
from prune_cli.shrink.experts import plan_experts
from prune_cli.shrink.heads import plan_head_dim, plan_heads
from prune_cli.shrink.huggingface import ModelFolder, read_folder
from prune_cli.shrink.layers import plan_layers
from prune_cli.shrink.model import count_parameters
from prune_cli.shrink.planning import plan_channels, refuse_other_names
from prune_cli.shrink.request import OnStage, Request, Source
from prune_cli.shrink.step import Step, Work
from prune_cli.shrink.subject import Shapes, checkpoint_names, make_subject, record_subject

_PLANNERS = {
    LAYERS: plan_layers,
    EXPERTS: plan_experts,
    HEADS: plan_heads,
    HEAD_DIM: plan_head_dim,
}


def plan_units(
    source: Source, options: Request, checkpoint: Shapes | None, on_stage: OnStage
) -> ShrinkPlan:
    """Plan to remove units of the kinds that `options` names.

    Args:
        source: The model.
        options: What to remove; `units` names kinds.
        checkpoint: The shape of each tensor of the checkpoint; None plans for the model alone.
        on_stage: Called with what is being done.

    Raises:
        RequestError: The model cannot be followed, does not fit the checkpoint, or loses nothing.
    """
    on_stage("recording what the model does")
    work = _begin(source, options, checkpoint)
    plans: list[ShrinkPlan] = []
    for kind, amount in (options.units or {}).items():
        on_stage(f"following which {kind} can go")
        if kind == CHANNELS:  # the last
            plans.append(plan_channels(work.subject, work.folder, options))
        else:
            step = _PLANNERS[kind](work, amount)
            after = _after(work, step)
            plans.append(_to_plan(work, step, after))
            work = after
    return _join(plans)


def _begin(source: Source, options: Request, checkpoint: Shapes | None) -> Work:
    folder = read_folder(source.model) if source.is_folder else None
    subject = make_subject(source, folder)
    converted = folder.converted(subject.model, checkpoint) if folder and checkpoint else {}
    names = checkpoint_names(subject, checkpoint, folder, made={*converted.values()})
    if options.as_code:
        refuse_other_names(names)
    described = None if options.as_code else folder
    return Work(replace(subject, theirs=names), described, options, converted)


def _after(work: Work, step: Step) -> Work:
    """Return the model without the units as the next step finds it."""
    subject = record_subject(step.model, [work.subject.inputs])
    before = names_before(step.lists, work.subject.first_names)
    theirs = {
        name: work.subject.theirs[old]
        for name, old in before.items()
        if old in work.subject.theirs and name in subject.first_names
    }
    old_names = {old: name for name, old in before.items()}
    converted = {
        name: old_names[made] for name, made in work.converted.items() if made in old_names
    }
    folder = work.folder
    if folder is not None:
        folder = ModelFolder(folder.path, edit_config(folder.raw, step.config))
    return replace(
        work, subject=replace(subject, theirs=theirs), folder=folder, converted=converted
    )


def _to_plan(work: Work, step: Step, after: Work) -> ShrinkPlan:
    """Tell a step by the names of the checkpoint."""
    kept = dict(_kept_of_checkpoint(work, step))
    old_names = {work.subject.theirs.get(old): old for old in step.kept}
    new_shapes = {
        theirs: after.subject.shape(name) for name, theirs in after.subject.theirs.items()
    }
    return ShrinkPlan(
        kept=kept,
        shapes={name: new_shapes[name] for name in kept if name in old_names},
        attributes={} if work.folder else step.attributes,
        config=step.config,
        groups=step.groups,
        whole=step.whole,
        effect=Effect(
            count_parameters(work.subject.model),
            count_parameters(after.subject.model),
            count_flops(work.subject.recording),
            count_flops(after.subject.recording),
        ),
        lists=step.stored_lists or None,
    )


def _kept_of_checkpoint(
    work: Work, step: Step
) -> Iterator[tuple[str, Mapping[int, tuple[int, ...]]]]:
    """Yield what stays of each stored tensor.

    Raises:
        RequestError: one is stored in another form, of which no part stands for the units.
    """
    subject = work.subject
    pieces = {*work.converted.values()}
    for name, dims in step.kept.items():
        stored = [
            theirs
            for ours, theirs in subject.theirs.items()
            if subject.first_names[ours] == subject.first_names[name]
        ]
        if not stored and not (name in pieces and step.stored_lists):
            raise RequestError(
                f"{name} is stored in another form than the model has it, so it cannot be sliced; "
                "save the model once as this version of transformers has it"
            )
        for theirs in dict.fromkeys(stored):
            yield theirs, dims


# --- joining ---------------------------------------------------------------------------------


def _join(plans: Sequence[ShrinkPlan]) -> ShrinkPlan:
    joined = plans[0]
    for plan in plans[1:]:
        joined = _joined(joined, plan)
    return joined


def _joined(one: ShrinkPlan, other: ShrinkPlan) -> ShrinkPlan:
    """Return two plans as one, of which the other counts from what the first one left."""
    return ShrinkPlan(
        kept=_kept_of_both(one.kept, other.kept),
        shapes={**one.shapes, **other.shapes},
        attributes={
            path: {**one.attributes.get(path, {}), **other.attributes.get(path, {})}
            for path in dict.fromkeys([*one.attributes, *other.attributes])
        },
        config={**one.config, **other.config},
        groups=(*one.groups, *(_as_in_checkpoint(group, one.kept) for group in other.groups)),
        whole=(*one.whole, *other.whole),
        effect=replace(
            other.effect,
            parameters_before=one.effect.parameters_before,
            flops_before=one.effect.flops_before,
        ),
        lists={**(one.lists or {}), **(other.lists or {})} or None,
    )


def _kept_of_both(one: Kept, other: Kept) -> dict[str, dict[int, tuple[int, ...]]]:
    kept = {name: dict(dims) for name, dims in one.items()}
    for name, dims in other.items():
        own = kept.setdefault(name, {})
        for dim, indices in dims.items():
            before = own.get(dim)
            own[dim] = tuple(before[i] for i in indices) if before is not None else indices
        kept[name] = dict(sorted(own.items()))
    return kept


def _as_in_checkpoint(group: Group, kept: Kept) -> Group:
    """Return a group whose channels are numbered as in the checkpoint."""
    before = kept.get(group.root, {}).get(group.dim)
    if before is None or group.unit is not None:
        return group
    return replace(group, removed=tuple(before[channel] for channel in group.removed))
