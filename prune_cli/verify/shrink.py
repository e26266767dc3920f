"""Whether what `shrink` wrote, its report and its source fit each other.

See also: shrink/agreement.py, which tells whether the kept channels are the right ones; that takes
the model's code.
"""

from __future__ import annotations

from collections.abc import Iterator

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import InputError, RequestError
from prune_cli.plan.config import CONFIG_NAME
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.shrink import METADATA_KEY, Group, ShrinkPlan, added_metadata, edited_texts


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
        yield from _group_problems(plan, group, seed)


def _group_problems(plan: ShrinkPlan, group: Group, seed: int) -> Iterator[str]:
    if group.seed is not None and group.seed != derive_seed(seed, group.root):
        yield f"the seed of {group.root} in the report does not follow from the seed {seed}"
    kept = plan.kept.get(group.root, {}).get(group.dim, ())
    if not kept or not set(group.removed).isdisjoint(kept):
        yield f"the report says that channels of {group.root} were removed, and that they stay"
    for name, dim in group.members:
        if dim not in plan.kept.get(name, {}):
            yield f"the report does not say which channels {name} keeps along dim {dim}"


def output_problems(plan: ShrinkPlan, written: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield each tensor of the output that is not as the report says, with the fact."""
    for name, shape in plan.shapes.items():
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
