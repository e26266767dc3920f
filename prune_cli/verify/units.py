"""Whether what a report says of heads, experts and layers follows from itself, its seed and its options.

See also: shrink.py, the same for channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from prune_cli.amounts import Amount, number_to_prune
from prune_cli.channels import draw_channels
from prune_cli.errors import RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.shrink import Group, ShrinkPlan
from prune_cli.plan.units import HEAD_DIM


def unit_problems(plan: ShrinkPlan, group: Group, seed: int) -> Iterator[str]:
    """Yield where a group of units contradicts the seed, or what the report says is kept."""
    if group.seed != derive_seed(seed, group.root):
        yield f"the seed of {group.root} in the report does not follow from the seed {seed}"
    elif group.removed != drawn_units(plan, group):
        yield f"the {group.unit} of {group.root} in the report are not those that its seed gives"
    if not set(group.removed).isdisjoint(_kept_units(plan, group)):
        yield f"the report says that {group.unit} of {group.root} were removed, and that they stay"
    for name, dim in group.members:
        if dim not in plan.kept.get(name, {}):
            yield f"the report does not say what {name} keeps along dim {dim}"


def drawn_units(plan: ShrinkPlan, group: Group) -> tuple[int, ...]:
    """Return the units that the seed of the group gives, of those that could go."""
    stay = {f"{whole.root}" for whole in plan.whole}
    can_go = [n for n in range(group.channels) if f"{group.root}.{n}" not in stay]
    count = len(group.removed)
    return draw_channels(can_go, count, group.seed or 0) if count <= len(can_go) else ()


def _kept_units(plan: ShrinkPlan, group: Group) -> set[int]:
    if plan.lists and group.root in plan.lists:
        return {*plan.lists[group.root]}
    kept = plan.kept.get(group.root, {}).get(group.dim)
    if kept is None:
        return {*range(group.channels)}
    if group.unit == HEAD_DIM:  # one index in every head
        return {index % group.channels for index in kept}
    width = group.width or 1
    return {index // width for index in kept}


def unit_size_problems(plan: ShrinkPlan, units: Mapping[str, Amount]) -> Iterator[str]:
    """Yield each group of units of which another number went than the options give it."""
    for group in plan.groups:
        if group.unit is None:
            continue
        asked = units.get(group.unit)
        if asked is None or asked != group.amount:
            yield f"the amount of {group.root} in the report is not that of its options"
            continue
        try:
            wanted = number_to_prune(asked, group.channels, group.root)
        except RequestError as error:
            yield f"what the options of the report ask for is impossible: {error}"
            continue
        if wanted != len(group.removed):
            yield (
                f"the report removes {len(group.removed)} {group.unit} of {group.root}, and its "
                f"options {wanted}"
            )


def list_problems(plan: ShrinkPlan, names: Collection[str]) -> Iterator[str]:
    """Yield each list of modules that has not the elements that the report keeps."""
    for path, kept in (plan.lists or {}).items():
        prefix = f"{path}." if path else ""
        there = {
            name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)
        }
        if not kept or list(kept) != sorted(set(kept)) or not {*map(str, kept)} <= there:
            yield f"{path} has not the elements that the report keeps"
