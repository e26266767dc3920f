"""How fast a folder in a store is pruned into another, beside s3fs's own get and put of it.

The store is `rclone serve s3`, which is fast enough not to be what is measured, in a process of its
own on this machine. What is fetched and sent is counted by a proxy, in runs that nothing times.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import inputs
from tests.benchmarks.checkpoints import AMOUNT, SHARDS, Setup
from tests.benchmarks.rows import Result, Row
from tests.benchmarks.timing import Command, peak_anonymous, race
from tests.stores.proxy import Proxy, proxied
from tests.stores.servers import BUCKET, Server, rclone

_IN, _OUT, _COPY = (f"s3://{BUCKET}/{name}" for name in ("in", "out", "copy"))
_GET_AND_PUT = """
import sys, tempfile, fsspec
source, target, folder = sys.argv[1:]
store = fsspec.filesystem("s3")
with tempfile.TemporaryDirectory(dir=folder) as here:
    store.get(source, here + "/model", recursive=True)
    store.put(here + "/model", target, recursive=True)
"""


def results(setup: Setup) -> Iterator[Result]:
    """Measure everything."""
    shapes = inputs.language_model(setup.nbytes)
    with rclone(setup.folder / "store", setup.folder / "rclone.log") as server:
        source = inputs.write_folder(setup.folder / "store" / BUCKET / "in", shapes, SHARDS)
        os.environ.update(server.environment)
        yield _times(setup, source)
        yield _bytes(setup, source, server, inputs.total_bytes(shapes))


def _times(setup: Setup, source: Path) -> Result:
    moved = Command(
        "s3fs get and put",
        (sys.executable, "-c", _GET_AND_PUT, _IN, _COPY, str(setup.folder)),
        source,
    )
    commands = [moved, _prune(setup, source, 0), _prune(setup, source, 1)]
    runs = race(commands, repeats=setup.repeats, threads=setup.threads)
    peaks = [peak_anonymous(one, threads=setup.threads) for one in commands[1:]]
    theirs, *ours = (run.median for run in runs)
    rows = (
        Row("dim 0, to s3fs get and put", ours[0] / theirs, 1.1),
        Row("dim 1, to s3fs get and put", ours[1] / theirs, 1.1),
        Row("peak RssAnon in all", max(peaks) / 1e6, 300, "MB"),
    )
    return Result(f"A folder of {SHARDS} shards in a store", rows, tuple(runs))


def _bytes(setup: Setup, source: Path, server: Server, nbytes: int) -> Result:
    with proxied(server) as (before, proxy):
        fetched = {
            name: _fetched(_prune(setup, source, dim, *options), before, proxy) / nbytes
            for name, dim, *options in (
                ("dim 0", 0),
                ("dim 1", 1),
                ("a dry run, dim 0", 0, "--dry-run"),
            )
        }
    limits = {"dim 0": 1.0, "a dry run, dim 0": None if setup.small else 0.01}
    rows = (Row(name, part, limits.get(name)) for name, part in fetched.items())
    return Result("What is fetched, in folders", tuple(rows))


def _fetched(command: Command, server: Server, proxy: Proxy) -> int:
    proxy.reset()
    environment = {**os.environ, **server.environment}
    subprocess.run(command.argv, env=environment, stdout=subprocess.DEVNULL, check=True)
    return proxy.sent


def _prune(setup: Setup, source: Path, dim: int, *options: str) -> Command:
    argv = (
        *(sys.executable, "-m", "prune_cli", "random-structured", _IN, "--quiet"),
        *("--amount", AMOUNT, "--dim", str(dim), "--workers", str(setup.threads)),
        *("--output", _OUT, "--force", *options),
    )
    return Command(" ".join((f"prune-cli --dim {dim}", *options)), argv, source)
