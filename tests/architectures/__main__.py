"""`python -m tests.architectures [NAME ...]`: shrink every architecture, and say what became of each."""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

from tests.architectures.run import Outcome, try_architecture
from tests.architectures.zoo import ARCHITECTURES


def main() -> int:
    """Try those that were named, or all; 1 if any is at fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--why", action="store_true", help="list what was left whole")
    wanted = parser.parse_args()
    chosen = [a for a in ARCHITECTURES if any(fnmatch(a.title, name) for name in wanted.names)]
    outcomes = []
    with ThreadPoolExecutor(wanted.workers) as pool:
        for outcome in pool.map(try_architecture, chosen):
            outcomes.append(outcome)
            _say(outcome, why=wanted.why)
    return int(any(outcome.verdict == "at fault" for outcome in outcomes))


def _say(outcome: Outcome, *, why: bool) -> None:
    line = (
        f"{outcome.title:44} {outcome.verdict:9} {outcome.parameters:6.1%} {outcome.flops:6.1%} "
        f"{outcome.groups} {outcome.seconds:5.1f} s {outcome.reason}"
    )
    sys.stdout.write(line + "\n")
    for root, reason in (outcome.left or {}).items() if why else ():
        sys.stdout.write(f"      {root}: {reason}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
