"""How far sets of channels are the same, held against sets and against chance itself."""

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.report.overlap import count_pair, expect_shared, measure_overlap, to_bits
from tests.report.test_comparison import item

channels = st.sets(st.integers(0, 40)).map(sorted).map(tuple)


@given(channels, channels)
def test_bits_count_what_sets_do(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Shared, union and nested are those of Python's own sets."""
    rows = [item("w", first, channels=41), item("w", second, channels=41)]

    count = count_pair(*rows, *to_bits(rows))

    one, other = set(first), set(second)
    assert (count.shared, count.union) == (len(one & other), len(one | other))
    assert count.is_nested == (bool(one & other) and (one <= other or other <= one))
    assert measure_overlap(rows).jaccard == pytest.approx(count.jaccard)


def test_chance_is_what_drawing_gives() -> None:
    """The mean over a thousand draws is the expected one, and the index is near it."""
    generator = random.Random(0)
    live = range(20, 120)
    rows = [
        item("w", tuple(sorted(generator.sample(live, k))), channels=120, before=tuple(range(20)))
        for _ in range(500)
        for k in (25, 50)
    ]
    pairs = [[one, other] for one, other in zip(rows[::2], rows[1::2], strict=True)]

    counts = [count_pair(*pair, *to_bits(pair)) for pair in pairs]

    assert expect_shared(pairs[0]) == 12.5
    assert fmean(count.shared for count in counts) == pytest.approx(12.5, rel=0.03)
    assert fmean(count.jaccard for count in counts) == pytest.approx(12.5 / 62.5, rel=0.03)
    assert counts[0].by_chance == pytest.approx(12.5 / 62.5)


def test_channels_of_hostile_numbers_cost_nothing() -> None:
    """An edited report may name channel 10**15; memory grows with what is named, not with that."""
    rows = [item("w", (10**15,), channels=10**16), item("w", (5, 10**15), channels=10**16)]

    assert count_pair(*rows, *to_bits(rows)).shared == 1
