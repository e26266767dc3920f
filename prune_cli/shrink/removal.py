"""What a plan takes out of a checkpoint, and whether a report of that holds together.

A plan becomes a `Removal`, for `apply` to carry out and for `verify` to carry out again. Not here:
whether the kept channels are the right ones, which only the model's code can tell (agreement.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.shrink.huggingface import CONFIG_NAME, config_text, edit_config, read_folder
from prune_cli.shrink.load import METADATA_KEY
from prune_cli.shrink.plan import Group, ShrinkPlan
from prune_cli.write.layout import Removal

METHOD = "shrink"
"""The method of a report whose channels are gone."""


def make_removal(plan: ShrinkPlan, folder: str | None = None) -> Removal:
    """The plan as `apply_plan` takes it.

    Args:
        plan: What goes.
        folder: The Hugging Face folder whose config.json is edited; without one, the record that
            `load_shrunk` reads goes into the metadata of the output.
    """
    if folder is not None:
        config = config_text(edit_config(read_folder(folder).raw, plan.config))
        return Removal(plan.kept, {}, plan.to_facts(), {CONFIG_NAME: config.encode()})
    return Removal(plan.kept, {METADATA_KEY: plan.resizing.to_json()}, plan.to_facts())


def reported_removal(facts: Mapping[str, Any], original: Checkpoint) -> Removal:
    """What a report says that was removed from `original`.

    Raises:
        InputError: The report is no plan of shrink.
        RequestError: It does not fit the checkpoint.
    """
    plan = ShrinkPlan.from_facts(facts)
    problems = list(_misfits(plan, original))
    if plan.config and not original.is_folder:
        problems.append(f"it edits a {CONFIG_NAME}, and the source is no folder")
    if problems:
        raise RequestError(f"the report does not fit the source: {'; '.join(problems[:8])}")
    return make_removal(plan, str(original.path) if plan.config else None)


def removal_problems(facts: Mapping[str, Any], seed: int) -> Iterator[str]:
    """Where the parts of a report contradict each other.

    Args:
        facts: What the report says of the removal.
        seed: That of its options.
    """
    plan = ShrinkPlan.from_facts(facts)
    for name, dims in plan.kept.items():
        shape = plan.shapes.get(name)
        if shape is None or any(
            not 0 <= dim < len(shape) or shape[dim] != len(kept) for dim, kept in dims.items()
        ):
            yield f"the kept channels and the new shape of {name} in the report do not fit"
        if any(list(kept) != sorted(set(kept)) for kept in dims.values()):
            yield f"the kept channels of {name} in the report are not in order, or there twice"
    for name in plan.shapes.keys() - plan.kept.keys():
        yield f"the report gives {name} a new shape, but says not which channels it keeps"
    for group in plan.groups:
        yield from _group_problems(plan, group, seed)


def _group_problems(plan: ShrinkPlan, group: Group, seed: int) -> Iterator[str]:
    if group.seed is not None and group.seed != derive_seed(seed, group.root):
        yield f"the seed of {group.root} in the report does not follow from the seed {seed}"
    kept = plan.kept.get(group.root, {}).get(group.dim, ())
    if not kept or not set(group.removed).isdisjoint(kept):
        yield f"the report says that channels of {group.root} were removed, and that they stay"
    for name, dim in group.members:
        if dim not in plan.kept.get(name, {}):
            yield f"the report says not which channels {name} keeps along dim {dim}"


def record_problems(facts: Mapping[str, Any], written: Checkpoint) -> Iterator[tuple[str, str]]:
    """Each tensor of the output that is not as the report says, with the fact."""
    plan = ShrinkPlan.from_facts(facts)
    for name, shape in plan.shapes.items():
        info = written.tensors.get(written.aliases.get(name, name))
        if info is None:
            yield name, "it is missing"
        elif info.shape != shape:
            yield name, f"its shape is {list(info.shape)}, the report says {list(shape)}"
    told = {} if plan.config else {METADATA_KEY: plan.resizing.to_json()}
    for shard in written.shards:
        if shard.metadata.get(METADATA_KEY) != told.get(METADATA_KEY):
            yield "", f"the metadata {METADATA_KEY!r} of {shard.name} is not what the report says"


def _misfits(plan: ShrinkPlan, original: Checkpoint) -> Iterator[str]:
    shapes = {parameter.name: parameter.tensor.shape for parameter in original.parameters}
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
