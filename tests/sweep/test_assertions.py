"""The language of --assert."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.errors import UsageError
from prune_cli.sweep.assertions import Results, check_assertion, judge, parse_assertion
from prune_cli.sweep.grid import Point

UNPRUNED, QUARTER, HALF = Point(0), Point(0.25), Point(0.5)
ERK = Point(0.5, allocation="erk")
TARGET = Point(None, target="flops=0.5")
RESULTS = Results(
    counts="acc",
    base={"acc": 90.0, "loss": 0.5},
    values={
        UNPRUNED: {"acc": [90.0], "loss": [0.5]},
        QUARTER: {"acc": [88.0, 89.0, 90.0], "loss": [0.6, 0.6, 0.6], "eval/top-1": [3.0]},
        HALF: {"acc": [60.0, 70.0], "loss": [1.0, 2.0]},
        ERK: {"acc": [75.0]},
        TARGET: {"acc": [50.0]},
    },
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("mean(acc)@0.25 >= base - 1", True),
        ("mean(acc)@0.25 >= base - 0.5", False),
        ("mean(metric)@25% == 89", True),
        ("mean(loss)@0.25 <= base * 1.2", True),
        ("base(acc) - mean(acc)@0.25 < 1 + 1e-9", True),
        ("min(acc)@0.5,uniform > 60", False),
        ("min(acc)@0.5,uniform >= 60", True),
        ("max(acc)@0.5, erk != 75", False),
        ("median(acc)@0.25 == 89", True),
        ("sd(acc)@0.25 == 1", True),
        ("n(acc)@0.25 == 3", True),
        ("low(acc)@0.25 >= 88", True),
        ("high(acc)@0.25 <= 90", True),
        ("mean(acc)@flops=0.5 == 50", True),
        ("mean(acc)@0 == base", True),
        ("2 * (1 + 2) - -1 == 7", True),
        ("1 - 2 - 3 == -4", True),
        ("8 / 4 / 2 == 1", True),
        ("50% == 0.5", True),
        ("mean(acc)@0.25>=base-1", True),
        ("mean(acc)@0.25==89", True),
        ("mean( eval/top-1 )@0.25 == 3", True),
    ],
)
def test_an_assertion_holds_or_does_not(text: str, holds: bool) -> None:
    """Precedence is that of arithmetic; `metric` is the one that counts."""
    assertion = parse_assertion(text)
    check_assertion(assertion, [*RESULTS.values])

    assert judge(assertion, RESULTS).holds is holds


def test_a_verdict_has_the_numbers() -> None:
    """So that a log tells by how much it was missed."""
    verdict = judge(parse_assertion("mean(acc)@0.25 >= base"), RESULTS)

    assert verdict.reason == "89 >= 90"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sd(acc)@0.5,erk < 1", "1 trial has no sd"),
        ("mean(f1)@0.25 > 0", "@0.25 has no metric f1; it has acc, eval/top-1, loss"),
        ("base(f1) > 0", "the unpruned checkpoint has no metric f1"),
        ("1 / 0 > 0", "divides by 0"),
    ],
)
def test_what_was_not_measured_does_not_hold(text: str, reason: str) -> None:
    """Nor does its opposite."""
    verdict = judge(parse_assertion(text), RESULTS)

    assert not verdict.holds
    assert reason in verdict.reason


def test_a_sweep_that_failed_throughout_holds_nothing() -> None:
    """No value at all."""
    results = Results("acc", {}, {UNPRUNED: {}, QUARTER: {}})

    assert (
        "no trial of it succeeded" in judge(parse_assertion("mean(acc)@0.25 > 0"), results).reason
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the end"),
        ("mean(acc)", "expected <= or"),
        ("mean(acc) > ", "found the end"),
        ("avg(acc) > 1", r"expected base or mean\(...\), "),
        ("mean acc > 1", r"expected base or mean"),
        ("mean() > 1", r"expected base or mean"),
        ("base() > 1", r"expected base or mean"),
        ("1 < 2 < 3", "expected the end"),
        ("1 + > 2", "expected a number"),
        ("(1 > 2", r"expected \)"),
        ("1 $ 2", "cannot read"),
        ("mean(acc)@0.5,erk - mean(loss)@0.5,erk > base", "of which metric is base"),
    ],
)
def test_what_is_no_assertion_is_refused_with_the_place(text: str, message: str) -> None:
    """Before anything runs."""
    with pytest.raises(UsageError, match=message):
        parse_assertion(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean(acc)@0.75 > 1", "@0.75 names no point of the sweep"),
        ("mean(acc)@0.5 > 1", "@0.5 names 2 points; choose one of @0.5,uniform,random, @0.5,erk"),
        ("mean(acc) > 1", "without @ names 4 points"),
        ("mean(acc)@1 > 1", "names no point"),
        ("mean(acc)@0.25,l1 > 1", "names no point"),
    ],
)
def test_a_point_that_is_not_of_the_grid_is_refused_before_anything_runs(
    text: str, message: str
) -> None:
    """Also one that is several."""
    with pytest.raises(UsageError, match=message):
        check_assertion(parse_assertion(text), [*RESULTS.values])


@given(st.text(alphabet="mean(acc)@0.25>=b+-*/< ,%_!", max_size=25))
def test_no_text_breaks_the_parser(text: str) -> None:
    """It is an assertion, or a UsageError."""
    try:
        parse_assertion(text)
    except UsageError:
        pass
