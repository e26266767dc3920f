"""Which channels are pruned already, by a mask or by zeros.

See also: checkpoint/pairs.py, what is a mask.
"""

import math
from collections.abc import Iterator, Sequence

from prune_cli.channels import Bits, live_channels, masked_elements, other_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.stores import StorePath

_BLOCK = 1 << 18  # elements that are looked at together
_LARGEST_BLOCK = 1 << 22


def live(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> Sequence[int]:
    """Return the channels of `parameter` that are not pruned yet, by its mask if it has one.

    Raises:
        DeadRowError: see checkpoint/liveness.py, how it is for weights in a store.
    """
    info = parameter.mask or parameter.tensor
    path = checkpoint.shards[info.shard].path
    if isinstance(path, StorePath):
        return _live_in_store(checkpoint, info, dim, path, is_mask=parameter.mask is not None)
    if len(info.pieces) > 1:
        return _live_by_rows(checkpoint, info, dim)
    return live_channels(checkpoint.bits(info), dim, info.dtype)


def _live_in_store(
    checkpoint: Checkpoint, info: TensorInfo, dim: int, path: StorePath, *, is_mask: bool
) -> Sequence[int]:
    """Read what has to be: of a mask all, of a weight as many rows as show its channels live."""
    liveness = checkpoint.liveness
    is_taken = dim == 0 and not is_mask and info.is_plain and info.elements > 0
    if is_taken and not liveness.looks:
        return liveness.take(info, path)
    if (info.name, dim) not in liveness.known:
        liveness.known[info.name, dim] = _live_by_rows(checkpoint, info, dim)
    return liveness.known[info.name, dim]


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
    """live_channels, ever more rows at a time: a tensor in pieces would have to be put together."""
    rows, n = info.shape[0], info.shape[dim]
    most = max(_LARGEST_BLOCK // max(math.prod(info.shape[1:]), 1), 1)
    found: set[int] = set()
    first, step = 0, 1 if dim else most
    while first < rows and len(found) < n:
        last = min(first + step, rows)
        channels = live_channels(checkpoint.rows(info, first, last), dim, info.dtype)
        found.update(channel + first if dim == 0 else channel for channel in channels)
        first, step = last, min(step * 8, most)
    return sorted(found)


def dead(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> tuple[int, ...]:
    """Return the channels of `parameter` that are pruned already."""
    return other_channels(live(checkpoint, parameter, dim), parameter.tensor.shape[dim])
