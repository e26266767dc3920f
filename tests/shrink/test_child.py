"""Planning in a child process: the same plan, in time, or a clear error."""

import pytest

from prune_cli.errors import RequestError, UsageError
from prune_cli.selection import Rule
from prune_cli.shrink.child import make_shrink_plan
from prune_cli.shrink.plan import ShrinkOptions, Source
from tests.shrink.builders import NETS, plan

OPTIONS = ShrinkOptions((Rule(("*",), ("weight",), 0.25, 0),))


def test_the_child_plans_the_same() -> None:
    """Nothing is lost on the way."""
    made = make_shrink_plan(Source(f"{NETS}:Plain", examples=("1x3x16x16",)), OPTIONS)

    assert made == plan("Plain")


def test_a_graph_without_end_is_given_up() -> None:
    """After the time limit the child is killed, and the message says what to do."""
    source = Source(f"{NETS}:loops_for_ever", examples=("1x3",))

    with pytest.raises(RequestError, match=r"longer than 5 s.*--time-limit"):
        make_shrink_plan(source, OPTIONS, time_limit=5)


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
    with pytest.raises(error, match=message):
        make_shrink_plan(source, OPTIONS)
