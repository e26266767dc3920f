"""How a tensor is cut into pieces that are worked on at once: integers only.

See also: `stream`, which does the work.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """A contiguous piece of a tensor that is worked on at once, seen from one dim.

    Its bytes are `start` to `stop` of the tensor; as elements they have the shape
    (rows, channels.stop - channels.start, -1) with the dim in the middle.
    """

    start: int
    stop: int
    rows: int
    channels: range


def blocks(shape: Sequence[int], dim: int, itemsize: int, limit: int) -> Iterator[Block]:
    """A contiguous tensor cut into Blocks of at most `limit` bytes each, in the order they lie.

    `dim` counts from the front, `itemsize` and `limit` are in bytes. One element is the least
    that a block can be.

    Example:
        >>> [b[:2] for b in blocks((4, 3), 0, itemsize=4, limit=24)]
        [(0, 24), (24, 48)]
    """
    outer, channels = math.prod(shape[:dim]), shape[dim]
    channel_bytes = math.prod(shape[dim + 1 :]) * itemsize
    row_bytes = channels * channel_bytes
    if 0 < row_bytes <= limit:
        step = limit // row_bytes
        for first in range(0, outer, step):
            last = min(first + step, outer)
            yield Block(first * row_bytes, last * row_bytes, last - first, range(channels))
    elif row_bytes:
        for row in range(outer):
            yield from _row_blocks(row * row_bytes, channels, channel_bytes, itemsize, limit)


def _row_blocks(
    base: int, channels: int, channel_bytes: int, itemsize: int, limit: int
) -> Iterator[Block]:
    step = limit // channel_bytes
    if step:
        for first in range(0, channels, step):
            last = min(first + step, channels)
            start, stop = base + first * channel_bytes, base + last * channel_bytes
            yield Block(start, stop, 1, range(first, last))
        return
    piece = max(limit // itemsize, 1) * itemsize
    for channel in range(channels):
        start, stop = base + channel * channel_bytes, base + (channel + 1) * channel_bytes
        for at in range(start, stop, piece):
            yield Block(at, min(at + piece, stop), 1, range(channel, channel + 1))
