"""What `channels` does, for torch tensors: of any stride, on any device, seen by autograd.

    draw_channels(live, k)             which k of the live channels go, from a torch.Generator
    zero_channels_(tensor, dim, channels)
    live_channels(tensor, dim)         the channels that are not pruned yet
    masked(values, mask)               +0 where the mask is 0

See also: `module`, which prunes the parameters of modules with these.
"""

import math
from collections.abc import Sequence

import torch

from prune_cli import channels as numpy_channels
from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.errors import DimError, ParameterError

DTYPE_NAMES = {
    getattr(torch, dtype.torch): name
    for name, dtype in DTYPES.items()
    if dtype.torch and dtype.holds_zero and dtype.bits % 8 == 0
}
"""What safetensors holds and has a zero, all of whose bits are zero; with safetensors' names."""

_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
_REFUSED = {
    "torch.float8_e8m0fnu": "it holds powers of two only, and no zero",
    "torch.float4_e2m1fn_x2": "it packs two values into a byte",
}
_INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_MASKED_PER_FILLED = 64  # elements that are masked in a row while a single one is filled


def draw_channels(
    live: torch.Tensor, k: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw which `k` of the `live` channels are pruned, every k-subset equally likely.

    Each live channel draws a float32 from [0, 1) on the CPU, and the k smallest go; among equal
    draws the earlier channel goes. So the result is the same on every device and under every
    default dtype, and for one state of the generator a smaller k gives a subset of a larger k's
    channels. Stock torch draws the same numbers, but prunes by a threshold: all that tie with it.

    Args:
        live: int64, 1-D, ascending, on the CPU: the channels to choose from.
        k: how many, from 0 to len(live). For 0 nothing is drawn, as in stock torch.
        generator: a CPU generator; without one, the global one, from which stock torch draws.

    Returns:
        int64, shape (k,), ascending, on the CPU.
    """
    if k == 0:
        return live[:0]
    draws = torch.rand(len(live), dtype=torch.float32, device="cpu", generator=generator)
    smallest = numpy_channels.k_smallest(draws.numpy(), k)
    return live[torch.tensor(smallest, dtype=torch.int64, device="cpu")]


def zero_channels_(tensor: torch.Tensor, dim: int, channels: torch.Tensor) -> torch.Tensor:
    """Set the `channels` along `dim` to +0 (all bits zero), in place, NaN and inf included.

    It takes no memory but a number for each channel, and no other byte changes. Autograd does not
    record it; a graph that saved the tensor notices it, as it notices an optimizer's step.

    Args:
        tensor: of any shape with that dim, any stride, any device, and any dtype that has a zero.
        dim: the dim that counts channels; negative counts from the end.
        channels: int64, 1-D, on any device: indices along dim, from 0.

    Returns:
        The same tensor.

    Raises:
        DimError: there is no such dim.
        ParameterError: the dtype has no zero (float8_e8m0fnu), or packs elements (float4).
    """
    axis = resolve_axis(dim, tensor.shape, "the tensor")
    check_dtype(tensor.dtype, "the tensor")
    bits, channels = _bits(tensor), channels.to(tensor.device)
    row = bits.shape[axis:]
    if row.numel() == row[0] < len(channels) * _MASKED_PER_FILLED:  # a column for each channel
        kept = torch.zeros(row, dtype=bits.dtype, device=bits.device).bitwise_not_()
        bits.bitwise_and_(kept.index_fill_(0, channels, 0))
    elif (words := _words(bits, axis)) is not None:
        words.index_fill_(1, channels, 0)
    else:
        bits.index_fill_(axis, channels, 0)
    return tensor


def live_channels(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Find the channels along `dim` that hold anything but zeros, in a weight or in a mask.

    NaN is not zero; -0.0 is. Temporary memory is bounded by a few MiB, but for a tensor on another
    device whose dtype that device cannot reduce (float8, uint16 to 64): that takes a copy here.

    Args:
        tensor: of any shape with that dim, any stride, any device, and any dtype that has a zero.
        dim: the dim that counts channels; negative counts from the end.

    Returns:
        int64, 1-D, ascending, on the CPU.

    Raises:
        DimError: there is no such dim.
        ParameterError: as in `zero_channels_`, or the tensor is on the meta device.
    """
    axis = resolve_axis(dim, tensor.shape, "the tensor")
    check_dtype(tensor.dtype, "the tensor")
    if tensor.is_meta:
        raise ParameterError("a tensor on the meta device has no values to find live channels by")
    if tensor.device.type == "cpu" or _needs_bits(tensor.dtype):
        return _live_by_bits(tensor.cpu(), axis)
    return _live_by_reduction(tensor, axis).nonzero().flatten().cpu()


def masked(
    values: torch.Tensor, mask: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `values` where the mask is 1, and +0 where it is 0; differentiable without `out`.

    The mask is of any dtype, and broadcasts. This selects; stock torch multiplies, and NaN * 0 is
    NaN, inf * 0 is NaN, -1 * 0 is -0.
    """
    mask = mask.to(values.dtype).expand_as(values)
    if not values.is_floating_point() or values.element_size() == 1:
        return torch.where(mask != 0, values, values.new_zeros(()), out=out)
    # The backward of relu is `where(mask > 0, values, 0)` in one pass: there is no mask of bools
    # to make, and nothing but the mask itself to keep for the backward pass.
    select = torch.ops.aten.threshold_backward
    selected: torch.Tensor = (
        select(values, mask, 0)
        if out is None
        else select.grad_input(values, mask, 0, grad_input=out)
    )
    return selected


def as_bits(tensor: torch.Tensor) -> numpy_channels.Bits:
    """View a tensor on the CPU as NumPy's unsigned integers, one for each element of 1 to 8 bytes.

    A copy only of what torch left conjugated or negated.
    """
    plain = tensor.detach().resolve_conj().resolve_neg()
    bits = plain.view(_INTEGER_OF_WIDTH[plain.itemsize]).numpy()
    return bits.view(f"u{plain.itemsize}")


def resolve_axis(dim: int, shape: Sequence[int], name: str) -> int:
    """Return `dim` counted from the front.

    Raises:
        DimError: the shape has no such dim; `name` is what the error calls the tensor.
    """
    if not -len(shape) <= dim < len(shape):
        raise DimError(
            f"{name}: there is no dim {dim} in the shape {tuple(shape)}, which has {len(shape)}"
        )
    return dim % len(shape)


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise a ParameterError where zero bytes are not a zero element of `dtype`."""
    if dtype not in DTYPE_NAMES and dtype not in _COMPLEX:
        reason = _REFUSED.get(str(dtype), "its zero is unknown")
        raise ParameterError(f"{name}: the dtype {dtype} cannot be pruned: {reason}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View the tensor as integers of its width: torch lacks kernels for float8 and uint16 to 64.

    A complex tensor gains a last dim of size 2.
    """
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGER_OF_WIDTH[tensor.element_size()])


def _words(bits: torch.Tensor, axis: int) -> torch.Tensor | None:
    """View integers as int64 of shape (before, along, after) the axis: there are fewer to fill.

    None where the elements do not lie in order, or a channel is not made of whole words.
    """
    many = 8 // bits.element_size()
    outer, n, inner = _three_dims(bits.shape, axis)
    if not bits.is_contiguous() or inner % many or bits.storage_offset() % many:
        return None
    # Flat first: the view as int64 reads the strides of dims of size 1 too, which mean nothing.
    return bits.view(-1).view(torch.int64).view(outer, n, inner // many)


def _three_dims(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _needs_bits(dtype: torch.dtype) -> bool:
    """Tell whether torch lacks kernels to reduce `dtype`: float8, and unsigned but for bytes."""
    is_narrow_float = dtype.is_floating_point and dtype.itemsize == 1
    return is_narrow_float or dtype in (torch.uint16, torch.uint32, torch.uint64)


def _live_by_bits(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
    live = numpy_channels.live_channels(as_bits(real), axis, DTYPE_NAMES[real.dtype])
    if len(live) == tensor.shape[axis]:
        return torch.arange(len(live), device="cpu")
    return torch.tensor(live, dtype=torch.int64, device="cpu")


def _live_by_reduction(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Tell for each channel whether it is live, by one pass over the whole tensor."""
    live = tensor.detach()
    for dim in reversed(range(tensor.dim())):
        live = live.any(dim=dim) if dim != axis else live
    return live
