"""How fast the pruning core is, and how much memory it takes, against stock torch in the same run.

The weight is that of a Linear of (11008, 4096) in float32, 172 MiB; a quarter of its channels go.
Every figure is a median, taken in a process of its own; memory is the kernel's own high-water mark
of that process (VmHWM), which nothing in it can hide from.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import module as ours
from prune_cli.amounts import number_to_prune
from prune_cli.torch_channels import draw_channels, zero_channels_
from tests.benchmarks.rows import Result, Row

AMOUNT = 0.25
APPLY, APPLY_REMOVE, BAKE, MEMORY = 1.5, {0: 2.0, 1: 1.7}, {0: 20.0, 1: 5.0}, 2.0


class Work(NamedTuple):
    """The shape of the weight, and how often each call is timed."""

    shape: tuple[int, int] = (11008, 4096)
    repeats: int = 9


SMALL = Work((110, 41), 1)


def results(*, small: bool = False) -> Iterator[Result]:
    """Measure everything; `small` is only to see that it runs."""
    work = SMALL if small else Work()
    for threads in (1, 2):
        rows = [row for dim in (0, 1) for row in _speed_rows(work, threads, dim)]
        title = f"prune_cli.module, {threads} thread{'s' * (threads > 1)}: times stock torch"
        yield Result(title, tuple(rows))
    title = "prune_cli.module, peak extra memory in units of the weight"
    yield Result(title, tuple(_memory_rows(work)))


def _speed_rows(work: Work, threads: int, dim: int) -> list[Row]:
    seconds = _in_a_new_process(f"seconds_of_each({work}, {threads}, {dim})")
    apply, both = seconds["stock apply"], seconds["stock apply+remove"]
    figures = {
        "apply": (apply / seconds["apply"], APPLY),
        "apply and remove": (both / seconds["apply+remove"], APPLY_REMOVE[dim]),
        "draw and zero, to apply and remove": (both / seconds["bake"], BAKE[dim]),
    }
    return [
        Row(f"{name}, dim {dim}", figure, target, at_least=True)
        for name, (figure, target) in figures.items()
    ]


def _memory_rows(work: Work) -> Iterator[Row]:
    for name, call, target in (("first apply", "apply", MEMORY), ("draw and zero", "baking", 0.0)):
        for dim in (0, 1):
            peak = _in_a_new_process(f"peak_of_{call}({work}, {dim})")
            yield Row(f"{name}, dim {dim}", peak, target)


def _in_a_new_process(call: str) -> Any:
    """Evaluate a call of this module in a process that has done nothing else."""
    code = f"import json; from tests.benchmarks.core import *; print(json.dumps({call}))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


# --- Inside the process -------------------------------------------------------------------------


def linear(work: Work) -> nn.Linear:
    """Make the module to prune, its pages all touched."""
    rows, columns = work.shape
    return nn.Linear(columns, rows, bias=False)


def bake(weight: torch.Tensor, dim: int) -> None:
    """Prune a tensor for good, as the streaming path does."""
    live = torch.arange(weight.shape[dim])
    k = number_to_prune(AMOUNT, len(live))
    zero_channels_(weight, dim, draw_channels(live, k))


def seconds_of_each(work: Work, threads: int, dim: int) -> dict[str, float]:
    """Give the median seconds of each call; ours and stock take turns."""
    torch.set_num_threads(threads)
    module, weight = linear(work), torch.randn(work.shape)
    seconds: dict[str, list[float]] = {}
    for _ in range(work.repeats):
        for prefix, prune in (("stock ", stock), ("", ours)):
            apply = partial(prune.random_structured, module, "weight", AMOUNT, dim)
            applied = _seconds(apply)
            removed = _seconds(lambda: stock.remove(module, "weight"))
            seconds.setdefault(f"{prefix}apply", []).append(applied)
            seconds.setdefault(f"{prefix}apply+remove", []).append(applied + removed)
        seconds.setdefault("bake", []).append(_seconds(lambda: bake(weight, dim)))
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_of_apply(work: Work, dim: int) -> float:
    """Give the peak memory that a first apply takes on top, in units of the weight."""
    module = linear(work)
    return _peak(work, lambda: ours.random_structured(module, "weight", AMOUNT, dim))


def peak_of_baking(work: Work, dim: int) -> float:
    """Give the peak memory that baking takes on top, in units of the weight."""
    weight = torch.randn(work.shape)
    return _peak(work, lambda: bake(weight, dim))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(work: Work, call: Callable[[], object]) -> float:
    """Give the peak resident memory of a call, by the kernel's own high-water mark."""
    for dim in (0, 1):  # the code that torch loads at first use counts as memory too
        ours.random_structured(nn.Linear(512, 512), "weight", AMOUNT, dim)
        bake(torch.randn(512, 512), dim)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / (4 * math.prod(work.shape))


def _status(field: str) -> int:
    """Read a size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024
