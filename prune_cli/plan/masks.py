"""Which channels are pruned already, by a mask or by zeros.

See also: checkpoint/pairs.py, what is a mask.
"""

import math
from collections.abc import Iterator, Sequence

from prune_cli.channels import Bits, live_channels, masked_elements, other_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter, TensorInfo

_BLOCK = 1 << 18  # elements that are looked at together


def live(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> Sequence[int]:
    """Return the channels of `parameter` that are not pruned yet, by its mask if it has one."""
    info = parameter.mask or parameter.tensor
    if len(info.pieces) > 1:
        return _live_by_rows(checkpoint, info, dim)
    return live_channels(checkpoint.bits(info), dim, info.dtype)


def count_masked(checkpoint: Checkpoint, parameter: Parameter) -> int:
    """Return how many elements of `parameter` its mask takes away."""
    info = parameter.mask
    if info is None:
        return 0
    blocks = _blocks(checkpoint, info)
    return sum(int(masked_elements(bits, info.dtype, info.name).sum()) for _, bits in blocks)


def _blocks(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[tuple[int, Bits]]:
    """Yield a few rows of a tensor at a time, and the number of the first of them."""
    rows = info.shape[0] if info.shape else 1
    step = max(_BLOCK // max(math.prod(info.shape[1:]), 1), 1)
    for first in range(0, rows, step):
        yield first, checkpoint.rows(info, first, min(first + step, rows))


def _live_by_rows(checkpoint: Checkpoint, info: TensorInfo, dim: int) -> Sequence[int]:
    """live_channels, a few rows at a time: a tensor in pieces would have to be put together."""
    found: set[int] = set()
    for first, bits in _blocks(checkpoint, info):
        channels = live_channels(bits, dim, info.dtype)
        found.update(channel + first if dim == 0 else channel for channel in channels)
    return sorted(found)


def dead(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> tuple[int, ...]:
    """Return the channels of `parameter` that are pruned already."""
    return other_channels(live(checkpoint, parameter, dim), parameter.tensor.shape[dim])
