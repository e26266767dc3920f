"""Zeroing on an accelerator gives the bytes that NumPy gives on the CPU."""

import numpy as np
import pytest
import torch

from prune_cli.channels import zero_channels
from prune_cli.errors import DeviceError
from prune_cli.write.accelerator import Accelerator, available_devices, find_device


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 12, 1), (6, 4, 8), (2, 1, 5)], ids=str)
def test_an_accelerator_gives_the_bytes_of_the_cpu(
    accelerator: str, shape: tuple[int, ...], width: int
) -> None:
    """Elements of every width, all their bits set at random: the channels are +0, the rest stays."""
    random = np.random.default_rng(0)
    bits = random.integers(1 << 8 * width, size=shape, dtype=f"u{width}", endpoint=False)
    expected, channels = bits.copy(), np.arange(0, shape[1], 2)
    zero_channels(expected, 1, channels)

    Accelerator(torch.device(accelerator)).zero_channels(bits, 1, channels)

    assert bits.tolist() == expected.tolist()


def test_without_channels_nothing_is_moved_to_the_device() -> None:
    """So it does not matter whether the device can hold the piece."""
    bits = np.full((2, 3, 4), 7, np.uint16)

    Accelerator(torch.device("meta")).zero_channels(bits, 1, np.array([], np.int64))

    assert (bits == 7).all()


def test_the_devices_there_are_begin_with_the_cpu() -> None:
    """And each of them is found by its name."""
    names = available_devices()

    assert names[0] == "cpu"
    assert [str(find_device(name)) for name in names] == names


def test_auto_is_the_first_accelerator_or_the_cpu() -> None:
    """On a machine without one it is the CPU."""
    expected = [*available_devices(), "cpu"][1]

    assert str(find_device("auto")) == expected


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "no such", "meta"])
def test_a_device_that_is_not_there_is_answered_with_those_there_are(name: str) -> None:
    """The message names both."""
    with pytest.raises(DeviceError, match=rf"no device '{name}'; there is cpu.*auto"):
        find_device(name)
