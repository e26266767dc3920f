"""The results of a sweep as text: CSV for programs, Markdown and LaTeX for people.

See also: `summary`, the facts; `show`, how they look on a terminal and on a page.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from prune_cli.sweep.methods import describe_protocol
from prune_cli.sweep.record import Achieved, Record
from prune_cli.sweep.statistics import Spread
from prune_cli.sweep.summary import PointSummary, Summary, loss, spell_amount

_FACTS = (
    "trial",
    "status",
    "amount",
    "seed",
    "allocation",
    "criterion",
    "target",
    "module",
    "recipe",
    "tuned",
    "metric",
    "before",
    "seconds",
    "exit",
)
_LARGE = 1e12  # from here on, powers of ten
_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


def to_csv(records: Sequence[Record]) -> str:
    """Return a row for each trial: what it is, its metric, what was achieved, all its numbers."""
    names = sorted({name for record in records for name in record.metrics})
    achieved = [entry.name for entry in fields(Achieved)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *_FACTS,
            *(f"achieved.{name}" for name in achieved),
            *(f"metrics.{name}" for name in names),
            "reason",
            "key",
        ]
    )
    for record in records:
        facts = [getattr(record, name) for name in _FACTS]
        facts += [getattr(record.achieved, name) for name in achieved]
        facts += [record.metrics.get(name) for name in names]
        writer.writerow([*facts, record.reason, record.key])
    return text.getvalue()


def to_markdown(summary: Summary) -> str:
    """Return the whole summary: a table, the differences, what to keep in mind, the methods."""
    return "\n".join(_markdown(summary)) + "\n"


def to_latex(summary: Summary) -> str:
    r"""Return a table for a paper; it needs `\usepackage{booktabs}`."""
    return latex_table(_cells(summary))


def latex_table(cells: Sequence[Sequence[str]]) -> str:
    """Return a table in LaTeX; the first of `cells` is its head."""
    head, *rows = cells
    align = "".join("r" if _is_number(cell) else "l" for cell in (rows or [head])[-1])
    lines = [
        r"\begin{tabular}{" + align + "}",
        r"\toprule",
        _latex_row(head),
        r"\midrule",
        *map(_latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_table(summary: Summary) -> list[list[str]]:
    """Return the table of points as texts, its head first; columns without content are left out."""
    return _cells(summary)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number as tables show it, "–" where there is none.

    Example:
        >>> number(0.123456), number(1234567.8), number(None)
        ('0.1235', '1,234,568', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if 10**digits <= abs(value) < _LARGE else f"{value:.{digits}g}"


def one_line(text: str) -> str:
    """Return a text as one line without what would act on a terminal or break a table."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


# --- the table of points ---------------------------------------------------------------------


def _cells(summary: Summary) -> list[list[str]]:
    rows = [_point_cells(summary, point) for point in summary.points]
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    return [columns, *([row[name] or "–" for name in columns] for row in rows)]


def _point_cells(summary: Summary, point: PointSummary) -> dict[str, str]:
    facts = point.point
    several_allocations = len({each.point.allocation for each in summary.points}) > 1
    several_criteria = len({each.point.criterion for each in summary.points}) > 1
    return {
        "amount": spell_amount(facts) + (" tuned" if facts.tuned else ""),
        "module": one_line(facts.module or ""),
        "allocation": facts.allocation if several_allocations and not facts.is_unpruned else "",
        "criterion": facts.criterion if several_criteria and not facts.is_unpruned else "",
        "n": str(point.metric.n if point.metric else 0),
        **_spread_cells(summary.metric or "metric", point.metric),
        "loss": _loss(summary, point),
        "before": "" if point.before is None else number(point.before.mean),
        "eval noise": "" if point.noise is None else number(point.noise.evaluation, 2),
        "draw sd": "" if point.noise is None else number(point.noise.draw, 2),
        **_achieved_cells(summary, point.achieved),
        "failed": str(point.failed or ""),
        "skipped": str(point.skipped or ""),
    }


def _spread_cells(metric: str, spread: Spread | None) -> dict[str, str]:
    interval = spread.interval if spread else None
    return {
        one_line(metric): number(spread.mean if spread else None),
        "sd": number(spread.sd if spread else None, 3),
        "min": number(spread.min if spread else None),
        "max": number(spread.max if spread else None),
        "95 % interval": f"{number(interval.low)} – {number(interval.high)}" if interval else "–",
    }


def _loss(summary: Summary, point: PointSummary) -> str:
    if point.metric is None or summary.base is None or point.point.is_unpruned:
        return ""
    return number(loss(summary, point.metric), 3)


def _achieved_cells(summary: Summary, achieved: Achieved) -> dict[str, str]:
    zero = achieved.sparsity
    return {
        "zeros": "" if zero is None or summary.settings.is_shrunk else f"{100 * zero:.3g}%",
        "parameters": number(achieved.parameters) if summary.settings.is_shrunk else "",
        "FLOPs": "" if achieved.flops is None else number(achieved.flops),
        "latency": "" if achieved.latency is None else f"{1000 * achieved.latency:.3g} ms",
    }


# --- Markdown and LaTeX ----------------------------------------------------------------------


def _markdown(summary: Summary) -> Iterator[str]:
    yield f"# Sweep of {_escape(summary.settings.input)}"
    yield ""
    done = summary.trials - summary.failed - summary.skipped
    counts = f"{done} of {summary.trials} trials done"
    extra = [f"{summary.failed} failed"] if summary.failed else []
    extra += [f"{summary.skipped} skipped"] if summary.skipped else []
    yield ", ".join([counts, *extra]) + "."
    yield ""
    yield from markdown_table(_cells(summary))
    yield from _section("Differences", [each.sentence for each in summary.differences])
    yield from _section("Fine-tune", _tuning(summary))
    yield from _section("Keep in mind", summary.warnings)
    yield from _section("Assertions", _verdicts(summary))
    yield from ["", "## Methods", "", _escape(describe_protocol(summary))]


def _tuning(summary: Summary) -> list[str]:
    ranks = summary.tuning
    if ranks is None or ranks.rho is None:
        return []
    interval = ranks.interval
    within = f" (95 % interval {interval.low:.2f} to {interval.high:.2f})" if interval else ""
    rho = f"{ranks.rho:.2f}{within}, over {ranks.n} draws"
    return [f"Spearman's rho of the metric before and after the fine-tune is {rho}"]


def _verdicts(summary: Summary) -> list[str]:
    return [
        f"{'holds' if verdict.holds else 'DOES NOT HOLD'}: `{verdict.text}` ({verdict.reason})"
        for verdict in summary.assertions
    ]


def _section(title: str, sentences: Iterable[str]) -> Iterator[str]:
    lines = [f"- {one_line(sentence)}" for sentence in sentences]
    if lines:
        yield from ["", f"## {title}", "", *lines]


def markdown_table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown; the first of `cells` is its head."""
    head, *rows = cells
    last = rows[-1] if rows else head
    yield _markdown_row(head)
    yield _markdown_row(["---:" if _is_number(cell) else "---" for cell in last])
    yield from map(_markdown_row, rows)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escape, cells))} |"


def _escape(text: str) -> str:
    return re.sub(r"([|*`<>\\])", r"\\\1", one_line(text))


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+\d.,e%–\s]+( ms)?", cell) is not None
