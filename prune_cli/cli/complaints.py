"""What the parser has against a command line, in the words of all other messages, with a tip.

Typer vendors click, or in older versions imports it, so its exceptions are told by their names.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from prune_cli.errors import UsageError

ParserError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""What Typer raises for a line that it cannot parse."""

_MEANT = {
    "prune": "random-structured",
    "random": "random-structured",
    "magnitude": "structured",
    "ln-structured": "structured",
    "replay": "apply",
    "bake": "remove",
    "unmask": "remove",
    "check": "verify",
    "validate": "verify",
    "ls": "inspect",
    "list": "inspect",
    "info": "inspect",
    "show": "inspect",
    "summary": "inspect",
    "compare": "diff",
    "cmp": "diff",
    "plot": "report",
    "reduce": "shrink",
    "slim": "shrink",
}
"""What people call a command, and what it is called."""


class CommandLineError(UsageError):
    """A UsageError with tips."""

    def __init__(self, message: str, tips: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.tips = tuple(tips)


def complain(error: Exception, all_commands: Callable[[], Mapping[str, Any]]) -> CommandLineError:
    """Return what `error`, of the parser, says; `all_commands` knows what else there is."""
    context = getattr(error, "ctx", None)
    tips = [tip for tip in _tips(error, context, all_commands) if tip]
    if not tips and context is not None:
        tips = [f"{context.command_path} --help shows every option"]
    return CommandLineError(_message(error), tips)


def _message(error: Any) -> str:
    match type(error).__name__:
        case "NoSuchOption":
            return f"there is no option {error.option_name}"
        case "MissingParameter" if error.param is not None:
            return f"{_name(error.param)} is missing"
        case "BadParameter" if error.param is not None:
            return f"{_name(error.param)}: {_lower(error.message)}"
    return _lower(error.format_message())


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    return str(max(parameter.opts, key=len))


def _lower(text: str) -> str:
    text = text.strip().removesuffix(".")
    for said, better in (
        (r"^Got unexpected extra argument.*? \((.*)\)$", r"unexpected: \1"),
        (r"^No such command '(.*?)'.*$", r"there is no command \1"),
        (r"^Input should be a valid integer.*$", "not an integer"),
        (r"^Input should be a valid number.*$", "not a number"),
        (r"^Input should be (.*)$", r"should be \1"),
        (r"^Value error, (.*)$", r"\1"),
    ):
        text = re.sub(said, better, text, flags=re.DOTALL)
    return text[:1].lower() + text[1:]


# --- tips ------------------------------------------------------------------------------------


def _tips(error: Any, context: Any, all_commands: Callable[[], Mapping[str, Any]]) -> Iterator[str]:
    if context is None:
        return
    if type(error).__name__ == "NoSuchOption":
        yield from _option_tips(error.option_name, context, all_commands())
    elif "No such command" in str(error.message):
        yield from _command_tips(str(error.message), context)
    elif "unexpected extra argument" in str(error.message):
        yield "a pattern needs quotes, or the shell replaces it by names of files: -m 'layer*'"


def _option_tips(name: str, context: Any, commands: Mapping[str, Any]) -> Iterator[str]:
    others = [each for each, command in commands.items() if name in _options(command)]
    near = difflib.get_close_matches(name, _options(context.command), n=2)
    if others:
        yield f"{name} is an option of {', '.join(others)}"
    elif near:
        yield f"did you mean {' or '.join(near)}?"


def _options(command: Any) -> list[str]:
    names = (name for one in command.params for name in (*one.opts, *one.secondary_opts))
    return [name for name in names if name.startswith("--")]


def _command_tips(message: str, context: Any) -> Iterator[str]:
    found = re.search(r"'(.*?)'", message)
    typed = found[1] if found else ""
    commands = list(context.command.commands)
    if Path(typed).exists():
        yield f"a command comes first: prune-cli inspect {typed}"
        return
    meant = _MEANT.get(typed.lower(), "")
    spelt = typed.replace("_", "-")
    near = [spelt] if spelt in commands else difflib.get_close_matches(spelt, commands, n=2)
    names = [meant] if meant in commands else near
    if names:
        yield f"did you mean {' or '.join(names)}?"
    else:
        yield f"the commands are {', '.join(commands)}"
