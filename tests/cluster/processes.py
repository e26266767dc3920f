"""A real scheduler and real workers for tests: processes of dask, and what they open.

Whoever starts them gets them killed at the end. Each process tells of the shards that it opens, in a
file of its own, and takes a moment for each, so that there is time to kill it.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import prune_cli

_WATCH = """
import os, sys, time
_log = os.open(os.path.join({folder!r}, f"{{os.getpid()}}.opened"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def _tell(event, arguments):
    if event == "open" and str(arguments[0]).startswith({source!r}):
        os.write(_log, f"{{arguments[0]}}\\n".encode())
        time.sleep({seconds})
if "distributed.cli" in " ".join(sys.orig_argv):
    sys.addaudithook(_tell)
"""


class Cluster:
    """A scheduler and its workers. A class, for it owns processes.

    Attributes:
        file: the scheduler's file.
        scheduler: its process.
        workers: theirs.
    """

    def __init__(self, folder: Path, name: str, environment: dict[str, str]) -> None:
        self.file = folder / f"{name}.json"
        self._folder, self._environment = folder, environment
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        self.workers: list[subprocess.Popen[bytes]] = []

    def add_worker(self, *options: str) -> None:
        """Start one more worker, of one thread."""
        options = ("--nthreads", "1", "--no-nanny", "--death-timeout", "60", *options)
        self.workers.append(self._start("worker", *options))

    @property
    def registered(self) -> int:
        """How many workers the scheduler knows."""
        log = self._folder / f"{self.file.stem}.worker.log"
        return log.read_text().count("Registered to:") if log.exists() else 0

    def _start(self, kind: str, *options: str) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]
        argv += ["--scheduler-file", str(self.file), *options]
        with (self._folder / f"{self.file.stem}.{kind}.log").open("ab") as log:
            return subprocess.Popen(
                argv, stdout=log, stderr=log, env=self._environment, cwd=self._folder
            )

    def kill(self) -> None:
        """End all of it."""
        for process in (*self.workers, self.scheduler):
            process.kill()
        for process in (*self.workers, self.scheduler):
            process.wait()


@contextlib.contextmanager
def cluster(
    folder: Path,
    *,
    workers: int = 2,
    source: Path = Path("/nothing"),
    seconds: float = 0.0,
    options: Sequence[str] = (),
    name: str = "scheduler",
) -> Iterator[Cluster]:
    """Yield a scheduler with workers, which take `seconds` for each file in `source` they open."""
    watch = folder / "watch"
    watch.mkdir(exist_ok=True)
    code = _WATCH.format(folder=str(watch), source=str(source), seconds=seconds)
    (watch / "sitecustomize.py").write_text(code)
    package = Path(prune_cli.__file__).parents[1]
    path = os.pathsep.join([str(watch), str(package)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    made = Cluster(folder, name, environment)
    try:
        for _ in range(workers):
            made.add_worker(*options)
        wait_until(lambda: made.registered == workers)
        yield made
    finally:
        made.kill()


def opened(folder: Path) -> Counter[str]:
    """Return how often workers opened each shard of the source, by its name."""
    lines = [path.read_text().splitlines() for path in (folder / "watch").glob("*.opened")]
    return Counter(Path(line).name for each in lines for line in each)


def start(*arguments: object) -> "subprocess.Popen[bytes]":
    """Start prune-cli."""
    argv = [sys.executable, "-m", "prune_cli", *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
