"""Stock torch as the oracle: where it is right, ours gives the very same; and the draw is fair."""

import math
from collections import Counter
from itertools import combinations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import module as ours
from prune_cli.amounts import number_to_prune
from prune_cli.module import RandomStructured, random_structured
from prune_cli.torch_channels import draw_channels, live_channels, zero_channels_

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)
amounts = st.one_of(st.floats(0, 1), st.integers(0, 6))
seeds = st.integers(0, 2**63 - 1)


def module_with(weight: torch.Tensor) -> nn.Module:
    """Make a module whose one parameter is a copy of `weight`."""
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    return module


def random_mask(shape: tuple[int, ...], dim: int, seed: int) -> torch.Tensor:
    """Make a mask of two kinds at once: whole channels are 0, and single elements of others."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(shape, generator=generator) < 0.7).float()
    channels = torch.rand(shape[dim], generator=generator) < 0.3
    return zero_channels_(mask, dim, channels.nonzero().flatten())


@st.composite
def requests(draw: st.DrawFn) -> dict[str, object]:
    """Draw what to prune: a shape, a dtype, a dim, an amount and a seed."""
    shape = draw(shapes)
    return {
        "shape": shape,
        "dtype": draw(st.sampled_from(DTYPES)),
        "dim": draw(st.integers(-len(shape), len(shape) - 1)),
        "amount": draw(amounts),
        "seed": draw(seeds),
    }


def prune_with(prune: object, modules: dict[object, nn.Module], request: dict[str, object]) -> str:
    """Prune this implementation's module from the request's seed; give the error's kind if any."""
    torch.manual_seed(request["seed"])
    try:
        prune.random_structured(modules[prune], "weight", request["amount"], request["dim"])
    except ValueError:
        return "ValueError"
    return "done"


def assert_same(modules: dict[object, nn.Module]) -> None:
    """Compare masks exactly, and weights as numbers: stock torch has -0.0 where ours is +0."""
    mine, theirs = modules[ours], modules[stock]
    assert torch.equal(mine.weight_mask, theirs.weight_mask)
    assert mine.weight_mask.dtype is theirs.weight_mask.dtype
    assert torch.equal(mine.weight, theirs.weight)
    assert mine.weight.dtype is theirs.weight.dtype


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(request=requests())
def test_a_first_apply_is_that_of_stock(request: dict[str, object]) -> None:
    """The same channels, mask, weight, errors and state of the global generator."""
    weight = torch.randn(request["shape"]).to(request["dtype"])
    modules = {ours: module_with(weight), stock: module_with(weight)}

    outcomes = [prune_with(ours, modules, request), torch.get_rng_state()]
    expected = [prune_with(stock, modules, request), torch.get_rng_state()]

    assert outcomes[0] == expected[0]
    assert torch.equal(outcomes[1], expected[1])
    if outcomes[0] == "done":
        assert_same(modules)


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(request=requests(), mask_seed=seeds)
def test_an_apply_on_a_prior_mask_is_that_of_stock(
    request: dict[str, object], mask_seed: int
) -> None:
    """On top of any mask, drawing among its live channels is what torch's container does."""
    weight = torch.randn(request["shape"]).to(request["dtype"])
    mask = random_mask(request["shape"], request["dim"], mask_seed)
    modules = {ours: module_with(weight), stock: module_with(weight)}
    for module in modules.values():
        stock.custom_from_mask(module, "weight", mask)

    outcomes = [prune_with(ours, modules, request), prune_with(stock, modules, request)]

    assert outcomes[0] == outcomes[1]
    if outcomes[0] == "done":
        assert_same(modules)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(request=requests(), steps=st.integers(1, 4))
def test_a_pipeline_of_applies_and_remove_is_that_of_stock(
    request: dict[str, object], steps: int
) -> None:
    """Again and again along changing dims, and baked at the end, the numbers are stock's."""
    weight = torch.randn(request["shape"]).to(request["dtype"])
    modules = {ours: module_with(weight), stock: module_with(weight)}
    amount = request["amount"] / 6 if isinstance(request["amount"], int) else request["amount"]

    for step in range(steps):
        again = request | {"amount": amount, "dim": step % weight.dim(), "seed": step}
        for implementation in (ours, stock):
            prune_with(implementation, modules, again)
        assert_same(modules)
    for module in modules.values():
        stock.remove(module, "weight")

    assert torch.equal(modules[ours].weight, modules[stock].weight)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(request=requests(), mask_seed=seeds)
def test_a_direct_call_is_that_of_a_container_of_stock(
    request: dict[str, object], mask_seed: int
) -> None:
    """compute_mask and prune on a prior mask give what torch's container computes with stock."""
    t = torch.randn(request["shape"]).to(request["dtype"])
    mask = random_mask(request["shape"], request["dim"], mask_seed)
    live = len(live_channels(mask, request["dim"]))
    amount = min(request["amount"], live) if live else 0
    oracle = stock.RandomStructured(amount, request["dim"])
    oracle._tensor_name = "weight"

    torch.manual_seed(request["seed"])
    expected = stock.PruningContainer(oracle).compute_mask(t, mask.clone())
    torch.manual_seed(request["seed"])
    computed = RandomStructured(amount, request["dim"]).compute_mask(t, mask)
    torch.manual_seed(request["seed"])
    pruned = RandomStructured(amount, request["dim"]).prune(t, mask)

    assert torch.equal(computed, expected)
    assert torch.equal(pruned, t * expected)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(request=requests())
def test_baking_a_tensor_is_apply_and_remove(request: dict[str, object]) -> None:
    """draw_channels and zero_channels_, without a module, give the weight that stock bakes."""
    weight = torch.randn(request["shape"]).to(request["dtype"])
    n = weight.shape[request["dim"]]
    amount = min(request["amount"], n)
    module = module_with(weight)

    torch.manual_seed(request["seed"])
    stock.random_structured(module, "weight", amount, request["dim"])
    stock.remove(module, "weight")
    generator = torch.Generator().manual_seed(request["seed"])
    channels = draw_channels(torch.arange(n), number_to_prune(amount, n), generator=generator)

    assert torch.equal(zero_channels_(weight, request["dim"], channels), module.weight)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(request=requests(), mask_seed=seeds)
def test_live_channels_are_those_of_a_plain_reduction(
    request: dict[str, object], mask_seed: int
) -> None:
    """The blockwise reading finds what one expression over the whole tensor finds."""
    mask = random_mask(request["shape"], request["dim"], mask_seed).to(request["dtype"])

    live = live_channels(mask, request["dim"])

    values = mask.movedim(request["dim"], 0).flatten(1)
    assert live.tolist() == (values != 0).any(dim=1).nonzero().flatten().tolist()


def test_a_generator_and_the_global_one_of_that_seed_give_the_same() -> None:
    """A generator of one's own is the global generator of the same seed."""
    for seed in range(200):
        linear, other = nn.Linear(40, 3), nn.Linear(40, 3)
        random_structured(linear, "weight", 0.5, 1, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        stock.random_structured(other, "weight", 0.5, 1)
        assert torch.equal(linear.weight_mask, other.weight_mask)


# --- Fairness -----------------------------------------------------------------------------------


def chi_square_limit(freedom: int) -> float:
    """Give what chi-square stays under in all but one of a million cases (Wilson-Hilferty)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4.7534 * math.sqrt(spread)) ** 3


def chi_square(counts: list[int]) -> float:
    """Measure how far the counts are from being all alike."""
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts) / mean


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("per_seed", [True, False], ids=["a seed each", "one generator"])
def test_every_set_of_k_channels_is_as_likely(k: int, per_seed: bool) -> None:
    """Each subset is drawn as often as any other, from successive seeds as from one generator."""
    live, generator = torch.arange(7), torch.Generator().manual_seed(1)
    counts = Counter({subset: 0 for subset in combinations(range(7), k)})

    for seed in range(10_000):
        if per_seed:
            generator.manual_seed(seed)
        counts[tuple(draw_channels(live, k, generator=generator).tolist())] += 1

    assert len(counts) == math.comb(7, k)
    assert chi_square(list(counts.values())) < chi_square_limit(math.comb(7, k) - 1)


def test_the_limit_of_chi_square_catches_a_bias() -> None:
    """Ten thousand draws are enough to see that one channel of ten goes a quarter more often."""
    fair, biased = [1000] * 10, [1250] + [972] * 9

    assert chi_square(fair) < chi_square_limit(9) < chi_square(biased)


def test_every_channel_of_many_goes_as_often() -> None:
    """Of 4096 channels a quarter goes, each as often as another, wherever it stands."""
    live, counts = torch.arange(4096), torch.zeros(4096, dtype=torch.int64)

    for seed in range(800):
        channels = draw_channels(live, 1024, generator=torch.Generator().manual_seed(seed))
        counts[channels] += 1

    spread = float(((counts - 200.0) ** 2).sum()) / (800 * 0.25 * 0.75)
    assert abs(spread - 4096) < 5 * math.sqrt(2 * 4096)
