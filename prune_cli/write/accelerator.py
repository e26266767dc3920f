"""Zero channels on an accelerator: the one file of this room that imports torch.

See also: `channels.zero_channels`, which does it on the CPU and gives the same bytes.
"""

import numpy as np
import numpy.typing as npt
import torch

from prune_cli.channels import Bits
from prune_cli.errors import DeviceError
from prune_cli.torch_channels import zero_channels_

_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Accelerator:
    """A device of torch, which zeroes channels as `channels.zero_channels` does on the CPU.

    A class because its method stands in for that function, and has to know the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def zero_channels(self, bits: Bits, dim: int, channels: npt.NDArray[np.int64]) -> None:
        """Set the `channels` along `dim` to +0, in place; no other byte changes.

        Args:
            bits: of any shape with that dim, writable, not larger than the device's memory.
            dim: from 0.
            channels: int64, 1-D, ascending: indices along dim.
        """
        if not len(channels):
            return
        here = torch.from_numpy(bits.view(_SIGNED[bits.itemsize]))  # MPS has no wide unsigned
        there = here.to(self._device)
        gone = torch.from_numpy(channels).to(self._device)
        here.copy_(zero_channels_(there, dim, gone).cpu())


def find_device(name: str) -> torch.device:
    """Return the torch device called `name`; "auto" is the first accelerator, or else the CPU.

    Raises:
        DeviceError: it is not there; the message says what is.
    """
    there = available_devices()
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = {*there, "cuda"} if "cuda:0" in there else {*there}
    if device is None or str(device) not in known:
        raise DeviceError(f"there is no device {name!r}; there is {', '.join(there)} (and auto)")
    return device


def available_devices() -> list[str]:
    """Return the devices that `--device` can name here, "cpu" first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names
