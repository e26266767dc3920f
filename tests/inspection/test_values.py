"""The numbers that bits stand for, held against torch."""

import numpy as np
import pytest
import torch

from prune_cli.inspection.values import to_numbers
from tests import build

DTYPES = [dtype for dtype in build.TORCH_DTYPES if dtype != "F4"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_those_of_torch(dtype: str) -> None:
    """Random bits of every dtype, NaN and infinities included; every code of a single byte."""
    tensor = build.random_bits(dtype, 64, 64)
    if tensor.itemsize == 1 and dtype != "BOOL":
        tensor = torch.arange(256, dtype=torch.uint8).view(tensor.dtype)

    octets = np.frombuffer(build.octets(tensor), f"<u{tensor.itemsize}")
    numbers = to_numbers(octets, dtype)

    wide = torch.complex128 if tensor.is_complex() else torch.float64
    expected = tensor.to(wide).reshape(-1).numpy()
    np.testing.assert_array_equal(numbers, expected)
