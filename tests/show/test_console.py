"""What is printed: names cannot harm a terminal, and messages name the thing."""

import pytest
from rich.console import Console
from rich.text import Text

from prune_cli.errors import RequestError
from prune_cli.show.console import escape, show_error


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


def test_escape_survives_printing(capsys: pytest.CaptureFixture[str]) -> None:
    """No control character of a name is in what is printed."""
    Console(force_terminal=True, no_color=True).print(escape("fc\x1b]0;title\x07"))

    assert "\x1b]" not in capsys.readouterr().out


def test_an_error_is_no_longer_than_anyone_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """The exception has all problems, of which a file can make as many as it likes."""
    show_error(RequestError("\n".join(["x" * 5000, *map(str, range(1000))])))

    first, *rest = capsys.readouterr().err.splitlines()
    assert len(first) < 2100
    assert [line.strip() for line in rest] == [*map(str, range(100)), "and 900 more"]
