"""Reports as one self-contained HTML page, with a picture of which channels went of each tensor.

Text in, text out: no file is written here (`cli`), and nothing is measured (`comparison`). The
page needs no script and no other file; its style is `page.css`, beside this file.

A picture is a grid of squares, a channel each, or an equal number of them where there are more
channels than squares. Squares of one colour are one path: strokes along the rows, whose dashes
make the gaps.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import accumulate, groupby, repeat
from typing import TypeVar

from prune_cli.amounts import Amount
from prune_cli.inspection.inspection import natural_key
from prune_cli.plan.facts import PlanItem
from prune_cli.report.comparison import (
    Comparison,
    Run,
    TensorComparison,
    compare_reports,
    shared_channels,
    why_unlike,
)
from prune_cli.report.groups import show_groups_as_tensors
from prune_cli.report.report import Report

MAX_TENSORS = 1000
"""A page shows no more tensors; the report has every one."""

_SQUARES = 600_000  # of a whole page
_FEWEST, _MOST = 256, 1024  # squares of one picture
_LEVELS = 6  # shades of a square that stands for several channels
_MOST_NAMES = 6  # of one memory, or of channels that went together
_GROUPED = 40  # a longer list of tensors is divided
_WIDTH, _WIDTH_OF_SEVERAL = 768, 384

_Named = TypeVar("_Named", PlanItem, TensorComparison)
_Entry = TypeVar("_Entry")


def render_page(reports: Mapping[str, Report]) -> str:
    """The page of `reports`, by the names they are to have: of one, or of several compared.

    Example:
        >>> html = render_page({"model.report.json": read_report(path)})
        >>> html.startswith("<!DOCTYPE html>")
        True
    """
    reports = {name: show_groups_as_tensors(each) for name, each in reports.items()}
    if len(reports) == 1:
        (report,) = reports.values()
        return _document(_title(report), _page_of_one(report), "one")
    comparison = compare_reports(reports)
    title = f"{len(reports)} runs compared"
    return _document(title, _page_of_several(reports, comparison), "several")


def _document(title: str, body: Iterable[str], kind: str) -> str:
    style = files("prune_cli.show").joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            f'<body><main class="{kind}">',
            *body,
            "</main></body>",
            "</html>",
            "",
        ]
    )


# --- one report ------------------------------------------------------------------------------


def _page_of_one(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(_title(report))}</h1>"
    yield f'<p class="soft">{_sentence(report)}</p>'
    yield from _tiles(report)
    yield "<h2>Channels</h2>"
    squares = _squares_each(len(report.tensors))
    before = any(item.already_pruned for item in report.tensors)
    largest = max((item.channels for item in report.tensors), default=0)
    yield from _legend(
        [("pruned", "pruned"), *_if(before, ("before", "pruned before"))], largest, squares
    )
    items = sorted(report.tensors, key=lambda item: natural_key(item.name))
    yield from _list_tensors(items, lambda item, prefix: _tensor(item, prefix, squares))
    yield from _options(report)
    yield from _left_out(report)
    yield _footer([report])


def _title(report: Report) -> str:
    return report.output.path if report.output else report.input.path


def _sentence(report: Report) -> str:
    source = f"<code>{escape(report.input.path)}</code>"
    dry = "" if report.output else " (a dry run: nothing was written)"
    if report.method == "remove":
        return f"The masks of {source} made permanent{dry}"
    if report.method == "apply":
        return f"The channels of another report, from {source}{dry}"
    options = report.options
    if report.shrink is not None:
        drawn = "" if options.amount is None else f", drawn with seed {options.seed}"
        return f"Channels removed, with all that depend on them, from {source}{drawn}{dry}"
    return (
        f"{escape(_amount(options.amount))}, along dim {options.dim}, drawn with seed "
        f"{options.seed}, from {source}{dry}"
    )


def _amount(amount: Amount | None) -> str:
    match amount:
        case None:
            return "by rules"
        case int():
            return f"{amount:,} channel{'s' * (amount != 1)} of each tensor"
        case _:
            return f"{100 * amount:.4g}% of each tensor's live channels"


def _tiles(report: Report) -> Iterator[str]:
    totals = report.totals
    channels = totals.channels_pruned / totals.channels if totals.channels else 0.0
    yield '<dl class="tiles">'
    yield _tile("channels pruned", totals.channels_pruned, f"of {totals.channels:,}", channels)
    if report.shrink is None:
        planned = f"of {len(report.tensors):,} planned"
        yield _tile("tensors pruned", totals.tensors_pruned, planned)
        yield _tile("zero elements", totals.elements_zero, f"of {totals.elements:,}")
        yield _tile("sparsity", f"{totals.sparsity:.1%}", "of these tensors", totals.sparsity)
    else:
        yield _tile("groups shrunk", totals.tensors_pruned, "of coupled channels")
        yield _tile("parameters removed", totals.elements_zero, f"of {totals.elements:,}")
        yield _tile("smaller by", f"{totals.sparsity:.1%}", "of the parameters", totals.sparsity)
    yield "</dl>"


def _tile(name: str, value: int | str, of: str, part: float | None = None) -> str:
    shown = f"{value:,}" if isinstance(value, int) else value
    meter = "" if part is None else f'<div class="meter"><i style="width:{part:.2%}"></i></div>'
    return f'<div class="tile"><dt>{name}</dt><dd>{shown}</dd><dd class="of">{of}</dd>{meter}</div>'


def _tensor(item: PlanItem, prefix: str, squares: int) -> str:
    layers = [_Layer("", item.pruned), _Layer("b", item.already_pruned)]
    return (
        f'<article class="tensor"><div>{_name(item.name, prefix)}{_facts(item)}'
        f"<p>{_pruned_of(item)}</p></div>"
        f"<figure>{_picture(item, layers, _WIDTH, squares)}</figure></article>"
    )


def _name(name: str, prefix: str) -> str:
    rest = name.removeprefix(prefix)
    shown = f'<span class="soft">{escape(prefix)}</span>' if rest != name else ""
    return f'<h3 class="name">{shown}{escape(rest)}</h3>'


def _facts(item: PlanItem) -> str:
    shape = "\u2009\u00d7\u2009".join(f"{size}" for size in item.shape)
    known = " \u00b7 ".join(filter(None, (shape, escape(item.dtype), f"dim {item.dim}")))
    lines = [f"<p>{known}</p>"]
    if item.follows is not None:
        lines.append(f"<p>with {escape(item.follows)}</p>")
    if item.aliases:
        more = len(item.aliases) - _MOST_NAMES
        names = escape(", ".join(item.aliases[:_MOST_NAMES]))
        lines.append(f"<p>also {names}{f' and {more} more' if more > 0 else ''}</p>")
    return "".join(lines)


def _pruned_of(item: PlanItem) -> str:
    part = len(item.pruned) / item.channels if item.channels else 0.0
    before = f", {len(item.already_pruned):,} before" if item.already_pruned else ""
    return f"<b>{len(item.pruned):,}</b> of {item.channels:,} ({part:.1%}){before}"


# --- several reports -------------------------------------------------------------------------


def _page_of_several(reports: Mapping[str, Report], comparison: Comparison) -> Iterator[str]:
    yield f"<h1>{len(reports)} runs compared</h1>"
    yield f'<p class="soft">{escape(", ".join(reports))}</p>'
    yield "<h2>Runs</h2>"
    yield from _runs(comparison.runs)
    yield "<h2>Overlap</h2>"
    yield from _matrix(comparison)
    yield "<h2>Channels</h2>"
    rows = [{item.name: item for item in report.tensors} for report in reports.values()]
    squares = _squares_each(len(comparison.tensors) * len(reports))
    before = any(item.already_pruned for row in rows for item in row.values())
    largest = max((item.channels for row in rows for item in row.values()), default=0)
    kinds = [("shared", "pruned in both"), ("pruned", "pruned in this run only")]
    if len(reports) > 2:
        kinds = [
            ("shared", "pruned in all runs that have the tensor"),
            ("pruned", "pruned in this run, not in all"),
        ]
    yield from _legend([*kinds, *_if(before, ("before", "pruned before"))], largest, squares)
    yield from _list_tensors(
        comparison.tensors, lambda facts, prefix: _compared(facts, prefix, rows, squares)
    )
    yield _footer(reports.values())


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    heads = (
        "",
        "report",
        "input",
        "amount",
        "dim",
        "seed",
        "tensors",
        "channels pruned",
        "sparsity",
    )
    yield '<div class="scroll"><table><tr>'
    yield "".join(_cell("th", head, is_number=at >= 4) for at, head in enumerate(heads)) + "</tr>"
    for number, run in enumerate(runs, 1):
        dry = "" if run.output else ' <span class="soft">(dry run)</span>'
        numbers = (
            str(run.dim),
            str(run.seed),
            f"{run.tensors:,}",
            f"{run.channels_pruned:,} of {run.channels:,}",
            f"{run.sparsity:.1%}",
        )
        yield (
            f"<tr><td>{_badge(number)}</td><td><code>{escape(run.report)}</code>{dry}</td>"
            f"<td><code>{escape(run.input)}</code></td><td>{escape(_amount(run.amount))}</td>"
            + "".join(_cell("td", value, is_number=True) for value in numbers)
            + "</tr>"
        )
    yield "</table></div>"


def _badge(number: int) -> str:
    return f'<b class="run">{number}</b>'


def _cell(tag: str, text: str, *, is_number: bool = False) -> str:
    return f"<{tag}{' class=number' * is_number}>{escape(text)}</{tag}>"


def _matrix(comparison: Comparison) -> Iterator[str]:
    """The Jaccard index of each two reports, as a table shaded by it."""
    cells = {(pair.first, pair.second): pair for pair in comparison.pairs}
    numbers = range(len(comparison.runs))
    yield (
        '<p class="soft">Of the channels that either of two runs pruned, the part that both did '
        "(the Jaccard index), over the tensors that both have.</p>"
    )
    yield '<div class="scroll"><table class="matrix"><tr><th></th>'
    yield "".join(f'<th class="number">{_badge(number + 1)}</th>' for number in numbers) + "</tr>"
    for row in numbers:
        yield f"<tr><th>{_badge(row + 1)} <code>{escape(comparison.runs[row].report)}</code></th>"
        for column in numbers:
            pair = cells.get((min(row, column), max(row, column)))
            if pair is None or pair.overlap is None:
                yield '<td class="number soft">\u2013</td>'
                continue
            share, overlap = 100 * pair.overlap.jaccard, pair.overlap
            shade = f"background:color-mix(in srgb,var(--shared) {share / 2:.0f}%,transparent)"
            told = f"{overlap.shared:,} of {overlap.union:,} channels, {pair.tensors:,} tensors"
            yield f'<td class="number" style="{shade}" title="{told}">{share:.1f}%</td>'
        yield "</tr>"
    yield "</table></div>"


def _compared(
    facts: TensorComparison, prefix: str, rows: Sequence[Mapping[str, PlanItem]], squares: int
) -> str:
    items = [row.get(facts.name) for row in rows]
    there = [item for item in items if item]
    shared = frozenset() if why_unlike(there) else shared_channels(there)
    pictures = "".join(
        _picture_of_run(number, item, shared, squares) for number, item in enumerate(items, 1)
    )
    return (
        f'<article class="tensor"><div>{_name(facts.name, prefix)}{_facts(there[0])}'
        f'<p>{_overlap(facts)}</p></div><div class="pictures">{pictures}</div></article>'
    )


def _overlap(facts: TensorComparison) -> str:
    if facts.overlap is None:
        return f"not compared: {escape(facts.reason or '')}"
    shared, union = facts.overlap.shared, facts.overlap.union
    chance = "" if facts.by_chance is None else f"; {_rounded(facts.by_chance)} by chance"
    return (
        f"<b>{shared:,}</b> shared of {union:,} pruned in any ({facts.overlap.jaccard:.1%}){chance}"
    )


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _picture_of_run(
    number: int, item: PlanItem | None, shared: frozenset[int], squares: int
) -> str:
    if item is None:
        return f"<figure><figcaption>{_badge(number)} does not have it</figcaption></figure>"
    own = [channel for channel in item.pruned if channel not in shared]
    layers = [_Layer("", own), _Layer("s", shared), _Layer("b", item.already_pruned)]
    return (
        f"<figure><figcaption>{_badge(number)} {_pruned_of(item)}</figcaption>"
        f"{_picture(item, layers, _WIDTH_OF_SEVERAL, squares)}</figure>"
    )


# --- the list of tensors ---------------------------------------------------------------------


def _list_tensors(tensors: Sequence[_Named], show: Callable[[_Named, str], str]) -> Iterator[str]:
    """All of them, under headings for the blocks of the model where there are many."""
    shown = tensors[:MAX_TENSORS]
    if len(shown) <= _GROUPED:
        yield from (show(tensor, "") for tensor in shown)
        return
    for block, group in groupby(shown, key=lambda tensor: _block(tensor.name)):
        held = list(group)
        if len(held) == 1:
            yield show(held[0], "")
            continue
        prefix = f"{block}." if block else ""
        count = f"{len(held)} tensor{'s' * (len(held) != 1)}"
        yield '<details class="group" open>'
        yield f'<summary><span class="name">{escape(block or "the rest")}</span>'
        yield f'<span class="soft">{count}</span></summary>'
        yield from (show(tensor, prefix) for tensor in held)
        yield "</details>"
    if len(tensors) > MAX_TENSORS:
        yield f'<p class="soft">and {len(tensors) - MAX_TENSORS:,} more tensors.</p>'


def _block(name: str) -> str:
    """What a name has up to its first number, or else its first part.

    Example:
        >>> _block("model.layers.3.mlp.up_proj.weight"), _block("fc.weight"), _block("weight")
        ('model.layers.3', 'fc', '')
    """
    parts = name.split(".")[:-1]
    number = next((at for at, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[: number + 1])


# --- pictures --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """The channels that get the colour of the CSS class `kind`."""

    kind: str
    channels: Collection[int]


def _squares_each(pictures: int) -> int:
    """How many squares a picture may have, so that the page stays small."""
    squares = _MOST
    while squares > _FEWEST and squares * pictures > _SQUARES:
        squares //= 2
    return squares


def _picture(item: PlanItem, layers: Sequence[_Layer], width: int, limit: int) -> str:
    """An SVG of the channels of `item`, `width` pixels wide where they fill a row."""
    if item.channels < 1:
        return ""
    drawn = [layer for layer in layers if layer.channels]
    if item.channels > limit and len(drawn) > 1:
        limit = _FEWEST  # squares with several colours have to be large
    each = math.ceil(item.channels / limit)
    count = math.ceil(item.channels / each)
    pitch = 12 if count <= _FEWEST else 6
    columns = width // pitch
    rows, wide = math.ceil(count / columns), min(count, columns)
    track = "".join(
        _run_of(at * columns, min(count, (at + 1) * columns), columns) for at in range(rows)
    )
    paths = [f'<path class="t" d="{track}"/>']
    for layer, band in zip(drawn, _bands(len(drawn)) if each > 1 else repeat("")):
        paths += (band, *_paths(layer, item.channels, each, columns), "</g>" if band else "")
    label = f"{len(item.pruned):,} of {item.channels:,} channels of {item.name} pruned"
    tip = f"<title>{each:,} channels each</title>" if each > 1 else ""
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{wide * pitch}" '
        f'height="{rows * pitch}" viewBox="0 -.41667 {wide} {rows}">{tip}{"".join(paths)}</svg>'
    )


def _bands(count: int) -> list[str]:
    """Where in a square of several channels each of `count` colours goes, so that none mix."""
    heights = {2: (3, 2), 3: (2, 1.5, 1.5)}.get(count, (5,))  # in sixths, the gap is the last
    tops = accumulate(heights, initial=0.0)
    return [
        f'<g stroke-width="{height / 6:.5g}" transform="translate(0 {(top + height / 2 - 2.5) / 6:.5g})">'
        for top, height in zip(tops, heights, strict=False)
    ]


def _paths(layer: _Layer, channels: int, each: int, columns: int) -> Iterator[str]:
    """A path for each shade of `layer`."""
    held: dict[int, int] = {}
    for channel in layer.channels:
        if 0 <= channel < channels:
            held[channel // each] = held.get(channel // each, 0) + 1
    shades: dict[int, list[int]] = {}
    for square, number in sorted(held.items()):
        of = min(each, channels - square * each)
        shades.setdefault(math.ceil(_LEVELS * number / of), []).append(square)
    for shade, squares in sorted(shades.items()):
        names = " ".join([*_if(layer.kind != "", layer.kind), *_if(shade < _LEVELS, f"l{shade}")])
        kind = f' class="{names}"' if names else ""
        yield f'<path{kind} d="{_draw(squares, columns)}"/>'


def _draw(squares: Sequence[int], columns: int) -> str:
    """Strokes that cover ascending `squares`, a stroke for each run of them within a row.

    Example:
        >>> _draw([0, 1, 2, 9], columns=8)
        'M0 0h3M1 1h1'
    """
    strokes: list[str] = []
    start = 0
    for at, square in enumerate(squares):
        following = squares[at + 1] if at + 1 < len(squares) else -1
        if following != square + 1 or following % columns == 0:
            strokes.append(_run_of(squares[start], square + 1, columns))
            start = at + 1
    return "".join(strokes)


def _run_of(first: int, stop: int, columns: int) -> str:
    return f"M{first % columns} {first // columns}h{stop - first}"


def _legend(kinds: Sequence[tuple[str, str]], largest: int, squares: int) -> Iterator[str]:
    yield '<ul class="legend">'
    yield from (f'<li><i class="{kind}"></i>{text}</li>' for kind, text in kinds)
    yield '<li><i></i>kept</li></ul><p class="soft">'
    yield "A square is a channel, row by row from the first one."
    if largest > squares:
        yield (
            f"Where a tensor has more than {squares:,}, a square is several channels, "
            "and the deeper its colour the more of them went"
            + (": of each kind in a part of the square." if len(kinds) > 1 else ".")
        )
    yield "</p>"


# --- the rest of a report --------------------------------------------------------------------


def _options(report: Report) -> Iterator[str]:
    options, source, output = report.options, report.input, report.output
    facts = {
        "method": report.method,
        "amount": "none" if options.amount is None else repr(options.amount),
        "dim": str(options.dim),
        "seed": str(options.seed),
        "modules": ", ".join(options.modules) or "nothing",
        "exclude": ", ".join(options.exclude) or "nothing",
        "params": ", ".join(options.params) or "nothing",
        "masks": "made permanent" if options.bake else "kept as NAME_orig and NAME_mask",
        "biases": "pruned with their weights" if options.with_bias else "left alone",
        "input": f"{source.path}: {source.format}, {source.tensors:,} tensors, {source.bytes:,} bytes",
        "output": f"{output.path}: {output.format}, {output.tensors:,} tensors, {output.bytes:,} bytes"
        if output
        else "none: a dry run",
    }
    for number, rule in enumerate(options.rules, 1):
        facts[f"rule {number}"] = (
            f"{', '.join(rule.modules)} / {', '.join(rule.params)}: "
            f"amount {rule.amount!r}, dim {rule.dim}"
        )
    yield '<h2>Options</h2><dl class="facts">'
    for name, value in facts.items():
        yield f"<dt>{name}</dt><dd><code>{escape(value)}</code></dd>"
    yield "</dl>"


def _left_out(report: Report) -> Iterator[str]:
    """What matched and was left alone, and what the output does not hold, by reason."""
    skipped = [(skip.reason, skip.name) for skip in report.skipped]
    dropped = [(drop.reason, drop.key) for drop in report.dropped]
    for title, pairs in (("Skipped", skipped), ("Dropped", dropped)):
        if not pairs:
            continue
        yield f'<h2>{title}</h2><dl class="facts">'
        for reason in dict.fromkeys(reason for reason, _ in pairs):
            names = [name for other, name in pairs if other == reason]
            more = f" and {len(names) - MAX_TENSORS:,} more" if len(names) > MAX_TENSORS else ""
            listed = ", ".join(names[:MAX_TENSORS]) + more
            yield f"<dt>{escape(reason)}</dt><dd><code>{escape(listed)}</code></dd>"
        yield "</dl>"


def _footer(reports: Iterable[Report]) -> str:
    tools = dict.fromkeys(
        f"{tool.name} {tool.version} with torch {tool.torch}"
        for tool in (report.tool for report in reports)
    )
    return f"<footer>{escape('; '.join(tools))}</footer>"


def _if(wanted: bool, entry: _Entry) -> list[_Entry]:
    return [entry] if wanted else []
