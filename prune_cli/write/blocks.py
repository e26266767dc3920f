"""How a tensor is cut into pieces that are worked on at once: integers only.

See also: `stream`, which does the work.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_WORTH_A_REQUEST = 32 << 10
"""Bytes that take as long to fetch as it takes to ask a store for others. A row that is not read is
asked for a few bytes by itself, so that it counts as a request too."""


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


def kept_bytes(block: Block, zeroed: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the bytes of `block`, from `start` to `stop`, that have to be read.

    Where channels lie one after the other, runs of those that become zero are left out, if
    they are long enough to be worth a request of their own for what follows them.

    Args:
        block: a piece of a tensor.
        zeroed: ascending: the channels that become zero, counted from the first of the block.

    Example:
        >>> list(kept_bytes(Block(0, 400_000, 1, range(4)), [1, 2]))
        [(0, 100000), (300000, 400000)]
    """
    if block.rows != 1 or not zeroed:
        yield block.start, block.stop
        return
    width = (block.stop - block.start) // len(block.channels)
    at = block.start
    for first, last in _runs(zeroed):
        start, stop = block.start + first * width, block.start + (last + 1) * width
        if stop - start >= _WORTH_A_REQUEST * max(last - first, 1):
            if at < start:
                yield at, start
            at = stop
    if at < block.stop:
        yield at, block.stop


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of numbers that follow each other."""
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
