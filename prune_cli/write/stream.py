"""Move the bytes of an output file from the checkpoint to a sink, piece by piece.

Pieces are small and independent, so that memory does not grow with a tensor, and several threads
can write them in any order to the same result.
"""

import contextlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice

import numpy as np
import numpy.typing as npt

from prune_cli.channels import Bits, masked_elements, ones, unsigned, zero_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.reading import read_exactly
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.errors import InputError
from prune_cli.write.blocks import Block, blocks
from prune_cli.write.layout import OutputFile, OutputTensor
from prune_cli.write.sinks import Sink
from prune_cli.write.workers import Job, run

PIECE_BYTES = 2 << 20
"""What is worked on at once: it stays in a core's cache between reading, zeroing and writing."""

_ROWS_BYTES = 1 << 20
"""The same, of rows that are worked on as arrays of their own: there are several at once."""

_COPY_BYTES = 64 << 20
_BLOCKS_PER_JOB = 16

ZeroChannels = Callable[[Bits, int, npt.NDArray[np.int64]], None]
"""Zeroes channels in place, as `channels.zero_channels` does: here, or on an accelerator."""


def write_output(
    file: OutputFile,
    checkpoint: Checkpoint,
    sink: Sink,
    *,
    zero: ZeroChannels = zero_channels,
    workers: int = 1,
    stopped: threading.Event | None = None,
) -> None:
    """Write the whole of `file` to `sink`: the header, then each tensor.

    Args:
        file: what to write.
        checkpoint: what it is made of.
        sink: where it goes; one that is not seekable gets it in order.
        zero: what zeroes channels.
        workers: how many threads.
        stopped: see `run`.

    Raises:
        InputError: the checkpoint cannot be read.
        OutputError: the sink cannot be written.
    """
    sink.write(file.header, 0)
    places = place_tensors(file.tensors, len(file.header))
    write_tensors(places, checkpoint, sink, zero=zero, workers=workers, stopped=stopped)


def write_tensors(
    places: Sequence[tuple[OutputTensor, int]],
    checkpoint: Checkpoint,
    sink: Sink,
    *,
    zero: ZeroChannels = zero_channels,
    workers: int = 1,
    stopped: threading.Event | None = None,
) -> None:
    """Write tensors to `sink`, each at the byte that is given with it; see write_output."""
    with _open_shards([tensor for tensor, _ in places], checkpoint) as descriptors:
        stream = _Stream(checkpoint, descriptors, sink, zero)
        run(stream.jobs(places), workers if sink.seekable else 1, stopped)


def place_tensors(tensors: Sequence[OutputTensor], at: int) -> list[tuple[OutputTensor, int]]:
    """Return each of `tensors` with its first byte, one after the other from byte `at`."""
    sizes = [tensor.info.nbytes for tensor in tensors]
    return list(zip(tensors, accumulate(sizes, initial=at), strict=False))


@contextlib.contextmanager
def _open_shards(
    tensors: Iterable[OutputTensor], checkpoint: Checkpoint
) -> Iterator[Mapping[int, int]]:
    """The shards that `tensors` are made of -> their file descriptors."""
    wanted = {tensor.source.shard for tensor in tensors if tensor.source}
    with contextlib.ExitStack() as stack:
        descriptors = {}
        for shard in sorted(wanted):
            path = checkpoint.shards[shard].path
            try:
                descriptors[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error
            stack.callback(os.close, descriptors[shard])
        yield descriptors


class _Buffer(threading.local):
    """Each worker's own piece of memory."""

    def __init__(self) -> None:
        self.bytes = np.empty(PIECE_BYTES, np.uint8)


class _Stream:
    """From one checkpoint to one sink. A class, because every step needs all four of these."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        descriptors: Mapping[int, int],
        sink: Sink,
        zero: ZeroChannels,
    ) -> None:
        self._checkpoint = checkpoint
        self._descriptors = descriptors
        self._sink = sink
        self._zero = zero
        self._buffer = _Buffer()

    def jobs(self, places: Iterable[tuple[OutputTensor, int]]) -> Iterator[Job]:
        """The jobs that write each tensor at its byte."""
        for tensor, at in places:
            if not tensor.is_contiguous_source:
                yield from self._row_jobs(tensor, at)
            elif tensor.zero:
                yield from self._block_jobs(tensor, at)
            else:
                yield from self._copy_jobs(tensor, at)

    # What is untouched is copied, in the kernel if it can.

    def _copy_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        descriptor, offset = self._place(tensor)
        for start in range(0, tensor.info.nbytes, _COPY_BYTES):
            size = min(_COPY_BYTES, tensor.info.nbytes - start)
            yield partial(self._sink.copy, descriptor, offset + start, size, at + start)

    # What loses channels passes through a buffer.

    def _block_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        info, itemsize = tensor.info, unsigned(tensor.info.dtype).itemsize
        pieces = blocks(info.shape, tensor.dim, itemsize, PIECE_BYTES)
        channels = np.array(tensor.zero, np.int64)
        while batch := tuple(islice(pieces, _BLOCKS_PER_JOB)):
            yield partial(self._write_blocks, tensor, batch, channels, at)

    def _write_blocks(
        self,
        tensor: OutputTensor,
        batch: tuple[Block, ...],
        channels: npt.NDArray[np.int64],
        at: int,
    ) -> None:
        descriptor, offset = self._place(tensor)
        kind = unsigned(tensor.info.dtype)
        for block in batch:
            nbytes = block.stop - block.start
            hit = _within(tensor.zero, channels, block.channels)
            if len(hit) == len(block.channels):
                self._sink.zero(nbytes, at + block.start)
                continue
            piece = self._buffer.bytes[:nbytes]
            read_exactly(descriptor, piece.data, offset + block.start)
            bits = piece.view(kind).reshape(block.rows, len(block.channels), -1)
            self._zero(bits, 1, hit)
            self._sink.write(piece.data, at + block.start)

    # The rest is made of arrays, a few rows at a time: strided, masked, shrunk.

    def _row_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        rows = tensor.info.shape[0] if tensor.info.shape else 1
        row_bytes = tensor.info.nbytes // max(rows, 1)
        step = max(_ROWS_BYTES // max(row_bytes, 1), 1)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield partial(self._write_rows, tensor, first, last, at + first * row_bytes)

    def _write_rows(self, tensor: OutputTensor, first: int, last: int, at: int) -> None:
        bits = self._read_rows(tensor, first, last)
        if tensor.mask:
            mask = self._select(tensor.mask, tensor, first, last)
            bits[masked_elements(mask, tensor.mask.dtype, tensor.mask.name)] = 0
        if tensor.dim == 0:
            channels = [channel - first for channel in tensor.zero if first <= channel < last]
        else:
            channels = list(tensor.zero)
        self._zero(bits, tensor.dim, np.array(channels, np.int64))
        flat = bits.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), PIECE_BYTES):
            self._sink.write(flat[start : start + PIECE_BYTES], at + start)

    def _read_rows(self, tensor: OutputTensor, first: int, last: int) -> Bits:
        if tensor.source is None:
            return ones(tensor.info.dtype, (last - first, *tensor.info.shape[1:]))
        return self._select(tensor.source, tensor, first, last)

    def _select(self, info: TensorInfo, tensor: OutputTensor, first: int, last: int) -> Bits:
        """A copy of the rows `first` to `last` of what `tensor` keeps of `info`."""
        kept = dict(tensor.keep)
        if not kept:
            return self._checkpoint.rows(info, first, last)
        bits = np.atleast_1d(self._checkpoint.bits(info))
        rows = kept.pop(0, None)
        bits = bits[first:last] if rows is None else bits.take(rows[first:last], axis=0)
        for dim, indices in kept.items():
            bits = bits.take(indices, axis=dim)
        return bits

    def _place(self, tensor: OutputTensor) -> tuple[int, int]:
        """The file descriptor and the offset that the source of `tensor` is at."""
        source = tensor.source
        if source is None or source.offset is None:
            raise ValueError(f"{tensor.info.name} is not in a file")
        return self._descriptors[source.shard], source.offset


def _within(
    sorted_channels: tuple[int, ...], channels: npt.NDArray[np.int64], span: range
) -> npt.NDArray[np.int64]:
    """Those of `channels` that lie in `span`, counted from its start."""
    first = bisect_left(sorted_channels, span.start)
    last = bisect_left(sorted_channels, span.stop)
    return channels[first:last] - span.start
