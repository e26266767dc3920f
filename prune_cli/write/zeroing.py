"""Finds what zeroes channels: NumPy, or the accelerator that was asked for."""

from prune_cli.channels import zero_channels
from prune_cli.errors import DeviceError
from prune_cli.write.stream import ZeroChannels


def find_zero_channels(device: str) -> ZeroChannels:
    """Return what zeroes channels on `device`; torch is imported only for another one than "cpu".

    Raises:
        DeviceError: it is not there.
    """
    if device == "cpu":
        return zero_channels
    try:
        from prune_cli.write.accelerator import Accelerator, find_device
    except ImportError as error:
        raise DeviceError(
            f"{device!r} needs torch, which cannot be imported here: {error}"
        ) from error
    return Accelerator(find_device(device)).zero_channels
