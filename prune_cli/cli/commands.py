"""Every command by its name, imported when it is wanted: a run needs one of them.

A new command is a file beside this one, whose function, `@grouped`, has the name of the command, and
an entry here. See also: main.py, which makes a command line of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast


@dataclass(frozen=True)
class Command:
    """Where a command is, and what the help of all commands says of it."""

    home: str
    about: str

    def load(self, name: str) -> Callable[..., None]:
        """Return its function."""
        home = import_module(f"prune_cli.cli.{self.home}")
        return cast("Callable[..., None]", getattr(home, name.replace("-", "_")))


COMMANDS = {
    "random-structured": Command("random_structured", "Prune channels at random."),
    "structured": Command("random_structured", "Prune channels by a criterion or a budget."),
    "apply": Command("apply", "Prune the channels that a report names."),
    "remove": Command("remove", "Make the masks of a checkpoint permanent."),
    "verify": Command("verify", "Check a pruned checkpoint against its report and source."),
    "inspect": Command("inspect", "Show what is in a checkpoint."),
    "diff": Command("diff", "Compare two checkpoints."),
    "report": Command("report", "Show reports and sweeps, or compare several."),
    "shrink": Command("shrink", "Remove channels for good: a smaller and faster model."),
    "sweep": Command("sweep", "Prune with many amounts and seeds, and evaluate each."),
}
"""Every command, in the order of the help."""
