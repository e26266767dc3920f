"""Mean and spread, against scipy, Python's own statistics, and the formulas written out."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prune_cli.sweep.statistics import (
    bootstrap_mean,
    describe,
    differences,
    rank_correlation,
    separate_noise,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)
scipy_stats = pytest.importorskip("scipy.stats")


@given(VALUES)
def test_mean_and_spread_are_those_of_the_standard_library(values: list[float]) -> None:
    """The standard deviation with n - 1."""
    spread = describe(values)

    assert spread.n == len(values)
    assert spread.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    assert spread.sd == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-6)
    assert (spread.min, spread.max) == (min(values), max(values))


def test_one_value_has_no_spread() -> None:
    """Neither a standard deviation nor an interval: not 0."""
    spread = describe([0.5])

    assert (spread.n, spread.mean, spread.sd, spread.interval) == (1, 0.5, None, None)


def test_the_interval_is_the_documented_one() -> None:
    """Ten thousand resamples of RandomState(0), recalculated by a plain loop."""
    values = [0.91, 0.88, 0.93, 0.79, 0.9]
    generator = np.random.RandomState(0)
    means = [
        statistics.fmean(values[pick] for pick in generator.randint(5, size=5))
        for _ in range(10_000)
    ]

    interval = bootstrap_mean(values)

    assert interval.low == pytest.approx(np.percentile(means, 2.5), rel=1e-12)
    assert interval.high == pytest.approx(np.percentile(means, 97.5), rel=1e-12)


def test_the_interval_agrees_with_scipy() -> None:
    """Up to the resampling's own chance."""
    values = np.random.RandomState(1).normal(10, 2, size=40)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=2
    ).confidence_interval

    interval = bootstrap_mean([*values])

    assert interval.low == pytest.approx(expected.low, abs=0.03)
    assert interval.high == pytest.approx(expected.high, abs=0.03)


@given(VALUES)
def test_the_interval_is_reproducible_and_within_the_values(values: list[float]) -> None:
    """Twice the same; never wider than the data."""
    interval = bootstrap_mean(values)

    assert interval == bootstrap_mean(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_differences_are_taken_seed_by_seed() -> None:
    """A seed that only one side has is left out."""
    assert differences({0: 3.0, 1: 5.0, 4: 9.0}, {1: 4.0, 0: 1.0, 7: 0.0}) == (2.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=12))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    """With ties, too."""
    assume(len({x for x, _ in pairs}) > 1)
    assume(len({y for _, y in pairs}) > 1)
    expected = scipy_stats.spearmanr(*zip(*pairs, strict=True)).statistic

    ranks = rank_correlation(pairs)

    assert ranks.rho == pytest.approx(expected, abs=1e-12)
    assert ranks.interval is not None
    assert -1 - 1e-12 <= ranks.interval.low <= ranks.interval.high <= 1 + 1e-12


@pytest.mark.parametrize("pairs", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_rank_correlation_is_undefined_where_one_side_does_not_vary(
    pairs: list[tuple[float, float]],
) -> None:
    """It is not 0."""
    assert rank_correlation(pairs).rho is None


def test_noise_of_the_evaluation_is_told_from_that_of_the_draw() -> None:
    """Of simulated draws, both standard deviations are found again."""
    generator = np.random.RandomState(3)
    draws = generator.normal(50, 4, size=2000)
    repeats = [[*generator.normal(draw, 2, size=3)] for draw in draws]

    noise = separate_noise(repeats)

    assert noise is not None
    assert noise.evaluation == pytest.approx(2, rel=0.05)
    assert noise.draw == pytest.approx(4, rel=0.05)


def test_noise_is_unknown_without_repeats_and_zero_where_the_evaluation_explains_all() -> None:
    """Unknown and zero are different things."""
    assert separate_noise([[1.0], [2.0]]) is None
    assert separate_noise([[1.0, 2.0]]) is not None
    noise = separate_noise([[0.0, 2.0], [2.0, 0.0]])
    assert noise is not None
    assert noise.draw == 0.0
    assert noise.evaluation == pytest.approx(math.sqrt(2))
