"""`python -m tests.architectures.fuzz --graphs 1000 --seed 0`: shrink random graphs, check each file.

It counts what was written, what was refused and why, files that are wrong and runs over 60 seconds;
1 if there are any of the last two.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch

from tests.architectures.graphs import SHAPE
from tests.architectures.run import Outcome, import_once, limit_time, shrink_and_check
from tests.architectures.zoo import Architecture

TIME_LIMIT = 60
_AMOUNTS = (0.25, 0.5, 1, 0.1)


def main() -> int:
    """Shrink graphs and count what became of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures.fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--graph", type=int, help="only this one")
    wanted = parser.parse_args()
    first = wanted.seed * 1_000_000
    seeds = [wanted.graph] if wanted.graph is not None else range(first, first + wanted.graphs)
    import_once()
    outcomes = []
    with multiprocessing.get_context("fork").Pool(wanted.workers, maxtasksperchild=50) as pool:
        for outcome in pool.imap(try_graph, seeds):
            outcomes.append(outcome)
            if outcome.verdict not in ("written", "refused"):
                sys.stdout.write(f"{outcome.title}: {outcome.verdict}: {outcome.reason}\n")
                sys.stdout.flush()
    _say(outcomes)
    return int(any(outcome.verdict not in ("written", "refused") for outcome in outcomes))


def try_graph(seed: int) -> Outcome:
    """Return what becomes of the graph of a seed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name = "tests.architectures.graphs:graph"
    graph = Architecture(name, {"seed": seed}, SHAPE, note=str(seed))
    amount = _AMOUNTS[seed % len(_AMOUNTS)]
    with tempfile.TemporaryDirectory() as folder, limit_time(TIME_LIMIT):
        try:
            return shrink_and_check(graph, Path(folder), amount)
        except TimeoutError:
            return Outcome(graph.title, "at fault", f"took longer than {TIME_LIMIT} s")


def _say(outcomes: list[Outcome]) -> None:
    counts = Counter(outcome.verdict for outcome in outcomes)
    seconds = sorted(outcome.seconds for outcome in outcomes)
    lines = [f"{len(outcomes)} graphs: " + ", ".join(f"{n} {what}" for what, n in counts.items())]
    written = [outcome for outcome in outcomes if outcome.verdict == "written"]
    groups = sum(outcome.groups[0] for outcome in written)
    left = Counter(_kind(reason) for outcome in written for reason in (outcome.left or {}).values())
    lines += [f"{groups} groups lost channels; the slowest run took {seconds[-1]:.1f} s"]
    lines += [f"{n:6} groups left whole: {reason}" for reason, n in left.most_common(20)]
    refused = Counter(_kind(o.reason) for o in outcomes if o.verdict == "refused")
    lines += [f"{n:6} graphs refused: {reason}" for reason, n in refused.most_common(10)]
    sys.stdout.write("\n".join(lines) + "\n")


def _kind(reason: str) -> str:
    """Return a reason without the names and numbers in it."""
    reason = reason.partition("(")[0] if reason.startswith("nothing") else reason
    return re.sub(r"\[.*?\]|\d+|in the model itself|in layers\.l\d+", "..", reason)[:110]


if __name__ == "__main__":
    sys.exit(main())
