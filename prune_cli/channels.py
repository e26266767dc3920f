"""Which channels go, and how they become zero: on numbers and bits, without torch.

A channel is one index along `dim` with all that lies under it: a row of a Linear's weight for
dim 0, a column for dim 1. A tensor is seen here as its bits: an array of unsigned integers, each
as wide as an element, so that one implementation serves every dtype.

    live_channels(bits, dim, dtype)    the channels that are not pruned yet
    draw_channels(live, k, seed)       which k of them go
    zero_channels(bits, dim, channels)

See also: `amounts`, how many go; `module`, the same for modules and tensors of torch.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.errors import InputError

Bits: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
"""The elements of a tensor as unsigned integers of their width."""

_LOW_BITS = np.uint64(0xFFFFFF)
_FEW = 256  # Python sorts so few numbers before NumPy has begun to
_FEW_MASKED = 16  # elements side by side up to which one AND beats filling them channel by channel
_FIRST_BLOCK = 1024  # elements; whoever reads one element of a mapped file reads a page of 4 KiB
_DENSE = 8  # where a run holds this many channels for each one that is wanted, or fewer
_LARGEST_BLOCK = 1 << 20  # elements; what bounds the temporary memory

# --- The draw ---------------------------------------------------------------------------------


def draw_channels(live: Sequence[int], k: int, seed: int) -> tuple[int, ...]:
    """Draw which `k` of the `live` channels are pruned, every k-subset equally likely.

    Args:
        live: ascending: the channels to choose from.
        k: how many, from 0 to len(live).
        seed: of the tensor's own generator, from 0 to 2**64 - 1.

    Returns:
        The channels of the k smallest of `uniform_draws`, ascending. For one seed, a smaller k
        gives a subset of a larger k's channels.

    Example:
        >>> draw_channels(range(10), 3, seed=0)
        (2, 3, 4)
    """
    if k == 0:
        return ()
    return tuple(map(live.__getitem__, k_smallest(uniform_draws(len(live), seed), k)))


def uniform_draws(n: int, seed: int) -> npt.NDArray[np.uint64]:
    """Return what `torch.rand(n, generator=torch.Generator().manual_seed(seed))` gives, times 2**24.

    torch's CPU generator is MT19937, seeded with the low 32 bits of the seed, and a float32 of
    torch.rand is the low 24 bits of one word of it (torch: aten/src/ATen/core/MT19937RNGEngine.h
    and DistributionsHelper.h, `uniform_real_distribution<float>`).
    """
    _generator.seeded.seed(seed % 2**32)
    return _generator.words.random_raw(n) & _LOW_BITS


class _Generator(threading.local):
    """An MT19937 for each thread: to make one takes 50 times as long as to seed it again."""

    def __init__(self) -> None:
        self.words = np.random.MT19937(0)
        self.seeded = np.random.RandomState(self.words)  # which knows how the original is seeded


_generator = _Generator()


def k_smallest(values: npt.NDArray[Any], k: int) -> list[int]:
    """Return the positions of the k smallest `values`, ascending; of equal ones the earlier go."""
    if len(values) > _FEW:
        return [int(position) for position in np.sort(values.argsort(kind="stable")[:k])]
    found: list[Any] = values.tolist()
    return sorted(sorted(range(len(found)), key=found.__getitem__)[:k])


# --- Bits -------------------------------------------------------------------------------------


def zero_channels(bits: Bits, dim: int, channels: npt.NDArray[np.int64]) -> None:
    """Set the `channels` along `dim` to +0 (all bits zero), in place; no other byte changes.

    Args:
        bits: of any shape with that dim, writable.
        dim: from 0.
        channels: int64, 1-D, ascending: indices along dim.
    """
    if not len(channels):
        return
    row = bits.shape[dim:]
    if math.prod(row[1:]) < _FEW_MASKED and bits.flags.c_contiguous:
        kept = np.full(row, ~bits.dtype.type(0), bits.dtype)
        kept[channels] = 0
        np.bitwise_and(bits, kept, out=bits)
    else:
        bits[(slice(None),) * dim + (channels,)] = 0


def live_channels(bits: Bits, dim: int, dtype: str) -> Sequence[int]:
    """Find the channels along `dim` that hold anything but zeros, in a weight or in a mask.

    NaN is not zero; -0.0 is. One element of each channel is read, then ever larger blocks of those
    channels only that showed nothing but zeros so far; temporary memory is bounded by a few MiB,
    or by one channel of a tensor whose elements have gaps between them.

    Args:
        bits: of any shape with that dim, perhaps mapped from a file.
        dim: from 0.
        dtype: as safetensors spells it; it has to have a zero.

    Returns:
        Channels, ascending.
    """
    n = bits.shape[dim]
    if not bits.size:
        return range(0)
    counts = _bits_that_count(dtype)
    first = bits[(0,) * dim + (slice(None),) + (0,) * (bits.ndim - dim - 1)] & counts
    if np.count_nonzero(first) == n:  # in a quarter of the time of all()
        return range(n)
    live, undecided = first != 0, np.flatnonzero(first == 0)
    bits, dim = _in_memory_order(bits, dim)
    find = _find_in_blocks if bits.flags.c_contiguous else _find_one_by_one
    find(bits, dim, counts, undecided, live)
    return range(n) if live.all() else np.flatnonzero(live).tolist()


def other_channels(channels: Sequence[int], n: int) -> tuple[int, ...]:
    """Return the channels from 0 to `n` - 1 that are not among `channels`, ascending."""
    if len(channels) == n:
        return ()
    return tuple(sorted({*range(n)}.difference(channels)))


def masked_elements(bits: Bits, dtype: str, name: str) -> npt.NDArray[np.bool_]:
    """Tell which elements a mask takes away.

    Args:
        bits: of the mask.
        dtype: of the mask, as safetensors spells it.
        name: what the error calls it.

    Raises:
        InputError: it holds anything but 0 and 1.
    """
    off: npt.NDArray[np.bool_] = (bits & _bits_that_count(dtype)) == 0
    if not (off | (bits == DTYPES[dtype].one)).all():
        raise InputError(f"{name} holds values other than 0 and 1, so it cannot be made permanent")
    return off


def ones(dtype: str, shape: Sequence[int]) -> Bits:
    """Return the bits of a tensor of ones: a mask that keeps everything."""
    return np.full(shape, DTYPES[dtype].one, unsigned(dtype))


@cache
def unsigned(dtype: str) -> "np.dtype[np.unsignedinteger[Any]]":
    """Return the NumPy dtype of the bits of one element of `dtype`, which has whole bytes."""
    return np.dtype(f"<u{DTYPES[dtype].bits // 8}")


@cache
def _bits_that_count(dtype: str) -> Any:
    """Return all bits but those of the signs: -0.0 is zero."""
    return unsigned(dtype).type(~DTYPES[dtype].sign % (1 << DTYPES[dtype].bits))


def _in_memory_order(bits: Bits, dim: int) -> tuple[Bits, int]:
    """Transpose what is transposed in memory back, so that blocks of it can be read in order."""
    order = sorted(range(bits.ndim), key=lambda axis: -bits.strides[axis])
    return bits.transpose(order), order.index(dim)


def _find_in_blocks(
    bits: Bits, dim: int, counts: Any, undecided: npt.NDArray[np.int64], live: npt.NDArray[np.bool_]
) -> None:
    """Mark in `live` those `undecided` channels that hold a value, reading on only while needed."""
    outer, n, inner = math.prod(bits.shape[:dim]), bits.shape[dim], math.prod(bits.shape[dim + 1 :])
    seen = bits.reshape(outer, n, inner)
    step = max(1, _LARGEST_BLOCK // inner)
    for start in range(0, len(undecided), step):
        group = undecided[start : start + step]
        for rows, columns in _growing_blocks(outer, inner, _LARGEST_BLOCK // len(group)):
            found = (_merge_rows(seen[rows, :, columns], group) & counts != 0).any(axis=1)
            live[group] = found
            group = group[~found]
            if not len(group):
                break


def _find_one_by_one(
    bits: Bits, dim: int, counts: Any, undecided: npt.NDArray[np.int64], live: npt.NDArray[np.bool_]
) -> None:
    channels = np.moveaxis(bits, dim, 0)
    for channel in undecided.tolist():
        live[channel] = np.bitwise_or.reduce(channels[channel], axis=None) & counts != 0


def _merge_rows(block: Bits, channels: npt.NDArray[np.int64]) -> Bits:
    """Return the bits that any row of a (rows, channels, columns) block has set, of `channels`.

    Where these are dense, what is between them is merged too: rows are quicker read whole.
    """
    first, last = int(channels[0]), int(channels[-1])
    if last - first < _DENSE * len(channels):
        merged = _or_rows(block[:, first : last + 1])
        return merged if len(merged) == len(channels) else merged[channels - first]
    return _or_rows(block[:, channels])


def _or_rows(block: Bits) -> Bits:
    merged: Bits = block[0] if len(block) == 1 else np.bitwise_or.reduce(block, axis=0)
    return merged


def _growing_blocks(outer: int, inner: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Cover (outer, inner) by rectangles, each up to four times the one before it.

    Example:
        (3, 1500) is covered by [0:1, 0:1024], [0:1, 1024:1500], [1:3, 0:1500].
    """
    size, row, column = _FIRST_BLOCK, 0, 0
    while row < outer and inner:
        size = max(1, min(size, limit))
        if column or size < inner:  # a part of one row
            stop = min(inner, column + size)
            yield slice(row, row + 1), slice(column, stop)
            row, column = (row + 1, 0) if stop == inner else (row, stop)
        else:  # some rows
            stop = min(outer, row + size // inner)
            yield slice(row, stop), slice(0, inner)
            row = stop
        size *= 4
