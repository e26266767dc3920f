"""Where the bytes of a file are not what they should be: for each channel, the first such element.

A channel's answer is an offset, counted from the start of the file to the first byte of the
element, or NOWHERE. So what is noted grows with the channels of the tensors that differ, however
much differs. What the answer means is `verify`'s to say.
"""

import math
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import product
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.source import Source
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.write.segments import Place, Segment
from prune_cli.write.sinks import write_pieces, write_zeros

NOWHERE = int(np.iinfo(np.int64).max)
"""In place of an offset: the channel is as it should be."""

Offsets = npt.NDArray[np.int64]

_BLOCK_ELEMENTS = 1 << 19
_NOTED_ELEMENTS = 1 << 16


def first_bits(
    checkpoint: Checkpoint, info: TensorInfo, dim: int, channels: Sequence[int]
) -> Offsets:
    """Return where each of `channels` along `dim` has its first element that is not +0.

    Args:
        checkpoint: with the tensor.
        info: of a tensor that lies in its file as it is (`is_plain`), of a dtype of whole bytes.
        dim: from 0; a tensor without dims is one channel.
        channels: the only ones that are read.

    Returns:
        int64, an offset or NOWHERE for each index along `dim`.
    """
    shape = info.shape or (1,)
    outer, n, inner = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    bits = checkpoint.bits(info).reshape(outer, n, inner)
    first = np.full(n, NOWHERE)
    columns = max(min(inner, _BLOCK_ELEMENTS), 1)
    step = max(_BLOCK_ELEMENTS // columns, 1)
    for start in range(0, len(channels), step):
        some = np.array(channels[start : start + step], np.int64)
        rows = max(_BLOCK_ELEMENTS // (columns * len(some)), 1)
        for row, column in product(range(0, outer, rows), range(0, inner, columns)):
            block = bits[row : row + rows, :, column : column + columns][:, some]
            if block.any():
                r, c, i = block.nonzero()
                elements = ((row + r) * n + some[c]) * inner + column + i
                np.minimum.at(first, some[c], elements)
    found = first != NOWHERE
    first[found] = first[found] * bits.itemsize + (info.offset or 0)
    return first


class ComparingSink:
    """A Sink that checks what it is given against a file, and notes where they differ."""

    seekable = True

    def __init__(self, there: Source, segments: Iterable[Segment]) -> None:
        self._there = there
        self._segments = sorted((one for one in segments if one.nbytes), key=attrgetter("at"))
        self._starts = [one.at for one in self._segments]
        self._buffer = _Buffer()
        self._lock = threading.Lock()
        self.first: dict[str, Offsets] = {}
        """For each tensor that differs: an offset or NOWHERE for each index along the dim in which
        it loses channels, or one offset if it loses none."""
        self.elsewhere: list[int] = []
        """An offset in each other segment that differs: bytes that are no packed tensor."""

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Compare `data` with what is at byte `at`."""
        actual = self._buffer.of(len(data))
        self._there.read_into(memoryview(actual), at)
        expected: object = data  # as two memoryviews they would be compared one by one
        if actual != expected:
            self._note(actual, data, at)

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Compare `nbytes` of `source` with what is at byte `at`."""
        write_pieces(self, source, start, nbytes, at)

    def zero(self, nbytes: int, at: int) -> None:
        """Compare what is at byte `at` with `nbytes` zeros."""
        write_zeros(self, nbytes, at)

    def _note(self, actual: bytearray, expected: memoryview | bytes, at: int) -> None:
        """Note where the two differ; they lie within one tensor, and hold whole elements."""
        segment = self._segments[bisect_right(self._starts, at) - 1]
        if not isinstance(segment, Place):
            with self._lock:
                self.elsewhere.append(at + _first_difference(actual, expected))
            return
        start, tensor = segment.at, segment.tensor
        channels = tensor.info.shape[tensor.dim] if tensor.zero else 1
        with self._lock:
            first = self.first.setdefault(tensor.info.name, np.full(channels, NOWHERE))
            if (first <= at).all():
                return  # what comes later is not the first
        width = max(DTYPES[tensor.info.dtype].bits // 8, 1)
        inner = math.prod(tensor.info.shape[tensor.dim + 1 :])
        is_, should = (np.frombuffer(bytes(side), f"<u{width}") for side in (actual, expected))
        for place in range(0, len(is_), _NOTED_ELEMENTS):
            part = slice(place, place + _NOTED_ELEMENTS)
            elements = np.flatnonzero(is_[part] != should[part])
            elements += place + (at - start) // width
            of_channel = elements // inner % channels
            is_new = np.ones(len(elements), np.bool_)
            is_new[1:] = of_channel[1:] != of_channel[:-1]
            with self._lock:
                np.minimum.at(first, of_channel[is_new], elements[is_new] * width + start)


def _first_difference(one: bytearray, other: memoryview | bytes) -> int:
    differing = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    return int(differing.argmax())


class _Buffer(threading.local):
    """Each worker's own memory, of the length that was last asked for."""

    memory = bytearray()

    def of(self, nbytes: int) -> bytearray:
        if len(self.memory) != nbytes:
            self.memory = bytearray(nbytes)
        return self.memory
