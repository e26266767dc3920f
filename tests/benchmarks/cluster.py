"""What a cluster costs: the driver of very many shards, and an engine beside threads.

    python -m tests.benchmarks.cluster scale               100, 1,000 and 10,000 shards of headers
    python -m tests.benchmarks.cluster overhead --runs 3   64 shards of 60 MB, two dask workers

`scale` has an executor that gives each output its header and no weights, so what is measured is the
driver. `overhead` prunes the same folder by turns with two threads and with two workers of one thread
on this machine, and takes the time from the command's start and from when it is connected.
"""

import argparse
import gc
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from prune_cli.__main__ import _GC_THRESHOLD
from prune_cli.api import carry_out
from prune_cli.checkpoint import open_checkpoint
from prune_cli.cluster.engine import Engine
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import Options
from prune_cli.write.shards import ShardUnit
from prune_cli.write.target import Execution, find_target
from tests.cluster.processes import cluster

COUNTS = (100, 1_000, 10_000)
_TENSORS = 12
_SHAPE = (256, 4)


class Nobody(Executor):
    """Writes no weights: each output gets its header and its length, and is a hole otherwise."""

    def __init__(self) -> None:
        self.sent = 0
        self.seconds = 0.0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        """Take a unit as a worker would get it, and have it done."""
        sent = pickle.dumps((function, arguments))
        self.sent += len(sent)
        began = time.process_time()
        unit: ShardUnit = pickle.loads(sent)[1][0]
        with unit.path.open("wb") as file:
            file.write(unit.made.file.head)
            file.truncate(unit.made.file.nbytes)
        done: Future[Any] = Future()
        done.set_result(unit.number)
        self.seconds += time.process_time() - began
        return done


def write_headers(folder: Path, count: int, tensors: int, shape: tuple[int, int]) -> Path:
    """Write a folder of `count` shards that are little more than headers."""
    weights = bytes(range(1, 256)) * (tensors * 2 * shape[0] * shape[1] // 255 + 1)
    folder.mkdir(parents=True)
    nbytes, weight_map = 2 * shape[0] * shape[1], {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        names = [f"layers.{number}.fc{each}.weight" for each in range(tensors)]
        header = {
            tensor: {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [place * nbytes, (place + 1) * nbytes],
            }
            for place, tensor in enumerate(names)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + weights[: tensors * nbytes])
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# --- the driver of very many shards --------------------------------------------------------------


def measure_driver(source: Path, output: Path) -> dict[str, float]:
    """Return the CPU seconds of each step of a run in this process, and its peak memory."""
    gc.set_threshold(_GC_THRESHOLD)  # as the command does
    moments = [time.process_time()]
    checkpoint = open_checkpoint(source)
    moments.append(time.process_time())
    plan = make_plan(checkpoint, Options(0.25, 0))
    moments.append(time.process_time())
    executor = Nobody()
    engine = Engine(executor, lambda: 4, is_remote=True)
    carry_out(checkpoint, lambda: plan, find_target(checkpoint, output), Execution(engine=engine))
    moments.append(time.process_time() - executor.seconds)
    reading, planning, dispatch = (b - a for a, b in pairwise(moments))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {"read": reading, "plan": planning, "dispatch and commit": dispatch}
    return {**facts, "peak MB": peak, "sent MB": executor.sent / 1e6}


def scale(folder: Path) -> Iterator[str]:
    """Yield the table, each row from a process of its own."""
    yield "| shards | tensors | read headers | plan | dispatch and commit | peak memory | sent |"
    yield "|---|---|---|---|---|---|---|"
    for count in COUNTS:
        source = write_headers(folder / str(count) / "in", count, _TENSORS, _SHAPE)
        argv = [sys.executable, "-m", "tests.benchmarks.cluster", "driver", str(source)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=True)
        found = json.loads(ran.stdout)
        seconds = [f"{found[step]:.1f} s" for step in ("read", "plan", "dispatch and commit")]
        sizes = [f"{found['peak MB']:.0f} MB", f"{found['sent MB']:.1f} MB"]
        cells = [f"{count:,}", f"{count * _TENSORS:,}", *seconds, *sizes]
        yield f"| {' | '.join(cells)} |"


# --- an engine beside threads ---------------------------------------------------------------------


def overhead(folder: Path, runs: int, shards: int, megabytes: int) -> Iterator[str]:
    """Yield a line for each pair of runs, and the medians."""
    rows = megabytes * 1_000_000 // (4 * 2 * 1024)
    source = write_real(folder / "in", shards, rows)
    found = []
    with cluster(folder) as made:
        for number in range(runs):
            threads = _time(source, folder / f"t{number}", "--workers", "2")
            engine = _time(source, folder / f"e{number}", "--scheduler", str(made.file))
            connecting = _time_connecting(made.file, folder)
            found.append((threads, engine - connecting))
            yield (
                f"threads {threads:.2f} s, engine {engine:.2f} s of which {connecting:.2f} s "
                f"connecting: {(engine - connecting) / threads:.2f} times"
            )
    yield f"median {median(engine / threads for threads, engine in found):.2f} times"


def write_real(folder: Path, shards: int, rows: int) -> Path:
    """Write a folder of shards full of random bytes."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        weights = {
            f"layers.{number}.{each}.weight": generator.random((rows, 1024), np.float32)
            for each in ("up", "down")
        }
        save_file(weights, folder / name)
    return folder


def _time(source: Path, out: Path, *how: str) -> float:
    argv = [sys.executable, "-m", "prune_cli", "random-structured", str(source), "-q"]
    began = time.perf_counter()
    subprocess.run([*argv, "-a", "0.25", "-d", "0", "-o", str(out), *how], check=True)
    seconds = time.perf_counter() - began
    subprocess.run(["rm", "-r", str(out)], check=True)
    return seconds


def _time_connecting(scheduler: Path, folder: Path) -> float:
    """Return what it takes to import dask, connect, and ask the workers: what every run begins with."""
    code = (
        "import time; began = time.perf_counter()\n"
        "from pathlib import Path\n"
        "from prune_cli.cluster.scheduler import Needs, connect\n"
        f"with connect({str(scheduler)!r}, Needs({{}}, Path({str(folder)!r}))):\n"
        "    print(time.perf_counter() - began)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cluster", description=__doc__)
    parser.add_argument("what", choices=["scale", "overhead", "driver"])
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.what == "driver":
        found = measure_driver(asked.source, asked.source.parent / "out")
        sys.stdout.write(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        if asked.what == "scale":
            lines = scale(Path(place))
        else:
            lines = overhead(Path(place), asked.runs, asked.shards, asked.megabytes)
        for line in lines:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
