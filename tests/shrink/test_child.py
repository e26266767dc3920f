"""Planning in a child process: the same plan, in time, or a clear error."""

import io
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from prune_cli.errors import RequestError, UsageError
from prune_cli.jsontext import decode
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink import child as child_module
from prune_cli.shrink.child import PlanningChild
from prune_cli.shrink.request import Request, Source
from tests.shrink.builders import NETS, plan

OPTIONS = Request((Rule(("*",), ("weight",), 0.25, 0),))


def test_the_child_plans_the_same() -> None:
    """Nothing is lost on the way."""
    with PlanningChild() as child:
        made = child.plan(Source(f"{NETS}:Plain", examples=("1x3x16x16",)), OPTIONS)

    assert made == plan("Plain")


def test_a_graph_without_end_is_given_up() -> None:
    """After the time limit the child is killed, and the message says what to do."""
    source = Source(f"{NETS}:loops_for_ever", examples=("1x3",))

    with PlanningChild() as child, pytest.raises(RequestError, match=r"longer than 5 s.*--time-l"):
        child.plan(source, OPTIONS, time_limit=5)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Source(f"{NETS}:Nope", examples=("1x3",)), UsageError, "has no factory 'Nope'"),
        (Source("no.such:thing", examples=("1x3",)), UsageError, "cannot be imported"),
        (Source(f"{NETS}:Plain", examples=("1x4x16x16",)), RequestError, "does not run on its"),
        (Source(f"{NETS}:Plain"), UsageError, "needs an example"),
        (Source(f"{NETS}:Plain", arguments={"q": 1}), RequestError, "--model-arg"),
        (Source("os:_exit", arguments={"status": 3}), RequestError, "does its code end"),
    ],
)
def test_errors_come_back_as_they_were(
    source: Source, error: type[Exception], message: str
) -> None:
    """The class, and with it the exit code, crosses the process."""
    with PlanningChild() as child, pytest.raises(error, match=message):
        child.plan(source, OPTIONS)


def test_a_child_whose_parent_was_killed_ends_and_tidies_up(tmp_path: Path) -> None:
    """Nobody else can: SIGKILL gives the parent no time."""
    place = tmp_path / "answer" / "answer.json"
    place.parent.mkdir()
    source = {"model": f"{NETS}:loops_for_ever", "is_folder": False, "arguments": {}}
    request = {
        "answer": str(place),
        "path": sys.path,
        "source": {**source, "examples": ["1x3"]},
        "wanted": asdict(OPTIONS),
        "checkpoint": None,
    }
    command = [sys.executable, "-m", "prune_cli.shrink.child"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.close()
        child.wait(30)

    assert child.returncode == 1
    assert not place.parent.exists()


def test_a_child_that_nobody_asks_ends() -> None:
    """Its parent was killed before it could ask, or found an error before."""
    command = [sys.executable, "-m", "prune_cli.shrink.child"]

    done = subprocess.run(
        command, check=False, input="", capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_child_in_vain_is_gone_at_once() -> None:
    """An error of the request itself does not wait for what the child imports."""
    with pytest.raises(ZeroDivisionError), PlanningChild() as child:
        process = child._process
        1 / 0  # noqa: B018

    assert process.returncode == -signal.SIGKILL


def test_the_child_answers_what_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code in this process: a plan, an error of the user's, and a bug."""
    monkeypatch.setattr(child_module, "_die_with_parent", lambda _: None)
    monkeypatch.setattr(sys, "path", sys.path)
    found = []
    for shapes, examples in ((None, ["1x3x16x16"]), (None, []), (3, ["1x3x16x16"])):
        request = {
            "answer": str(tmp_path / "answer.json"),
            "path": sys.path,
            "source": asdict(Source(f"{NETS}:Plain", examples=tuple(examples))),
            "wanted": asdict(OPTIONS),
            "checkpoint": shapes,
        }
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))

        child_module.main()

        found.append(json.loads((tmp_path / "answer.json").read_text()))
    assert decode(ShrinkPlan, found[0]["plan"]) == plan("Plain")
    assert found[1]["error"] == "UsageError"
    assert found[2]["error"] == "bug"
    assert "Traceback" in found[2]["message"]
