"""What stands on the page of one report, as facts for one.html."""

from collections.abc import Iterator
from dataclasses import dataclass

from prune_cli.checkpoint.names import network_key
from prune_cli.plan.facts import PlanItem
from prune_cli.report.command import spell_command
from prune_cli.report.groups import show_groups_as_tensors
from prune_cli.report.report import Report
from prune_cli.show.page.bars import Bar, list_sizes, make_bars
from prune_cli.show.page.pictures import Layer, Picture, draw, squares_each
from prune_cli.show.page.sections import LeftOut, Section, divide, list_left_out, take_fitting


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
        bars=tuple(make_bars(list_sizes(report))),
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


def _tensor(item: PlanItem, squares: int) -> Tensor:
    layers = [Layer("", item.pruned), Layer("b", item.already_pruned)]
    return Tensor(item, draw(item.channels, layers, squares))


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
