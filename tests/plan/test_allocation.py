"""Allocations: the published densities, whole channels within a budget, and what is out of reach."""

import math
import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_cli.errors import AmountError
from prune_cli.plan.allocation import (
    KINDS,
    Allocation,
    Layer,
    ends,
    fractions,
    reach_of,
    round_to_step,
    share_out,
    whole_channels,
)

NET = [
    Layer("conv1.weight", (16, 3, 3, 3), 0, 16),
    Layer("conv2.weight", (32, 16, 3, 3), 0, 32),
    Layer("conv3.weight", (64, 32, 1, 1), 1, 32),
    Layer("fc1.weight", (128, 1024), 0, 128),
    Layer("fc2.weight", (10, 128), 1, 128),
]


def raw_er(shape: Sequence[int]) -> float:
    """SET (Mocanu et al. 2018) as RigL (Evci et al. 2020) states it for channels."""
    fan_out, fan_in = shape[0], shape[1]
    return (fan_in + fan_out) / (fan_in * fan_out)


def raw_erk(shape: Sequence[int]) -> float:
    """RigL, with the dims of the kernel."""
    return sum(shape) / math.prod(shape)


def published(
    shapes: Sequence[Sequence[int]], density: float, raw: Callable[[Sequence[int]], float]
) -> list[float]:
    """The densities, found as RigL describes: make dense what is above 1, solve the rest again."""
    sizes = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        free = [n for n in range(len(shapes)) if n not in dense]
        if not free:
            return [1.0] * len(shapes)
        left = density * sum(sizes) - sum(sizes[n] for n in dense)
        epsilon = left / sum(raw(shapes[n]) * sizes[n] for n in free)
        above = {n for n in free if epsilon * raw(shapes[n]) > 1}
        if not above:
            return [1.0 if n in dense else epsilon * raw(shapes[n]) for n in range(len(shapes))]
        dense.add(max(above, key=lambda n: raw(shapes[n])))


@pytest.mark.parametrize(("kind", "raw"), [("er", raw_er), ("erk", raw_erk)], ids=["er", "erk"])
@pytest.mark.parametrize("amount", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_densities_are_the_published_ones(
    kind: str, raw: Callable[[Sequence[int]], float], amount: float
) -> None:
    """They agree to 1e-6 with an independent calculation, layers above 1 included."""
    gone = amount * sum(layer.elements for layer in NET)

    found = fractions(NET, Allocation(kind), gone)  # type: ignore[arg-type]

    expected = published([layer.shape for layer in NET], 1 - amount, raw)
    assert [1 - fraction for fraction in found] == pytest.approx(expected, abs=1e-6)


shapes = st.one_of(
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5), st.integers(1, 5)),
)


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    """Some layers, of which some channels may be pruned already."""
    found = []
    for number, shape in enumerate(draw(st.lists(shapes, min_size=1, max_size=12))):
        dim = draw(st.integers(0, 1))
        found.append(Layer(f"layer{number}", shape, dim, draw(st.integers(0, shape[dim]))))
    return found


@settings(max_examples=300)
@given(layers(), st.floats(0, 1), st.sampled_from(["er", "erk"]))
def test_published_densities_of_any_net(net: list[Layer], amount: float, kind: str) -> None:
    """Whatever the shapes, the two calculations agree to 1e-6."""
    live = [layer for layer in net if layer.elements]
    total = sum(layer.elements for layer in live)
    if not live or amount * total > total - 1e-9:
        return

    found = fractions(live, Allocation(kind), amount * total)  # type: ignore[arg-type]

    raw = raw_er if kind == "er" else raw_erk
    expected = published([layer.live_shape for layer in live], 1 - amount, raw)
    assert [1 - fraction for fraction in found] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=300)
@given(layers(), st.floats(0, 1), st.sampled_from(KINDS), st.integers(0, 5))
def test_a_budget_is_met_within_a_channel(
    net: list[Layer], part: float, kind: str, seed: int
) -> None:
    """What goes differs from the budget by half a channel of one layer at most."""
    allocation = Allocation(kind, seed=seed)  # type: ignore[arg-type]
    reach = reach_of(net, allocation)
    gone = reach.least + part * (reach.most - reach.least)
    wanted = fractions(net, allocation, gone)

    numbers = whole_channels(net, wanted, gone)

    achieved = sum(k * layer.width for k, layer in zip(numbers, net, strict=True))
    assert abs(achieved - gone) <= max(layer.width for layer in net) / 2 + 1e-6
    for layer, k, fraction in zip(net, numbers, wanted, strict=True):
        assert 0 <= k <= layer.live
        assert abs(k - fraction * layer.live) < 1 + 1e-6


@settings(max_examples=200)
@given(layers(), st.floats(0, 1), st.sampled_from(KINDS), st.integers(1, 8), st.integers(0, 9))
def test_steps_and_minima_hold(
    net: list[Layer], part: float, kind: str, step: int, at_least: int
) -> None:
    """Whole steps stay in each layer that loses any, and never less than the minimum."""
    net = [
        Layer(one.name, one.shape, one.dim, one.live, step=step, at_least=at_least) for one in net
    ]
    allocation = Allocation(kind)  # type: ignore[arg-type]
    reach = reach_of(net, allocation)
    gone = reach.least + part * (reach.most - reach.least)

    numbers = whole_channels(net, fractions(net, allocation, gone), gone)

    for layer, k in zip(net, numbers, strict=True):
        left = layer.live - k
        assert k == 0 or left % step == 0
        assert left >= min(at_least, layer.live)


@given(st.integers(0, 200), st.integers(1, 16), st.integers(0, 20), st.data())
def test_rounding_leaves_more_never_less(
    live: int, step: int, at_least: int, data: st.DataObject
) -> None:
    """Of what is asked for, as much goes as leaves a whole number of steps."""
    k = data.draw(st.integers(0, live))

    gone = round_to_step(Layer("w", (live, 1), 0, live, step=step, at_least=at_least), k)

    assert 0 <= gone <= k
    assert gone == 0 or (live - gone) % step == 0
    assert live - gone >= min(live, at_least)
    fits = [n for n in range(k + 1) if (live - n) % step == 0 and live - n >= at_least]
    assert gone == max(fits, default=0)


def test_ends_stay_whole() -> None:
    """With uniform-keep-ends the first and the last lose nothing and the others the same part."""
    total = sum(layer.elements for layer in NET)

    found = fractions(NET, Allocation("uniform-keep-ends"), 0.2 * total)

    assert found[0] == found[-1] == 0.0
    assert len({*found[1:-1]}) == 1
    middle = sum(layer.elements for layer in NET[1:-1])
    assert found[1] == pytest.approx(0.2 * total / middle)


NAMED = {
    "resnet": ["bn.weight", "conv1.weight", "fc.weight", "layer1.0.conv1.weight", "layer4.1.w"],
    "vgg": [
        "features.0.weight",
        "classifier.0.weight",
        "features.28.weight",
        "classifier.6.weight",
    ],
    "llama": ["lm_head.weight", "model.embed_tokens.weight", "model.layers.10.mlp.weight"],
    "bert": ["bert.embeddings.word.weight", "bert.encoder.layer.9.output.w", "classifier.weight"],
    "sequential": ["10.weight", "2.weight", "0.weight"],
}
ENDS = {
    "resnet": ("bn.weight", "fc.weight"),
    "vgg": ("features.0.weight", "classifier.6.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "bert": ("bert.embeddings.word.weight", "classifier.weight"),
    "sequential": ("0.weight", "10.weight"),
}


@pytest.mark.parametrize("model", NAMED)
def test_ends_are_told_by_names(model: str) -> None:
    """Whatever the order in the file, the first and the last are the same."""
    names = NAMED[model]

    assert ends(names) == ENDS[model] == ends(names[::-1])


def test_random_fractions_are_within_bounds_and_of_the_seed() -> None:
    """Each layer has its own, by name and seed alone, all scaled to the budget and in bounds."""
    total = sum(layer.elements for layer in NET)

    first = fractions(NET, Allocation("random", (0.2, 0.8), 1), 0.5 * total)
    other = fractions(NET, Allocation("random", (0.2, 0.8), 2), 0.5 * total)

    assert first != other
    assert all(0.2 <= fraction <= 0.8 for fraction in first)
    assert len(set(first)) > 2
    gone = sum(f * layer.elements for f, layer in zip(first, NET, strict=True))
    assert gone == pytest.approx(0.5 * total)


def test_what_is_out_of_reach_is_said_with_the_least_and_the_most() -> None:
    """A budget that no allocation meets names both limits."""
    total, middle = (sum(layer.elements for layer in some) for some in (NET, NET[1:-1]))
    limit = rf"the least is {total - middle:,} \(1\.2%\) and the most is {total:,} \(100\.0%\)"
    with pytest.raises(AmountError, match=limit):
        share_out(NET, Allocation("uniform-keep-ends"), 0.99)
    with pytest.raises(AmountError, match="random"):
        share_out(NET, Allocation("random", (0.1, 0.4)), 0.5)


def test_a_thousand_layers_take_no_time() -> None:
    """The work grows with the number of layers alone, not with that of channels."""
    draw = random.Random(0)
    net = [
        Layer(f"layer{n}", (draw.randint(16, 8192), draw.randint(16, 8192)), 0, 16)
        for n in range(1000)
    ]
    start = time.process_time()

    for kind in KINDS:
        assert sum(share_out(net, Allocation(kind), 0.5)) > 0

    assert time.process_time() - start < 0.3 * len(KINDS)
