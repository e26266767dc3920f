"""The mathematics: which channels go, and how they become zero. Nothing here reads or writes a file.

`RandomStructured` is `torch.nn.utils.prune.RandomStructured` without its defects, and
`random_structured` its function. They stand on four primitives, which streaming a checkpoint uses
without any module:

    number_to_prune(amount, live)    how many channels an amount means
    live_channels(tensor, dim)       the channels that are not pruned yet
    draw_channels(live, k)           which k of them go
    zero_channels_(tensor, dim, channels)

A channel is one index along `dim` with all that lies under it: a row of a Linear's weight for
dim 0, a column for dim 1. Masks hold 0 (pruned) and 1 (kept) in the dtype of their parameter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod, PruningContainer

from prune_cli.amounts import Amount, number_to_prune, validate_amount
from prune_cli.errors import (
    DeviceError,
    DimError,
    InputError,
    ParameterError,
    UsageError,
)

# --- The draw ---------------------------------------------------------------------------------


def draw_channels(
    live: torch.Tensor, k: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw which `k` of the `live` channels are pruned, every set of k alike in probability.

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
    return live[_smallest(draws, k)]


def draw_positions(n: int, k: int, *, generator: torch.Generator | None = None) -> list[int]:
    """Draw `k` of `n` channels as draw_channels does where all are live, in plain numbers.

    For plans of many small tensors, where each call to torch counts.
    """
    if k == 0:
        return []
    draws = torch.rand(n, dtype=torch.float32, device="cpu", generator=generator)
    if n > _FEW:
        return cast(list[int], _smallest(draws, k).tolist())
    return _smallest_few(draws.tolist(), k)


_FEW = 256  # Python sorts so few floats before torch has begun to


def _smallest(draws: torch.Tensor, k: int) -> torch.Tensor:
    """Give the indices of the k smallest, ascending; of equal draws the earlier is the smaller."""
    if len(draws) > _FEW:
        return draws.sort(stable=True).indices[:k].sort().values
    return torch.tensor(_smallest_few(draws.tolist(), k), dtype=torch.int64, device="cpu")


def _smallest_few(draws: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(draws)), key=draws.__getitem__)[:k])


# --- Tensors ----------------------------------------------------------------------------------

# What safetensors holds, and complex128: everything whose zero is a zero in every bit.
_DTYPES_WITH_ZERO = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.complex128, torch.complex64, torch.complex32,
        torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    }
)  # fmt: skip
_USUAL = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_REFUSED = {
    "torch.float8_e8m0fnu": "it holds powers of two only, and no zero",
    "torch.float4_e2m1fn_x2": "it packs two values into a byte",
}
INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes per element, the dtype to see any tensor's bits as."""

_MASKED_PER_FILLED = 64  # elements that are masked in a row while a single one is filled
_FIRST_BLOCK = 1024  # elements; whoever reads one element of a mapped file reads a page of 4 KiB
_LARGEST_BLOCK = 1 << 20  # elements; what bounds the temporary memory


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
    axis = _axis(dim, tensor.shape, "the tensor")
    _check_dtype(tensor.dtype, "the tensor")
    bits, channels = _bits(tensor), channels.to(tensor.device)
    row = bits.shape[axis:]
    if row.numel() == row[0] < len(channels) * _MASKED_PER_FILLED:  # a column for each channel
        kept = torch.zeros(row, dtype=bits.dtype, device=bits.device).bitwise_not_()
        bits.bitwise_and_(kept.index_fill_(0, channels, 0))
    else:
        _widest(bits, axis).index_fill_(axis, channels, 0)
    return tensor


def live_channels(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Find the channels along `dim` that hold anything but zeros, in a weight or in a mask.

    NaN is not zero; -0.0 is. Of a contiguous tensor, such as a mapped file, one element of each
    channel is read, then ever larger blocks of those channels only that showed nothing but zeros
    so far; temporary memory is bounded by a few MiB. Other strides are read in one reduction.

    Args:
        tensor: of any shape with that dim, any stride, any device, and any dtype that has a zero.
        dim: the dim that counts channels; negative counts from the end.

    Returns:
        int64, 1-D, ascending, on the CPU.

    Raises:
        DimError: there is no such dim.
        ParameterError: as in `zero_channels_`, or the tensor is on the meta device.
    """
    axis = _axis(dim, tensor.shape, "the tensor")
    _check_dtype(tensor.dtype, "the tensor")
    if tensor.is_meta:
        raise ParameterError("a tensor on the meta device has no values to find live channels by")
    if _all_live_at_first_sight(tensor, axis):
        return torch.arange(tensor.shape[axis], device="cpu")
    live = _live_by_blocks if tensor.is_contiguous() else _live_by_reduction
    return live(tensor, axis).nonzero().flatten().cpu()


def masked_elements(mask: torch.Tensor, name: str) -> torch.Tensor:
    """Tell which elements a mask of any dtype takes away, as bools.

    Raises:
        InputError: it holds anything but 0 and 1; `name` is what the error calls it.
    """
    if mask.is_floating_point() and mask.itemsize == 1:
        mask = mask.to(torch.float32)  # float8 cannot be compared by every torch
    off = mask == 0
    if not (off | (mask == 1)).all():
        raise InputError(f"{name} holds values other than 0 and 1, so it cannot be made permanent")
    return off


def _axis(dim: int, shape: Sequence[int], name: str) -> int:
    """Give `dim` counted from the front, or raise a DimError."""
    if not -len(shape) <= dim < len(shape):
        raise DimError(
            f"{name}: there is no dim {dim} in the shape {tuple(shape)}, which has {len(shape)}"
        )
    return dim % len(shape)


def _check_dtype(dtype: torch.dtype, name: str) -> None:
    if dtype not in _DTYPES_WITH_ZERO:
        reason = _REFUSED.get(str(dtype), "its zero is unknown")
        raise ParameterError(f"{name}: the dtype {dtype} cannot be pruned: {reason}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View the tensor as integers of its width: torch lacks kernels for float8 and uint16 to 64.

    A complex tensor gains a last dim of size 2.
    """
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(INTEGER_OF_WIDTH[tensor.element_size()])


def _widest(bits: torch.Tensor, axis: int) -> torch.Tensor:
    """View integers as int64 where each channel is made of whole ones: there are fewer to fill."""
    many = 8 // bits.element_size()
    if not bits.is_contiguous() or axis == bits.dim() - 1:
        return bits
    return bits if bits.shape[-1] % many or bits.storage_offset() % many else bits.view(torch.int64)


def _all_live_at_first_sight(tensor: torch.Tensor, axis: int) -> bool:
    """Tell whether the first element of each channel is a value: of most tensors, it is."""
    if tensor.dtype not in _USUAL or not tensor.is_contiguous() or not tensor.numel():
        return False
    inner = math.prod(tensor.shape[axis + 1 :])
    firsts = tensor.detach().view(-1)[: tensor.shape[axis] * inner : inner]
    return bool(firsts.all())


def _live_by_reduction(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Tell for each channel whether it is live, by one pass over the whole tensor."""
    others = [dim for dim in range(tensor.dim() + 1) if dim != axis]
    return tensor.detach().unsqueeze(-1).any(dim=others)


def _live_by_blocks(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Tell for each channel whether it is live, reading on only where zeros are all there was."""
    real = tensor.dtype.to_real()
    outer, n, inner = _three_dims(tensor, axis)
    bits = _bits(tensor).view(outer, n, inner)
    live = bits[:1, :, :1].view(real).any(dim=(0, 2)).bool()
    undecided = live.logical_not().nonzero().flatten()
    for group in undecided.split(max(1, _LARGEST_BLOCK // max(1, inner))):
        for rows, columns in _growing_blocks(outer, inner, _LARGEST_BLOCK // max(1, len(group))):
            if not len(group):
                break
            found = _hold_values(_take(bits[rows, :, columns], group), real)
            live[group] = found
            group = group[~found]
    return live


def _three_dims(tensor: torch.Tensor, axis: int) -> tuple[int, int, int]:
    """Give the sizes (before, along, after) the axis, the parts of a complex number after it."""
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


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


def _take(block: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Take ascending `channels` of a (rows, channels, columns) block: a view if they are a run."""
    first, last = int(channels[0]), int(channels[-1])
    if last - first + 1 == len(channels):
        return block[:, first : last + 1]
    return block[:, channels]


def _hold_values(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Tell which channels of a (rows, channels, columns) block hold a value that is not zero.

    torch reduces bytes ten times as fast as it reduces floats, and nearly all zeros are +0: only
    where a bit is set are the values looked at, to tell -0.0 from the others.
    """
    octets = bits.view(torch.uint8)
    octets = octets[0] if len(octets) == 1 else octets.any(dim=0)
    live = octets.any(dim=-1).bool()  # torch's any of uint8 is uint8
    suspects = live.nonzero().flatten()
    if len(suspects):
        live[suspects] = _take(bits, suspects).view(dtype).any(dim=(0, 2)).bool()
    return live


# --- Masks ------------------------------------------------------------------------------------


def _masked(
    values: torch.Tensor, mask: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Give `values` where the mask is 1, and +0 where it is 0; differentiable without `out`.

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


class _Pruned(torch.Tensor):
    """What `module.weight` is while it is pruned: `weight_orig` under its mask.

    A class because copy.deepcopy and torch.multiprocessing refuse a plain tensor that autograd
    computed, and a module holds this one as an attribute. The copy is a plain tensor with the
    values and without the graph; the copied module computes its own at its next forward.
    """

    # As Parameter does: a Tensor in every other respect, so every result is a plain Tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, orig: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pruned = _masked(orig, mask)
        # Tracers, torch.export for one, have their own class of tensor, which has to stay.
        return pruned.as_subclass(cls) if type(pruned) is torch.Tensor else pruned

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)


class _Selecting(BasePruningMethod):
    """A hook's two ways to make a pruned tensor, by selection; the rest of a hook is torch's.

    A base class because there are two hooks to give them to: torch hangs a single method on a
    module as it is, and puts several on one parameter into a container.
    """

    _tensor_name: str

    def apply_mask(self, module: torch.nn.Module) -> torch.Tensor:
        """Give `NAME_orig` under `NAME_mask`: +0 where the mask is 0, with a gradient of 0 there.

        The dtype, shape and memory format are the parameter's.
        """
        name = self._tensor_name
        return _Pruned.of(getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask"))

    def remove(self, module: torch.nn.Module) -> None:
        """Make the zeros permanent: `NAME_orig` becomes `NAME` again, and the mask goes.

        The parameter stays the same object in the same place among the parameters, and its
        memory is written in place, as by an optimizer's step. Call
        `torch.nn.utils.prune.remove(module, name)`, which removes the hook too.
        """
        name = self._tensor_name
        orig, mask = module.get_parameter(f"{name}_orig"), module.get_buffer(f"{name}_mask")
        _masked(orig.detach(), mask, out=orig.detach())
        del module._buffers[f"{name}_mask"]
        module.__dict__.pop(name, None)
        _rename(module._parameters, f"{name}_orig", name)
        _assign(module, name, orig)


class _SelectingContainer(_Selecting, PruningContainer):
    """torch's PruningContainer, selecting."""


# --- The class and the function ---------------------------------------------------------------


class RandomStructured(_Selecting):
    """Prune whole channels of a tensor at random, among those that are not pruned yet.

    A drop-in for `torch.nn.utils.prune.RandomStructured`: for one seed the same channels, the same
    hooks and state dict keys, and torch's `is_pruned`, `remove`, `PruningContainer` and other
    methods work with it. Unlike it, exactly k channels go, pruned elements are +0 whatever they
    were, the order of the parameters is kept, pruned modules can be copied and pickled, and an
    error leaves the module as it was. What is drawn: see `draw_channels`.

    (When one of torch's own methods is applied on top of a single RandomStructured, the container
    is torch's, and multiplies. The next RandomStructured puts this right.)

    Args:
        amount: an int, the number of channels; or a float from 0.0 to 1.0, a fraction of those
            that are not pruned yet.
        dim: the dim that counts channels; negative counts from the end.
        generator: a CPU generator to draw from, in place of the global one.

    Raises:
        AmountTypeError, AmountError: the amount is impossible for any tensor.
        DeviceError: the generator is not on the CPU.
        UsageError: the generator is something else, such as a seed.
    """

    PRUNING_TYPE = "structured"

    def __init__(
        self, amount: Amount, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> None:
        validate_amount(amount)
        _check_generator(generator)
        self.amount = amount
        self.dim = dim
        self.generator = generator

    def compute_mask(
        self, t: torch.Tensor, default_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw channels among those live in `default_mask`, and give that mask without them.

        Args:
            t: the tensor to prune, with two dims or more. Its values do not matter; a first
                `apply` gives one element of each channel.
            default_mask: of t's shape, with 0 for what is pruned already and 1 for the rest;
                None where nothing is.

        Returns:
            A new mask with the shape, dtype, device and memory format of t.

        Raises:
            DimError: t has no such dim.
            AmountError: the amount is larger than the number of live channels.
            ParameterError: t has less than two dims or a dtype without zero, or the mask has
                another shape or other values than 0 and 1.
        """
        name = f"parameter {self._tensor_name!r}" if hasattr(self, "_tensor_name") else "the tensor"
        axis = _axis_of_channels(self.dim, t, name)
        if default_mask is None:
            mask, live = torch.ones_like(t), torch.arange(t.shape[axis], device="cpu")
        else:
            _check_mask(default_mask, t, name)
            mask, live = torch.empty_like(t).copy_(default_mask), live_channels(default_mask, axis)
        k = number_to_prune(self.amount, len(live), name)
        return zero_channels_(mask, axis, draw_channels(live, k, generator=self.generator))

    def prune(
        self,
        t: torch.Tensor,
        default_mask: torch.Tensor | None = None,
        importance_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Give a pruned copy of `t`, differentiable, by the mask that `compute_mask` gives.

        Args:
            t: the tensor to prune.
            default_mask: as in `compute_mask`.
            importance_scores: of t's shape. At random their values do not matter.

        Raises:
            DimError, AmountError, ParameterError: as in `compute_mask`.
        """
        if importance_scores is not None:
            _check_shape("importance_scores", importance_scores, t)
        return _masked(t, self.compute_mask(t, default_mask))

    @classmethod
    def apply(  # type: ignore[override]  # as in torch: a method of its own arguments
        cls,
        module: torch.nn.Module,
        name: str,
        amount: Amount,
        dim: int = -1,
        *,
        generator: torch.Generator | None = None,
    ) -> BasePruningMethod:
        """Prune the parameter `name` of `module` from now on, at each forward.

        The parameter becomes `NAME_orig`, the mask is the buffer `NAME_mask`, and the attribute
        `NAME` is the one under the other, computed anew by a forward pre-hook. Where the
        parameter is pruned already, channels are drawn among those that its mask leaves.

        A parameter that another module shares is pruned in this module alone: the other goes on
        with the unpruned values until `remove`, which makes the zeros permanent for both.

        Args:
            module: the module that holds the parameter itself.
            name: the parameter's name, such as "weight".
            amount: see the class.
            dim: see the class.
            generator: see the class. The hook does not keep it.

        Returns:
            The hook: the method, or the PruningContainer of all methods on this parameter.

        Raises:
            AmountTypeError, AmountError, DeviceError, DimError, UsageError: as the class, and as
                `compute_mask`.
            ParameterError: the parameter is missing, lazy, has less than two dims, has a second
                name inside the module, or `NAME_orig` or `NAME_mask` is taken.
        """
        validate_amount(amount, f"parameter {name!r}")
        method = cls(amount, dim, generator=generator)
        method._tensor_name = name
        previous = _pruning_hook(module, name)
        orig = _parameter(module, name, pruned=previous is not None)
        if previous is None:  # then one value says it for a whole channel, which is quicker read
            kept = method.compute_mask(_one_element_of_each_channel(orig, dim, name))
            mask = torch.empty_like(orig).copy_(kept)
        else:
            kept = mask = method.compute_mask(orig, module.get_buffer(f"{name}_mask"))
        pruned = _Pruned.of(orig, kept)
        method.generator = None  # what it drew is in the mask; a copy or a pickle needs no more
        # Up to here an error leaves the module as it was; from here on there is none.
        _rename(module._parameters, name, f"{name}_orig")
        module.register_buffer(f"{name}_mask", mask)
        _assign(module, name, pruned)
        return _hang(module, method, previous)


def random_structured(
    module: torch.nn.Module,
    name: str,
    amount: Amount,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
) -> torch.nn.Module:
    """Apply `RandomStructured` to the parameter `name`, and return the module.

    Example:
        >>> linear = random_structured(torch.nn.Linear(5, 3), "weight", amount=2, dim=1)
        >>> int((linear.weight == 0).all(dim=0).sum())
        2
    """
    RandomStructured.apply(module, name, amount, dim, generator=generator)
    return module


def _check_generator(generator: torch.Generator | None) -> None:
    """Refuse what torch could not draw from on the CPU."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise UsageError(
            f"generator={generator!r} is no torch.Generator; for a seed give "
            "torch.Generator().manual_seed(seed)"
        )
    if generator.device.type != "cpu":
        raise DeviceError(
            f"the generator is on {generator.device}, and channels are drawn on the CPU, so that "
            "every device prunes the same; give torch.Generator()"
        )


def _check_shape(what: str, tensor: torch.Tensor, t: torch.Tensor) -> None:
    if tensor.shape != t.shape:
        raise ParameterError(
            f"{what} has the shape {tuple(tensor.shape)}, "
            f"and the tensor to prune {tuple(t.shape)}: they have to be the same"
        )


def _axis_of_channels(dim: int, t: torch.Tensor, name: str) -> int:
    """Give `dim` counted from the front, of a tensor that can be pruned along it."""
    _check_dtype(t.dtype, name)
    if t.dim() < 2:
        raise ParameterError(
            f"{name}: the shape {tuple(t.shape)} has no channels: that takes 2 dims or more"
        )
    return _axis(dim, t.shape, name)


def _one_element_of_each_channel(t: torch.Tensor, dim: int, name: str) -> torch.Tensor:
    """View the first element of every channel, in a shape that broadcasts to that of t."""
    axis = _axis_of_channels(dim, t, f"parameter {name!r}")
    where = [slice(None) if other == axis else slice(1) for other in range(t.dim())]
    return t.detach()[tuple(where)]


def _check_mask(mask: torch.Tensor, t: torch.Tensor, name: str) -> None:
    _check_shape("default_mask", mask, t)
    if not mask.is_meta and not torch.equal(mask == 1, mask != 0):
        raise ParameterError(f"{name}: its mask holds other values than 0 and 1")


def _pruning_hook(module: torch.nn.Module, name: str) -> int | None:
    """Give the key of the hook that prunes `name` among the module's forward pre-hooks."""
    keys = [
        key
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name
    ]
    if len(keys) > 1:
        raise ParameterError(f"parameter {name!r} has {len(keys)} pruning hooks: it can have one")
    return keys[0] if keys else None


def _parameter(module: torch.nn.Module, name: str, *, pruned: bool) -> torch.nn.Parameter:
    """Give the parameter to prune, under `NAME_orig` if it is pruned already."""
    kind, held = type(module).__name__, f"{name}_orig" if pruned else name
    parameter = module._parameters.get(held)
    if parameter is None:
        names = ", ".join(key for key, value in module._parameters.items() if value is not None)
        raise ParameterError(f"{kind} has no parameter {held!r} of its own; it has: {names}")
    if is_lazy(parameter):
        raise ParameterError(f"parameter {name!r} of {kind} is lazy: run a forward pass first")
    taken = [f"{name}{end}" for end in ("_orig", "_mask") if hasattr(module, f"{name}{end}")]
    if taken and not pruned:
        raise ParameterError(f"parameter {name!r} of {kind}: the name {taken[0]!r} is taken")
    _check_single_name(module, parameter)
    return parameter


def _check_single_name(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    names = [key for key, p in module.named_parameters(remove_duplicate=False) if p is parameter]
    if len(names) > 1:
        raise ParameterError(
            f"{names[0]!r} and {names[1]!r} are one parameter of {type(module).__name__}: pruning "
            "one name would leave the other unpruned, and `remove` could be right for neither"
        )


def _hang(
    module: torch.nn.Module, method: BasePruningMethod, previous: int | None
) -> BasePruningMethod:
    """Make `method` a hook of the module, after what its parameter has already."""
    if previous is None:
        module.register_forward_pre_hook(method)
        return method
    hook = module._forward_pre_hooks[previous]
    if not isinstance(hook, _SelectingContainer):
        methods = hook if isinstance(hook, PruningContainer) else (hook,)
        hook = module._forward_pre_hooks[previous] = _SelectingContainer()
        hook._tensor_name = method._tensor_name
        for earlier in methods:
            hook.add_pruning_method(earlier)
    hook.add_pruning_method(method)
    return hook


def _rename(parameters: dict[str, Any], old: str, new: str) -> None:
    """Give a parameter another name in its place: optimizers know parameters by their order."""
    renamed = {new if name == old else name: parameter for name, parameter in parameters.items()}
    parameters.clear()
    parameters.update(renamed)


def _assign(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set an attribute, for a recurrent module in its list of weights too."""
    setattr(module, name, tensor)
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()  # the list, and the weak references that forward compares
