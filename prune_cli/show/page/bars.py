"""The overview of a page: for each layer a bar of its parameters, and how many of them went."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from prune_cli.checkpoint.names import network_key
from prune_cli.plan.facts import PlanItem
from prune_cli.plan.selection import split_name
from prune_cli.plan.shrink import Group, ShrinkPlan
from prune_cli.report.report import Report


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer of the overview: its elements, and how many of them went.

    `length` is its part of the largest layer.
    """

    name: str
    elements: int
    gone: int
    length: float

    @property
    def part(self) -> float:
        """The part of its elements that went."""
        return self.gone / self.elements if self.elements else 0.0


def make_bars(sizes: Sequence[tuple[str, int, int]]) -> Iterator[Bar]:
    """Yield a Bar for each (name, elements, gone)."""
    largest = max((elements for _, elements, _ in sizes), default=0)
    for name, elements, gone in sizes:
        yield Bar(name, elements, gone, elements / largest if largest else 0.0)


def list_sizes(report: Report) -> list[tuple[str, int, int]]:
    """Return the name of each layer, its elements and how many went; in the order of the network."""
    if report.shrink is not None:
        sizes = _sizes_of_shrunk(report.shrink)
    else:
        sizes = [(item.name, *count_elements(item)) for item in report.tensors]
    return sorted(sizes, key=lambda size: network_key(size[0]))


def count_elements(item: PlanItem) -> tuple[int, int]:
    """Return the elements of a tensor and how many are gone; no more than there can be.

    A report that was edited by hand may give shapes whose product nobody can print.
    """
    elements = min(item.elements, sys.maxsize)
    return elements, min(item.elements_zero, elements)


def _sizes_of_shrunk(plan: ShrinkPlan) -> list[tuple[str, int, int]]:
    """Return what the tensors of each module add up to; the others lost nothing."""
    sums: dict[str, tuple[int, int]] = {}
    for name, elements, gone in sizes_of_tensors(plan):
        module = split_name(name)[0] or name
        before = sums.get(module, (0, 0))
        sums[module] = (before[0] + elements, before[1] + gone)
    return [(name, *size) for name, size in sums.items()]


def sizes_of_tensors(plan: ShrinkPlan) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each tensor that lost channels, its elements and how many went."""
    groups: dict[tuple[str, int], list[Group]] = {}
    for group in plan.groups:
        for member in group.members:
            groups.setdefault(member, []).append(group)
    for name, shape in plan.shapes.items():
        after = prod(shape)
        before = prod(
            size + _count_removed(plan.kept.get(name, {}).get(dim, ()), groups.get((name, dim), ()))
            for dim, size in enumerate(shape)
        )
        yield name, before, before - after


def _count_removed(kept: Sequence[int], groups: Sequence[Group]) -> int:
    """Return how many channels an axis lost, of which the report has only those that are left.

    A flattened axis has each channel of its groups several times, that of a grouped convolution
    only one of several: as the groups' rest goes into the axis. An axis that has other channels
    too has each of theirs as often as the gaps in `kept` tell.
    """
    removed = sum(len(group.removed) for group in groups)
    rest = sum(group.channels for group in groups) - removed
    gaps = kept[-1] + 1 - len(kept) if kept else 0
    times = Fraction(len(kept), rest) if rest else Fraction(0)
    lost = removed * times
    if 1 in (times.numerator, times.denominator) and lost.denominator == 1 and lost >= gaps:
        return int(lost)
    return removed * max(-(-gaps // removed), 1) if removed else gaps
