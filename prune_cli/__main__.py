"""Where the process begins and ends: `prune-cli`, and `python -m prune_cli`, which is the same."""

import os
import sys

from prune_cli.cli import signals

_GC_THRESHOLD = 10_000_000
"""How many objects make Python look for garbage in cycles, by default 700. A run leaves a few
thousand in cycles, a trial of a sweep two dozen; to look for them among those that stay, which are
millions for an index of 100,000 tensors, takes an eighth of the time of its dry run."""


def run() -> None:
    """Run the command line and end the process, without taking every module apart before.

    With torch imported that takes a third of a second, at the end of each run of a pipeline; mypy
    leaves in the same way (`hard_exit` in its util.py). Everything is closed when main() returns.
    """
    signals.listen()  # before anything is imported: whenever one comes, the end is an orderly one
    import gc

    gc.set_threshold(_GC_THRESHOLD)
    from prune_cli.cli.main import main

    exit_code = main()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            pass
    os._exit(exit_code)


if __name__ == "__main__":
    run()
