"""The page of reports: one self-contained file, whatever is in them."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from prune_cli.checkpoint import Dropped
from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import PlanItem, Skipped
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import Effect, Group, ShrinkPlan, Whole
from prune_cli.report.report import Report, from_json, sum_up, to_json
from prune_cli.show.page import MAX_TENSORS, render_page
from tests.report.test_comparison import item, report

COLUMNS = {12: 64, 6: 64}
"""How many squares a row has, by their pitch in pixels."""


class Tree(HTMLParser):
    """Checks that tags are balanced, and collects them with their attributes and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens it, unless it is one that never closes."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens and closes nothing."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Closes the one that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps what people read."""
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that people read, in one line."""
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Those of each `tag`."""
        return [attributes for name, attributes in self.tags if name == tag]


def squares(path: str, columns: int) -> set[int]:
    """The squares that the strokes of `path` cover."""
    return {
        int(y) * columns + int(x) + step
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)", path)
        for step in range(int(length))
    }


def pictures(html: str) -> list[dict[str, set[int]]]:
    """For each picture the squares of each CSS class."""
    found = []
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        width = int(re.search(r'viewBox="0 \S+ (\d+) ', svg)[1])
        found.append(
            {
                kind: squares(path, width)
                for kind, path in re.findall(r'<path(?: class="([^"]*)")? d="([^"]*)"/>', svg)
            }
        )
    return found


# --- one report ------------------------------------------------------------------------------


def test_picture_has_a_square_for_each_channel() -> None:
    """Pruned, pruned before and all channels are squares of their own colours."""
    only = report(item("fc.weight", (1, 2, 6), channels=8, before=(0, 7)))

    (picture,) = pictures(render_page({"a": only}))

    assert picture == {"t": set(range(8)), "": {1, 2, 6}, "b": {0, 7}}


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 256, 257, 1000, 1024])
def test_every_channel_up_to_1024_is_exact(channels: int) -> None:
    """Whatever the number of rows, the squares are the channels."""
    pruned = tuple(channel for channel in range(channels) if channel % 3 == 0 or channel % 5 == 1)

    (picture,) = pictures(render_page({"a": report(item("w", pruned, channels=channels))}))

    assert picture == {"t": set(range(channels)), "": set(pruned)}


def test_many_channels_share_a_square_in_shades() -> None:
    """With 128,000 channels a square is 125 of them: all, half or one pruned are three shades."""
    pruned = (*range(125), *range(250, 312), 1000)

    html = render_page({"a": report(item("w", pruned, channels=128_000))})

    (picture,) = pictures(html)
    assert picture == {"t": set(range(1024)), "": {0}, "l3": {2}, "l1": {8}}
    assert "125 channels each" in html
    assert "a square is several channels" in html


def test_colours_do_not_mix_in_a_square_of_several_channels() -> None:
    """Each kind has a band of its own in it, and all bands lie within the square."""
    rows = item("w", tuple(range(0, 4096, 2)), channels=4096, before=tuple(range(1, 4096, 2)))

    html = render_page({"a": report(rows)})

    bands = [
        (float(top) + 0.41667, float(top) + 0.41667 + float(high))
        for top, high in re.findall(r'<g style="--top:(\S+)px;--high:(\S+)px">', html)
    ]
    assert [tuple(round(edge * 6, 2) for edge in band) for band in bands] == [(0, 3), (3, 5)]
    assert pictures(html)[0]["l3"] == set(range(256))


def test_three_kinds_have_three_bands() -> None:
    """What only this run pruned, what both did and what was gone before."""
    first = report(item("w", tuple(range(1000)), channels=4096, before=(4000,)))
    second = report(item("w", tuple(range(500)), channels=4096, before=(4000,)))

    html = render_page({"a": first, "b": second})

    assert html.count("<g ") == 3 + 2


def test_channels_that_cannot_be_are_not_drawn() -> None:
    """A report that was edited by hand may hold anything; what is outside is left out."""
    edited = report(item("w", (-1, 2, 99), channels=4), item("none", (), channels=0))

    (picture,) = pictures(render_page({"a": edited}))

    assert picture == {"t": {0, 1, 2, 3}, "": {2}}


def test_page_says_what_was_asked_and_what_came_of_it() -> None:
    """Totals, options, and what was skipped or dropped are on the page."""
    content = replace(
        report(item("fc.weight", (1, 2), before=(5,))), dropped=(Dropped("epoch", "an int"),)
    )

    text = Tree(render_page({"a": content})).text

    assert "25% of each tensor's live channels, along dim 0, drawn with seed 0" in text
    assert "channels pruned 2 of 8" in text
    assert "2 of 8 (25.0%), 1 before" in text
    assert "Skipped 1-D: it has no channels to prune bn.weight" in text
    assert "Dropped an int epoch" in text
    assert "prune-cli 0.1.0 with torch 2.13.0" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({"method": "remove"}, "The masks of model.pt made permanent", id="remove"),
        pytest.param({"method": "apply"}, "The channels of another report", id="apply"),
        pytest.param({"output": None}, "(a dry run: nothing was written)", id="dry run"),
    ],
)
def test_page_tells_what_kind_of_run_it_was(changes: dict[str, object], told: str) -> None:
    """The sentence at the top is true for each method."""
    content = replace(report(item("w", (1,))), **changes)

    assert told in Tree(render_page({"a": content})).text


@pytest.mark.parametrize(
    ("amount", "told"), [(3, "3 channels of each tensor"), (1, "1 channel of"), (None, "by rules")]
)
def test_amount_is_told_as_it_was_understood(amount: int | None, told: str) -> None:
    """A number of channels, or rules."""
    content = report(item("w", (1,)), amount=amount)
    rules = (Rule(("conv*",), ("weight",), 2, 0),) if amount is None else ()
    content = replace(content, options=replace(content.options, rules=rules))

    text = Tree(render_page({"a": content})).text

    assert told in text
    assert ("rule 1 conv* / weight: amount 2, dim 0" in text) == (amount is None)


def test_aliases_and_followed_weights_are_named() -> None:
    """A tied weight shows its other name, a bias the weight that it goes with."""
    tied = replace(item("a.weight", (1,)), aliases=("b.weight",))
    bias = item("a.bias", (1,), follows="a.weight")

    text = Tree(render_page({"a": report(tied, bias)})).text

    assert "also b.weight" in text and "with a.weight" in text


def test_empty_report_is_a_page() -> None:
    """Nothing pruned, nothing to divide by."""
    empty = replace(report(), skipped=())

    html = render_page({"a": empty})

    assert "<svg" not in html and "Skipped" not in html
    assert Tree(html).open == []


# --- several reports -------------------------------------------------------------------------


def test_shared_channels_have_their_own_colour() -> None:
    """Of each run there is a picture: what both pruned, and what only it did."""
    first, second = report(item("w", (0, 1, 2))), report(item("w", (2, 3)))

    html = render_page({"a.json": first, "b.json": second})

    assert pictures(html) == [
        {"t": set(range(8)), "": {0, 1}, "s": {2}},
        {"t": set(range(8)), "": {3}, "s": {2}},
    ]
    text = Tree(html).text
    assert "1 shared of 4 pruned in any (25.0%); 0.75 by chance" in text
    assert "25.0%" in text and "pruned in both" in text


def test_tensor_of_one_report_shows_who_lacks_it() -> None:
    """The others say so, and the overlap says why there is none."""
    reports = {
        "a": report(item("w", (1,))),
        "b": report(item("v", (1,))),
        "c": replace(report(item("v", (2,), before=(5,))), output=None),
    }

    text = Tree(render_page(reports)).text

    assert "does not have it" in text
    assert "not compared: only one report has it" in text
    assert "pruned in all runs that have the tensor" in text
    assert "(dry run)" in text


def test_large_numbers_by_chance_are_whole() -> None:
    """Twelve and a half channels are no more exact than twelve."""
    many = report(item("w", tuple(range(100)), channels=800))

    assert "; 12 by chance" in Tree(render_page({"a": many, "b": many})).text


def test_different_pasts_have_no_chance() -> None:
    """Where the runs did not begin from the same channels, none is told."""
    one, other = report(item("w", (1,), before=(0,))), report(item("w", (1,)))

    assert "by chance" not in Tree(render_page({"a": one, "b": other})).text


def test_runs_name_how_their_channels_were_chosen() -> None:
    """Two runs of one amount are told apart by it, in the table of runs and in that of groups."""
    drawn = report(item("w", (0, 1)))
    choice = Choice(criterion="l2", target="params=0.5")
    ranked = replace(drawn, options=replace(drawn.options, amount=None, choice=choice))

    text = Tree(render_page({"a": drawn, "b": drawn, "c": ranked})).text

    assert text.count("params=0.5 the smallest by l2") == 2


# --- reports of shrink -----------------------------------------------------------------------


def shrunk(removed: tuple[int, ...], members: int = 1) -> Report:
    """A report of shrink: of eight channels of a convolution some went, with those of `members`."""
    plan = ShrinkPlan(
        kept={},
        shapes={},
        attributes={},
        config={},
        groups=(
            Group(
                root="conv.weight",
                dim=0,
                amount=0.25,
                seed=1,
                channels=8,
                blocks=1,
                removed=removed,
                members=(("conv.weight", 0), *((f"next{n}.weight", 1) for n in range(members))),
            ),
        ),
        whole=(Whole("fc.weight", 0, 10, "it is an output of the model"),),
        effect=Effect(1000, 750, 9000, 6000),
    )
    return replace(report(), method="shrink", shrink=plan, skipped=())


def test_groups_of_shrink_are_rows() -> None:
    """Each group has a picture of what went of its root, and what went with it."""
    html = render_page({"a": shrunk((1, 4))})

    text = Tree(html).text
    assert pictures(html) == [{"t": set(range(8)), "": {1, 4}}]
    assert "conv.weight dim 0 also next0.weight" in text
    assert "parameters removed 250 of 1,000" in text
    assert "Skipped it is an output of the model fc.weight" in text


def test_long_lists_of_coupled_tensors_are_cut() -> None:
    """A residual stream may couple hundreds of tensors; a few are named."""
    text = Tree(render_page({"a": shrunk((1, 4), members=10)})).text

    assert "next5.weight and 4 more" in text


def test_channels_that_were_zero_need_no_seed() -> None:
    """Where zeros are removed there is no amount to tell."""
    content = shrunk((1,))
    content = replace(content, options=replace(content.options, amount=None))

    text = Tree(render_page({"a": content})).text
    assert "Channels removed, with all that depend on them, from model.pt" in text
    assert "drawn with seed" not in text


# --- any reports -----------------------------------------------------------------------------

HOSTILE = '<script>alert("1")</script>&\'x'


def hostile(content: Report) -> Report:
    """`content` with markup in every name that a report has."""
    rule = Rule((HOSTILE,), (HOSTILE,), 1, 0)
    options = replace(content.options, modules=(HOSTILE,), params=(HOSTILE,), rules=(rule,))
    row = replace(item(HOSTILE, (1,)), dtype=HOSTILE, aliases=(HOSTILE,), follows=HOSTILE)
    rows = (*(replace(row, name=f"{HOSTILE}.{n}.{HOSTILE}") for n in range(50)), row)
    return replace(
        content,
        options=replace(options, exclude=(HOSTILE,)),
        tool=replace(content.tool, name=HOSTILE),
        input=replace(content.input, path=HOSTILE, format=HOSTILE),
        output=replace(content.output, path=HOSTILE, format=HOSTILE) if content.output else None,
        method=HOSTILE,
        tensors=rows,
        skipped=(Skipped(HOSTILE, HOSTILE),),
        dropped=(Dropped(HOSTILE, HOSTILE),),
    )


@pytest.mark.parametrize("count", [1, 2])
def test_names_cannot_become_markup(count: int) -> None:
    """Every name is escaped, in text and in attributes."""
    reports = {f"{HOSTILE}{n}": hostile(report(item("w", (1,)))) for n in range(count)}

    tree = Tree(render_page(reports))

    assert tree.open == []
    assert [tag for tag, _ in tree.tags].count("script") == 1  # the page's own
    assert HOSTILE in tree.text


@pytest.mark.parametrize("count", [1, 2])
def test_names_cannot_turn_what_is_read(count: int) -> None:
    """What does not print is escaped, such as that from which on text runs from right to left."""
    odd = "fc.\u202egnp.exe\x1b[31m\x00"
    reports = {f"{odd}{n}": report(item(odd, (1,))) for n in range(count)}

    html = render_page(reports)

    assert not {"\u202e", "\x1b", "\x00"} & {*html}
    assert r"fc.\u202egnp.exe\x1b[31m\x00" in html


@pytest.mark.parametrize("count", [1, 2])
def test_page_is_self_contained(count: int) -> None:
    """Nothing would be fetched: no link, image, import or address; the script is the page's own."""
    reports = {str(n): report(item("w", (n,))) for n in range(count)}

    html = render_page(reports)

    assert html.startswith("<!DOCTYPE html>\n")
    assert not re.search(r"https?:|//|<script.+>|<link|<img|@import|url\(|src=|href=| on\w+=", html)
    own = files("prune_cli.show.page").joinpath("page.js").read_text()
    assert re.findall(r"<script>\n(.*?)</script>", html, re.DOTALL) == [own]
    assert "prefers-color-scheme: dark" in html


def test_same_reports_give_the_same_page() -> None:
    """Nothing on it depends on the time or on the order of sets."""
    reports = {"a": report(item("w", (0, 5))), "b": report(item("w", (1, 5)))}

    assert render_page(reports) == render_page(dict(reports))


def layers(count: int, channels: int) -> tuple[PlanItem, ...]:
    """`count` layers of a model with a quarter of the channels pruned, scattered."""
    return tuple(
        item(f"model.layers.{number}.up.weight", pruned, channels=channels)
        for number in range(count)
        for pruned in [
            tuple(sorted({(c * 7919 + number) % channels for c in range(channels // 4)}))
        ]
    )


def test_many_tensors_are_grouped_in_the_order_of_their_numbers() -> None:
    """Blocks of the model are headings; a block of one tensor needs none."""
    rows = [item(f"layers.{n}.{p}.weight", (1,)) for n in range(25) for p in ("a", "b")]

    html = render_page({"a": report(*rows, item("head.weight", (1,)), item("top", (1,)))})

    headings = re.findall(r'<summary><span class="name">(.*?)</span>', html)
    assert headings == [f"layers.{number}" for number in range(25)]
    assert Tree(html).text.count("2 tensors") == 25
    assert len(pictures(html)) == 52


def test_parameters_without_a_module_are_the_rest() -> None:
    """They stand together under a heading of their own."""
    rows = [item(f"w{number}", (1,)) for number in range(50)]

    html = render_page({"a": report(*rows)})

    assert '<span class="name">the rest</span>' in html


@pytest.mark.parametrize("runs", [1, 2])
def test_page_of_500_tensors_stays_small(runs: int) -> None:
    """Some 500 tensors of 4096 channels are a page of a few megabytes at most."""
    rows = layers(500, 4096)
    content = replace(report(), tensors=rows, totals=sum_up(rows))

    html = render_page({str(number): content for number in range(runs)})

    assert len(pictures(html)) == 500 * runs
    assert len(html) < 4_000_000


def test_page_ends_at_its_most_tensors() -> None:
    """Beyond them the page says how many more there are."""
    rows = layers(MAX_TENSORS + 5, 8)

    html = render_page({"a": replace(report(), tensors=rows)})

    assert len(pictures(html)) == MAX_TENSORS
    assert "and 5 more tensors" in Tree(html).text


def test_long_lists_of_what_was_skipped_are_cut() -> None:
    """The page names as many as it shows tensors."""
    skipped = tuple(Skipped(f"n{number}", "1-D") for number in range(MAX_TENSORS + 3))

    text = Tree(render_page({"a": replace(report(item("w", (1,))), skipped=skipped)})).text

    assert f"n{MAX_TENSORS - 1} and 3 more" in text


def test_squares_are_on_whole_pixels() -> None:
    """Width and height are whole pixels, 12 or 6 to a square."""
    rows = [item(f"w{count}", (0,), channels=count) for count in (3, 256, 257, 4096)]

    found = Tree(render_page({"a": report(*rows)})).attributes("svg")

    for row, svg in zip(rows, found, strict=True):
        pitch = 12 if row.channels <= 256 else 6
        count = min(row.channels, 1024)
        assert int(svg["width"] or 0) == min(count, COLUMNS[pitch]) * pitch
        assert int(svg["height"] or 0) == math.ceil(count / COLUMNS[pitch]) * pitch


# --- size ------------------------------------------------------------------------------------


def scattered(name: str, channels: int, run: int) -> PlanItem:
    """A tensor of which every second channel goes, and every third went before: the longest paths."""
    pruned = tuple(range(run % 2, channels, 2))
    return item(name, pruned, channels=channels, before=tuple(range(1, channels, 3)))


@pytest.mark.parametrize(
    ("runs", "tensors", "channels"),
    [(1, 1200, 4096), (2, 600, 1024), (15, 60, 4096), (40, 25, 999)],
)
def test_page_is_never_over_5_mb(runs: int, tensors: int, channels: int) -> None:
    """Whatever the reports: tensors that would not fit are counted, not shown."""
    reports = {
        f"{run}": report(*(scattered(f"layers.{n}.w", channels, run) for n in range(tensors)))
        for run in range(runs)
    }

    html = render_page(reports)

    assert len(html.encode()) <= 5_000_000
    assert Tree(html).open == []
    shown = len(re.findall(r'<article class="tensor"', html))
    assert shown >= 10
    assert shown == min(tensors, MAX_TENSORS) or f"and {tensors - shown:,} more tensors" in html


@pytest.mark.parametrize("runs", [1, 2, 205])
def test_hostile_names_do_not_make_it_large(runs: int) -> None:
    """A report of megabytes, in names, patterns and reasons, is a page of at most five."""
    long = "&\u20ac" * 10_000
    rows = tuple(
        replace(item(f"{n}{long}", (1,)), aliases=(long,) * 9, dtype=long) for n in range(9)
    )
    content = report(*rows)
    content = replace(
        content,
        method=long,
        input=replace(content.input, path=long, format=long),
        options=replace(content.options, modules=(long,) * 99, params=(long,), exclude=(long,)),
        skipped=tuple(Skipped(f"{n}{long}", f"{n}{long}") for n in range(1200)),
        dropped=tuple(Dropped(f"{n}{long}", f"{n}{long}") for n in range(1200)),
    )

    html = render_page({f"{long}{n}": content for n in range(runs)})

    assert len(html.encode()) <= 5_000_000


@pytest.mark.parametrize("runs", [1, 3])
def test_numbers_that_cannot_be_are_shown(runs: int) -> None:
    """An edited report may give channels that no float holds and nobody can print."""
    rows = [
        replace(item("a", (1, 10**300), channels=10**400), shape=(10**9,) * 2),
        replace(item("b", (0,), channels=3), shape=(-5, 0), dim=-7),
        replace(item("c", (), channels=-4), dim=9),
    ]
    content = from_json(to_json(replace(report(), tensors=tuple(rows))))

    html = render_page({str(n): content for n in range(runs)})

    assert Tree(html).open == []
