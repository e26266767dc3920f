"""Writes docs/reference/*.md: a page for each command, from the options that the commands declare.

    python docs/make_reference.py

A test holds the pages against the command line.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from prune_cli.cli.commands import COMMANDS
from prune_cli.cli.main import make_app

FOLDER = Path(__file__).parent / "reference"


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in write_pages().items():
        (FOLDER / name).write_text(text)


def write_pages() -> dict[str, str]:
    """Return the text of each generated page by its name."""
    group = typer.main.get_command(make_app())
    assert isinstance(group, TyperGroup)
    docstrings = {name: inspect.getdoc(found.load(name)) or "" for name, found in COMMANDS.items()}
    pages = {
        f"{name}.md": "\n".join(write_page(name, docstrings[name], command)) + "\n"
        for name, command in group.commands.items()
        if isinstance(command, TyperCommand)
    }
    return {"index.md": write_index(docstrings)} | pages


def write_index(docstrings: dict[str, str]) -> str:
    """Return the page that lists the commands."""
    rows = "".join(
        f"| [`{name}`]({name}.md) | {text.splitlines()[0]} |\n" for name, text in docstrings.items()
    )
    return (
        "# Commands\n\n`prune-cli COMMAND --help` shows the same. Every option can be set in the "
        "environment: `PRUNE_CLI_SEED=3` is `--seed 3`.\n\n| command | |\n|---|---|\n" + rows
    )


def write_page(name: str, docstring: str, command: TyperCommand) -> Iterator[str]:
    """Return the lines of the page of a command."""
    about, _, examples = docstring.partition("\nExamples:\n")
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    options = [p for p in command.params if not isinstance(p, TyperArgument)]
    usage = " ".join(_place(argument) for argument in arguments)
    yield f"# prune-cli {name}\n"
    yield f"    prune-cli {name} [OPTIONS] {usage}\n"
    yield f"{about.strip()}\n"
    yield "| argument | |\n|---|---|"
    for argument in arguments:
        yield f"| `{_place(argument)}` | {_plain(argument.help)} |"
    for panel in dict.fromkeys(option.rich_help_panel for option in options):
        yield f"\n## {panel or 'Options'}\n\n| option | | default |\n|---|---|---|"
        for option in options:
            if option.rich_help_panel == panel:
                yield _row(option)
    shown = "\n".join(f"    {line}" for line in inspect.cleandoc(examples).splitlines())
    yield f"\n## Examples\n\n{shown}"


def _row(option: TyperOption) -> str:
    names = ", ".join(f"`{n}`" for n in sorted(option.opts, key=lambda n: not n.startswith("--")))
    others = " / " + ", ".join(f"`{n}`" for n in option.secondary_opts)
    metavar = (option.metavar or "").replace("|", "\\|")
    value = "" if option.is_flag else f" `{metavar}`"
    default = _default(option)
    names += others if option.secondary_opts else ""
    return f"| {names}{value} | {_plain(option.help)} | {default} |"


def _default(option: TyperOption) -> str:
    if isinstance(option.show_default, str):
        return _plain(option.show_default)
    if option.default in (None, (), []) or (option.is_flag and not option.secondary_opts):
        return ""
    if isinstance(option.default, (tuple, list)):
        return ", ".join(f"`{value}`" for value in option.default)
    if option.is_flag:
        return f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    return f"`{option.default}`"


def _place(argument: TyperArgument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    name += "..." if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _plain(text: str | None) -> str:
    """Return help text as Markdown: without Rich's markup, nothing of it taken for a tag."""
    plain = Text.from_markup(" ".join((text or "").split())).plain
    return re.sub(r"([|<>*_\[\]])", r"\\\1", plain)


if __name__ == "__main__":
    main()
