"""verify finds what was planted, and nothing in right outputs; more by `python -m tests.planted`."""

from pathlib import Path

from tests.planted import find_missed


def test_planted_differences_are_found(tmp_path: Path) -> None:
    """A hundred flipped bits, edited reports and indexes, and missing files, in outputs of each form."""
    assert list(find_missed(tmp_path, 100, seed=1)) == []
