"""Moves the bytes of an output file from the checkpoint to a sink, piece by piece.

Pieces are small and independent, so that memory does not grow with a tensor, and several threads
can write them in any order to the same result.
"""

import contextlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import accumulate, islice

import torch

from prune_cli.checkpoint import Checkpoint, torch_dtype
from prune_cli.checkpoint.tensors import DTYPES, Block, TensorInfo, blocks
from prune_cli.errors import InputError
from prune_cli.module import INTEGER_OF_WIDTH, masked_elements, zero_channels_
from prune_cli.write.atomic import Sink, read_exactly
from prune_cli.write.layout import OutputFile, OutputTensor

PIECE_BYTES = 2 << 20
"""What is worked on at once: it stays in a core's cache between reading, zeroing and writing."""

_ROWS_BYTES = 1 << 20
"""The same, of rows that are worked on as tensors of their own: there are several at once."""

_COPY_BYTES = 64 << 20
_BLOCKS_PER_JOB = 16

Job = Callable[[], None]

OnTensor = Callable[[str, int], None]
"""Called, from any thread, with a tensor's name and how many more of its bytes are written."""


def write_output(
    file: OutputFile,
    checkpoint: Checkpoint,
    sink: Sink,
    *,
    device: torch.device,
    workers: int = 1,
    on_tensor: OnTensor | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Writes the whole of `file` to `sink`: the header, then each tensor.

    Args:
        file: what to write.
        checkpoint: what it is made of.
        sink: where it goes; one that is not seekable gets it in order.
        device: where channels are zeroed.
        workers: how many threads.
        on_tensor: progress.
        stopped: see `run`.

    Raises:
        InputError: the checkpoint cannot be read.
        OutputError: the sink cannot be written.
    """
    header = file.header
    sink.write(header, 0)
    write_tensors(
        _places(file.tensors, len(header)),
        checkpoint,
        sink,
        device=device,
        workers=workers,
        on_tensor=on_tensor,
        stopped=stopped,
    )


def write_tensors(
    places: Sequence[tuple[OutputTensor, int]],
    checkpoint: Checkpoint,
    sink: Sink,
    *,
    device: torch.device,
    workers: int = 1,
    on_tensor: OnTensor | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Writes tensors to `sink`, each at the byte that is given with it; see write_output."""
    with _open_shards([tensor for tensor, _ in places], checkpoint) as descriptors:
        stream = _Stream(checkpoint, descriptors, sink, device, on_tensor or (lambda *_: None))
        run(stream.jobs(places), workers if sink.seekable else 1, stopped)


class StoppedError(Exception):
    """Jobs were left because others failed, or a signal came: those have the error to tell."""


def run(jobs: Iterable[Job], workers: int, stopped: threading.Event | None = None) -> None:
    """Runs `jobs`, each when a worker is free for it; the first error stops them all.

    Args:
        jobs: what to run; a job can be a `run` too.
        workers: how many threads.
        stopped: shared with the runs inside and outside of this one: an error in any ends all.

    Raises:
        StoppedError: `stopped` was set from outside before all were done.
    """
    queue, lock = iter(jobs), threading.Lock()
    stopped = stopped or threading.Event()

    def work() -> None:
        while True:
            with lock:
                job = next(queue, None)
            if job is None:
                return
            if stopped.is_set():
                raise StoppedError
            job()

    if workers == 1:
        work()
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            _raise_first(wait(futures, return_when=FIRST_EXCEPTION).done)
        except BaseException:  # Ctrl-C reaches the main thread only, which waits here
            stopped.set()
            raise


def _raise_first(futures: Iterable[Future[None]]) -> None:
    """Raises what a job raised; that jobs were stopped only if that is all there is to tell."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error


def _places(tensors: Sequence[OutputTensor], at: int) -> list[tuple[OutputTensor, int]]:
    """Each of `tensors` with its first byte, one after the other from byte `at`."""
    sizes = [tensor.info.nbytes for tensor in tensors]
    return list(zip(tensors, accumulate(sizes, initial=at), strict=False))


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keeps torch from sharing an operation among threads of its own: the workers are the threads.

    Pieces are small, and torch's threads (OpenMP) wait for each other in a busy loop: where another
    process has the cores, for ten times as long as the work takes. For the whole process, so it is
    entered once and not by each worker.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    """Each worker's own piece of memory, as bytes and as a tensor over the same bytes."""

    def __init__(self) -> None:
        memory = bytearray(PIECE_BYTES)
        self.bytes = memoryview(memory)
        self.tensor = torch.frombuffer(memory, dtype=torch.uint8)


class _Stream:
    """From one checkpoint to one sink. A class, because every step needs all five of these."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        descriptors: Mapping[int, int],
        sink: Sink,
        device: torch.device,
        on_tensor: OnTensor,
    ) -> None:
        self._checkpoint = checkpoint
        self._descriptors = descriptors
        self._sink = sink
        self._device = device
        self._on_tensor = on_tensor
        self._buffer = _Buffer()

    def jobs(self, places: Iterable[tuple[OutputTensor, int]]) -> Iterator[Job]:
        """The jobs that write each tensor at its byte."""
        for tensor, at in places:
            if not tensor.is_contiguous_source:
                yield from self._row_jobs(tensor, at)
            elif tensor.zero:
                yield from self._zero_jobs(tensor, at)
            else:
                yield from self._copy_jobs(tensor, at)

    # What is untouched is copied, in the kernel if it can.

    def _copy_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        for start in range(0, tensor.info.nbytes, _COPY_BYTES):
            stop = min(start + _COPY_BYTES, tensor.info.nbytes)
            yield partial(self._copy, tensor, start, stop, at)
        if not tensor.info.nbytes:
            yield partial(self._on_tensor, tensor.info.name, 0)

    def _copy(self, tensor: OutputTensor, start: int, stop: int, at: int) -> None:
        descriptor, offset = self._place(tensor)
        self._sink.copy(descriptor, offset + start, stop - start, at + start)
        self._on_tensor(tensor.info.name, stop - start)

    # What loses channels passes through a buffer.

    def _zero_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        info = tensor.info
        pieces = blocks(info.shape, tensor.dim, DTYPES[info.dtype].bits // 8, PIECE_BYTES)
        channels = torch.tensor(tensor.zero)
        while batch := tuple(islice(pieces, _BLOCKS_PER_JOB)):
            yield partial(self._zero, tensor, batch, channels, at)

    def _zero(
        self, tensor: OutputTensor, batch: tuple[Block, ...], channels: torch.Tensor, at: int
    ) -> None:
        descriptor, offset = self._place(tensor)
        dtype = torch_dtype(tensor.info)
        for block in batch:
            nbytes = block.stop - block.start
            hit = _within(tensor.zero, channels, block.channels)
            if len(hit) < len(block.channels) or not self._sink.is_sparse:
                data = self._buffer.bytes[:nbytes]
                read_exactly(descriptor, data, offset + block.start)
                values = self._buffer.tensor[:nbytes].view(dtype)
                self._zero_values(values.view(block.rows, len(block.channels), -1), 1, hit)
                self._sink.write(data, at + block.start)
            self._on_tensor(tensor.info.name, nbytes)  # all zero: a hole in the file is enough

    def _zero_values(self, values: torch.Tensor, dim: int, channels: torch.Tensor) -> None:
        if not len(channels):
            return
        there = values.to(self._device)
        zero_channels_(there, dim, channels.to(self._device))
        if there is not values:
            values.copy_(there.cpu())

    # The rest is made of tensors, a few rows at a time: strided, masked, shrunk, in memory.

    def _row_jobs(self, tensor: OutputTensor, at: int) -> Iterator[Job]:
        rows = tensor.info.shape[0] if tensor.info.shape else 1
        row_bytes = tensor.info.nbytes // max(rows, 1)
        step = max(_ROWS_BYTES // max(row_bytes, 1), 1)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield partial(self._rows, tensor, first, last, at + first * row_bytes)

    def _rows(self, tensor: OutputTensor, first: int, last: int, at: int) -> None:
        values = self._read_rows(tensor, first, last)
        if tensor.mask:
            mask = self._select(tensor.mask, tensor, first, last)
            _as_bits(values).masked_fill_(masked_elements(mask, tensor.mask.name), 0)
        if tensor.dim == 0:
            channels = [channel - first for channel in tensor.zero if first <= channel < last]
        else:
            channels = list(tensor.zero)
        self._zero_values(values, tensor.dim, torch.tensor(channels, dtype=torch.int64))
        self._write_values(values, at)
        self._on_tensor(tensor.info.name, values.numel() * values.itemsize)

    def _read_rows(self, tensor: OutputTensor, first: int, last: int) -> torch.Tensor:
        if tensor.source is None:
            shape = (last - first, *tensor.info.shape[1:])
            return torch.ones(shape, dtype=torch_dtype(tensor.info))
        return self._select(tensor.source, tensor, first, last)

    def _select(
        self, info: TensorInfo, tensor: OutputTensor, first: int, last: int
    ) -> torch.Tensor:
        """A copy of the rows `first` to `last` of what `tensor` keeps of `info`."""
        kept = dict(tensor.keep)
        values = _as_bits(self._checkpoint.tensor(info))
        rows = kept.pop(0, None)
        values = values if values.ndim else values.view(1)
        values = values[first:last] if rows is None else _take(values, 0, rows[first:last])
        for dim, indices in kept.items():
            values = _take(values, dim, indices)
        if not tensor.keep:
            values = values.clone(memory_format=torch.contiguous_format)
        return values.contiguous().view(torch_dtype(info))

    def _write_values(self, values: torch.Tensor, at: int) -> None:
        flat = values.view(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE_BYTES):
            piece = flat[start : start + PIECE_BYTES]
            self._buffer.tensor[: len(piece)].copy_(piece)
            self._sink.write(self._buffer.bytes[: len(piece)], at + start)

    def _place(self, tensor: OutputTensor) -> tuple[int, int]:
        """The file descriptor and the offset that the source of `tensor` is at."""
        source = tensor.source
        if source is None or source.offset is None:
            raise ValueError(f"{tensor.info.name} is not in a file")
        return self._descriptors[source.shard], source.offset


def _within(sorted_channels: tuple[int, ...], channels: torch.Tensor, span: range) -> torch.Tensor:
    """Those of `channels` that lie in `span`, counted from its start."""
    first = bisect_left(sorted_channels, span.start)
    last = bisect_left(sorted_channels, span.stop)
    return channels[first:last] - span.start


def _take(values: torch.Tensor, dim: int, indices: tuple[int, ...]) -> torch.Tensor:
    """A copy of `values` at `indices` along `dim`, as index_select gives it.

    Along the last dim, where that copies one element at a time, gather is up to four times as fast.
    """
    index = torch.tensor(indices, dtype=torch.int64)
    if 0 < dim == values.ndim - 1:
        return values.gather(dim, index.expand(*values.shape[:-1], -1))
    return values.index_select(dim, index)


def _as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, which every operation takes (float8 and uint16 lack many)."""
    return tensor.view(INTEGER_OF_WIDTH[tensor.itemsize])
