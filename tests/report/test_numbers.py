"""Numbers as people read them."""

import pytest

from prune_cli.report.numbers import format_bytes, format_change, format_count, list_some


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_963_008, "2.0 MB"), (3.2e15, "3,200.0 TB")],
)
def test_format_bytes(nbytes: float, shown: str) -> None:
    """Sizes are in powers of 1000, up to terabytes."""
    assert format_bytes(nbytes) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 tensors"), (1, "1 tensor"), (2500, "2,500 tensors")]
)
def test_nouns_agree(number: int, shown: str) -> None:
    """One is no plural, and thousands have a comma."""
    assert format_count(number, "tensor") == shown


def test_changes_are_relative() -> None:
    """Nothing to compare with is no division."""
    assert format_change(1000, 750) == "1,000 -> 750 (-25.0%)"
    assert format_change(0, 0) == "0 -> 0 (+0.0%)"


def test_long_lists_are_cut() -> None:
    """The first are named, the others counted."""
    assert list_some(["a", "b", "c"]) == "a, b, c"
    assert list_some([str(n) for n in range(1203)]) == "0, 1, 2 and 1,200 more"
