"""The pictures of a sweep."""

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from prune_cli.errors import UsageError
from prune_cli.show.figure import Drawn, check_format, draw_file, draw_pictures
from prune_cli.show.page.trials import render_sweeps
from prune_cli.sweep.forms import finish
from prune_cli.sweep.record import Record
from prune_cli.sweep.series import Dot, Mean, Series
from tests.sweep.test_summary import BASE, BETTER, NOISY, RANDOM, SETTINGS, record

pytest.importorskip("matplotlib")

RECORDS = [BASE, *RANDOM, *BETTER, *NOISY]


def drawn(records: list[Record], name: str = "", **changes: object) -> Drawn:
    """A sweep of `records`."""
    from dataclasses import replace

    finished = finish("s", replace(SETTINGS, **changes), records)  # type: ignore[arg-type]
    return Drawn(finished.summary, finished.records, name)


def texts(svg: str) -> set[str]:
    """What is written in a picture."""
    return {text.strip() for element in Xml.fromstring(svg).iter() for text in element.itertext()}


def test_every_series_is_named_and_the_unpruned_model_too() -> None:
    """Text in the picture is text."""
    (picture,) = draw_pictures([drawn(RECORDS)])

    assert {"random", "l1", "erk", "unpruned", "acc", "channels pruned"} <= texts(picture.svg)
    assert picture.title == "acc against channels pruned"


def test_a_picture_is_the_same_each_time() -> None:
    """No date, no random names."""
    sweep = drawn(RECORDS)

    assert draw_pictures([sweep]) == draw_pictures([sweep])
    assert draw_file([sweep], [], "pdf") == draw_file([sweep], [], "pdf")


@pytest.mark.parametrize(
    ("kind", "magic"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_a_figure_has_the_format_of_its_name(kind: str, magic: bytes) -> None:
    """For a paper."""
    assert draw_file([drawn(RECORDS)], [], kind).startswith(magic)


def test_another_method_is_drawn_beside() -> None:
    """As is another sweep, under its name."""
    other = Series("theirs", (Dot(0.5, 70.0),), (Mean(0.5, 70.0, None),))

    (picture,) = draw_pictures([drawn([BASE, *RANDOM], "a"), drawn([BASE, *BETTER], "b")], [other])

    assert {"a", "b l1", "theirs", "unpruned"} <= texts(picture.svg)


def test_sensitivity_is_bars_the_most_sensitive_on_top() -> None:
    """A picture for each amount."""
    modules = [record(0.5, 0, 90.0 - lost, module=f"layer{lost}.$x$") for lost in (5, 1, 9)]

    (picture,) = draw_pictures([drawn([BASE, *modules], is_each=True)])

    names = [text for text in Xml.fromstring(picture.svg).itertext() if text.startswith("layer")]
    assert names == ["layer1.$x$", "layer5.$x$", "layer9.$x$"]


def test_a_fine_tune_has_a_picture_of_before_and_after() -> None:
    """With the ranks' correlation."""
    tuned = [record(0.5, seed, 80.0 - seed, before=float(seed)) for seed in range(4)]

    pictures = draw_pictures([drawn([BASE, *tuned])])

    assert pictures[-1].title == "acc after the fine-tune against before"


def test_a_page_holds_tables_pictures_and_methods_and_escapes_all() -> None:
    """It needs no other file."""
    hostile = [record(0.5, 0, None, reason="<script>alert(1)</script>"), *RANDOM[1:]]

    page = render_sweeps([drawn([BASE, *hostile])])

    assert "<svg" in page
    assert "Methods" in page
    assert "<script>alert" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    """Before anything runs."""
    with pytest.raises(UsageError, match="pdf, svg, png"):
        check_format(tmp_path / "figure.jpg")
