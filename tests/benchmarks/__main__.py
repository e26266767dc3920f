"""Measures prune-cli beside `cp` and stock torch; prints medians, ratios and peak memory.

    python -m tests.benchmarks                    all of it: some 20 minutes and 30 GB of disk
    python -m tests.benchmarks --small            only that it runs, in a minute
    python -m tests.benchmarks --gb 1 --only file --json figures.json

Reading order: `inputs` (what is measured), `timing` (how), `rows` (a figure and its target), and
the subjects, a file each: `core` (prune_cli.module), `checkpoints` (the command line) and `shrink`
(with its `models`).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import checkpoints, core, shrink, stores
from tests.benchmarks.checkpoints import Setup
from tests.benchmarks.rows import Result

SUBJECTS: dict[str, Callable[[Setup], Iterable[Result]]] = {
    "core": lambda setup: core.results(small=setup.small),
    **{
        name: partial(checkpoints.measure, subject)
        for name, subject in checkpoints.SUBJECTS.items()
    },
    "shrink": shrink.results,
    "stores": stores.results,
}

_MARKS = {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: ""}


def main() -> None:
    """Measures what the command line asks for."""
    arguments = _parser().parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(", ".join(f"{key} {value}" for key, value in _machine().items()))
    if arguments.small:
        console.print("--small shows that everything runs; its figures mean nothing")
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="benchmark-") as folder:
        setup = _setup(arguments, Path(folder))
        found = []
        for subject in arguments.only or SUBJECTS:
            for result in SUBJECTS[subject](setup):
                found.append(result)
                _show(console, result, judged=not setup.small)
    if arguments.json:
        arguments.json.write_text(_to_json(setup, found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gb", type=float, default=2.0, help="size of the main file (2)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each race (5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="one a core")
    parser.add_argument("--only", choices=SUBJECTS, action="append", help="one subject; repeatable")
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def _setup(arguments: argparse.Namespace, folder: Path) -> Setup:
    return Setup(
        nbytes=500_000 if arguments.small else int(arguments.gb * 1e9),
        small=arguments.small,
        repeats=1 if arguments.small else arguments.repeats,
        threads=arguments.threads,
        folder=folder,
    )


def _machine() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cores": str(os.cpu_count()),
    }


def _show(console: Console, result: Result, *, judged: bool) -> None:
    table = Table(title=result.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", min_width=42)
    for name in ("median", "least", "most"):
        table.add_column(name, justify="right", min_width=9)
    table.add_column("target", min_width=16)
    table.add_column("", min_width=6)
    for run in result.runs:
        times = (f"{seconds:.2f} s" for seconds in (run.median, min(run.seconds), max(run.seconds)))
        table.add_row(f"[dim]{run.name}[/]", *times)
    for row in result.rows:
        figure = f"[bold]{row.figure:.2f} {row.unit}[/]"
        table.add_row(row.name, figure, "", "", row.bound, _MARKS[row.met if judged else None])
    console.print()
    console.print(table)


def _to_json(setup: Setup, found: list[Result]) -> str:
    facts = {
        "machine": _machine(),
        "gb": setup.nbytes / 1e9,
        "repeats": setup.repeats,
        "threads": setup.threads,
        "results": [
            {
                "title": result.title,
                "runs": [{**asdict(run), "median": run.median} for run in result.runs],
                "rows": [{**asdict(row), "met": row.met} for row in result.rows],
            }
            for result in found
        ],
    }
    return json.dumps(facts, indent=2) + "\n"


if __name__ == "__main__":
    main()
