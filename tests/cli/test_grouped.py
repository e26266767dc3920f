"""Groups of options: a command takes objects, Typer sees options."""

import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from prune_cli.cli import groups
from prune_cli.cli.commands import COMMANDS
from prune_cli.cli.grouped import grouped
from prune_cli.cli.main import make_app
from tests.conftest import Run


@dataclass(frozen=True)
class Draw:
    """A group of two."""

    seed: Annotated[int, typer.Option("--seed", "-s", rich_help_panel="Chance")] = 7
    names: Annotated[list[str], typer.Option("--name")] = field(default_factory=list)


def record(into: list[object]) -> typer.Typer:
    """A program of one command, which puts into `into` what it is given."""
    program = typer.Typer()

    @program.command()
    @grouped
    def sample(
        path: Annotated[Path, typer.Argument()],
        draw: Draw,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ) -> None:
        """Take a sample."""
        into.extend([path, draw, loud])

    return program


def test_a_command_receives_its_group_as_one_object() -> None:
    """What is on the line and the defaults of the rest."""
    given: list[object] = []

    CliRunner().invoke(record(given), ["x", "--name", "a", "--name", "b", "--loud"])

    assert given == [Path("x"), Draw(7, ["a", "b"]), True]


def test_lists_are_not_shared_between_runs() -> None:
    """Each run has a list of its own, as each dataclass would."""
    given: list[object] = []
    program = record(given)

    CliRunner().invoke(program, ["x"])
    CliRunner().invoke(program, ["x"])

    first, second = given[1], given[4]
    assert isinstance(first, Draw) and isinstance(second, Draw)
    first.names.append("a")
    assert second.names == []


def test_the_help_has_the_panel_and_the_default_of_each_option() -> None:
    """The group is not to be seen."""
    text = CliRunner().invoke(record([]), ["--help"]).output

    assert "Chance" in text and "[default: 7]" in text
    assert "draw" not in text and "Draw" not in text


@pytest.mark.parametrize(("variable", "seed"), [("5", 5), ("", 7)])
def test_each_option_can_come_from_the_environment(variable: str, seed: int) -> None:
    """PRUNE_CLI_ and its long name; the command line wins."""
    given: list[object] = []

    CliRunner().invoke(record(given), ["x"], env={"PRUNE_CLI_SEED": variable})
    CliRunner().invoke(record(given), ["x", "-s", "1"], env={"PRUNE_CLI_SEED": variable})

    assert [each.seed for each in given if isinstance(each, Draw)] == [seed, 1]


def test_a_group_twice_is_an_error_when_the_command_is_made() -> None:
    """Two options cannot have one name."""

    def sample(one: Draw, other: Draw) -> None:
        del one, other

    with pytest.raises(ValueError, match="duplicate parameter name"):
        grouped(sample)


# --- the groups of prune-cli -----------------------------------------------------------------


def options_of(command: object) -> dict[str, list[str]]:
    """The names of each option of a command, by its parameter."""
    assert callable(command)
    found = {}
    for name, parameter in inspect.signature(command).parameters.items():
        info = parameter.annotation.__metadata__[0]
        if isinstance(info, typer.models.OptionInfo):
            found[name] = [str(info.default), *(info.param_decls or ())]
    return found


def test_a_short_letter_means_one_thing() -> None:
    """In whatever command it is."""
    meanings: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for long, *short in options_of(command.load(name)).values():
            for letter in short:
                meanings.setdefault(letter, set()).add(long)

    assert {letter: names for letter, names in meanings.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    "command", make_app().registered_commands, ids=lambda command: command.name
)
def test_help_names_what_a_value_is_and_no_type(
    command: typer.models.CommandInfo, run: Run
) -> None:
    """No <list[str]>, no <bool>; what is no flag has the name of its value."""
    assert command.callback
    parameters = inspect.signature(command.callback).parameters.values()
    infos = [(each.annotation.__args__[0], each.annotation.__metadata__[0]) for each in parameters]

    text = run(command.name, "--help").out

    assert not re.search(r"<\w", text)
    assert [info for kind, info in infos if "bool" not in str(kind) and not info.metavar] == []


@pytest.mark.parametrize(
    "command", make_app().registered_commands, ids=lambda command: command.name
)
def test_no_help_has_an_apostrophe(command: typer.models.CommandInfo) -> None:
    """Since zsh takes what completion says for code in single quotes."""
    assert command.callback
    texts = [command.callback.__doc__ or ""]
    for parameter in inspect.signature(command.callback).parameters.values():
        texts.append(parameter.annotation.__metadata__[0].help)

    assert [text for text in texts if "'" in text.partition("\n")[0]] == []


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        (["a"], ("a",)),
        (["a,b.*", "c"], ("a", "b.*", "c")),
        (["layer.[0,1]"], ("layer.[0,1]",)),
        (["[!a,b]x,c"], ("[!a,b]x", "c")),
        (["a,"], ("a",)),
        ([""], ("",)),
        ([","], ()),
    ],
)
def test_patterns_are_split_at_commas(given: list[str], patterns: tuple[str, ...]) -> None:
    """But within brackets a comma is one of the characters."""
    assert groups.split_patterns(given) == patterns
