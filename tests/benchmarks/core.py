"""How fast the pruning core is, and how much memory it takes, against stock torch in the same run.

    python -m tests.benchmarks.core

The weight is that of a Linear of (11008, 4096) in float32, 172 MiB; a quarter of its channels go.
Every figure is a median, taken in a process of its own.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import pruning as ours

SHAPE = (11008, 4096)
AMOUNT = 0.25
REPEATS = 9
APPLY, APPLY_REMOVE, BAKE, MEMORY = 1.5, {0: 2.0, 1: 1.7}, {0: 20.0, 1: 5.0}, 2.0


@dataclass(frozen=True)
class Row:
    """One figure beside what it has to be: at least the target, or at most."""

    name: str
    figure: float
    target: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Tell whether the figure is what it has to be, to two digits."""
        figure = round(self.figure, 2)
        return figure >= self.target if self.at_least else figure <= self.target

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        mark = "" if self.met else "   MISSED"
        return f"{self.name:<62}{self.figure:>7.2f}   {bound} {self.target:.1f}{mark}"


def rows() -> list[Row]:
    """Measure everything."""
    return [*speed_rows(1), *speed_rows(2), *memory_rows()]


def speed_rows(threads: int) -> list[Row]:
    """Give how many times as fast as stock torch ours is, with this number of threads."""
    return [row for dim in (0, 1) for row in _speed_rows_of_dim(threads, dim)]


def _speed_rows_of_dim(threads: int, dim: int) -> list[Row]:
    seconds = _in_a_new_process(f"seconds_of_each({threads}, {dim})")
    apply, both = seconds["stock apply"], seconds["stock apply+remove"]
    where = f"dim {dim}, {threads} thread{'s' * (threads > 1)}"
    return [
        Row(f"apply, {where}: times stock", apply / seconds["apply"], APPLY),
        Row(
            f"apply and remove, {where}: times stock",
            both / seconds["apply+remove"],
            APPLY_REMOVE[dim],
        ),
        Row(f"draw and zero, {where}: times stock", both / seconds["bake"], BAKE[dim]),
    ]


def memory_rows() -> list[Row]:
    """Give the peak memory that a call takes on top, in units of the weight."""
    return [
        Row(f"first apply, dim {dim}: peak extra memory / weight", peak, MEMORY, at_least=False)
        for dim in (0, 1)
        for peak in [_in_a_new_process(f"peak_of_apply({dim})")]
    ] + [
        Row(f"draw and zero, dim {dim}: peak extra memory / weight", peak, 0.0, at_least=False)
        for dim in (0, 1)
        for peak in [_in_a_new_process(f"peak_of_baking({dim})")]
    ]


def _in_a_new_process(call: str) -> "dict[str, float] | float":
    """Evaluate a call of this module in a process that has done nothing else."""
    code = f"import json; from tests.benchmarks import core; print(json.dumps(core.{call}))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


# --- Inside the process -------------------------------------------------------------------------


def linear() -> nn.Linear:
    """Make the module to prune, its pages all touched."""
    return nn.Linear(SHAPE[1], SHAPE[0], bias=False)


def bake(weight: torch.Tensor, dim: int) -> None:
    """Prune a tensor for good, as the streaming path does."""
    live = torch.arange(weight.shape[dim])
    k = ours.number_to_prune(AMOUNT, len(live))
    ours.zero_channels_(weight, dim, ours.draw_channels(live, k))


def seconds_of_each(threads: int, dim: int) -> dict[str, float]:
    """Give the median seconds of each call; ours and stock take turns."""
    torch.set_num_threads(threads)
    module, weight = linear(), torch.randn(SHAPE)
    seconds: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for prefix, prune in (("stock ", stock), ("", ours)):
            applied = _seconds(lambda p=prune: p.random_structured(module, "weight", AMOUNT, dim))
            removed = _seconds(lambda: stock.remove(module, "weight"))
            seconds.setdefault(f"{prefix}apply", []).append(applied)
            seconds.setdefault(f"{prefix}apply+remove", []).append(applied + removed)
        seconds.setdefault("bake", []).append(_seconds(lambda: bake(weight, dim)))
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_of_apply(dim: int, prune: object = ours) -> float:
    """Give the peak memory that a first apply takes on top, in units of the weight."""
    module = linear()
    return _peak(lambda: prune.random_structured(module, "weight", AMOUNT, dim))


def peak_of_baking(dim: int) -> float:
    """Give the peak memory that baking takes on top, in units of the weight."""
    weight = torch.randn(SHAPE)
    return _peak(lambda: bake(weight, dim))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(call: Callable[[], object]) -> float:
    """Give the peak resident memory of a call, by the kernel's own high-water mark."""
    ours.random_structured(nn.Linear(8, 8), "weight", AMOUNT, 0)  # what torch loads at first use
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / (4 * SHAPE[0] * SHAPE[1])


def _status(field: str) -> int:
    """Read a size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    for row in rows():
        sys.stdout.write(f"{row}\n")
