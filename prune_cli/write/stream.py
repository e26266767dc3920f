"""Move the bytes of an output file from the checkpoint to a sink, piece by piece.

Pieces are small and independent, so that memory does not grow with a tensor, and several threads
can write them in any order to the same result.
"""

import contextlib
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from prune_cli.channels import Bits, masked_elements, ones, unsigned, zero_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.liveness import Watch
from prune_cli.checkpoint.source import Source, open_source
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.stores import Location
from prune_cli.stores.ranges import Extent
from prune_cli.write.blocks import Block, blocks, kept_bytes
from prune_cli.write.layout import OutputFile
from prune_cli.write.segments import (
    Checksum,
    Cut,
    New,
    OutputTensor,
    Place,
    Segment,
    Verbatim,
    Zeroed,
)
from prune_cli.write.sinks import ChecksumSink, Sink
from prune_cli.write.workers import Job, run

PIECE_BYTES = 2 << 20
"""What is worked on at once: it stays in a core's cache between reading, zeroing and writing."""

_ROWS_BYTES = 1 << 20
"""The same, of rows that are worked on as arrays of their own: there are several at once."""

_COPY_BYTES = 64 << 20
_BLOCKS_PER_JOB = 8

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
    """Write the whole of `file` to `sink`.

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
    write_segments(file.segments, checkpoint, sink, zero=zero, workers=workers, stopped=stopped)


def write_segments(
    segments: Sequence[Segment],
    checkpoint: Checkpoint,
    sink: Sink,
    *,
    zero: ZeroChannels = zero_channels,
    workers: int = 1,
    stopped: threading.Event | None = None,
) -> None:
    """Write segments to `sink`, each at its byte; see write_output."""
    with _open_files(segments, checkpoint) as sources:
        stream = _Stream(checkpoint, sources, sink, zero)
        sums = _add_up(segments, stream, workers, stopped)
        known = (sums.get(one, one) if isinstance(one, Checksum) else one for one in segments)
        run(stream.jobs(known), workers if sink.seekable else 1, stopped)


def _add_up(
    segments: Sequence[Segment],
    stream: "_Stream",
    workers: int,
    stopped: threading.Event | None,
) -> dict[Checksum, New]:
    """Find the checksums, which can stand before what they are of: that is read twice."""
    wanted = [one for one in segments if isinstance(one, Checksum)]
    starts = [one.at for one in segments]
    sums = {(one.start, one.stop): ChecksumSink() for one in wanted}
    jobs = (
        partial(
            stream.into(sink).work_through,
            segments[bisect_left(starts, start) : bisect_left(starts, stop)],
        )
        for (start, stop), sink in sums.items()
    )
    run(jobs, workers, stopped)
    return {one: New(one.at, sums[one.start, one.stop].digest) for one in wanted}


@contextlib.contextmanager
def _open_files(
    segments: Iterable[Segment], checkpoint: Checkpoint
) -> Iterator[Mapping[Location, Source]]:
    """Yield the input files that `segments` are made of -> their sources."""
    wanted = dict.fromkeys(_file_of(one, checkpoint) for one in segments)
    with contextlib.ExitStack() as stack:
        yield {
            path: stack.enter_context(open_source(path, _watch(path, segments, checkpoint)))
            for path in wanted
            if path
        }


def _watch(path: Location, segments: Iterable[Segment], checkpoint: Checkpoint) -> Watch | None:
    """Return what looks at the rows, of all that `segments` take of `path`, that were taken as live."""
    if not checkpoint.liveness.is_taken:
        return None
    infos = (info for one in segments for info in _tensors_of(one, path, checkpoint))
    return checkpoint.liveness.watch({info.name: info for info in infos}.values())


def _tensors_of(segment: Segment, path: Location, checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    match segment:
        case Place(tensor=OutputTensor(source=TensorInfo() as source)):
            if checkpoint.shards[source.shard].path == path:
                yield source
        case Verbatim() | Zeroed() if segment.file == path:
            [shard] = [shard for shard in checkpoint.shards if shard.path == path]
            stop = segment.start + segment.nbytes
            yield from (
                info for info in shard.tensors if segment.start <= (info.offset or 0) < stop
            )


def _file_of(segment: Segment, checkpoint: Checkpoint) -> Location | None:
    match segment:
        case Verbatim() | Zeroed():
            return segment.file
        case Place(tensor=tensor) if tensor.source:
            return checkpoint.shards[tensor.source.shard].path
    return None


class _Buffer(threading.local):
    """Each worker's own piece of memory."""

    def __init__(self) -> None:
        self.bytes = np.empty(PIECE_BYTES, np.uint8)


class _Stream:
    """From one checkpoint to one sink. A class, because every step needs all four of these."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sources: Mapping[Location, Source],
        sink: Sink,
        zero: ZeroChannels,
    ) -> None:
        self._checkpoint = checkpoint
        self._sources = sources
        self._sink = sink
        self._zero = zero
        self._buffer = _Buffer()

    def into(self, sink: Sink) -> "_Stream":
        """Return the same into another sink."""
        return _Stream(self._checkpoint, self._sources, sink, self._zero)

    def work_through(self, segments: Iterable[Segment]) -> None:
        """Write `segments` in their order."""
        for job in self.jobs(segments):
            job()

    def jobs(self, segments: Iterable[Segment]) -> Iterator[Job]:
        """Yield the jobs that write each segment at its byte."""
        for segment in segments:
            match segment:
                case New(at, content):
                    yield partial(self._sink.write, content, at)
                case Verbatim(at, nbytes, file, start):
                    yield from self._copy_jobs(self._sources[file], start, nbytes, at)
                case Zeroed():
                    yield from self._zeroed_jobs(segment)
                case Place(at, tensor):
                    yield from self._tensor_jobs(tensor, at)
                case Checksum():
                    raise ValueError(f"the checksum at byte {segment.at} is not known")

    def _tensor_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        if not tensor.is_contiguous_source:
            yield from self._row_jobs(tensor, at)
        elif tensor.zero:
            source, offset = self._place(tensor)
            cut = Cut(
                tensor.info.name,
                tensor.info.dtype,
                offset,
                tensor.info.shape,
                None,
                tensor.dim,
                tensor.zero,
            )
            yield from self._block_jobs(cut, source, at)
        else:
            source, offset = self._place(tensor)
            yield from self._copy_jobs(source, offset, tensor.info.nbytes, at)

    # What is untouched is copied, in the kernel if it can.

    def _copy_jobs(self, source: Source, start: int, nbytes: int, at: int) -> Iterator[Job]:
        for done in range(0, nbytes, _COPY_BYTES):
            size = min(_COPY_BYTES, nbytes - done)
            yield partial(self._sink.copy, source, start + done, size, at + done)

    # What loses channels passes through a buffer.

    def _block_jobs(self, cut: Cut, source: Source, at: int) -> Iterator[Job]:
        pieces = blocks(cut.shape, cut.dim, unsigned(cut.dtype).itemsize, PIECE_BYTES)
        channels = np.array(cut.channels, np.int64)
        while batch := tuple(islice(pieces, _BLOCKS_PER_JOB)):
            yield partial(self._write_blocks, cut, source, batch, channels, at)

    def _write_blocks(
        self,
        cut: Cut,
        source: Source,
        batch: tuple[Block, ...],
        channels: npt.NDArray[np.int64],
        at: int,
    ) -> None:
        kind = unsigned(cut.dtype)
        source = source.ahead(_wanted(cut, batch, channels))
        for block in batch:
            nbytes = block.stop - block.start
            hit = _within(cut.channels, channels, block.channels)
            if len(hit) == len(block.channels):
                self._sink.zero(nbytes, at + block.start)
                continue
            piece = self._buffer.bytes[:nbytes]
            source.read_into(piece.data, cut.offset + block.start)
            bits = piece.view(kind).reshape(block.rows, len(block.channels), -1)
            self._zero(bits, 1, hit)
            self._sink.write(piece.data, at + block.start)

    # What loses channels where it lies, between other tensors, is taken as a whole.

    def _zeroed_jobs(self, segment: Zeroed) -> Iterator[Job]:
        source = self._sources[segment.file]
        match segment.cuts:
            case (Cut(strides=None) as cut,):
                yield from self._block_jobs(cut, source, segment.at)
            case _:
                yield partial(self._write_zeroed, segment, source)

    def _write_zeroed(self, segment: Zeroed, source: Source) -> None:
        memory = np.empty(segment.nbytes, np.uint8)
        source.read_into(memory.data, segment.start)
        for cut in segment.cuts:
            kind = unsigned(cut.dtype)
            steps = cut.strides and [stride * kind.itemsize for stride in cut.strides]
            bits = np.ndarray(cut.shape, kind, memory.data, cut.offset - segment.start, steps)
            self._zero(bits, cut.dim, np.array(cut.channels, np.int64))
        for start in range(0, segment.nbytes, PIECE_BYTES):
            self._sink.write(memory.data[start : start + PIECE_BYTES], segment.at + start)

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
        """Return a copy of the rows `first` to `last` of what `tensor` keeps of `info`."""
        kept = dict(tensor.keep)
        if not kept:
            return self._checkpoint.rows(info, first, last)
        bits = np.atleast_1d(self._checkpoint.bits(info))
        rows = kept.pop(0, None)
        bits = bits[first:last] if rows is None else bits.take(rows[first:last], axis=0)
        for dim, indices in kept.items():
            bits = bits.take(indices, axis=dim)
        return bits

    def _place(self, tensor: OutputTensor) -> tuple[Source, int]:
        """Return the source, and the offset in it, that `tensor` is made of."""
        source = tensor.source
        if source is None or source.offset is None:
            raise ValueError(f"{tensor.info.name} is not in a file")
        return self._sources[self._checkpoint.shards[source.shard].path], source.offset


def _wanted(
    cut: Cut, batch: tuple[Block, ...], channels: npt.NDArray[np.int64]
) -> Iterator[Extent]:
    """Yield what has to be read for `batch`: all but long runs of channels that become zero."""
    for block in batch:
        hit = _within(cut.channels, channels, block.channels)
        for start, stop in kept_bytes(block, hit.tolist()):
            yield Extent(cut.offset + start, cut.offset + stop)


def _within(
    sorted_channels: tuple[int, ...], channels: npt.NDArray[np.int64], span: range
) -> npt.NDArray[np.int64]:
    """Return those of `channels` that lie in `span`, counted from its start."""
    first = bisect_left(sorted_channels, span.start)
    last = bisect_left(sorted_channels, span.stop)
    return channels[first:last] - span.start
