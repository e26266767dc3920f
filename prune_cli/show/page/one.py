"""What stands on the page of one report, as facts for one.html."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from prune_cli.checkpoint.names import network_key
from prune_cli.plan.facts import PlanItem
from prune_cli.plan.selection import split_name
from prune_cli.plan.shrink import Group, ShrinkPlan
from prune_cli.report.groups import show_groups_as_tensors
from prune_cli.report.report import Report
from prune_cli.show.page.command import spell_command
from prune_cli.show.page.pictures import Layer, Picture, draw, squares_each
from prune_cli.show.page.sections import LeftOut, Section, divide, list_left_out, take_fitting


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


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and the picture of its channels; `reserve` is about what it takes of the page."""

    item: PlanItem
    picture: Picture | None

    @property
    def name(self) -> str:
        """Its dotted name."""
        return self.item.name

    @property
    def reserve(self) -> int:
        """About how many bytes of the page it takes."""
        return 700 + (self.picture.nbytes if self.picture else 0)


@dataclass(frozen=True, slots=True)
class Change:
    """A number before and after; `unit` is "" for a count, "FLOPs", "B" or "ms"."""

    name: str
    before: float
    after: float
    unit: str = ""

    @property
    def part(self) -> float:
        """What is left of it, as a part."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True, slots=True)
class View:
    """The page of one report.

    Attributes:
        report: of shrink, with its groups as tensors.
        title: the output, or the input of a dry run.
        changes: what shrinking was worth; empty for other reports.
        bars: in the order of the network, as far as names tell it.
        sections: the tensors that are shown; `more` are not.
        has_before: whether channels were pruned before.
        largest: the most channels that a tensor has; squares: the most squares of a picture.
        command: what repeats the run, word by word; empty where one line cannot say it.
        left_out: what was skipped or dropped.
    """

    report: Report
    title: str
    changes: tuple[Change, ...]
    bars: tuple[Bar, ...]
    sections: tuple[Section[Tensor], ...]
    more: int
    has_before: bool
    largest: int
    squares: int
    command: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def view_report(report: Report) -> View:
    """Return the View of `report`."""
    shown = show_groups_as_tensors(report)
    items = sorted(shown.tensors, key=lambda item: network_key(item.name))
    squares = squares_each(len(items))
    tensors = take_fitting((_tensor(item, squares) for item in items), lambda each: each.reserve)
    return View(
        report=shown,
        title=report.output.path if report.output else report.input.path,
        changes=tuple(_changes(report)),
        bars=tuple(make_bars(_sizes(report))),
        sections=tuple(divide(tensors)),
        more=len(items) - len(tensors),
        has_before=any(item.already_pruned for item in items),
        largest=max((item.channels for item in items), default=0),
        squares=squares,
        command=spell_command(report),
        left_out=(
            *list_left_out("Skipped", [(skip.reason, skip.name) for skip in shown.skipped]),
            *list_left_out("Dropped", [(drop.reason, drop.key) for drop in shown.dropped]),
        ),
    )


def make_bars(sizes: Sequence[tuple[str, int, int]]) -> Iterator[Bar]:
    """Yield a Bar for each (name, elements, gone)."""
    largest = max((elements for _, elements, _ in sizes), default=0)
    for name, elements, gone in sizes:
        yield Bar(name, elements, gone, elements / largest if largest else 0.0)


def _tensor(item: PlanItem, squares: int) -> Tensor:
    layers = [Layer("", item.pruned), Layer("b", item.already_pruned)]
    return Tensor(item, draw(item.channels, layers, squares))


def _sizes(report: Report) -> list[tuple[str, int, int]]:
    """Return the name of each layer, its elements and how many went; in the order of the network."""
    if report.shrink is not None:
        sizes = _sizes_of_shrunk(report.shrink)
    else:
        sizes = [(item.name, item.elements, item.elements_zero) for item in report.tensors]
    return sorted(sizes, key=lambda size: network_key(size[0]))


def _sizes_of_shrunk(plan: ShrinkPlan) -> list[tuple[str, int, int]]:
    """Return what the tensors of each module add up to; the others lost nothing."""
    sums: dict[str, tuple[int, int]] = {}
    for name, elements, gone in _sizes_of_tensors(plan):
        module = split_name(name)[0] or name
        before = sums.get(module, (0, 0))
        sums[module] = (before[0] + elements, before[1] + gone)
    return [(name, *size) for name, size in sums.items()]


def _sizes_of_tensors(plan: ShrinkPlan) -> Iterator[tuple[str, int, int]]:
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

    It lost each channel of its groups as often as a flattened one has elements: as often as the
    groups' rest goes into the axis, or else as the gaps in `kept` tell.
    """
    removed = sum(len(group.removed) for group in groups)
    rest = sum(group.channels for group in groups) - removed
    gaps = kept[-1] + 1 - len(kept) if kept else 0
    if rest and len(kept) % rest == 0 and removed * (len(kept) // rest) >= gaps:
        return removed * (len(kept) // rest)
    return removed * max(-(-gaps // removed), 1) if removed else gaps


def _changes(report: Report) -> Iterator[Change]:
    if report.shrink is None:
        return
    effect = report.shrink.effect
    yield Change("parameters", effect.parameters_before, effect.parameters_after)
    yield Change("one forward pass", effect.flops_before, effect.flops_after, "FLOPs")
    if report.output:
        yield Change("bytes", report.input.bytes, report.output.bytes, "B")
    if latency := report.shrink.latency:
        times = latency.milliseconds
        yield Change("latency", times["before"], times["after"], "ms")
