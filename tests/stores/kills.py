"""Kill runs that write to a store, each at one of its requests, and look at what is left.

    python -m tests.stores.kills --runs 30 --seed 0 --store moto

A run talks to the store through a proxy, which kills it with SIGKILL when a request comes, or when
the store has done what it asks and the answer is not sent yet: the two moments at which another
thing is there than before.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from prune_cli.cli.main import main
from tests import build
from tests.stores import clients
from tests.stores.clients import State
from tests.stores.proxy import Proxy, proxied
from tests.stores.servers import BUCKET, Server, moto, rclone

_STAGING = ".prune-cli-partial/"
_INDEX = "model.safetensors.index.json"
_OPTIONS = ("-a", "0.25", "-d", "1", "-q", "--force")


@dataclass(frozen=True)
class Scene:
    """A run that is killed.

    Attributes:
        name: what is special about it.
        source: what is pruned; {} is the folder that all is in.
        options: of the command.
        is_again: whether the output of another seed is there before.
    """

    name: str
    source: str
    options: tuple[str, ...] = ()
    is_again: bool = False


SCENES = (
    Scene("again", "{}/model", is_again=True),
    Scene("copied", f"s3://{BUCKET}/model", ("-m", "m.0*")),
    Scene("sent", "{}/model"),
    Scene("workers", "{}/model", ("--workers", "3")),
)


@dataclass(frozen=True)
class Moment:
    """When a run is killed: at which request, and whether the store has done it."""

    request: int
    is_done: bool


def interrupt(place: Path, server: Server, runs: int, seed: int) -> Iterator[str]:
    """Kill `runs` runs and yield what is wrong with what they and their resumed runs leave."""
    chosen = random.Random(seed)
    with proxied(server) as (before, proxy):
        stage = _Stage(place, server, before, proxy)
        for scene in SCENES:
            mine = [*range(runs)][SCENES.index(scene) :: len(SCENES)]
            if mine:
                total = stage.prepare(scene)
                for _ in mine:
                    moment = Moment(chosen.randint(1, total), chosen.random() < 0.5)
                    for problem in stage.problems(scene, moment):
                        yield f"{scene.name}, {moment}: {problem}"


class _Stage:
    """Where runs are killed. A class, for every step needs the folder, the store and the proxy."""

    def __init__(self, place: Path, server: Server, before: Server, proxy: Proxy) -> None:
        self._place, self._server, self._before, self._proxy = place, server, before, proxy
        self._said = place / "said.txt"
        self._old: State = {}
        self._new: State = {}
        _make_model(place / "model")
        clients.put(server, "model", clients.files_in(place / "model"))

    def prepare(self, scene: Scene) -> int:
        """Find what the run should leave, and how many requests it makes."""
        self._old = self._run_here(scene, "--seed", "7") if scene.is_again else {}
        self._new = self._run_here(scene)
        self._reset()
        code = self._run(scene)
        assert code == 0, self._said.read_text()
        assert clients.state_of(self._server, "out") == self._new, scene
        return len(self._proxy.requests)

    def problems(self, scene: Scene, moment: Moment) -> Iterator[str]:
        """Kill a run, and yield what is wrong then, and after it was resumed."""
        self._reset()
        code = self._run(scene, moment)
        if code != -signal.SIGKILL:
            yield f"it was not killed, but ended with {code}: {self._said.read_text()[-400:]}"
        yield from self._visible_problems()
        code = self._run(scene, None, "--resume")
        if code:
            yield f"--resume ended with {code}: {self._said.read_text()[-400:]}"
        found = clients.state_of(self._server, "out")
        if found != self._new:
            yield f"--resume left {_difference(self._new, found)}"
        if left := clients.uploads(self._server):
            yield f"uploads are left: {left}"

    def _visible_problems(self) -> Iterator[str]:
        found = clients.state_of(self._server, "out")
        seen = {name: some for name, some in found.items() if not name.startswith(_STAGING)}
        for name, content in seen.items():
            if content not in (self._new.get(name), self._old.get(name)):
                yield f"{name} is neither the old one nor the new one"
        if _INDEX in seen and seen not in (self._new, self._old):
            yield f"an index is there, but not all of one model: {_difference(self._new, seen)}"

    def _reset(self) -> None:
        clients.put(self._server, "out", self._old)
        clients.abort_uploads(self._server)

    def _run_here(self, scene: Scene, *more: str) -> State:
        output = self._place / "out"
        shutil.rmtree(output, ignore_errors=True)
        source = scene.source.format(self._place).replace(f"s3://{BUCKET}", str(self._place))
        code = main(
            ["random-structured", source, *_OPTIONS, *scene.options, *more, "-o", str(output)]
        )
        assert code == 0
        return clients.files_in(output)

    def _run(self, scene: Scene, moment: Moment | None = None, *more: str) -> int:
        self._proxy.reset()
        source, output = scene.source.format(self._place), f"s3://{BUCKET}/out"
        arguments = ["random-structured", source, *_OPTIONS, *scene.options, *more, "-o", output]
        process = clients.start(arguments, self._before.environment, self._said)
        if moment:
            self._proxy.watch = _Killer(process, moment)
        process.join()
        while self._proxy.busy:  # what it asked for before it was killed is done after it
            time.sleep(0.01)
        self._proxy.watch = lambda *_: None
        return process.exitcode if process.exitcode is not None else -1


class _Killer:
    """Kills a process at a moment, and lets nothing of it through any more."""

    def __init__(self, process: BaseProcess, moment: Moment) -> None:
        self._process, self._moment = process, moment

    def __call__(self, request: int, is_done: bool) -> None:
        if (request, is_done) == (self._moment.request, self._moment.is_done):
            assert self._process.pid
            with contextlib.suppress(ProcessLookupError):  # until it is gone
                while True:
                    os.kill(self._process.pid, signal.SIGKILL)
                    time.sleep(0.01)


def _make_model(folder: Path) -> None:
    """Make three shards, one of which goes in two parts."""
    generator = torch.Generator().manual_seed(0)
    shards = {
        name: {
            f"m.{shard}.{number}.weight": torch.randn(512, 512, generator=generator)
            for number in range(1 if shard else 9)
        }
        for shard, name in enumerate(build.shard_names(3))
    }
    build.write_folder(folder, shards)


def _difference(expected: State, found: State) -> str:
    names = sorted({*expected, *found})
    return ", ".join(name for name in names if expected.get(name) != found.get(name))


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=("moto", "rclone"), default="moto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        place, log = Path(name), Path(name) / "log.txt"
        served = moto(log) if arguments.store == "moto" else rclone(place / "store", log)
        server = stack.enter_context(served)
        problems = [*interrupt(place, server, arguments.runs, arguments.seed)]
    for problem in problems:
        print(problem)
    print(f"{arguments.runs} runs, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(_main())
