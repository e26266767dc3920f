"""What the parser refuses: in the style of every other message, with a tip."""

from pathlib import Path

import pytest

from tests.conftest import Run

REFUSED = {
    "a word for pruning": ("prune x", "there is no command prune", "random-structured?"),
    "half of the name": ("random x", "there is no command random", "random-structured?"),
    "underscore": ("random_structured x", "there is no command random_structured", "-structured?"),
    "typo": ("aply x", "there is no command aply", "did you mean apply?"),
    "no word of ours": ("xyz", "there is no command xyz", "the commands are random-structured, s"),
    "near option": ("apply --bak", "there is no option --bak", "did you mean --bake?"),
    "option of another": ("apply --dim 4", "there is no option --dim", "--dim is an option of ran"),
    "missing": ("apply x", "CHECKPOINT is missing", "prune-cli apply --help shows every option"),
    "too many": ("inspect x y", "unexpected: y", "a pattern needs quotes"),
    "not a number": ("random-structured x -d f", "--dim: {}", "--help"),
    "too small": ("verify x --workers 0", "--workers: {}", ""),
    "no choice": (
        "inspect x --color x",
        "--color: 'x' is not one of 'auto', 'always', 'never'",
        "",
    ),
    "no value": ("verify x --report", "option '--report' requires an argument", ""),
    "value of a flag": ("apply x y --bake=3", "option '--bake' does not take a value", ""),
}


@pytest.mark.parametrize(("line", "error", "tip"), REFUSED.values(), ids=REFUSED)
def test_a_line_that_cannot_be_parsed_gets_a_tip(run: Run, line: str, error: str, tip: str) -> None:
    """The exit code is 2, the first line says what is wrong, the second what to do."""
    ran = run(*line.split())

    assert (ran.code, ran.out) == (2, "")
    first, *rest = ran.err.splitlines()
    wording = first.removeprefix("error: ").partition(": ")[
        2
    ]  # Typer's own, and not always the same
    assert first == f"error: {error.format(wording)}"
    assert tip in " ".join(rest)
    assert all(text.startswith("tip: ") for text in rest)


def test_a_file_in_the_place_of_a_command_is_told(run: Run, tmp_path: Path) -> None:
    """Whoever forgets the command gets one to begin with."""
    path = tmp_path / "model.pt"
    path.touch()

    ran = run(path, "--amount", "1")

    assert ran.code == 2
    assert f"a command comes first: prune-cli inspect {path}" in ran.text


@pytest.mark.parametrize("line", ["", "apply", "random-structured"])
def test_nothing_to_do_shows_the_help(run: Run, line: str) -> None:
    """As --help does, but it is a usage error."""
    ran = run(*line.split())

    assert (ran.code, ran.err) == (2, "")
    assert "Usage: prune-cli" in ran.out
