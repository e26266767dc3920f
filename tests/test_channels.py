"""The arithmetic on bits, checked against stock torch: the draw, the zeros and the live channels."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from torch.nn.utils import prune as stock

from prune_cli.amounts import number_to_prune
from prune_cli.channels import (
    draw_channels,
    k_smallest,
    live_channels,
    masked_elements,
    ones,
    other_channels,
    uniform_draws,
    unsigned,
    zero_channels,
)
from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.errors import AmountError, InputError
from tests.strided import as_bits, live_lines, octets, strided

TORCH_DTYPES = {
    name: getattr(torch, dtype.torch)
    for name, dtype in DTYPES.items()
    if dtype.torch and hasattr(torch, dtype.torch) and dtype.holds_zero and dtype.bits >= 8
}
SPELT = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""safetensors' name of each torch dtype that has a zero."""

any_tensor = strided(tuple(SPELT))
seeds = st.integers(0, 2**64 - 1)


# --- The amount ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "live", "k"),
    [
        (0, 0, 0),
        (0, 5, 0),
        (5, 5, 5),
        (0.0, 5, 0),
        (1.0, 5, 5),
        (0.25, 10, 2),
        (0.35, 10, 4),
        (0.5, 0, 0),
        (1, 5, 1),
        (np.int64(3), 5, 3),
        (np.float32(0.5), 5, 2),
        (np.float64(1.0), 7, 7),
    ],
)
def test_an_amount_means_as_many_channels_as_in_torch(amount: float, live: int, k: int) -> None:
    """An int is the number itself, a float a fraction rounded half to even, NumPy's included."""
    number = number_to_prune(amount, live)

    assert number == k == stock._compute_nparams_toprune(amount, live)
    assert type(number) is int


def test_more_channels_than_are_left_are_refused_by_number_and_name() -> None:
    """The error says what was asked, what is possible at most, and for which tensor."""
    with pytest.raises(AmountError, match=r"fc\.weight: amount=9 .* at most 7"):
        number_to_prune(9, 7, "fc.weight")


# --- The draw -----------------------------------------------------------------------------------


def torch_rand(n: int, seed: int) -> torch.Tensor:
    """Draw as torch does from a generator of its own."""
    return torch.rand(n, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=2000, derandomize=True, deadline=None)
@given(n=st.integers(0, 700), seed=seeds)
@example(n=623, seed=0)
@example(n=624, seed=2**32 - 1)
@example(n=625, seed=2**32)
@example(n=17, seed=2**63)
@example(n=16, seed=2**64 - 1)
def test_the_draws_are_those_of_torch(n: int, seed: int) -> None:
    """Every number is the one that torch.rand draws from a generator of that seed."""
    draws = uniform_draws(n, seed)

    assert (draws.astype(np.float64) / 2**24).tolist() == torch_rand(n, seed).double().tolist()


@settings(max_examples=100, derandomize=True, deadline=None)
@given(n=st.integers(2_000, 100_000), seed=seeds)
@example(n=100_000, seed=2**64 - 1)
def test_many_draws_are_those_of_torch(n: int, seed: int) -> None:
    """So they are for as many channels as a vocabulary has tokens."""
    draws = torch.from_numpy(uniform_draws(n, seed).astype(np.float64) / 2**24)

    assert torch.equal(draws, torch_rand(n, seed).double())


@settings(max_examples=2000, derandomize=True, deadline=None)
@given(n=st.integers(1, 600), seed=seeds, part=st.floats(0, 1))
def test_the_channels_are_the_smallest_draws_by_a_stable_sort(
    n: int, seed: int, part: float
) -> None:
    """The documented rule, spelt out with torch, gives the same channels, ascending."""
    live, k = range(5, 5 + 2 * n, 2), round(part * n)

    channels = draw_channels(live, k, seed)

    order = torch_rand(n, seed).sort(stable=True).indices[:k]
    assert list(channels) == sorted(live[position] for position in order.tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_channels_of_many_are_the_smallest_draws_though_some_tie(seed: int) -> None:
    """Among 100,000 draws some are equal; of those the earlier channels go."""
    n = 100_000
    order = torch_rand(n, seed).sort(stable=True)
    ties = (order.values[1:] == order.values[:-1]).nonzero().flatten()
    k = int(ties[len(ties) // 2]) + 1  # the k-th draw and the next one are equal

    channels = draw_channels(range(n), k, seed)

    assert list(channels) == sorted(order.indices[:k].tolist())


def test_a_smaller_amount_is_a_subset_of_a_larger_one() -> None:
    """For one seed the drawn channels only grow with k."""
    draws = [set(draw_channels(range(100, 300), k, seed=5)) for k in range(201)]

    assert all(smaller < larger for smaller, larger in itertools.pairwise(draws))
    assert draws[200] == {*range(100, 300)}


@pytest.mark.parametrize("n", [1, 7, 256, 257, 3000])
def test_of_equal_numbers_the_earlier_are_the_smaller(n: int) -> None:
    """Few or many, sorting is stable."""
    values = np.arange(n) % 3

    smallest = k_smallest(values, n // 2)

    assert smallest == sorted(sorted(range(n), key=lambda i: (i % 3, i))[: n // 2])


# --- Zeros --------------------------------------------------------------------------------------


@settings(max_examples=600, derandomize=True, deadline=None)
@given(drawn=any_tensor, picked=st.sets(st.integers(0, 15)))
def test_exactly_the_channels_become_zero_bytes(
    drawn: tuple[torch.Tensor, int, torch.Tensor], picked: set[int]
) -> None:
    """In every dtype, shape and stride the channels are +0, and no other byte of memory changes."""
    tensor, dim, memory = drawn
    channels = sorted(channel for channel in picked if channel < tensor.shape[dim])
    expected = memory.clone()
    there = torch.as_strided(expected, tensor.shape, tensor.stride(), tensor.storage_offset())
    for channel in channels:
        as_bits(there.select(dim, channel))[...] = 0

    zero_channels(as_bits(tensor), dim, np.array(channels, np.int64))

    assert torch.equal(octets(memory), octets(expected))


@pytest.mark.parametrize("shape", [(40, 3, 50), (3, 40), (2, 40, 1), (40, 700)], ids=str)
def test_few_and_many_of_the_channels_become_zero(shape: tuple[int, ...]) -> None:
    """However wide a channel is, and however many of them go, the others stay."""
    dim = shape.index(40)
    for k in (0, 1, 2, 39, 40):
        bits = np.full(shape, 0xFFFF, np.uint16)
        zero_channels(bits, dim, np.arange(k, dtype=np.int64))

        zeros = np.moveaxis(bits, dim, 0).reshape(40, -1) == 0
        assert zeros.sum(axis=1).tolist() == [bits.size // 40] * k + [0] * (40 - k)


# --- Live channels ------------------------------------------------------------------------------


@settings(max_examples=600, derandomize=True, deadline=None)
@given(drawn=any_tensor)
def test_live_channels_are_those_with_a_value(
    drawn: tuple[torch.Tensor, int, torch.Tensor],
) -> None:
    """In every dtype, shape and stride, values decide: -0.0 is zero, NaN is not."""
    tensor, dim, _ = drawn

    live = live_channels(as_bits(tensor), dim, SPELT[tensor.dtype])

    assert list(live) == live_lines(tensor, dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 1, 1023, 1024, 5000, 131_071])
def test_a_value_is_found_however_far_into_a_channel(dim: int, place: int) -> None:
    """Blocks of every size are covered without a gap, along every dim."""
    bits = np.zeros([(9, 512, 256), (512, 9, 256), (512, 256, 9)][dim], np.uint8)
    row, column = divmod(place, 256)
    np.moveaxis(bits, dim, 0)[4, row, column] = 255

    assert list(live_channels(bits, dim, "I8")) == [4]


def test_a_complex_number_has_two_signs() -> None:
    """-0.0-0.0j is zero; so is it with one sign; a real or an imaginary part is a value."""
    zeros = [complex(0.0, 0.0), complex(-0.0, 0.0), complex(0.0, -0.0), complex(-0.0, -0.0)]
    values = [complex(1, -0.0), complex(-0.0, 1)]
    tensor = torch.tensor([[number] * 4 for number in zeros + values], dtype=torch.complex64)

    assert list(live_channels(as_bits(tensor), 0, "C64")) == [4, 5]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_the_byte_0x80_is_nan_in_the_fnuz_kinds_alone(dtype: str) -> None:
    """float8 FNUZ has no -0.0: that byte is its NaN, and not zero."""
    bits = np.zeros((2, 8), np.uint8)
    bits[1] = 0x80

    live = live_channels(bits, 0, dtype)

    assert list(live) == ([1] if "FNUZ" in dtype else [])


def test_other_channels_are_those_that_are_left() -> None:
    """They are ascending, and all or none where none or all are given."""
    assert other_channels([1, 3], 5) == (0, 2, 4)
    assert other_channels(range(5), 5) == ()
    assert other_channels([], 3) == (0, 1, 2)


# --- Masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SPELT.values())
def test_ones_are_those_of_torch(dtype: str) -> None:
    """A mask that keeps everything is, bit for bit, a tensor of ones."""
    expected = torch.ones(2, 3, dtype=torch.uint8).to(TORCH_DTYPES[dtype])

    bits = ones(dtype, (2, 3))

    assert bits.dtype == unsigned(dtype)
    assert bits.tolist() == as_bits(expected).tolist()


@pytest.mark.parametrize("dtype", SPELT.values())
def test_a_mask_takes_away_where_it_is_zero(dtype: str) -> None:
    """In every dtype, -0.0 is zero too."""
    mask = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8).to(TORCH_DTYPES[dtype])
    if TORCH_DTYPES[dtype].is_floating_point and "fnuz" not in str(TORCH_DTYPES[dtype]):
        mask[0, 1] = torch.tensor(-0.0).to(TORCH_DTYPES[dtype])

    off = masked_elements(as_bits(mask), dtype, "fc.weight_mask")

    assert off.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, float("nan")])
def test_a_mask_of_other_values_is_refused_by_name(value: float) -> None:
    """What is neither 0 nor 1 cannot be made permanent."""
    mask = torch.tensor([[1.0, value]])

    with pytest.raises(InputError, match=r"fc\.weight_mask holds values other than 0 and 1"):
        masked_elements(as_bits(mask), "F32", "fc.weight_mask")
