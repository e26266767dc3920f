"""Planning in a child process: the same plan, in time, or a clear error."""

import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe

import pytest

from prune_cli.errors import RequestError, UsageError
from prune_cli.plan.selection import Rule
from prune_cli.shrink import child as child_module
from prune_cli.shrink.child import PlanningChild
from prune_cli.shrink.request import Request, Source, Task
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
        (Source("os:_exit", arguments={"status": 3}), RequestError, r"sys\.exit"),
    ],
)
def test_errors_come_back_as_they_were(
    source: Source, error: type[Exception], message: str
) -> None:
    """The class, and with it the exit code, crosses the process."""
    with PlanningChild() as child, pytest.raises(error, match=message):
        child.plan(source, OPTIONS)


def test_a_model_that_eats_memory_is_given_up() -> None:
    """The kernel refuses more than the limit, and the message says what to do."""
    source = Source(f"{NETS}:eats_memory", examples=("1x3",))

    with PlanningChild() as child, pytest.raises(RequestError, match=r"GiB of memory.*meta device"):
        child.plan(source, OPTIONS, memory_limit=500 << 20)


def test_it_says_what_it_is_doing() -> None:
    """From the first moment, and so does the error when time is up."""
    stages: list[str] = []
    with PlanningChild() as child:
        child.plan(
            Source(f"{NETS}:Plain", examples=("1x3x16x16",)), OPTIONS, on_stage=stages.append
        )

    assert stages[0] == "importing torch"
    assert "recording what the model does" in stages


def start(theirs: Connection) -> "subprocess.Popen[str]":
    """A child at the other end."""
    command = [sys.executable, "-m", "prune_cli.shrink.child", str(theirs.fileno())]
    return subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)


def test_a_child_whose_parent_was_killed_ends() -> None:
    """Nobody else can end it: SIGKILL gives the parent no time."""
    ours, theirs = Pipe()
    with start(theirs) as child:
        theirs.close()
        source = Source(f"{NETS}:loops_for_ever", examples=("1x3",))
        ours.send(Task(tuple(sys.path), source, OPTIONS, None, 1 << 30))
        ours.close()
        child.wait(60)

    assert child.returncode == 1


def test_a_child_that_nobody_asks_ends() -> None:
    """Its parent was killed before it could ask, or found an error before."""
    ours, theirs = Pipe()
    with start(theirs) as child:
        theirs.close()
        ours.close()
        said, _ = child.communicate(timeout=60)

    assert (child.returncode, said) == (0, "")


def test_a_child_in_vain_is_gone_at_once() -> None:
    """An error of the request itself does not wait for what the child imports."""
    with pytest.raises(ZeroDivisionError), PlanningChild() as child:
        process = child._process
        1 / 0  # noqa: B018

    assert process.returncode == -signal.SIGKILL


def test_the_child_answers_what_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code in this process: a plan, an error of the user's, and a bug."""
    monkeypatch.setattr(child_module, "_listen", lambda *_: None)
    monkeypatch.setattr(child_module, "_limit_memory", lambda _: None)
    monkeypatch.setattr(sys, "path", sys.path)
    found = []
    for shapes, examples in ((None, ("1x3x16x16",)), (None, ()), (3, ("1x3x16x16",))):
        ours, theirs = Pipe()
        ours.send(
            Task(tuple(sys.path), Source(f"{NETS}:Plain", False, {}, examples), OPTIONS, shapes, 0)
        )

        child_module.main(theirs)

        found.append(next(said for said in iter(ours.recv, None) if not isinstance(said, str)))
    assert found[0] == plan("Plain")
    assert found[1].kind == "UsageError"
    assert found[2].kind == "bug"
    assert "Traceback" in found[2].message
