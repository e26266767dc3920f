"""What people see: numbers as people say them, and names that cannot harm a terminal."""

import pytest
from rich.console import Console
from rich.text import Text

from prune_cli.report.numbers import format_bytes
from prune_cli.show.console import escape
from prune_cli.show.pruned import Row, collapse


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fc.weight", "fc.weight"),
        ("gewicht.\u00e4", "gewicht.\u00e4"),
        ("[bold]fc[/]", "[bold]fc[/]"),
        ("fc\x1b[2J", "fc\\x1b[2J"),
        ("fc\nerror: none", "fc\\nerror: none"),
        ("fc\udcff", "fc\\udcff"),
    ],
    ids=["plain", "unicode", "markup", "escape sequence", "newline", "half a character"],
)
def test_escape(name: str, shown: str) -> None:
    """A name is shown as it is, and neither Rich nor the terminal obeys anything in it."""
    text = Text.from_markup(escape(name))

    assert text.plain == shown
    assert text.spans == []


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_963_008, "2.0 MB"), (3.2e15, "3,200.0 TB")],
)
def test_format_bytes(nbytes: float, shown: str) -> None:
    """Sizes are in powers of 1000, up to terabytes."""
    assert format_bytes(nbytes) == shown


def test_collapse_joins_what_differs_in_numbers_only() -> None:
    """Beyond the limit, rows of one shape and dim whose names differ in a number become one."""
    rows = [Row(f"layers.{n}.fc.weight", (4, 2), 0, 4, 1, 0) for n in range(3)]
    rows.append(Row("head.weight", (4, 2), 0, 4, 2, 1))

    shown = collapse(rows, limit=2)

    assert shown == [
        Row("layers.*.fc.weight", (4, 2), 0, 12, 3, 0, count=3),
        Row("head.weight", (4, 2), 0, 4, 2, 1, count=1),
    ]
    assert collapse(rows, limit=4) == rows


def test_escape_survives_printing(capsys: pytest.CaptureFixture[str]) -> None:
    """No control character of a name is in what is printed."""
    Console(force_terminal=True, no_color=True).print(escape("fc\x1b]0;title\x07"))

    assert "\x1b]" not in capsys.readouterr().out
