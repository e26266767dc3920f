"""The pictures of a sweep, drawn by matplotlib: for the page as SVG, for a paper as a file.

Nothing global is touched: no pyplot, no screen. See also: `sweep.series`, the numbers.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_cli.errors import UsageError
from prune_cli.sweep.record import Record
from prune_cli.sweep.sensitivity import losses
from prune_cli.sweep.series import AXES, Axis, Series, axes_of, series_of
from prune_cli.sweep.summary import Summary, spell_amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, which people with any colour vision tell apart."""

_SURROUNDINGS = re.compile(r"^.*?(?=<svg)| *<metadata>.*?</metadata>\n?", re.DOTALL)
"""What an SVG file has and an SVG element in a page needs not."""

_MARKERS = "osD^vP*X"
_MOST_BARS = 30  # modules in a picture
_PANEL = (5.2, 3.6)  # inches
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prune-cli",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Drawn:
    """A sweep as the pictures need it; `name` where several are shown together."""

    summary: Summary
    records: Sequence[Record]
    name: str = ""


def check_format(path: Path) -> None:
    """Raise UsageError where a picture cannot be drawn, or not in the format of `path`."""
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        raise UsageError(f"a picture is one of {', '.join(FORMATS)}, and {path} is none of them")
    if not can_draw():
        raise UsageError("a picture needs matplotlib: pip install 'prune-cli[plot]'")


def can_draw() -> bool:
    """Return whether matplotlib is there."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw_file(sweeps: Sequence[Drawn], others: Sequence[Series], kind: str) -> bytes:
    """Return one picture of `sweeps` as a file of `kind`: pdf, svg or png."""
    with _style():
        panels = _panels(sweeps, others)
        figure = _figure(len(panels))
        for place, panel in zip(figure.axes, panels, strict=True):
            panel.draw(place)
        return _save(figure, kind)


def draw_pictures(sweeps: Sequence[Drawn], others: Sequence[Series] = ()) -> list["Picture"]:
    """Return every picture of `sweeps` as SVG with what it shows in words."""
    with _style():
        return [_picture(panel) for panel in _panels(sweeps, others)]


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element, and what it shows."""

    title: str
    svg: str


# --- panels ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _MetricPanel:
    """The metric against one axis: dots, means with intervals, and the unpruned model."""

    sweeps: Sequence[Drawn]
    others: Sequence[Series]
    axis: Axis

    @property
    def title(self) -> str:
        return f"{_metric(self.sweeps)} against {AXES[self.axis]}"

    def draw(self, axes: "Axes") -> None:
        series = [
            each
            for drawn in self.sweeps
            for each in series_of(drawn.records, self.axis, drawn.name)
        ]
        for number, each in enumerate([*series, *self.others]):
            _draw_series(axes, each, number)
        for number, (label, base) in enumerate(_bases(self.sweeps).items()):
            line = ("--", ":", "-.")[number % 3]
            axes.axhline(base, color="0.45", linestyle=line, linewidth=1, label=label)
        axes.set_xlabel(AXES[self.axis])
        axes.set_ylabel(_metric(self.sweeps))
        if self.axis == "amount":
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.legend()


@dataclass(frozen=True)
class _SensitivityPanel:
    """The loss by each module alone, at one amount: the most sensitive on top."""

    summary: Summary
    amount: object
    bars: Sequence[tuple[str, float]]

    @property
    def title(self) -> str:
        return f"loss of {_plain(self.summary.metric or 'the metric')}, {self._what} of one module"

    @property
    def _what(self) -> str:
        point = next(each.point for each in self.summary.points if each.point.amount == self.amount)
        return spell_amount(point)

    def draw(self, axes: "Axes") -> None:
        names = [_plain(name) for name, _ in self.bars]
        places = range(len(names))
        axes.barh(places, [lost for _, lost in self.bars], color=_COLORS[0])
        axes.set_yticks(places, names)
        axes.axvline(0, color="0.45", linewidth=1)
        axes.set_xlabel(f"loss at {self._what}")


@dataclass(frozen=True)
class _TuningPanel:
    """The metric after the fine-tune against before."""

    drawn: Drawn

    @property
    def title(self) -> str:
        return f"{_metric([self.drawn])} after the fine-tune against before"

    def draw(self, axes: "Axes") -> None:
        pairs = [
            (record.before, record.metric)
            for record in self.drawn.records
            if record.before is not None and record.metric is not None
        ]
        axes.scatter(
            [before for before, _ in pairs], [after for _, after in pairs], color=_COLORS[0], s=16
        )
        axes.set_xlabel("before the fine-tune")
        axes.set_ylabel("after the fine-tune")
        ranks = self.drawn.summary.tuning
        if ranks and ranks.rho is not None:
            axes.set_title(f"Spearman's $\\rho$ = {ranks.rho:.2f} (n = {ranks.n})", fontsize=9)


_Panel = _MetricPanel | _SensitivityPanel | _TuningPanel


def _panels(sweeps: Sequence[Drawn], others: Sequence[Series]) -> list[_Panel]:
    panels: list[_Panel] = []
    whole = [drawn for drawn in sweeps if not drawn.summary.settings.is_each]
    if whole or others:
        axes = dict.fromkeys(axis for drawn in whole for axis in _axes(drawn))
        panels += [
            _MetricPanel(whole, others if axis == "amount" else (), axis)
            for axis in axes or {"amount": None}
        ]
    for drawn in sweeps:
        if drawn.summary.settings.is_each:
            panels += _sensitivity(drawn.summary)
        if any(record.before is not None for record in drawn.records):
            panels.append(_TuningPanel(drawn))
    return panels


def _axes(drawn: Drawn) -> tuple[Axis, ...]:
    found = axes_of(drawn.records)
    return found if drawn.summary.settings.is_shrunk else tuple(a for a in found if a == "amount")


def _sensitivity(summary: Summary) -> Iterator[_SensitivityPanel]:
    rows = losses(summary)
    for amount in dict.fromkeys(amount for _, amount, _ in sorted(rows, key=lambda row: row[1])):
        bars = [(module, lost) for module, each, lost in rows if each == amount]
        yield _SensitivityPanel(summary, amount, bars[-_MOST_BARS:])


def _draw_series(axes: "Axes", series: Series, number: int) -> None:
    color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
    axes.scatter(
        [dot.x for dot in series.dots],
        [dot.y for dot in series.dots],
        color=color,
        alpha=0.35,
        s=12,
        linewidths=0,
    )
    means = series.means
    axes.plot(
        [mean.x for mean in means],
        [mean.y for mean in means],
        color=color,
        marker=marker,
        markersize=4,
        label=_plain(series.label),
    )
    several = [(mean, mean.interval) for mean in means if mean.interval]
    axes.errorbar(
        [mean.x for mean, _ in several],
        [mean.y for mean, _ in several],
        yerr=[
            [max(mean.y - each.low, 0.0) for mean, each in several],
            [max(each.high - mean.y, 0.0) for mean, each in several],
        ],
        color=color,
        linestyle="none",
        capsize=3,
    )


def _bases(sweeps: Sequence[Drawn]) -> Mapping[str, float]:
    found = {
        _plain(f"{drawn.name} unpruned".strip()): drawn.summary.base
        for drawn in sweeps
        if drawn.summary.base is not None
    }
    is_one = len({*found.values()}) == 1
    return {"unpruned": next(iter(found.values()))} if is_one else found


def _metric(sweeps: Sequence[Drawn]) -> str:
    names = dict.fromkeys(drawn.summary.metric for drawn in sweeps if drawn.summary.metric)
    return _plain(" / ".join(names)) or "metric"


def _plain(text: str) -> str:
    """Return `text` so that matplotlib sets it as it is, not as mathematics."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return printable.replace("$", r"\$")


# --- matplotlib ------------------------------------------------------------------------------


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _figure(panels: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _PANEL
    figure = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(1, panels, squeeze=False)
    return figure


def _save(figure: "Figure", kind: str) -> bytes:
    content = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    figure.savefig(content, format=kind, dpi=200, metadata=dates[kind])
    return content.getvalue()


def _picture(panel: _Panel) -> Picture:
    figure = _figure(1)
    panel.draw(figure.axes[0])
    text = _save(figure, "svg").decode()
    return Picture(panel.title, _SURROUNDINGS.sub("", text))
