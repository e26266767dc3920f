"""Every command by its name, imported when it is wanted: a run needs one of them.

A new command is a file beside this one, whose function, `@grouped`, has the name of the command, and
a line in COMMANDS.
"""

from collections.abc import Callable
from importlib import import_module
from typing import cast

COMMANDS = {
    "random-structured": "random_structured",
    "structured": "random_structured",
    "apply": "apply",
    "remove": "remove",
    "verify": "verify",
    "inspect": "inspect",
    "diff": "diff",
    "report": "report",
    "shrink": "shrink",
    "sweep": "sweep",
}
"""The file of each command, in the order of the help."""


def load_command(name: str) -> Callable[..., None]:
    """Return the function of a command."""
    home = import_module(f"prune_cli.cli.{COMMANDS[name]}")
    return cast("Callable[..., None]", getattr(home, name.replace("-", "_")))
