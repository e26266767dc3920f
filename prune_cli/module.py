"""RandomStructured and random_structured: channels of a module's parameters, pruned at random.

`RandomStructured` is `torch.nn.utils.prune.RandomStructured` without its defects, and
`random_structured` its function. Masks hold 0 (pruned) and 1 (kept) in the dtype of their
parameter.

See also: `torch_channels`, which draws and zeroes; `channels`, the same without torch.
"""

from typing import Any, TypeVar

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod, PruningContainer
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prune_cli.amounts import Amount, number_to_prune, validate_amount
from prune_cli.errors import DeviceError, ParameterError, UsageError
from prune_cli.torch_channels import (
    check_dtype,
    draw_channels,
    live_channels,
    masked,
    resolve_axis,
    zero_channels_,
)

_Module = TypeVar("_Module", bound=torch.nn.Module)

# --- Hooks ------------------------------------------------------------------------------------


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
        pruned = masked(orig, mask)
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
        """Return `NAME_orig` under `NAME_mask`: +0 where the mask is 0, with a gradient of 0 there.

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
        masked(orig.detach(), mask, out=orig.detach())
        del module._buffers[f"{name}_mask"]
        module.__dict__.pop(name, None)
        _rename(module._parameters, f"{name}_orig", name)
        _assign(module, name, orig)
        if isinstance(module, PrunedOutputProjection) and not _is_pruned(module):
            module.__class__ = NonDynamicallyQuantizableLinear  # type: ignore[assignment]


def _computed(name: str) -> Any:
    """Return a property that is the parameter `name`, or while it is pruned, computed anew."""

    def read(module: torch.nn.Module) -> torch.Tensor | None:
        if f"{name}_orig" not in module._parameters:
            return module._parameters[name]
        return masked(getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask"))

    def leave(module: torch.nn.Module, *computed: torch.Tensor) -> None:
        """Keep nothing of what a hook computed, or removes."""

    return property(read, leave, leave)


class PrunedOutputProjection(NonDynamicallyQuantizableLinear):
    """What `MultiheadAttention.out_proj` is while it is pruned.

    A class because the attention reads the weight and the bias of `out_proj` and never calls it,
    so that no hook would run: here they are computed whenever they are read.
    """

    weight = _computed("weight")
    bias = _computed("bias")


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
        skip_zero_channels: count channels whose elements are all zero as pruned already, and mask
            them too. After `remove`, pruning again then goes on where the last step stopped, as
            the command line does; by default zeros may be drawn again, as stock torch draws.

    Raises:
        AmountTypeError, AmountError: the amount is impossible for any tensor.
        DeviceError: the generator is not on the CPU.
        UsageError: the generator is something else, such as a seed.
    """

    PRUNING_TYPE = "structured"

    def __init__(
        self,
        amount: Amount,
        dim: int = -1,
        *,
        generator: torch.Generator | None = None,
        skip_zero_channels: bool = False,
    ) -> None:
        validate_amount(amount)
        _check_generator(generator)
        self.amount = amount
        self.dim = dim
        self.generator = generator
        self.skip_zero_channels = skip_zero_channels

    def compute_mask(
        self, t: torch.Tensor, default_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw channels among those live in `default_mask`, and return that mask without them.

        Args:
            t: the tensor to prune, with two dims or more. Its values matter for
                `skip_zero_channels` only; without it a first `apply` gives one element of each
                channel.
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
        if self.skip_zero_channels:
            is_zero = ~torch.isin(live, live_channels(t, axis))
            zero_channels_(mask, axis, live[is_zero])
            live = live[~is_zero]
        k = number_to_prune(self.amount, len(live), name)
        return zero_channels_(mask, axis, draw_channels(live, k, generator=self.generator))

    def prune(
        self,
        t: torch.Tensor,
        default_mask: torch.Tensor | None = None,
        importance_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a pruned copy of `t`, differentiable, by the mask that `compute_mask` gives.

        Args:
            t: the tensor to prune.
            default_mask: as in `compute_mask`.
            importance_scores: of t's shape. At random their values do not matter.

        Raises:
            DimError, AmountError, ParameterError: as in `compute_mask`.
        """
        if importance_scores is not None:
            _check_shape("importance_scores", importance_scores, t)
        return masked(t, self.compute_mask(t, default_mask))

    @classmethod
    def apply(  # type: ignore[override]  # as in torch: a method of its own arguments
        cls,
        module: torch.nn.Module,
        name: str,
        amount: Amount,
        dim: int = -1,
        *,
        generator: torch.Generator | None = None,
        skip_zero_channels: bool = False,
    ) -> BasePruningMethod:
        """Prune the parameter `name` of `module` from now on, at each forward.

        The parameter becomes `NAME_orig`, the mask is the buffer `NAME_mask`, and the attribute
        `NAME` is the one under the other, computed anew by a forward pre-hook. Where the
        parameter is pruned already, channels are drawn among those that its mask leaves.

        The hook runs when the module is called. What reads the attribute without calling the module
        goes on with old values, and of modules of your own only you can know. Of torch's, that is
        `MultiheadAttention` with its `out_proj`, which computes its weight at each reading.

        A parameter that another module shares is pruned in this module alone: the other goes on
        with the unpruned values until `remove`, which makes the zeros permanent for both.

        Args:
            module: the module that holds the parameter itself.
            name: the parameter's name, such as "weight".
            amount: see the class.
            dim: see the class.
            generator: see the class. The hook does not keep it.
            skip_zero_channels: see the class.

        Returns:
            The hook: the method, or the PruningContainer of all methods on this parameter.

        Raises:
            AmountTypeError, AmountError, DeviceError, DimError, UsageError: as the class, and as
                `compute_mask`.
            ParameterError: the parameter is missing, lazy, on the meta device, a DTensor, has less
                than two dims or a second name inside the module, is the direction of a weight
                norm, or `NAME_orig` or `NAME_mask` is taken.
        """
        validate_amount(amount, f"parameter {name!r}")
        method = cls(amount, dim, generator=generator)
        method.skip_zero_channels = skip_zero_channels
        method._tensor_name = name
        previous = _pruning_hook(module, name)
        orig = _parameter(module, name, pruned=previous is not None)
        if (
            previous is None and not skip_zero_channels
        ):  # then one value says it for a whole channel, which is quicker read
            kept = method.compute_mask(_one_element_of_each_channel(orig, dim, name))
            mask = torch.empty_like(orig).copy_(kept)
        else:
            before = None if previous is None else module.get_buffer(f"{name}_mask")
            kept = mask = method.compute_mask(orig, before)
        pruned = _Pruned.of(orig, kept)
        method.generator = None  # what it drew is in the mask; a copy or a pickle needs no more
        # Up to here an error leaves the module as it was; from here on there is none.
        return _install(module, method, previous, mask, pruned)


def random_structured(
    module: _Module,
    name: str,
    amount: Amount,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
    skip_zero_channels: bool = False,
) -> _Module:
    """Apply `RandomStructured` to the parameter `name`, and return the module.

    Example:
        >>> linear = random_structured(torch.nn.Linear(5, 3), "weight", amount=2, dim=1)
        >>> int((linear.weight == 0).all(dim=0).sum())
        2
    """
    RandomStructured.apply(
        module, name, amount, dim, generator=generator, skip_zero_channels=skip_zero_channels
    )
    return module


class GivenMask(_Selecting):
    """A mask that was drawn before, by whatever method: what `load_masked` hangs on a module."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return the mask that there is: the method takes nothing more away."""
        return default_mask

    @classmethod
    def apply(  # type: ignore[override]  # as in torch: a method of its own arguments
        cls, module: torch.nn.Module, name: str, mask: torch.Tensor
    ) -> BasePruningMethod:
        """Put `mask` on the parameter `name` of `module`, as RandomStructured does with its own.

        Args:
            module: the module that holds the parameter itself.
            name: the parameter's name; it is not pruned yet.
            mask: 0 for what is pruned, 1 for the rest, in the parameter's shape.

        Raises:
            ParameterError: as of RandomStructured, but that any shape and dtype will do.
        """
        orig = cls.check(module, name, mask)
        method = cls()
        method._tensor_name = name
        there = torch.empty_like(orig, requires_grad=False).copy_(mask)
        return _install(module, method, None, there, _Pruned.of(orig, there))

    @staticmethod
    def check(module: torch.nn.Module, name: str, mask: torch.Tensor) -> torch.nn.Parameter:
        """Return the parameter that `apply` would put the mask on, or raise as `apply` does."""
        orig = _parameter(module, name, pruned=False)
        _check_mask(mask, orig, f"parameter {name!r}")
        return orig


def _check_generator(generator: torch.Generator | None) -> None:
    """Raise where torch could not draw from the generator on the CPU."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise UsageError(
            f"generator={generator!r} is not a torch.Generator; for a seed give "
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
    """Return `dim` counted from the front, of a tensor that can be pruned along it."""
    check_dtype(t.dtype, name)
    if t.dim() < 2:
        raise ParameterError(
            f"{name}: the shape {tuple(t.shape)} has no channels: that takes 2 dims or more"
        )
    return resolve_axis(dim, t.shape, name)


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
    """Return the key of the hook that prunes `name` among the module's forward pre-hooks."""
    keys = [
        key
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name
    ]
    if len(keys) > 1:
        raise ParameterError(f"parameter {name!r} has {len(keys)} pruning hooks: it can have one")
    return keys[0] if keys else None


def _parameter(module: torch.nn.Module, name: str, *, pruned: bool) -> torch.nn.Parameter:
    """Return the parameter to prune, held as `NAME_orig` if it is pruned already."""
    kind, held = type(module).__name__, f"{name}_orig" if pruned else name
    parameter = module._parameters.get(held)
    if parameter is None:
        raise ParameterError(_no_parameter(module, name, held))
    if is_lazy(parameter):
        raise ParameterError(f"parameter {name!r} of {kind} is lazy: run a forward pass first")
    taken = [f"{name}{end}" for end in ("_orig", "_mask") if hasattr(module, f"{name}{end}")]
    if taken and not pruned:
        raise ParameterError(f"parameter {name!r} of {kind}: the name {taken[0]!r} is taken")
    reason = _why_not_by_mask(module, name, parameter)
    if reason:
        raise ParameterError(f"parameter {name!r} of {kind} {reason}")
    _check_single_name(module, parameter)
    return parameter


def _no_parameter(module: torch.nn.Module, name: str, held: str) -> str:
    kind = type(module).__name__
    if is_parametrized(module, name):
        inner = f"parametrizations.{name}"
        wanted = "original0" if _is_weight_norm(module.get_submodule(inner)) else "original"
        return (
            f"{name!r} of {kind} is not a parameter: parametrizations compute it; "
            f"prune {wanted!r} of module.{inner}"
        )
    names = ", ".join(key for key, value in module._parameters.items() if value is not None)
    hint = f" (weight norm: prune '{name}_g')" if f"{name}_g" in module._parameters else ""
    return f"{kind} has no parameter {held!r} of its own; it has: {names}{hint}"


def _is_weight_norm(module: torch.nn.Module) -> bool:
    """Tell whether a ParametrizationList is that of torch's weight norm."""
    return any(type(part).__name__ == "_WeightNorm" for part in module.children())


def _why_not_by_mask(
    module: torch.nn.Module, name: str, parameter: torch.nn.Parameter
) -> str | None:
    """Return why a mask and a hook would give wrong values for this parameter, if they would."""
    if hasattr(parameter, "__tensor_flatten__"):  # a tensor that is made of others
        return (
            f"is a {type(parameter.data).__name__}, whose elements other tensors hold; "
            "prune before it is distributed or converted"
        )
    if parameter.is_meta:
        return (
            "is on the meta device, where a mask has no values to keep; "
            "give the module its values first (to_empty and load_state_dict)"
        )
    if name == "original1" and _is_weight_norm(module):
        return "is the direction of a weight norm: zeros would give NaN; prune 'original0'"
    lengths = {f"{name[:-2]}_g", f"{name[:-2]}_g_orig"}
    if name.endswith("_v") and not lengths.isdisjoint(module._parameters):
        return f"is the direction of a weight norm: zeros would give NaN; prune '{name[:-2]}_g'"
    return None


def _is_pruned(module: torch.nn.Module) -> bool:
    return any(f"{name}_orig" in module._parameters for name in ("weight", "bias"))


def _check_single_name(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    names = [key for key, p in module.named_parameters(remove_duplicate=False) if p is parameter]
    if len(names) > 1:
        raise ParameterError(
            f"{names[0]!r} and {names[1]!r} are one parameter of {type(module).__name__}: pruning "
            "one name would leave the other unpruned, and `remove` could be right for neither"
        )


def _install(
    module: torch.nn.Module,
    method: _Selecting,
    previous: int | None,
    mask: torch.Tensor,
    pruned: torch.Tensor,
) -> BasePruningMethod:
    name = method._tensor_name
    _rename(module._parameters, name, f"{name}_orig")
    module.register_buffer(f"{name}_mask", mask)
    if type(module) is NonDynamicallyQuantizableLinear:
        module.__dict__.pop(name, None)
        module.__class__ = PrunedOutputProjection
    _assign(module, name, pruned)
    return _hang(module, method, previous)


def _hang(
    module: torch.nn.Module, method: BasePruningMethod, previous: int | None
) -> BasePruningMethod:
    """Make `method` a hook of the module, after what its parameter has already."""
    if previous is None:
        # Torch's older weight norm and spectral norm are hooks that read what this one computes.
        hooks = module._forward_pre_hooks.values()
        reads = any(isinstance(h, (WeightNorm, SpectralNorm)) for h in hooks)
        module.register_forward_pre_hook(method, prepend=reads)
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
    """Rename a parameter, in its place: optimizers know parameters by their order."""
    renamed = {new if name == old else name: parameter for name, parameter in parameters.items()}
    parameters.clear()
    parameters.update(renamed)


def _assign(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set an attribute, for a recurrent module in its list of weights too."""
    setattr(module, name, tensor)
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()  # the list, and the weak references that forward compares
