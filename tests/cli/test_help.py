"""The help of every command: what it ends in, and that what it says is true."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from prune_cli.cli.main import make_app
from tests.conftest import Run

COMMANDS = pytest.mark.parametrize(
    "command", make_app().registered_commands, ids=lambda command: command.name
)


def examples_of(text: str) -> list[str]:
    """The examples at the end of a help."""
    return [line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()]


@COMMANDS
def test_help_ends_in_three_examples(command: typer.models.CommandInfo, run: Run) -> None:
    """Each is a command line that the parser takes; above them are the exit codes."""
    assert command.name
    ran = run(command.name, "--help")

    examples = examples_of(ran.out)
    assert len(examples) == 3
    assert all(example.startswith("prune-cli ") for example in examples)
    assert sum(example.split()[1] == command.name for example in examples) >= 2
    for example in examples:
        for line in example.split(" | "):
            check_line(shlex.split(line)[1:])
    assert "Exit codes: 0 done" in ran.out and "Read on:" in ran.out


def check_line(words: list[str]) -> None:
    """Parse a line as its command does, and do no more; raises what the parser has against it."""
    commands = get_command(make_app()).commands  # type: ignore[attr-defined]
    name, *arguments = words
    commands[name].make_context(name, arguments)


def test_the_help_of_all_ends_in_examples_too(run: Run) -> None:
    """A newcomer sees three commands that belong together."""
    ran = run("--help")

    assert [example.split()[1] for example in examples_of(ran.out)] == [
        "inspect",
        "random-structured",
        "verify",
    ]


@COMMANDS
def test_options_stand_in_named_panels(command: typer.models.CommandInfo) -> None:
    """None is left over for a heading that says "Options"."""
    assert command.callback
    parameters = inspect.signature(command.callback).parameters.values()
    infos = [parameter.annotation.__metadata__[0] for parameter in parameters]
    options = [info for info in infos if isinstance(info, typer.models.OptionInfo)]

    assert [info.default for info in options if not info.rich_help_panel] == []


@pytest.mark.parametrize("columns", [60, 100])
def test_the_help_fits_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """No line of it is longer."""
    monkeypatch.setenv("COLUMNS", str(columns))

    text = run("random-structured", "--help").out

    assert max(map(len, text.splitlines())) <= columns


def test_every_option_is_said_in_the_environment(run: Run) -> None:
    """As the help has it."""
    assert "PRUNE_CLI_SEED is --seed" in re.sub(r"\s+", " ", run("report", "--help").out)


@pytest.mark.parametrize(("when", "is_coloured"), [("always", True), ("never", False)])
def test_colours_can_be_chosen(tmp_path: Path, when: str, is_coloured: bool) -> None:
    """Whatever stdout is."""
    command = [sys.executable, "-m", "prune_cli", "inspect", "nothing.pt", "--color", when]

    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)

    assert (ran.returncode, b"\x1b[" in ran.stderr) == (3, is_coloured)
