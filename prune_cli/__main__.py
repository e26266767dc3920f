"""Where the process begins and ends: `prune-cli`, and `python -m prune_cli`, which is the same."""

import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn

_GC_THRESHOLD = 100_000
"""How many objects make Python look for garbage in cycles, by default 700: looking through all
that torch makes when it is imported, and that stays, takes a tenth of a second."""


def run() -> NoReturn:
    """Runs the command line and ends the process, without taking every module apart before.

    With torch imported that takes a third of a second, at the end of each run of a pipeline; mypy
    leaves in the same way (`hard_exit` in its util.py). Everything is closed when main() returns.
    """
    gc.set_threshold(_GC_THRESHOLD)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of imports; main() has its own
    from prune_cli.cli.commands import main

    exit_code = main()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    run()
