"""The colours of the page: what means something can be told apart, light and dark.

Contrast is that of WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
"""

import re
from importlib.resources import files

import pytest

CSS = files("prune_cli.show.page").joinpath("page.css").read_text(encoding="utf-8")

SCHEMES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))

MEANINGFUL = [
    *((kind, "paper") for kind in ("kept", "pruned", "shared", "before", "edge")),
    *((kind, "card") for kind in ("pruned", "edge")),
    ("pruned", "shared"),
]
"""Colours that lie beside each other: squares and dots on the page, bars in tiles, and the two
kinds of full squares. Kept and pruned before have shapes of their own: a dot, and a dash."""

TEXT = [
    ("ink", "paper"),
    ("ink", "card"),
    ("soft", "paper"),
    ("soft", "card"),
    ("paper", "ink"),
    ("print", "sheet"),
]


def colours(scheme: str) -> dict[str, tuple[float, ...]]:
    """Each colour of a scheme, as red, green and blue from 0 to 1."""
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", SCHEMES[scheme])
    return {name: tuple(b / 255 for b in bytes.fromhex(value)) for name, value in found}


def luminance(colour: tuple[float, ...]) -> float:
    """The relative luminance."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """From 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pair", MEANINGFUL, ids="-".join)
def test_what_means_something_is_told_apart(scheme: str, pair: tuple[str, str]) -> None:
    """At least 3:1, as for any graphic."""
    palette = colours(scheme)

    assert contrast(palette[pair[0]], palette[pair[1]]) >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pair", TEXT, ids="-".join)
def test_text_is_legible(scheme: str, pair: tuple[str, str]) -> None:
    """At least 4.5:1, as for small text."""
    palette = colours(scheme)

    assert contrast(palette[pair[0]], palette[pair[1]]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("text", ["ink", "soft"])
def test_numbers_are_legible_on_the_deepest_shade(scheme: str, text: str) -> None:
    """A cell of the matrix has at most a quarter of the colour of what is shared."""
    assert "calc(var(--share, 0%) / 4)" in CSS
    palette = colours(scheme)
    pairs = zip(palette["shared"], palette["paper"], strict=True)
    shade = tuple(0.25 * shared + 0.75 * paper for shared, paper in pairs)

    assert contrast(palette[text], shade) >= (4.5 if text == "ink" else 3)


def test_no_colour_is_outside_of_the_schemes() -> None:
    """So that these tests see all of them."""
    rest = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)

    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsl|opacity", rest)
