"""REPEAT: many draws, each evaluated by the user's own command; the distribution behind one number.

Reading order: `grid` (which trials), `template`, `command`, `metric`, `evaluation` (the user's
commands and their numbers), `maker` (the checkpoints), `record`, `trial` (one draw from plan to
record), `run` (on an executor), `settings`, `folder`, `request`, `stages` (a whole sweep); then what
they say: `statistics`, `summary`, `assertions`, `sensitivity`, `series`, `tables`, `methods`; and
`twin`, the same from Python.

The room can be called: `prune_cli.sweep(...)` is `prune_cli.sweep.twin.sweep(...)`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called: the room and its one public function have the same name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from prune_cli.spelling import for_python
        from prune_cli.sweep.twin import sweep

        return for_python(sweep)(*arguments, **options)


sys.modules[__name__].__class__ = _Room
