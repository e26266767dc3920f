"""docs/reference/ is what the command line declares."""

import importlib.util
from pathlib import Path

import prune_cli

DOCS = Path(__file__).parents[1] / "docs"


def test_the_pages_of_commands_are_up_to_date() -> None:
    """`python docs/make_reference.py` writes what is there."""
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec
    assert spec.loader
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)

    for name, text in make_reference.write_pages().items():
        assert (DOCS / "reference" / name).read_text() == text, name


def test_the_python_page_has_every_public_function() -> None:
    """Whatever `prune_cli` offers stands on the page, under the name of its home."""
    text = (DOCS / "reference" / "python.md").read_text()
    functions = {name for name in prune_cli.__all__ if not name.endswith("Error")}

    assert {name for name in functions if name not in text} == set()
