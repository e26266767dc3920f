"""The arithmetic on torch tensors: the draw from a generator, the zeros and the live channels."""

import itertools
import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from prune_cli.errors import DimError, ParameterError
from prune_cli.torch_channels import draw_channels, live_channels, zero_channels_
from tests.strided import (
    DTYPES,
    FLOAT8,
    FLOATS,
    live_lines,
    octets,
    ones,
    strided,
    zero_lines,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- The draw -----------------------------------------------------------------------------------


def test_a_smaller_amount_is_a_subset_of_a_larger_one() -> None:
    """For one seed the drawn channels only grow with k."""
    live = torch.arange(100, 300)

    draws = [
        set(draw_channels(live, k, generator=torch.Generator().manual_seed(5)).tolist())
        for k in range(201)
    ]

    assert all(smaller < larger for smaller, larger in itertools.pairwise(draws))
    assert draws[200] == set(live.tolist())


def test_channels_are_the_smallest_draws_by_a_stable_sort() -> None:
    """The documented rule, written out in Python, gives the same channels, ascending."""
    live = torch.tensor([1, 4, 5, 9, 11, 30])
    values = torch.rand(6, generator=torch.Generator().manual_seed(8)).tolist()
    expected = sorted(sorted(range(6), key=values.__getitem__)[:4])

    channels = draw_channels(live, 4, generator=torch.Generator().manual_seed(8))

    assert channels.dtype is torch.int64
    assert channels.tolist() == live[expected].tolist()


# --- Zeros --------------------------------------------------------------------------------------


@with_dtypes
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 8), (5, 6, 500), (9, 5, 1)], ids=str)
def test_exactly_the_channels_become_zero_bytes(
    dtype: torch.dtype, shape: tuple[int, ...], dim: int
) -> None:
    """In every dtype the channels' bytes are zero, and no other byte has changed."""
    random_bytes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    tensor = random_bytes.to(torch.uint8).to(dtype)
    channels = torch.tensor([0, 3, 4] if shape[dim] > 1 else [0])
    expected = octets(tensor).clone()
    expected.movedim(dim % 3, 0)[channels] = 0

    result = zero_channels_(tensor, dim, channels)

    assert result is tensor
    assert torch.equal(octets(tensor), expected)


@settings(max_examples=600, derandomize=True, deadline=None)
@given(drawn=strided(), picked=st.sets(st.integers(0, 15)))
def test_of_any_shape_and_stride_exactly_the_channels_become_zero(
    drawn: tuple[torch.Tensor, int, torch.Tensor], picked: set[int]
) -> None:
    """In every dtype the channels are +0, and no other byte of the memory changes."""
    tensor, dim, memory = drawn
    channels = sorted(channel for channel in picked if channel < tensor.shape[dim])
    expected = memory.clone()
    there = expected.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    for channel in channels:
        there.select(dim, channel).copy_(torch.zeros((), dtype=tensor.dtype))

    zero_channels_(tensor, dim, torch.tensor(channels, dtype=torch.int64))

    assert torch.equal(octets(memory), octets(expected))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -0.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_float_becomes_positive_zero(dtype: torch.dtype, value: float) -> None:
    """NaN, inf and negative values leave no sign behind."""
    tensor = torch.full((3, 4), value, dtype=dtype)

    zero_channels_(tensor, 0, torch.tensor([1]))

    assert zero_lines(tensor, 0) == [1]


@pytest.mark.parametrize(
    "strided",
    [
        lambda t: t.t(),
        lambda t: t[::2, 1::3],
        lambda t: t.view(4, 2, 3, 4).to(memory_format=torch.channels_last),
        lambda t: t[:, 3:5].unsqueeze(1),
    ],
    ids=["transposed", "stepped", "channels_last", "sliced"],
)
def test_any_stride_is_written_in_place(strided: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A view's channels become zero in the memory that it views, and nothing else does."""
    view = strided(torch.ones(8, 12))

    zero_channels_(view, 0, torch.tensor([1, 2]))

    assert zero_lines(view, 0) == [1, 2]
    assert int((view == 0).sum()) == 2 * view[0].numel()


def test_a_leaf_that_requires_grad_is_zeroed_and_still_trains() -> None:
    """A parameter is written without a graph, and a backward pass after that works."""
    parameter = nn.Parameter(torch.ones(3, 4))

    zero_channels_(parameter, 0, torch.tensor([2]))

    parameter.square().sum().backward()
    assert parameter.is_leaf
    assert parameter.grad.sum(dim=1).tolist() == [8, 8, 0]


def test_a_graph_that_saved_the_tensor_notices_the_zeros() -> None:
    """Autograd refuses a backward pass through values that are gone, instead of being wrong."""
    parameter = nn.Parameter(torch.ones(3, 4))
    loss = parameter.square().sum()

    zero_channels_(parameter, 0, torch.tensor([2]))

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("call", [zero_channels_, live_channels], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("float8_e8m0fnu", "no zero"),
        ("float4_e2m1fn_x2", "two values into a byte"),
        ("int4", "unknown"),
    ],
)
def test_a_dtype_without_a_zero_is_refused_with_the_reason(
    call: Callable[..., torch.Tensor], dtype: str, reason: str
) -> None:
    """Where no bytes can say zero for one element, the error says why."""
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    tensor = torch.ones(4, 4, dtype=torch.uint8).view(getattr(torch, dtype))

    with pytest.raises(ParameterError, match=f"{dtype}.*{reason}"):
        call(tensor, 0, *([torch.tensor([0])] if call is zero_channels_ else []))


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dim_that_is_not_there_is_named_with_the_shape(dim: int) -> None:
    """Both primitives raise an IndexError that says which dims there are."""
    tensor = torch.ones(4, 3)

    for call in (lambda: zero_channels_(tensor, dim, torch.tensor([0])),
                 lambda: live_channels(tensor, dim)):  # fmt: skip
        with pytest.raises(DimError, match=rf"no dim {dim} in the shape \(4, 3\)"):
            call()


# --- Live channels ------------------------------------------------------------------------------


@with_dtypes
@pytest.mark.parametrize("shape", [(9,), (9, 40), (40, 9), (3, 9, 5), (4, 9, 2, 3)], ids=str)
def test_live_channels_are_those_with_a_value(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In every dtype, dim and shape: one element, in the last place, makes a channel live."""
    dim = shape.index(9)
    numbers = torch.zeros(shape, dtype=torch.uint8)
    for channel in (2, 3, 7):
        numbers[tuple(channel if size == 9 else -1 for size in shape)] = 1

    live = live_channels(numbers.to(dtype), dim - len(shape))

    assert live.dtype is torch.int64
    assert live.tolist() == [2, 3, 7]


@settings(max_examples=600, derandomize=True, deadline=None)
@given(drawn=strided())
def test_live_channels_of_any_shape_and_stride(
    drawn: tuple[torch.Tensor, int, torch.Tensor],
) -> None:
    """In every dtype values decide, one at a time: -0.0 is zero, NaN is not."""
    tensor, dim, _ = drawn

    assert live_channels(tensor, dim).tolist() == live_lines(tensor, dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 1, 1023, 1024, 5000, 131_071])
def test_a_value_is_found_however_far_into_a_channel(dim: int, place: int) -> None:
    """Blocks of every size are covered without a gap, along every dim."""
    tensor = torch.zeros(131_072 * 9, dtype=torch.int8)
    tensor = tensor.view([(9, 512, 256), (512, 9, 256), (512, 256, 9)][dim])
    row, column = divmod(place, 256)
    tensor.movedim(dim, 0)[4, row, column] = -1

    assert live_channels(tensor, dim).tolist() == [4]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_negative_zero_is_zero_and_nan_is_not(dtype: torch.dtype) -> None:
    """Values decide, not bits: what stock torch baked as -0.0 is pruned, NaN is not."""
    tensor = torch.zeros(4, 5000, dtype=dtype)
    tensor[1] = -0.0
    tensor[2] = math.nan
    tensor[3, 4000] = math.nan

    assert live_channels(tensor, 0).tolist() == [2, 3]
    assert live_channels(tensor.t().contiguous(), 1).tolist() == [2, 3]


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_the_byte_0x80_is_nan_in_the_fnuz_kinds_alone(dtype: torch.dtype) -> None:
    """float8_e4m3fnuz and e5m2fnuz have no -0.0: that byte is their NaN, and not zero."""
    tensor = torch.zeros(2, 8, dtype=torch.uint8)
    tensor[1] = 0x80

    live = live_channels(tensor.view(dtype), 0)

    assert live.tolist() == ([1] if "fnuz" in str(dtype) else [])


def test_live_channels_of_any_stride() -> None:
    """Transposed, stepped and expanded tensors give the channels of their values."""
    tensor = torch.zeros(6, 8)
    tensor[4, 6] = 1

    assert live_channels(tensor.t(), 0).tolist() == [6]
    assert live_channels(tensor[::2, ::2], 1).tolist() == [3]
    assert live_channels(tensor[:, 6], 0).tolist() == [4]
    assert live_channels(torch.ones(1, 1).expand(3, 4), 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), (2, 0, 3)], ids=str)
def test_a_channel_without_elements_is_not_live(shape: tuple[int, ...]) -> None:
    """An empty tensor has nothing to prune, along any dim."""
    for dim in range(len(shape)):
        assert live_channels(torch.ones(shape), dim).tolist() == []


def test_a_parameter_and_a_meta_tensor() -> None:
    """A leaf that requires grad is read as it is; a tensor without values is refused."""
    assert live_channels(nn.Parameter(torch.ones(2, 3)), 1).tolist() == [0, 1, 2]
    with pytest.raises(ParameterError, match="meta"):
        live_channels(torch.ones(2, 3, device="meta"), 1)


@needs_cuda
@with_dtypes
def test_cuda_tensors_are_zeroed_and_read(dtype: torch.dtype) -> None:
    """The primitives work where the tensor is."""
    tensor = ones((6, 5), dtype).cuda()

    zero_channels_(tensor, 1, torch.tensor([1, 3]))

    assert live_channels(tensor, 1).tolist() == [0, 2, 4]
    assert live_channels(tensor, 0).tolist() == list(range(6))
