"""Tensors of every dtype, shape and stride, and what is true of them by an independent calculation.

See also: `build`, which makes checkpoints.
"""

import hypothesis.strategies as st
import numpy as np
import torch

from prune_cli.channels import Bits

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
UNSIGNED = (torch.uint64, torch.uint32, torch.uint16)
COMPLEX = (torch.complex64, torch.complex128)
DTYPES = FLOATS + FLOAT8 + INTEGERS + UNSIGNED + COMPLEX

_SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ones(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor of ones of any dtype."""
    return torch.ones(shape, dtype=torch.uint8).to(dtype)


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, those of one element side by side in a last dim."""
    return tensor.detach().contiguous().unsqueeze(-1).view(torch.uint8)


def zero_lines(tensor: torch.Tensor, dim: int) -> list[int]:
    """List the channels whose every bit is zero."""
    bits = octets(tensor).movedim(dim, 0).flatten(1)
    return (bits == 0).all(dim=1).nonzero().flatten().tolist()


def live_lines(tensor: torch.Tensor, dim: int) -> list[int]:
    """List the channels that hold a value other than zero, one number at a time."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    is_value = torch.tensor([number != 0 for number in real.double().flatten().tolist()])
    lines = is_value.view(real.shape).movedim(dim, 0)
    return [channel for channel, line in enumerate(lines) if line.any()]


def as_bits(tensor: torch.Tensor) -> Bits:
    """View a tensor as NumPy's unsigned integers, one for each element."""
    bits = tensor.view(_INTEGERS[tensor.itemsize]).numpy()
    return bits.view(f"u{tensor.itemsize}")


@st.composite
def strided(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Draw a tensor, one of its dims, and the whole memory that the tensor is a view of.

    Most elements are zeros, some of them -0.0, and the rest are random bits, so NaN and inf too.
    Half of the tensors are contiguous; the others are permuted and have gaps. All may start
    within their memory, and dims of size 1 have any stride, which contiguous tensors may have too.
    """
    shape = draw(st.lists(st.sampled_from(_SIZES), min_size=1, max_size=4))
    strides = [0] * len(shape)
    order, step, plain = [*reversed(range(len(shape)))], 1, draw(st.booleans())
    for axis in order if plain else draw(st.permutations(order)):
        step *= 1 if plain else draw(st.sampled_from([1, 1, 2, 3]))
        strides[axis] = draw(st.integers(0, 9)) if shape[axis] == 1 else step
        step *= max(shape[axis], 1)
    offset = draw(st.integers(0, 3))
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
    dtype = draw(st.sampled_from(dtypes))
    memory = _elements(offset + last + 10, dtype, draw(st.integers(0, 2**32 - 1)))
    tensor = memory.as_strided(shape, strides, offset)
    return tensor, draw(st.integers(0, len(shape) - 1)), memory


def _elements(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Make elements of which most are zero, some are a sign alone, and others are random bits."""
    random, width = np.random.default_rng(seed), dtype.to_real().itemsize
    rows = random.integers(256, size=(n * dtype.itemsize // width, width), dtype=np.uint8)
    kind = random.random(len(rows))
    rows[kind < 0.9, :] = 0
    if dtype.is_floating_point or dtype.is_complex:
        rows[(kind > 0.6) & (kind < 0.9), -1] = 0x80
    if dtype is torch.bool:
        rows[:] = rows > 0
    return torch.from_numpy(rows).view(-1).view(dtype)
