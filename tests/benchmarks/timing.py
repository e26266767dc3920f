"""Commands side by side: how long each takes, and how much memory of its own.

The commands of a race take turns, so that what else the machine does falls on all of them, in
another order each round, as what one leaves in memory is in the way of the next. Before
each run the input is read once, so that the page cache is warm, everything is synced, so that
no run pays for the write-back of another, and time passes: a virtual machine gives memory that was
freed back to its host, seconds later, and whoever writes before that is several times as fast as whoever
writes after. After a run the output is removed.
"""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.001
_READ_BYTES = 16 << 20
_SETTLE_SECONDS = 6
_LARGE_BYTES = 100_000_000


@dataclass(frozen=True)
class Command:
    """One way to do the work: its name in the table, what runs, what it reads and writes."""

    name: str
    argv: Sequence[str]
    source: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Runs:
    """The seconds that each run of a command took."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def race(commands: Sequence[Command], *, repeats: int, threads: int) -> list[Runs]:
    """Times `commands` in turns, `repeats` rounds after one that does not count."""
    taken: list[list[float]] = [[] for _ in commands]
    order = list(range(len(commands)))
    shuffle = random.Random(0).shuffle
    for _ in range(repeats + 1):
        shuffle(order)
        for number in order:
            taken[number].append(_seconds(commands[number], threads))
    return [Runs(command.name, tuple(taken[n][1:])) for n, command in enumerate(commands)]


def time_call(name: str, call: Callable[[], object], repeats: int) -> Runs:
    """Times `call` in this process, `repeats` times after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Runs(name, tuple(seconds[1:]))


def peak_anonymous(command: Command, *, threads: int, of_children: bool = False) -> int:
    """The most anonymous memory (RssAnon) that one run of `command`, or a child of it, had, in bytes.

    From /proc/PID/status, about once a millisecond; in a run of its own, as looking costs time.
    Pages of mapped files do not count: the kernel takes them back when it needs them.
    """
    peak = 0
    with _prepared(command):
        process = subprocess.Popen(
            command.argv, env=_environment(threads), stdout=subprocess.DEVNULL
        )
        while process.poll() is None:
            pids = _children(process.pid) if of_children else [process.pid]
            peak = max(peak, *map(_anonymous, pids), 0)
            time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command.argv)
    return peak


def _seconds(command: Command, threads: int) -> float:
    with _prepared(command):
        start = time.perf_counter()
        subprocess.run(
            command.argv, env=_environment(threads), stdout=subprocess.DEVNULL, check=True
        )
        return time.perf_counter() - start


def _environment(threads: int) -> dict[str, str]:
    libraries = ("OMP", "MKL", "OPENBLAS")
    return {**os.environ, **{f"{library}_NUM_THREADS": str(threads) for library in libraries}}


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(sizes[0]) * 1024 if sizes else 0


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextlib.contextmanager
def _prepared(command: Command) -> Iterator[None]:
    """The state that each run starts from, and the removal of what it leaves."""
    nbytes = _read_all(command.source) if command.source else 0
    os.sync()
    if nbytes > _LARGE_BYTES:
        time.sleep(_SETTLE_SECONDS)
    try:
        yield
    finally:
        if command.output and command.output.is_dir():
            shutil.rmtree(command.output)
        elif command.output:
            command.output.unlink(missing_ok=True)


def _read_all(path: Path) -> int:
    """Reads a file or all files of a folder, and returns how many bytes there are."""
    nbytes = 0
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(_READ_BYTES):
                nbytes += len(block)
    return nbytes
