"""`python -m tests.fuzz --minutes N --seed S`: fuzz, and say what was found; 1 if anything was."""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.minimise import minimise
from tests.fuzz.subjects import subjects
from tests.fuzz.watch import Case, Finding, Tally, limit_memory, run_case, watch_cases


def main() -> int:
    """Fuzz in as many processes as there are cores."""
    wanted = _arguments()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if wanted.case:
        return _run_again(Case(*wanted.case))
    workers = wanted.workers or os.cpu_count() or 1
    seeds = [wanted.seed * 1000 + number for number in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        tallies = list(pool.map(watch_cases, seeds, [wanted.minutes * 60] * workers))
    findings = {fault: each for tally in tallies for fault, each in tally.findings.items()}
    _say(tallies)
    for finding in findings.values():
        _show(finding, wanted.keep)
    return 1 if findings else 0


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(text + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes; one for each core")
    parser.add_argument("--keep", type=Path, help="a folder for the shortest inputs that fail")
    parser.add_argument("--case", nargs=2, metavar=("KIND", "NUMBER"), help="run one again")
    return parser.parse_args()


def _run_again(case: Case) -> int:
    limit_memory()
    found = run_case(case)
    say(found.told if isinstance(found, Finding) else f"no fault; of use: {found}")
    return int(isinstance(found, Finding))


def _say(tallies: list[Tally]) -> None:
    kinds = sorted({kind for tally in tallies for kind in tally.ran})
    total = 0
    for kind in kinds:
        ran = sum(tally.ran.get(kind, 0) for tally in tallies)
        useful = sum(tally.useful.get(kind, 0) for tally in tallies)
        total += ran
        say(f"{kind:16} {ran:8,} ran {useful:8,} could be pruned")
    say(f"{'together':16} {total:8,} ran")


def _show(finding: Finding, keep: Path | None) -> None:
    case = finding.case
    say(f"\n--- {finding.fault}\n    --case {case.kind!r} {case.number!r}\n{finding.told}")
    if finding.fault.startswith(("death", "memory", "TookTooLong")):
        return
    subject = subjects()[case.kind]
    tokens = minimise(finding, subject)
    say(f"    shortest: {b''.join(tokens)[:2000]!r}")
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        folder = keep / f"{case.kind}-{case.number}".replace(" ", "-")
        folder.mkdir(exist_ok=True)
        subject.write(folder, tokens)


if __name__ == "__main__":
    sys.exit(main())
