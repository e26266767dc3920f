"""Plan in a child process, under a time limit: what follows a model's graph may never come back.

Run as `python -m prune_cli.shrink.child`, it reads a request as one line of JSON from stdin and writes
the answer to the file that the request names; stdout and stderr belong to the user's code. It imports
what planning needs before it reads, and this file imports no torch, so that both processes can
import theirs at the same time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from prune_cli import errors
from prune_cli.errors import PruneError, RequestError
from prune_cli.jsontext import decode
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.request import Request, Source

DEFAULT_TIME_LIMIT = 300.0
"""Seconds; what is left of the child's imports is part of it."""

_TO_IMPORT = ("prune_cli.shrink.planning", "torch_pruning", "torch._dynamo")
"""What planning imports, torch._dynamo because models that are built on meta do."""

_GC_THRESHOLD = 100_000  # objects: with Python's 700 it looks through all of torch again and again


class PlanningChild:
    """A child process that plans once. It begins to import when it is made, so make it early.

    A context manager: whatever the child does, it ends there.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="prune-cli-"))
            self._said = stack.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            )
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name],
                stdin=subprocess.PIPE,
                stdout=self._said,
                stderr=self._said,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            stack.callback(self._end)
            self._answer = Path(folder) / "answer.json"
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
    ) -> ShrinkPlan:
        """Plan what a shrunk model lacks, from shapes alone.

        Args:
            source: The model.
            wanted: What to remove.
            checkpoint: The shape of each tensor of the checkpoint; None plans for the model alone.
            time_limit: In seconds from now.

        Raises:
            RequestError: The model cannot be followed, or not in time; it does not fit the
                checkpoint; or nothing can be removed.
            PruneError: Another one, if the planning raised it.
        """
        request = {
            "answer": str(self._answer),
            "path": [str(Path.cwd()), *sys.path],
            "source": asdict(source),
            "wanted": asdict(wanted),
            "checkpoint": checkpoint,
        }
        self._ask(json.dumps(request), time_limit)
        if not self._answer.exists():
            raise RequestError(
                f"planning for {source.model} died ({self._complaint() or 'without a word'}); "
                "does its code end the process?"
            )
        return _read_answer(json.loads(self._answer.read_text(encoding="utf-8")))

    def _ask(self, request: str, time_limit: float) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        # stdin stays open: when this process dies, the child reads its end and dies too.
        try:
            self._process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise RequestError(
                f"following the model's graph took longer than {time_limit:g} s, and may never end "
                "(window attention is known for it); prune without shrinking, or allow more with "
                "--time-limit"
            ) from None

    def _complaint(self) -> str:
        """The last line of what the child said."""
        self._said.seek(0)
        return (self._said.read().strip().splitlines() or [""])[-1]

    def _end(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def _read_answer(answer: Mapping[str, Any]) -> ShrinkPlan:
    if "plan" in answer:
        return decode(ShrinkPlan, answer["plan"])
    kind = getattr(errors, answer["error"], None)
    if isinstance(kind, type) and issubclass(kind, PruneError):
        raise kind(answer["message"])
    raise RuntimeError(f"planning failed:\n{answer['message']}")


def _prepare() -> None:
    """What the child does while nobody has asked yet."""
    gc.set_threshold(_GC_THRESHOLD)
    for name in _TO_IMPORT:
        with contextlib.suppress(ImportError):  # whoever needs it says what is missing
            importlib.import_module(name)


def main() -> None:
    """The child: plan what the request on stdin asks for."""
    line = sys.stdin.readline()
    if not line:
        return  # nobody asks any more
    request = json.loads(line)
    place = Path(request["answer"])
    threading.Thread(target=_die_with_parent, args=(place,), daemon=True).start()
    sys.path[:] = list(dict.fromkeys(request["path"]))
    answer = _answer(request)
    place.write_text(json.dumps(answer), encoding="utf-8")


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    import traceback

    try:
        from prune_cli.shrink.planning import plan_shrink

        checkpoint = request["checkpoint"]
        shapes = checkpoint and {name: tuple(shape) for name, shape in checkpoint.items()}
        source, wanted = decode(Source, request["source"]), decode(Request, request["wanted"])
        plan = plan_shrink(source, wanted, shapes)
    except PruneError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:  # noqa: BLE001 - a bug: the parent shows the traceback
        return {"error": "bug", "message": traceback.format_exc()}
    return {"plan": asdict(plan)}


def _die_with_parent(place: Path) -> None:
    """Wait until nobody holds the other end of stdin; a parent that was killed has not tidied up."""
    sys.stdin.read()
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
        place.parent.rmdir()
    os._exit(1)


if __name__ == "__main__":
    _prepare()
    main()
