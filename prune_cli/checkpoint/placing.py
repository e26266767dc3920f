"""Says where the bytes of a tensor are in its file: what a pickle has of it becomes a TensorInfo.

See also: `unwritable` for tensors that have no bytes, `strided` for those that share them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from prune_cli.checkpoint.contents import Shard
from prune_cli.checkpoint.pickled import CorruptPickleError, Octets
from prune_cli.checkpoint.spool import Spool
from prune_cli.checkpoint.strided import Place
from prune_cli.checkpoint.tensors import DTYPES, Piece, TensorInfo, nbytes
from prune_cli.checkpoint.torch_names import (
    DTYPE_NAMES,
    Array,
    Tensor,
    elements_spanned,
    numpy_dtype,
)


@dataclass(frozen=True)
class Placed:
    """A tensor as a Checkpoint has it, and where it lies."""

    info: TensorInfo
    place: Place


def place_weight(file: Shard, spool: Spool, name: str, value: Tensor | Array) -> Placed:
    """Return where a tensor is; what does not lie in `file` as it is goes to the spool."""
    return (
        place_tensor(name, value)
        if isinstance(value, Tensor)
        else _place_array(file, spool, name, value)
    )


def place_tensor(name: str, tensor: Tensor) -> Placed:
    """Return where a tensor of torch is in its file."""
    assert tensor.dtype
    itemsize = tensor.dtype.itemsize
    dtype, shape = DTYPE_NAMES[tensor.dtype.name], _stored_shape(tensor)
    if 0 in tensor.shape:
        return Placed(TensorInfo(name, dtype, shape, 0, 0), Place(0, 0, (dtype, shape)))
    start, strides = tensor.start, tensor.strides
    stop = start + elements_spanned(tensor.shape, strides) * itemsize
    flip = _flip(tensor)
    plain = is_packed(tensor.shape, strides)
    info = TensorInfo(name, dtype, shape, 0, start, None if plain else strides, flip)
    layout = (dtype, tensor.shape, strides, flip)
    base = tensor.storage.start if tensor.storage else start
    return Placed(info, Place(start, stop, layout, _steps(tensor.shape, strides, itemsize), base))


def _steps(
    shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> tuple[tuple[int, int], ...]:
    steps = [(n, stride * itemsize) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return (*steps, (itemsize, 1))


def is_packed(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the elements lie in order without gaps (torch's is_contiguous)."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _flip(tensor: Tensor) -> int:
    """Return the bits of each element that are inverted when it is read: signs."""
    assert tensor.dtype
    bits = tensor.dtype.itemsize * 8
    signs = 1 << (bits - 1)
    flip = signs if tensor.is_conj else 0
    if tensor.is_neg:
        both = signs | 1 << (bits // 2 - 1)
        flip ^= both if tensor.dtype.name.startswith("complex") else signs
    return flip


def _stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape that safetensors records: float4 is packed in pairs, counted one by one."""
    if not is_subbyte(tensor) or not tensor.shape:
        return tensor.shape
    return (*tensor.shape[:-1], tensor.shape[-1] * 2)


def is_subbyte(tensor: Tensor) -> bool:
    """Return whether several of its elements share a byte."""
    return tensor.dtype is not None and DTYPES[DTYPE_NAMES[tensor.dtype.name]].bits < 8


def _place_array(file: Shard, spool: Spool, name: str, array: Array) -> Placed:
    """Place an array of NumPy: in the file where its bytes lie there, or else in the spool."""
    dtype = cast(str, numpy_dtype(array.dtype))
    shape = _array_shape(array)
    itemsize = DTYPES[dtype].bits // 8
    strides = _fortran_strides(shape) if array.is_fortran else None
    if strides is None or is_packed(shape, strides):
        strides = None
    size = nbytes(dtype, shape)
    if size == 0:
        return Placed(TensorInfo(name, dtype, shape, 0, 0), Place(0, 0, (dtype, shape)))
    layout = (dtype, shape, strides)
    steps = _steps(shape, strides or _c_strides(shape), itemsize)
    if isinstance(array.content, Octets) and not array.content.is_latin1:
        if array.content.nbytes != size:
            raise CorruptPickleError(f"the array {name!r} has another size than its shape says")
        start = array.content.at
        info = TensorInfo(name, dtype, shape, 0, start, strides)
        return Placed(info, Place(start, start + size, layout, steps))
    start = spool.put(array.content, size)
    piece = Piece(0, start, (0,) * len(shape), shape, strides)
    info = TensorInfo(name, dtype, shape, 0, pieces=(piece,))
    beyond = file.nbytes + start  # an address that nothing in the file has
    return Placed(info, Place(beyond, beyond + size, layout, steps))


def _array_shape(array: Array) -> tuple[int, ...]:
    if not isinstance(array.shape, tuple) or not all(
        type(n) is int and 0 <= n < 1 << 62 for n in array.shape
    ):
        raise CorruptPickleError("the shape of an array is none")
    if len(array.shape) > 64:
        raise CorruptPickleError("an array has too many dims")
    return array.shape


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _fortran_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[:dim]) for dim in range(len(shape)))


def place_of(info: TensorInfo) -> Place:
    """Return the Place of a tensor that lies in its file."""
    start, itemsize = info.offset or 0, max(DTYPES[info.dtype].bits // 8, 1)
    strides = info.strides or _c_strides(info.shape)
    stop = start + elements_spanned(info.shape, strides) * itemsize if info.elements else start
    return Place(start, stop, (info.dtype, info.shape), _steps(info.shape, strides, itemsize))


def place_of_view(tensor: Tensor) -> Place:
    """Return the same of any tensor of a file, also one of a dtype that no TensorInfo can have."""
    assert tensor.dtype
    dtype = DTYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name)
    shape, strides, itemsize = tensor.shape, tensor.strides, tensor.dtype.itemsize
    stop = tensor.start + elements_spanned(shape, strides) * itemsize
    return Place(tensor.start, stop, (dtype, shape), _steps(shape, strides, itemsize))
