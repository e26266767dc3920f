"""Criteria: a score for every channel, out of its weights or a file; the smallest scores go.

    l1      the sum of the magnitudes, as `torch.nn.utils.prune.ln_structured(n=1)` has it
    l2      the Euclidean norm, as ln_structured(n=2)
    fpgm    the sum of the distances to the other channels: the one that the others can replace
            best goes first (He et al. 2019, "Filter pruning via geometric median")
    scores  what a file says, whatever it was made by

Weights are read once, in blocks, and no tensor is held in memory but what fpgm compares. Equal
scores go in the order of the channels. NaN counts as more than any number, as in torch: a channel
that holds one is the last to go, and fpgm leaves it, and one with inf, out of the others' sums.

See also: `channels` (the random draw), allocation.py (how many channels of which layer).
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.plan.allocation import Layer
from prune_cli.plan.choice import Criterion

Bits: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Scores: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
_Number = TypeVar("_Number", bound=np.generic)

_BLOCK = 1 << 20  # bytes of a weight that are worked on at once, so that they stay in the cache
_FEW_BLOCKS = 4  # fewer are done before threads have started
_FOLD = 8  # so many float32 are added as float32; the rest is done in float64
_LONG = 1024  # elements; less is not worth folding
_DISTANCES = 1 << 21  # distances that are held at once
_TILE = 64  # rows, columns and terms of a product that OpenBLAS leaves to the calling thread
_F16_INFINITY = 0x7C00
_INTEGERS = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_WIDE = {"U32", "I32", "U64", "I64", "F64"}  # which float32 does not hold
_FLOAT8 = {  # bits of the mantissa, bias of the exponent
    "F8_E4M3": (3, 7),
    "F8_E5M2": (2, 15),
    "F8_E4M3FNUZ": (3, 8),
    "F8_E5M2FNUZ": (2, 16),
}


def has_order(dtype: str) -> bool:
    """Tell whether elements of `dtype` can be scored: not packed ones, nor powers of two only."""
    return DTYPES[dtype].bits >= 8 and DTYPES[dtype].holds_zero


def score_channels(
    bits: Bits, dtype: str, dim: int, criterion: Criterion, live: Sequence[int], *, workers: int = 1
) -> Scores:
    """Return the score of each of the `live` channels of a weight.

    Args:
        bits: of the weight, of its shape, perhaps mapped from a file.
        dtype: as safetensors spells it; see has_order.
        dim: whose indices are the channels, from 0.
        criterion: "l1", "l2" or "fpgm".
        live: the channels that are not pruned yet, ascending.
        workers: threads; the scores do not depend on them.

    Returns:
        float64, of the length of `live`.
    """
    chosen = np.asarray(live, dtype=np.intp)
    if criterion == "fpgm":
        return _sum_distances(bits, dtype, dim, chosen, workers)
    if criterion == "l2":
        square = _sum_channels(bits, dtype, dim, _squares, workers)
        return np.sqrt(square[chosen])
    return _sum_channels(bits, dtype, dim, _magnitudes, workers)[chosen]


def sum_scores(bits: Bits, dtype: str, dim: int, *, workers: int = 1) -> Scores:
    """Return the sum of the elements of each channel, with their signs: scores from a file."""
    return _sum_channels(bits, dtype, dim, _real, workers)


def rank_together(
    scores: Sequence[npt.NDArray[Any]], layers: Sequence[Layer]
) -> npt.NDArray[np.intp]:
    """Return which layer the channels belong to, in the order in which they go: one draw over all.

    Args:
        scores: for each layer those of its live channels: all of them numbers of one kind.
        layers: those layers; a layer is named as often as it can lose channels.

    Example:
        >>> layers = [Layer("a", (2, 1), 0, 2), Layer("b", (2, 1), 0, 2, at_least=1)]
        >>> rank_together([np.array([3.0, 1.0]), np.array([2.0, 0.0])], layers).tolist()
        [1, 0, 0]
    """
    if not layers:
        return np.empty(0, np.intp)
    firsts = [np.sort(own)[: layer.most] for own, layer in zip(scores, layers, strict=True)]
    owners = np.repeat(np.arange(len(layers)), [len(own) for own in firsts])
    return owners[np.concatenate(firsts).argsort(kind="stable")]


def decode(bits: Bits, dtype: str) -> Floats:
    """Return the numbers that `bits` stand for, as float32 where that holds them, or as float64.

    They are good until the next call of the same thread, whose memory is used again. Of complex
    numbers the real and the imaginary parts lie side by side along the last axis, which has to lie
    in order. Integers over 2**53 are rounded.

    Example:
        >>> decode(np.array([0x3F80, 0xC000], np.uint16), "BF16").tolist()
        [1.0, -2.0]
    """
    if dtype in ("F32", "C64"):
        return bits.view(np.uint32).view(np.float32)
    if dtype == "F64":
        return bits.view(np.float64)
    if dtype == "BF16":
        words = _scratch.array("decoded", np.uint32, bits.shape)
        np.copyto(words, bits)
        words <<= np.uint32(16)
        return words.view(np.float32)
    if dtype in _INTEGERS:
        kind = np.dtype(f"{'i' if dtype[0] == 'I' else 'u'}{bits.dtype.itemsize}")
        return bits.view(kind).astype(np.float64 if dtype in _WIDE else np.float32)
    numbers = _scratch.array("decoded", np.float32, bits.shape)
    np.take(_table(dtype), bits, out=numbers, mode="clip")  # "raise" would need a second copy
    return numbers


class _Scratch(threading.local):
    """Memory of each thread that is used again: to be given new pages costs more than the sums."""

    def __init__(self) -> None:
        self.held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, kind: type[_Number], shape: Sequence[int]) -> npt.NDArray[_Number]:
        """Return an array with anything in it; the one called `name` before it is lost."""
        nbytes = math.prod(shape) * np.dtype(kind).itemsize
        held = self.held.get(name)
        if held is None or len(held) < nbytes:
            held = self.held[name] = np.empty(nbytes, np.uint8)
        return held[:nbytes].view(kind).reshape(shape)


_scratch = _Scratch()


# --- sums ------------------------------------------------------------------------------------

_Measure: TypeAlias = Callable[[Bits, str], Floats]


def _magnitudes(bits: Bits, dtype: str) -> Floats:
    if dtype == "C64":
        squares: Scores = _squares(bits, dtype).reshape(*bits.shape, 2).sum(axis=-1)
        return np.sqrt(squares)
    if dtype == "F16" and (halves := _half_magnitudes(bits)) is not None:
        return halves
    numbers = decode(bits, dtype)
    out = numbers  # or else it is the file itself
    if not numbers.flags.writeable:
        out = _scratch.array("measured", numbers.dtype.type, numbers.shape)
    return np.abs(numbers, out=out)


def _half_magnitudes(bits: Bits) -> Floats | None:
    """Return those of F16, in half the time that a table takes; None if some are not finite.

    Exponent and mantissa as they are, in the places of a float32, are the number over 2**112.
    """
    words = _scratch.array("decoded", np.uint32, bits.shape)
    np.copyto(words, bits)
    words &= np.uint32(0x7FFF)
    if words.max() >= _F16_INFINITY:
        return None
    words <<= np.uint32(13)
    numbers = words.view(np.float32)
    return np.multiply(numbers, np.float32(2.0**112), out=numbers)


def _squares(bits: Bits, dtype: str) -> Floats:
    numbers = decode(bits, dtype)
    wide = _scratch.array("measured", np.float64, numbers.shape)
    np.copyto(wide, numbers)
    return np.square(wide, out=wide)


def _real(bits: Bits, dtype: str) -> Floats:
    return decode(bits, dtype)


def _sum_channels(bits: Bits, dtype: str, dim: int, measure: _Measure, workers: int) -> Scores:
    """Sum up `measure` of each channel, block by block in a fixed order, on any number of threads."""
    seen = _around(bits, dim)
    parts, sums = list(_blocks(seen)), np.zeros(bits.shape[dim])

    def sum_block(block: _Block) -> Scores:
        return _sum_middle(measure(block.of(seen), dtype))

    with np.errstate(over="ignore", invalid="ignore"):
        for block, part in zip(parts, _map(sum_block, parts, workers), strict=True):
            sums[block.channels] += part
    return sums


def _around(bits: Bits, dim: int) -> Bits:
    """Return the bits in order, as (rows, channels, columns)."""
    rows, columns = math.prod(bits.shape[:dim]), math.prod(bits.shape[dim + 1 :])
    return np.ascontiguousarray(bits).reshape(rows, bits.shape[dim], columns)


class _Block(NamedTuple):
    """What is worked on at once."""

    rows: slice
    channels: slice
    columns: slice

    def of(self, seen: Bits) -> Bits:
        return seen[self.rows, self.channels, self.columns]


def _blocks(seen: Bits) -> Iterator[_Block]:
    """Cut (rows, channels, columns) into blocks of at most _BLOCK bytes that lie in order."""
    if not seen.size:
        return
    rows, channels, columns = seen.shape
    limit = max(_BLOCK // seen.itemsize, 1)
    wide = min(columns, limit)
    deep = min(channels, max(limit // columns, 1))
    high = max(limit // (channels * columns), 1)
    for row in range(0, rows, high):
        for channel in range(0, channels, deep):
            for column in range(0, columns, wide):
                yield _Block(
                    slice(row, row + high),
                    slice(channel, channel + deep),
                    slice(column, column + wide),
                )


def _map(
    function: Callable[[_Block], Scores], parts: Sequence[_Block], workers: int
) -> Iterator[Scores]:
    if workers == 1 or len(parts) < _FEW_BLOCKS:
        yield from map(function, parts)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, parts)


def _sum_middle(numbers: Floats) -> Scores:
    """Sum up (rows, channels, columns) to one float64 for each channel.

    What is long is folded into eighths first, as float32, which takes half as long: a sum of
    eight is off by some 2**-23 of it. The order is fixed, so the sums do not depend on the machine.
    """
    rows, channels, columns = numbers.shape
    with np.errstate(over="ignore", invalid="ignore"):  # of a thread, so here once more
        if rows >= columns and rows >= _LONG // columns:
            whole = rows // _FOLD * _FOLD
            body = numbers[:whole].reshape(_FOLD, -1, channels, columns)
            return _add_up(np.add.reduce(body, axis=0)) + _add_up(numbers[whole:])
        if columns >= _LONG:
            whole = columns // _FOLD * _FOLD
            body = numbers[:, :, :whole].reshape(rows, channels, _FOLD, -1)
            return _add_up(np.add.reduce(body, axis=2)) + _add_up(numbers[:, :, whole:])
        return _add_up(numbers)


def _add_up(numbers: Floats) -> Scores:
    total: Scores = numbers.sum(axis=(0, 2), dtype=np.float64)
    return total


# --- distances -------------------------------------------------------------------------------


def _sum_distances(
    bits: Bits, dtype: str, dim: int, live: npt.NDArray[np.intp], workers: int
) -> Scores:
    """Sum up the distances of each live channel to the others, by |a - b|² = a² + b² - 2ab.

    The sums are rounded to float32: the order in which a BLAS adds depends on the machine.
    """
    finite = np.isfinite(_sum_channels(bits, dtype, dim, _magnitudes, workers)[live])
    seen, scores = _around(bits, dim), np.full(len(live), np.nan)
    channels, places = live[finite], np.flatnonzero(finite)
    tiles = -(-len(channels) // _TILE)
    step = max(_DISTANCES // max(tiles * _TILE * _TILE, 1), 1)
    with np.errstate(over="ignore", invalid="ignore"):  # squares of what is finite may not be
        for start in range(0, tiles, step):
            distances = _distances(seen, dtype, channels, slice(start, start + step))
            own = places[start * _TILE : (start + step) * _TILE]
            scores[own] = distances[: len(own)].sum(axis=1).astype(np.float32)
    return scores


def _distances(seen: Bits, dtype: str, channels: npt.NDArray[np.intp], some: slice) -> Scores:
    """Return the distances of the channels in `some` tiles of them to all channels."""
    count = len(channels)
    tiles = -(-count // _TILE)
    squares = np.zeros(tiles * _TILE)
    products = np.zeros((len(range(tiles)[some]), tiles, _TILE, _TILE))
    for piece in _pieces(seen, count):
        numbers = decode(np.ascontiguousarray(piece[:, channels]), dtype)
        flat = np.zeros((tiles * _TILE, numbers.size // count))
        flat[:count] = np.moveaxis(numbers, 1, 0).reshape(count, -1)
        flat[:count] -= flat[:count].mean(axis=0)  # distances stay, far fewer digits are lost
        squares += np.square(flat).sum(axis=1)
        for column in range(0, flat.shape[1], _TILE):
            part = flat[:, column : column + _TILE].reshape(tiles, _TILE, -1)
            products += np.matmul(part[some, None], part.transpose(0, 2, 1))
    crossed = products.transpose(0, 2, 1, 3).reshape(-1, tiles * _TILE)
    first = (some.start or 0) * _TILE
    squared = squares[first : first + len(crossed), None] + squares - 2 * crossed
    own = np.arange(len(squared))
    squared[own, own + first] = 0.0
    return np.sqrt(np.maximum(squared[:, :count], 0.0))


def _pieces(seen: Bits, channels: int) -> Iterator[Bits]:
    """(rows, channels, columns) cut so that each piece has few elements of every channel."""
    rows, _, columns = seen.shape
    few = max(_BLOCK // max(channels, 1), 1)
    wide, high = min(columns, few), max(few // max(columns, 1), 1)
    for row in range(0, rows, high):
        for column in range(0, columns, max(wide, 1)):
            yield seen[row : row + high, :, column : column + wide]


# --- numbers ---------------------------------------------------------------------------------


@cache
def _table(dtype: str) -> npt.NDArray[np.float32]:
    """Return every value of a dtype of one or two bytes, by its bits."""
    if dtype == "F16":
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    mantissa, bias = _FLOAT8[dtype]
    return np.array([_float8(dtype, code, mantissa, bias) for code in range(256)], np.float32)


def _float8(dtype: str, code: int, mantissa: int, bias: int) -> float:
    """The number that the 8 bits of `code` are (OCP 8-bit floating point; arXiv:2206.02915)."""
    sign, exponent = -1.0 if code & 0x80 else 1.0, (code & 0x7F) >> mantissa
    part = (code & (1 << mantissa) - 1) / (1 << mantissa)
    if dtype.endswith("FNUZ"):
        if code == 0x80:
            return math.nan
    elif dtype == "F8_E5M2" and exponent == 31:
        return sign * math.inf if part == 0 else math.nan
    elif code & 0x7F == 0x7F:
        return math.nan
    return sign * math.ldexp(part + bool(exponent), max(exponent, 1) - bias)
