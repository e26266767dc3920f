"""Tensors that claim far more than their files hold, which no saver writes: they are a trap.

A dim of stride 0 costs no byte, and nor does any dim of a tensor without elements; but reading,
listing and writing them does.
"""

import math

from prune_cli.checkpoint.contents import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.errors import InputError

_LARGEST_BLOW_UP = 64
"""Expanded tensors take less room in a torch file than packed. Beyond this factor it is a trap."""

_CHANNELS_OF_ANY_FILE = 1 << 20
_CHANNELS_PER_BYTE = 2  # elements of 4 bits
_ADDRESSES = 1 << 63


def refuse_claims(checkpoint: Checkpoint) -> None:
    """Raise InputError where the tensors of `checkpoint` claim more than its files can hold.

    Args:
        checkpoint: whose tensors together may claim so many bytes and channels for each byte there
            is; those that lie in a file as they are always do.
    """
    infos = checkpoint.tensors.values()
    size, channels = checkpoint.nbytes, sum(map(_most_channels, infos))
    if sum(info.nbytes for info in infos) > _LARGEST_BLOW_UP * size:
        worst = max(infos, key=lambda info: info.nbytes)
        raise _refusal(checkpoint, worst, f"{worst.nbytes:,} bytes")
    if channels > max(_CHANNELS_OF_ANY_FILE, _CHANNELS_PER_BYTE * size):
        worst = max(infos, key=_most_channels)
        raise _refusal(checkpoint, worst, f"{_most_channels(worst):,} channels")
    for info in infos:
        if not info.elements and _bytes_without_gaps(info) >= _ADDRESSES:
            raise _refusal(checkpoint, info, "more than any memory can hold")


def _most_channels(info: TensorInfo) -> int:
    return max(info.shape, default=0)


def _bytes_without_gaps(info: TensorInfo) -> int:
    """Return the bytes of a tensor if none of its dims was 0, as strides are computed."""
    return math.prod(max(size, 1) for size in info.shape) * max(DTYPES[info.dtype].bits // 8, 1)


def _refusal(checkpoint: Checkpoint, info: TensorInfo, claimed: str) -> InputError:
    return InputError(
        f"{checkpoint.path}: {info.name!r} of shape {list(info.shape)} claims {claimed} in "
        f"{checkpoint.nbytes:,} bytes of files; it is corrupt, or expanded beyond use"
    )
