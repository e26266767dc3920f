"""Send a signal at each of many moments of a run, and look at what is left.

    python -m tests.signals --runs 1000 --seed 0

A run is a fork of this process in which everything is imported; it counts the lines that Python
executes in its main thread, and sends itself the signal at one of them. Python handles signals
between two lines and no sooner, so that these are all the moments there are for it: right after
each system call, for one.
"""

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from prune_cli import api, prune_checkpoint
from prune_cli.cli import signals
from prune_cli.cli.main import main
from tests import build

KINDS = (signal.SIGINT, signal.SIGTERM)
STAGING = ".prune-cli"


@dataclass(frozen=True)
class Scene:
    """A run that is interrupted.

    Attributes:
        name: what is special about it.
        arguments: of the command; {} is the folder that all is in.
        is_again: whether a run with another seed wrote the same output before.
    """

    name: str
    arguments: tuple[str, ...]
    is_again: bool = False


_FILE = ("random-structured", "{}/model.safetensors", "-a", "1", "-d", "0", "-q", "-f")
_FOLDER = ("random-structured", "{}/folder", "-a", "1", "-d", "0", "-q", "-f")
SCENES = (
    Scene("file", (*_FILE, "-o", "{}/out.safetensors")),
    Scene("file again", (*_FILE, "-o", "{}/out.safetensors"), is_again=True),
    Scene("in kind", (_FILE[0], "{}/model.pt", *_FILE[2:], "-o", "{}/out.pt")),
    Scene("folder", (*_FOLDER, "-o", "{}/a/b/out")),
    Scene("folder again", (*_FOLDER, "-o", "{}/out"), is_again=True),
    Scene("split", (*_FILE, "--max-shard-size", "1KB", "-o", "{}/out", "--fsync")),
    Scene("workers", (*_FOLDER, "-o", "{}/out", "--workers", "3")),
    Scene("apply", ("apply", "{}/plan.json", "{}/folder", "-q", "-f", "-o", "{}/out")),
    Scene("remove", ("remove", "{}/masked.safetensors", "-q", "-f", "-o", "{}/out.safetensors")),
)

State = dict[str, bytes]
"""Every file by its path, and every folder, which has no bytes."""


@dataclass(frozen=True)
class Moment:
    """When a run is interrupted, and by what."""

    scene: Scene
    line: int
    kind: signal.Signals


def state(folder: Path) -> State:
    """Return all that is in `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def make_inputs(folder: Path) -> None:
    """Make what is pruned, in its forms, and a plan for it."""
    content = build.tensors()
    build.safetensors(folder / "masked.safetensors", build.masked(content, {"conv.weight": 2}))
    build.safetensors(folder / "model.safetensors", content)
    build.torch_zip(folder / "model.pt", content)
    build.write_folder(folder / "folder", build.split(content, build.shard_names(3)))
    plan = prune_checkpoint(folder / "folder", amount=1, dim=0, dry_run=True)
    (folder / "plan.json").write_text(plan.to_json())


class Stage:
    """A scene, with the state before it and after it. A class, for it owns a folder."""

    def __init__(self, scene: Scene, place: Path) -> None:
        self.scene = scene
        self._folder = place / scene.name.replace(" ", "-")
        self._folder.mkdir()
        make_inputs(self._folder)
        main(self._arguments())  # so that every fork has all modules
        self._empty()
        make_inputs(self._folder)
        if scene.is_again:
            run(self._arguments("--seed", "7"), None)
        self.before = state(self._folder)
        self.begin, self.lines = self._count_lines()
        self.after = state(self._folder)

    def problems(self, moment: Moment) -> Iterator[str]:
        """Interrupt a run, and yield what is wrong with what is left."""
        self._restore()
        code, said = run(self._arguments(), moment)
        found = state(self._folder)
        if "Traceback" in said or code not in (0, signals.INTERRUPTED):
            yield f"it ended with {code}: {said[-800:]}"
        staged = {path for path in found if STAGING in path.split("/")[-1] or f"/{STAGING}" in path}
        rest = {path: found[path] for path in found.keys() - staged}
        if code == 0 and (found != self.after):
            yield f"it ended well, but left {_difference(self.after, found)}"
        if code and not staged and found != self.before:
            yield f"it left {_difference(self.before, found)}"
        if staged:
            yield from self._resume_problems(rest)

    def _resume_problems(self, rest: State) -> Iterator[str]:
        """Yield what is wrong where finished shards are kept: nothing else may be, but folders."""
        kept = {path: content for path, content in rest.items() if content or path in self.before}
        if kept != {path: content for path, content in self.before.items()}:
            yield f"beside finished shards it left {_difference(self.before, kept)}"
        code, said = run(self._arguments("--resume"), None)
        if code or state(self._folder) != self.after:
            yield f"--resume ended with {code} and left another output: {said[-800:]}"

    def _arguments(self, *more: str) -> list[str]:
        named = [argument.replace("{}", str(self._folder)) for argument in self.scene.arguments]
        return [*named, *more]

    def _count_lines(self) -> tuple[int, int]:
        """Return the lines before the work begins, and all lines."""
        reader, writer = os.pipe()
        run(self._arguments(), None, told=writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            begin, lines = map(int, pipe.read().split())
            return begin, lines

    def _empty(self) -> None:
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def _restore(self) -> None:
        self._empty()
        for path, content in self.before.items():
            place = self._folder / path
            if content or "." in place.name:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            else:
                place.mkdir(parents=True, exist_ok=True)


def _difference(expected: State, found: State) -> str:
    missing = sorted(expected.keys() - found.keys())
    more = sorted(found.keys() - expected.keys())
    other = sorted(path for path in expected.keys() & found.keys() if expected[path] != found[path])
    return f"missing {missing}, more {more}, other {other}"


# --- a run ------------------------------------------------------------------------------------


def run(
    arguments: Sequence[str], moment: Moment | None, *, told: int | None = None
) -> tuple[int, str]:
    """Run the command in a fork; return how it ends and what it says.

    `told` is a file descriptor to which the number of lines is written.
    """
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if not child:
            _act(arguments, moment, file.fileno(), told)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        return status, file.read().decode()


def _act(arguments: Sequence[str], moment: Moment | None, said: int, told: int | None) -> None:
    """Be the process of a run, as `prune_cli.__main__` is, and end."""
    code = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(1, "w")),
            io.TextIOWrapper(io.FileIO(2, "w")),
        )
        signals.listen()
        counter = _Counter(moment)
        sys.settrace(counter)
        code = main(list(arguments))
        sys.settrace(None)
        if told is not None:
            os.write(told, f"{counter.begin} {counter.lines}".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


class _Counter:
    """Counts lines, and sends a signal at one of them."""

    def __init__(self, moment: Moment | None) -> None:
        self.begin = self.lines = 0
        self._moment = moment

    def __call__(self, frame: FrameType, event: str, argument: Any) -> "Callable[..., Any]":  # noqa: ARG002
        if event == "call" and frame.f_code is api.carry_out.__code__:
            self.begin = self.lines
        if event == "line":
            self.lines += 1
            if self._moment and self.lines == self._moment.line:
                os.kill(os.getpid(), self._moment.kind)
        return self


def moments(stages: Sequence[Stage], runs: int, seed: int) -> Iterator[tuple[Stage, Moment]]:
    """Yield a moment of each stage in turn; all but a fourth of them after the work began."""
    generator = random.Random(seed)
    for number in range(runs):
        stage = stages[number % len(stages)]
        line = generator.randint(stage.begin if generator.random() < 0.75 else 1, stage.lines)
        yield stage, Moment(stage.scene, line, generator.choice(KINDS))


def interrupt(place: Path, runs: int, seed: int) -> Iterator[tuple[Moment, str]]:
    """Interrupt so many runs, and yield each that did not end as it has to."""
    stages = [Stage(scene, place) for scene in SCENES]
    for stage, moment in moments(stages, runs, seed):
        for problem in stage.problems(moment):
            yield moment, problem


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.signals", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    count = 0
    with tempfile.TemporaryDirectory() as place:
        for moment, problem in interrupt(Path(place), wanted.runs, wanted.seed):
            count += 1
            what = f"{moment.scene.name}, line {moment.line}, {moment.kind.name}"
            sys.stdout.write(f"{what}: {problem}\n")
    sys.stdout.write(f"{wanted.runs} runs, {count} problems\n")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(_main())
