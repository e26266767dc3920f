"""Whether what `shrink` wrote, its report and its source fit each other.

See also: shrink/agreement.py, which tells whether the kept channels are the right ones; that takes
the model's code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose

from prune_cli.channels import draw_channels, uniform_draws
from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import InputError, RequestError
from prune_cli.plan.allocation import Layer, fractions, whole_channels
from prune_cli.plan.choice import USUAL, Choice
from prune_cli.plan.config import CONFIG_NAME
from prune_cli.plan.facts import Options, derive_seed
from prune_cli.plan.quotas import Quota, set_quotas
from prune_cli.plan.scores import Ranks
from prune_cli.plan.shrink import (
    METADATA_KEY,
    Group,
    ShrinkOptions,
    ShrinkPlan,
    added_metadata,
    edited_texts,
)
from prune_cli.plan.units import CHANNELS
from prune_cli.verify.units import list_problems, unit_problems, unit_size_problems


def report_problems(plan: ShrinkPlan, seed: int) -> Iterator[str]:
    """Yield where the parts of a report contradict each other.

    Args:
        plan: what the report says was removed.
        seed: that of its options.
    """
    for name, dims in plan.kept.items():
        shape = plan.shapes.get(name)
        if shape is None or any(
            not 0 <= dim < len(shape) or shape[dim] != len(kept) for dim, kept in dims.items()
        ):
            yield f"the kept channels and the new shape of {name} in the report do not fit"
        if any(list(kept) != sorted(set(kept)) for kept in dims.values()):
            yield f"the kept channels of {name} in the report are not in order, or there twice"
    for name in plan.shapes.keys() - plan.kept.keys():
        yield f"the report gives {name} a new shape, but does not say which channels it keeps"
    for group in plan.groups:
        check = _group_problems if group.unit is None else unit_problems
        yield from check(plan, group, seed)


def _group_problems(plan: ShrinkPlan, group: Group, seed: int) -> Iterator[str]:
    if group.seed is not None and group.seed != derive_seed(seed, group.root):
        yield f"the seed of {group.root} in the report does not follow from the seed {seed}"
    kept = plan.kept.get(group.root, {}).get(group.dim, ())
    if group.removed and (not kept or not set(group.removed).isdisjoint(kept)):
        yield f"the report says that channels of {group.root} were removed, and that they stay"
    elif not _follows_from_seed(group, len(kept)):
        yield f"the channels of {group.root} in the report are not those that its seed gives"
    for name, dim in group.members:
        if dim not in plan.kept.get(name, {}):
            yield f"the report does not say which channels {name} keeps along dim {dim}"


def _follows_from_seed(group: Group, kept: int) -> bool:
    """Return whether a group that was drawn lost what its seed gives.

    Where it has a part of the channels of its root only, the report does not say which.
    """
    if group.seed is None or kept + len(group.removed) != group.channels or group.blocks < 1:
        return True
    width = group.channels // group.blocks
    drawn = draw_channels(range(width), len(group.removed) // group.blocks, group.seed)
    if not drawn or len(group.removed) != group.blocks * len(drawn):
        return not group.removed
    apart = tuple(b * width + c for b in range(group.blocks) for c in drawn)
    beside = tuple(c * group.blocks + b for c in drawn for b in range(group.blocks))
    return group.removed in (apart, beside)


def size_problems(
    plan: ShrinkPlan, options: Options, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yield each group that lost another number of channels than the options give it.

    What a target comes to, only the model tells: of that the fractions are held against each
    other, and the numbers against the fractions. What weights rank together, or a config.json
    has one number for, is not told here.

    Args:
        plan: of the report.
        options: of the report.
        shapes: of the source's tensors; without, what needs them is not told.
    """
    choice = options.choice or USUAL
    asked = options.shrink
    if asked is not None and asked.units:
        yield from unit_size_problems(plan, asked.units)
        options = replace(options, amount=asked.units.get(CHANNELS))
    ranked = choice.is_global and choice.criterion != "random"
    if plan.config or ranked or asked is None or asked.from_zeros or options.rules:
        return
    is_uniform = choice.allocate.startswith("uniform") and not choice.target
    channels = (group for group in plan.groups if group.unit is None)
    groups = sorted(channels, key=lambda group: group.root)
    if not is_uniform and not {group.root for group in groups} <= shapes.keys():
        return
    layers = [_layer(group, asked, choice, shapes) for group in groups]
    try:
        wanted = _quotas(groups, layers, options, choice)
    except RequestError as error:
        yield f"what the options of the report ask for is impossible: {error}"
        return
    slack = 1 if choice.target and not choice.is_global else 0  # steps, to meet the target
    for group, layer, quota in zip(groups, layers, wanted, strict=True):
        if group.amount is None or not isclose(group.amount, quota.amount, abs_tol=1e-9):
            yield f"the amount of {group.root} in the report is not {quota.amount!r}, as asked for"
        elif abs(len(group.removed) - quota.channels) > slack * layer.step:
            yield (
                f"the report removes {len(group.removed)} channels of {group.root}, and its "
                f"options {quota.channels}"
            )


def _layer(
    group: Group, asked: ShrinkOptions, choice: Choice, shapes: Mapping[str, tuple[int, ...]]
) -> Layer:
    shape = shapes.get(group.root, (group.channels,) * (group.dim + 1))
    step = math.lcm(asked.round_to, group.blocks)
    return Layer(group.root, shape, group.dim, group.channels, step, max(1, choice.at_least))


def _quotas(
    groups: Sequence[Group], layers: Sequence[Layer], options: Options, choice: Choice
) -> Sequence[Quota]:
    def ranks() -> list[Ranks]:
        draws = [
            uniform_draws(group.channels // group.blocks, derive_seed(options.seed, group.root))
            for group in groups
        ]
        return [draw.repeat(group.blocks) for draw, group in zip(draws, groups, strict=True)]

    if choice.target is None:
        return set_quotas(layers, [options.amount] * len(layers), choice, options.seed, ranks)
    if choice.is_global:
        total = sum(len(group.removed) for group in groups) / sum(g.channels for g in groups)
        together = replace(choice, target=None)
        return set_quotas(layers, [total] * len(layers), together, options.seed, ranks)
    gone = sum((g.amount or 0) * layer.elements for g, layer in zip(groups, layers, strict=True))
    parts = fractions(layers, choice.allocation(options.seed), gone)
    numbers = whole_channels(layers, parts, gone)
    return [Quota(part, k) for part, k in zip(parts, numbers, strict=True)]


def output_problems(plan: ShrinkPlan, written: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield each tensor of the output that is not as the report says, with the fact."""
    for before, shape in plan.shapes.items():
        name = plan.name_after(before)
        if name is None:
            yield before, "the report says that it is gone, and gives it a new shape"
            continue
        info = written.tensors.get(written.aliases.get(name, name))
        if info is None:
            yield name, "it is missing"
        elif info.shape != shape:
            yield name, f"its shape is {list(info.shape)}, the report says {list(shape)}"
    told = added_metadata(plan).get(METADATA_KEY)
    for shard in written.shards:
        if shard.metadata.get(METADATA_KEY) != told:
            yield "", f"the metadata {METADATA_KEY!r} of {shard.name} is not what the report says"


def source_problems(plan: ShrinkPlan, original: Checkpoint) -> list[str]:
    """Return why the plan of a report cannot be carried out on `original`; empty if it can."""
    problems = list(_misfits(plan, original))
    if plan.config and not original.is_folder:
        problems.append(f"it edits a {CONFIG_NAME}, and the source is no folder")
        return problems
    try:
        edited_texts(plan, original.path)
    except (InputError, RequestError) as error:
        problems.append(str(error))
    return problems


def _misfits(plan: ShrinkPlan, original: Checkpoint) -> Iterator[str]:
    shapes = {parameter.name: parameter.tensor.shape for parameter in original.parameters}
    yield from list_problems(plan, shapes)
    for name, dims in plan.kept.items():
        shape = shapes.get(original.aliases.get(name, name))
        if shape is None:
            yield f"{name} is not there"
        elif any(
            not 0 <= dim < len(shape) or not {*kept} <= {*range(shape[dim])} or not kept
            for dim, kept in dims.items()
        ):
            yield f"{name} lacks channels that the report keeps"
        elif tuple(
            len(dims.get(dim, range(size))) for dim, size in enumerate(shape)
        ) != plan.shapes.get(name):
            yield f"{name} is {list(shape)}, from which the report's shape does not follow"
