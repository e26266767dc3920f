"""Plan in a child process, under a time limit: what follows a model's graph may never come back.

Run as `python -m prune_cli.shrink.child`, it reads a request as one line of JSON from stdin and writes
the answer to the file that the request names; stdout and stderr belong to the user's code.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune_cli import errors
from prune_cli.errors import PruneError, RequestError
from prune_cli.selection import Rule
from prune_cli.shrink.plan import ShrinkOptions, ShrinkPlan, Source

DEFAULT_TIME_LIMIT = 300.0
"""Seconds; importing torch and transformers is part of it."""


def make_shrink_plan(
    source: Source,
    options: ShrinkOptions,
    checkpoint: Mapping[str, tuple[int, ...]] | None = None,
    *,
    time_limit: float = DEFAULT_TIME_LIMIT,
) -> ShrinkPlan:
    """Plan what a shrunk model lacks, from shapes alone, in a child process.

    Args:
        source: The model.
        options: What to remove.
        checkpoint: The shape of each tensor of the checkpoint; None plans for the model alone.
        time_limit: In seconds; the child is killed then, and whenever this call does not return.

    Raises:
        RequestError: The model cannot be followed, or not in time; it does not fit the checkpoint;
            or nothing can be removed.
        PruneError: Another one, if the planning in the child raised it.
    """
    with tempfile.TemporaryDirectory(prefix="prune-cli-") as folder:
        answer = Path(folder) / "answer.json"
        request = {
            "answer": str(answer),
            "path": [str(Path.cwd()), *sys.path],
            "source": asdict(source),
            "options": asdict(options),
            "checkpoint": checkpoint,
        }
        complaint = _run_child(json.dumps(request), time_limit)
        if not answer.exists():
            raise RequestError(
                f"planning for {source.model} died ({complaint or 'without a word'}); "
                "does its code end the process?"
            )
        return _read_answer(json.loads(answer.read_text(encoding="utf-8")))


def _run_child(request: str, time_limit: float) -> str:
    """Run the child to its end and give the last line of what it said."""
    command = [sys.executable, "-m", "prune_cli.shrink.child"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
            env=environment,
        ) as child,
    ):
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(request + "\n")
                child.stdin.flush()
            # stdin stays open: when this process dies, the child reads its end and dies too.
            child.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise RequestError(
                f"following the model's graph took longer than {time_limit:g} s, and may never end "
                "(window attention is known for it); prune without shrinking, or allow more with "
                "--time-limit"
            ) from None
        finally:
            child.kill()
            with contextlib.suppress(BrokenPipeError):
                child.communicate()
        said.seek(0)
        return (said.read().strip().splitlines() or [""])[-1]


def _read_answer(answer: Mapping[str, Any]) -> ShrinkPlan:
    if "plan" in answer:
        return ShrinkPlan.from_facts(answer["plan"])
    kind = getattr(errors, answer["error"], None)
    if isinstance(kind, type) and issubclass(kind, PruneError):
        raise kind(answer["message"])
    raise RuntimeError(f"planning failed:\n{answer['message']}")


def main() -> None:
    """The child: plan what the request on stdin asks for."""
    request = json.loads(sys.stdin.readline())
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
        plan = plan_shrink(_source(request["source"]), _options(request["options"]), shapes)
    except PruneError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:  # noqa: BLE001 - a bug: the parent shows the traceback
        return {"error": "bug", "message": traceback.format_exc()}
    return {"plan": plan.to_facts()}


def _source(facts: Mapping[str, Any]) -> Source:
    return Source(**{**facts, "examples": tuple(facts["examples"])})


def _options(facts: Mapping[str, Any]) -> ShrinkOptions:
    rules = tuple(
        Rule(tuple(rule["modules"]), tuple(rule["params"]), rule["amount"], rule["dim"])
        for rule in facts["rules"]
    )
    zeros = facts["zeros"] and {
        name: {int(dim): tuple(channels) for dim, channels in dims.items()}
        for name, dims in facts["zeros"].items()
    }
    return ShrinkOptions(
        **{**facts, "rules": rules, "exclude": tuple(facts["exclude"]), "zeros": zeros}
    )


def _die_with_parent(place: Path) -> None:
    """Wait until nobody holds the other end of stdin; a parent that was killed has not tidied up."""
    sys.stdin.read()
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
        place.parent.rmdir()
    os._exit(1)


if __name__ == "__main__":
    main()
