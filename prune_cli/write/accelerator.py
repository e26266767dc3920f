"""Zero channels on an accelerator: the one file of the stream that knows torch.

The bytes are those of the CPU on every device.
"""

import numpy as np
import numpy.typing as npt
import torch

from prune_cli.channels import Bits
from prune_cli.errors import DeviceError
from prune_cli.module import zero_channels_

_SIGNED = {2: np.int16, 4: np.int32, 8: np.int64}


class Accelerator:
    """A device of torch, to zero channels on, as `channels.zero_channels` does on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def zero_channels(self, bits: Bits, dim: int, channels: npt.NDArray[np.int64]) -> None:
        """Set the `channels` along `dim` to +0 in place; see `channels.zero_channels`."""
        if not len(channels):
            return
        here = torch.from_numpy(bits.view(_SIGNED.get(bits.itemsize, np.uint8)))
        there = here.to(self.device)
        zero_channels_(there, dim, torch.from_numpy(channels).to(self.device))
        here.copy_(there.cpu())


def find_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first accelerator, or else the CPU.

    Raises:
        DeviceError: it is not there; the message says what is.
    """
    there = available_devices()
    if name == "auto":
        return torch.device(there[-1] if len(there) == 1 else there[1])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = {name if name != "cuda:0" else "cuda" for name in there} | set(there)
    if device is None or str(device) not in known:
        raise DeviceError(f"there is no device {name!r}; there is {', '.join(there)} (and auto)")
    return device


def available_devices() -> list[str]:
    """The devices that `--device` can name here: "cpu" first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names
