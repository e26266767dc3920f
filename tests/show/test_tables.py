"""Tables on terminals of any width."""

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prune_cli.show.tables import (
    BAR_WIDTH,
    add_row,
    draw_bar,
    find_folds,
    make_table,
    print_fitting,
)

NAME = "model.layers.*.self_attn.q_proj.weight"


def printed(width: int, name: str = NAME) -> list[str]:
    """A table with a bar, on a console of that width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)

    def build(with_bar: bool) -> object:
        table = make_table("tensor", "shape", "pruned", with_bar=with_bar)
        add_row(table, name, ["4096x4096", "1,024/4,096"], draw_bar(1, 4) if with_bar else None)
        return table

    print_fitting(console, build)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_wide_terminal_has_all() -> None:
    """The whole name in one line, and the bar."""
    _, row = printed(80)

    assert row.startswith(NAME) and "\u2501" in row


def test_the_bar_yields_first() -> None:
    """Without it, the name needs no fold."""
    _, row = printed(62)

    assert row.startswith(NAME) and "\u2501" not in row


@pytest.mark.parametrize("width", [40, 50])
def test_names_fold_at_dots(width: int) -> None:
    """What stands on the lines of a name is the name; numbers are never cut."""
    _, *rows = printed(width)

    lines = [row[: width - len("  4096x4096  1,024/4,096")].strip() for row in rows]
    assert "".join(lines) == NAME
    assert all(line.endswith(".") for line in lines[:-1])
    assert rows[0].endswith("4096x4096  1,024/4,096")


def test_names_without_dots_fold_anyway() -> None:
    """Nothing of a name is lost."""
    _, *rows = printed(40, "w" * 50)

    assert sum(row.count("w") for row in rows) == 50


@given(
    st.lists(st.text("ab", max_size=9), min_size=1).map(".".join),
    st.integers(1, 30),
    st.integers(0, 8),
)
def test_folds_are_after_dots_and_as_few_as_can_be(name: str, width: int, indent: int) -> None:
    """Every line fits, unless it is one part; and the next part would not have fitted."""
    folds = find_folds(name, width, indent)

    edges = [0, *folds, len(name)]
    lines = [name[a:b] for a, b in pairwise(edges)]
    for number, line in enumerate(lines):
        used = len(line) + (indent if number else 0)
        assert used <= width or line.count(".") <= 1
        if number + 1 < len(lines):
            assert line.endswith(".")
            following = lines[number + 1].partition(".")
            assert used + len(following[0] + following[1]) > width


def test_a_bar_is_as_long_as_its_part() -> None:
    """Half of ten cells are five."""
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=True)

    console.print(draw_bar(1, 2))

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("\u2501") == BAR_WIDTH // 2
