"""Budgets: how they are spelt, and the amount that meets one."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.errors import AmountError, UsageError
from prune_cli.plan.allocation import Allocation, Layer, share_out
from prune_cli.plan.budget import Target, parse_target, solve_budget

SPELT = {
    "params=0.5": Target("params", 0.5),
    "params=33.3%": Target("params", 0.333),
    "params = 50 %": Target("params", 0.5),
    "params=1.0": Target("params", 1.0),
    "params=1": Target("params", 1, is_absolute=True),
    "params=1e6": Target("params", 1e6, is_absolute=True),
    "params=1.5M": Target("params", 1.5e6, is_absolute=True),
    "flops=1.2G": Target("flops", 1.2e9, is_absolute=True),
    "bytes=500MiB": Target("bytes", 500 * 2**20, is_absolute=True),
    "bytes=5GB": Target("bytes", 5e9, is_absolute=True),
    "latency=12.5ms": Target("latency", 12.5, is_absolute=True),
    "latency=2s": Target("latency", 2000, is_absolute=True),
    "latency=0.5": Target("latency", 0.5),
}


@pytest.mark.parametrize("text", SPELT)
def test_targets_as_people_spell_them(text: str) -> None:
    """Fractions, percentages and quantities; what is printed can be read again."""
    target = parse_target(text)

    assert target == SPELT[text]
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "0.5", "params", "params=", "parms=0.5", "params=-1", "params=150%", "params=5ms"]
    + ["flops=1.2GB", "latency=12", "params=nan", "bytes=5ib", "params=0x5", "params=1,5"],
)
def test_other_targets_are_refused(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(UsageError, match="write it like|neither a fraction"):
        parse_target(text)


@given(st.floats(0.01, 0.99), st.sampled_from([1, 2, 3]))
def test_smooth_costs_are_met_within_a_thousandth(wanted: float, power: int) -> None:
    """As with coupled in- and outputs, of which about (1-p)**2 remains."""
    found = solve_budget(lambda amount: 1000 * (1 - amount) ** power, 1000 * wanted)

    assert found.cost == pytest.approx(1000 * wanted, rel=1e-3)
    assert found.cost == 1000 * (1 - found.amount) ** power


@given(st.integers(1, 50), st.floats(0, 1))
def test_steps_are_met_within_one(channels: int, wanted: float) -> None:
    """What remains comes in whole channels; the nearest is found."""
    cost: Callable[[float], float] = lambda amount: channels - round(amount * channels)

    found = solve_budget(cost, wanted * channels)

    assert abs(found.cost - wanted * channels) <= 0.5 + 1e-3 * wanted * channels


def test_groups_of_one_size_do_not_jump_together() -> None:
    """Ten layers alike, each coupled with the next, are within 1 % of half the parameters."""
    groups = [Layer(f"conv{n}", (16, 16, 3, 3), 0, 16, at_least=1) for n in range(10)]

    def parameters(amount: float) -> float:
        left = [16 - k for k in share_out(groups, Allocation(), amount)]
        return sum(9 * ins * outs for ins, outs in zip([3, *left[:-1]], left, strict=True))

    whole = parameters(0.0)
    most = sum(group.most * group.width for group in groups) / sum(g.elements for g in groups)

    found = solve_budget(parameters, whole / 2, most=most)

    assert found.cost == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.parametrize("wanted", [101.0, 9.0, math.inf])
def test_limits_are_named(wanted: float) -> None:
    """What cannot be met is told with the least and the most."""
    with pytest.raises(AmountError, match="the least is 10 and the most is 100"):
        solve_budget(lambda amount: 100 * (1 - amount), wanted, most=0.9, unit="FLOPs")
