"""Plan in a child process, within limits: what follows a model's graph may never come back.

`python -m prune_cli.shrink.child DESCRIPTOR` takes one Task from a connection and sends back what
it is doing, then its plan. stdout and stderr belong to the user's code. It imports what planning
needs before it is asked, and this file imports no torch, so that both processes import at once.

A subprocess with a connection of multiprocessing, not its Process: that would run the script of
whoever calls us again, unless it is guarded by `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prune_cli import errors
from prune_cli.errors import PruneError, RequestError
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.request import (
    Failure,
    OnStage,
    Request,
    Score,
    Site,
    Sites,
    Source,
    Task,
)

if TYPE_CHECKING:
    from prune_cli.plan.scores import Ranks

DEFAULT_TIME_LIMIT = 300.0
"""Seconds; what is left of the child's imports is part of it."""

DEFAULT_MEMORY_LIMIT = 8 << 30
"""Bytes beyond the child's imports. Models are followed without their weights."""

_TO_IMPORT = ("prune_cli.shrink.planning", "torch._dynamo")
"""What planning imports, torch._dynamo because models that are built on meta do."""

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What is planned depends on no network, and a config.json can fetch nothing."""

_GC_THRESHOLD = 100_000  # objects: with Python's 700 it looks through all of torch again and again


class PlanningChild:
    """A child process that plans once. It begins to import when it is made, so make it early.

    A context manager: whatever the child does, it ends there.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self._said = stack.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            )
            ours, theirs = Pipe()
            self._connection = stack.enter_context(ours)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    env={**os.environ, **_OFFLINE, "PYTHONPATH": _search_path()},
                )
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plan(
        self,
        source: Source,
        wanted: Request,
        checkpoint: Mapping[str, tuple[int, ...]] | None = None,
        *,
        time_limit: float = DEFAULT_TIME_LIMIT,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        on_stage: OnStage | None = None,
        score: Score | None = None,
    ) -> ShrinkPlan:
        """Plan what a shrunk model lacks, from shapes alone.

        Args:
            source: the model.
            wanted: what to remove.
            checkpoint: the shape of each tensor of the checkpoint; None plans for the model alone.
            time_limit: in seconds from now.
            memory_limit: in bytes, beyond what the imports take; where the system can limit it.
            on_stage: called with what the planning is doing.
            score: reads what ranks the channels, where they are not drawn.

        Raises:
            RequestError: the model cannot be followed, or not within the limits; it does not fit
                the checkpoint; or nothing can be removed.
            PruneError: another one, if the planning raised it.
        """
        path = (str(Path.cwd()), *sys.path)
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(Task(path, source, wanted, checkpoint, memory_limit))
        answer = self._answer(source, time_limit, on_stage or _ignore, score)
        if isinstance(answer, ShrinkPlan):
            return answer
        kind = getattr(errors, answer.kind, None)
        if isinstance(kind, type) and issubclass(kind, PruneError):
            raise kind(answer.message)
        raise RuntimeError(f"planning failed:\n{answer.message}")

    def _answer(
        self, source: Source, time_limit: float, on_stage: OnStage, score: Score | None
    ) -> ShrinkPlan | Failure:
        stage, end = "importing torch", time.monotonic() + time_limit
        while True:
            on_stage(stage)
            if not self._connection.poll(max(end - time.monotonic(), 0)):
                raise RequestError(_too_long(time_limit, stage))
            said = self._receive(source)
            if isinstance(said, Sites) and score:
                began = time.monotonic()
                on_stage("ranking channels by their weights")
                self._connection.send(score(said.sites))
                end += time.monotonic() - began  # reading is not planning
            elif isinstance(said, str):
                stage = said
            elif not isinstance(said, Sites):
                return said

    def _receive(self, source: Source) -> str | Sites | ShrinkPlan | Failure:
        try:
            said: str | Sites | ShrinkPlan | Failure = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RequestError(
                f"planning for {source.model} exited without output{self._last_words()}; "
                "does the model code call sys.exit()?"
            ) from None
        return said

    def _last_words(self) -> str:
        """Return the last line of what the child said."""
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return f" ({lines[-1]})" if lines else ""

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def _search_path() -> str:
    return os.pathsep.join(filter(None, sys.path))


def _ignore(_: str) -> None:
    pass


def _too_long(time_limit: float, stage: str) -> str:
    return (
        f"planning took longer than {time_limit:g} s ({stage}), and may never end (window attention "
        "is known for it); prune without shrinking, or allow more with --time-limit"
    )


# --- the child -------------------------------------------------------------------------------


def main(connection: Connection) -> None:
    """Plan what the one Task asks that comes over `connection`, and send back the plan."""
    _prepare()
    try:
        task: Task = connection.recv()
    except EOFError:
        return  # nobody asks any more
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, answers), daemon=True).start()
    sys.path[:] = list(dict.fromkeys(task.path))

    def score(sites: Sequence[Site]) -> Sequence[Ranks]:
        connection.send(Sites(tuple(sites)))
        found: Sequence[Ranks] = answers.get()
        return found

    connection.send(_answer(task, connection.send, score))


def _prepare() -> None:
    """Import, while nobody has asked yet."""
    gc.set_threshold(_GC_THRESHOLD)
    for name in _TO_IMPORT:
        with contextlib.suppress(ImportError):  # whoever needs it says what is missing
            importlib.import_module(name)


def _answer(task: Task, on_stage: OnStage, score: Score) -> ShrinkPlan | Failure:
    try:
        from prune_cli.shrink.plan import plan_shrink

        _limit_memory(task.memory_limit)
        return plan_shrink(task.source, task.wanted, task.checkpoint, on_stage, score)
    except PruneError as error:
        return Failure(type(error).__name__, str(error))
    except MemoryError:
        return Failure("RequestError", _too_large(task.memory_limit))
    except Exception:  # noqa: BLE001 - a bug: the parent shows the traceback
        return Failure("bug", traceback.format_exc())


def _limit_memory(limit: int) -> None:
    """Let the kernel refuse more than `limit` bytes beyond those in use, where it can."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    used = int(line.split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = used + limit if hard == resource.RLIM_INFINITY else min(used + limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _too_large(limit: int) -> str:
    return (
        f"planning took more than {limit / (1 << 30):.3g} GiB of memory; the model is followed "
        "without its weights, so its code holds something large: build it on torch's meta device"
    )


def _listen(connection: Connection, answers: queue.SimpleQueue[Any]) -> None:
    """Pass on answers until nobody holds the other end: a killed parent cannot end its child."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            answers.put(connection.recv())
    os._exit(1)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
