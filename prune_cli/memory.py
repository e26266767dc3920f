"""Models in memory: prune a state dict, and put the masks of a checkpoint on a module.

What is decided is decided as for files, so the same names, options and seed prune the same channels.

See also: `api`, for files; `module`, for the hooks.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.utils.prune import BasePruningMethod

from prune_cli.amounts import Amount, check_amount
from prune_cli.channels import Bits
from prune_cli.checkpoint import Checkpoint, Loading, Shard, open_checkpoint
from prune_cli.checkpoint.strided import Place, find_overlaps, find_parameter_aliases
from prune_cli.checkpoint.tensors import DTYPES, MASK_SUFFIX, ORIG_SUFFIX, Parameter, TensorInfo
from prune_cli.errors import ParameterError, RequestError, UsageError
from prune_cli.module import GivenMask
from prune_cli.plan.choice import make_choice
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import Options, PlanItem
from prune_cli.plan.selection import Rule, as_globs
from prune_cli.stores import Location
from prune_cli.torch_channels import DTYPE_NAMES, as_bits, masked, zero_channels_

_Model = TypeVar("_Model", bound=torch.nn.Module)

_MOST_NAMED = 5
"""Misfits of a kind that an error names; of further ones it gives the number."""


def prune_state_dict(
    state_dict: Mapping[str, Any],
    *,
    amount: Amount | None = None,
    dim: int = -1,
    seed: int = 0,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    params: str | Sequence[str] = ("weight",),
    rules: Sequence[Rule] = (),
    bake: bool = True,
    with_bias: bool = False,
    allocate: str = "uniform",
    between: tuple[float, float] | None = None,
    target: str | None = None,
    is_global: bool = False,
    criterion: str | None = None,
    scores: str | Location | Mapping[str, Any] | None = None,
    round_to: int = 1,
    at_least: int = 0,
) -> OrderedDict[str, Any]:
    """Remove channels at random from a state dict: what `prune_checkpoint` does to a file of it.

    Args:
        state_dict: names to tensors, on any device; it is left as it is.
        amount: an int is a number of channels, a float a fraction of the live ones.
        dim: the dim whose indices are the channels.
        seed: of the draw; the same seed gives the same channels as in a file.
        modules: globs of dotted module names; a string is one glob.
        exclude: globs of modules to leave alone.
        params: globs of parameter names within a module.
        rules: a recipe; the last rule that matches wins. Without one, the above are the rule.
        bake: write the zeros; else give `NAME_orig` and `NAME_mask`, as torch has them.
        with_bias: let the bias element of each pruned channel of dim 0 go too.
        allocate: how the amount is spread over layers; this and the following are as in
            `prune_checkpoint`.
        between: for "random", the bounds of each layer's fraction.
        target: in place of an amount, what is to remain of the selected elements.
        is_global: rank all channels of all layers together.
        criterion: what ranks channels.
        scores: a score file, or the tensors of one by name.
        round_to: leave channels in multiples of this.
        at_least: how many channels stay in every layer.

    Returns:
        A new state dict in the same order. Pruned tensors are copies, the others are the same
        tensors; entries that are not dense tensors stay as they are.

    Raises:
        RequestError: what is asked for does not fit; every problem is named at once.
        UsageError: the options do not fit each other, or it is not a state dict.

    Example:
        >>> net.load_state_dict(prune_state_dict(net.state_dict(), amount=0.25, dim=0))
        <All keys matched successfully>
    """
    options = Options(
        amount=None if amount is None else check_amount(amount),
        dim=dim,
        seed=seed,
        modules=as_globs(modules),
        exclude=as_globs(exclude),
        params=as_globs(params),
        bake=bake,
        with_bias=with_bias,
        rules=tuple(rules),
        choice=make_choice(
            allocate=allocate,
            between=between,
            target=target,
            is_global=is_global,
            criterion=criterion,
            scores=None if scores is None else "scores",
            round_to=round_to,
            at_least=at_least,
        ),
    )
    if not isinstance(state_dict, Mapping):
        raise UsageError(
            f"a {type(state_dict).__name__} is not a state dict; give net.state_dict()"
        )
    checkpoint = _StateDict.of(state_dict)
    plan = make_plan(checkpoint, options, scores=None if scores is None else _open(scores))
    new = _baked if bake else _under_masks
    items = {item.name: item for item in plan.items}
    changed: dict[str, dict[str, Any]] = {}
    for parameter in checkpoint.parameters:
        if parameter.mask or parameter.name in items:
            changed |= dict(_renamed(checkpoint, parameter, new(checkpoint, parameter, items)))
    pruned = OrderedDict(
        entry
        for name, value in state_dict.items()
        for entry in changed.get(name, {name: value}).items()
    )
    pruned.__dict__.update(getattr(state_dict, "__dict__", {}))  # torch's _metadata
    return pruned


def load_masked(
    model: _Model, checkpoint: str | Location | Mapping[str, Any], *, loading: Loading | None = None
) -> _Model:
    """Load a checkpoint with masks into a module that was not pruned before.

    Each parameter that has a mask in the checkpoint gets `NAME_orig`, `NAME_mask` and the hook, as
    if it had been pruned here, so that training goes on under the masks; all else is loaded as
    `load_state_dict` does. Parameters that are pruned already take the values of the checkpoint.

    Args:
        model: what the model's own code builds; it is changed in place.
        checkpoint: a file or a folder, written with `bake=False` (--keep-masks) or by torch; or
            its state dict.
        loading: which parts of a file are wanted.

    Returns:
        The same model.

    Raises:
        InputError: the file cannot be read.
        RequestError: it does not fit the model, which is then as it was; misfits are named.

    Example:
        >>> net = load_masked(Net(), "model.pruned.safetensors")
    """
    opened = _open(checkpoint, loading)
    stored = {**{name: name for name in opened.tensors}, **opened.aliases}
    pairs = _pairs_to_mask(model, opened)
    _refuse_misfits(model, opened, stored, pairs)
    _refuse_masks(model, opened, pairs)
    for name, mask in pairs.items():
        GivenMask.apply(*_owner(model, name), _tensor(opened, mask))
    with torch.no_grad():
        for name, there in _tensors_of(model).items():
            there.copy_(_tensor(opened, opened.tensors[stored[name]]))
    _compute_pruned(model)
    return model


# --- A state dict as a checkpoint ---------------------------------------------------------------


def _open(
    checkpoint: str | Location | Mapping[str, Any], loading: Loading | None = None
) -> Checkpoint:
    if isinstance(checkpoint, Mapping):
        return _StateDict.of(checkpoint)
    return open_checkpoint(checkpoint, loading)


@dataclass(frozen=True, repr=False)
class _StateDict(Checkpoint):
    """A state dict as a checkpoint, so that plans are made of it as they are of files."""

    held: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, state_dict: Mapping[str, Any]) -> "_StateDict":
        held = {
            name: value
            for name, value in state_dict.items()
            if isinstance(value, torch.Tensor)
            and value.layout is torch.strided
            and value.dtype in DTYPE_NAMES
        }
        infos = tuple(
            TensorInfo(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in held.items()
        )
        places = {name: _place(tensor) for name, tensor in held.items() if not _is_odd(tensor)}
        aliases = find_parameter_aliases(infos, places)
        stored = tuple(info for info in infos if info.name not in aliases)
        path = Path("the state dict")
        shard = Shard(path.name, path, sum(info.nbytes for info in stored), stored)
        return cls(path, "memory", (shard,), aliases, find_overlaps(places), held=held)

    def bits(self, info: TensorInfo) -> Bits:
        tensor = self.held[info.name]
        if _is_odd(tensor):
            kind = "on the meta device" if tensor.is_meta else f"a {type(tensor.data).__name__}"
            raise ParameterError(
                f"{info.name} is {kind}, whose elements are not here; "
                "give the state dict of the whole model on one device"
            )
        return as_bits(tensor.cpu())

    def rows(self, info: TensorInfo, first: int, last: int) -> Bits:
        return np.atleast_1d(self.bits(info))[first:last].copy()


def _is_odd(tensor: torch.Tensor) -> bool:
    """Tell whether the elements of a tensor are elsewhere: on no device, or in other tensors."""
    return tensor.is_meta or hasattr(tensor, "__tensor_flatten__")


def _place(tensor: torch.Tensor) -> Place:
    start, shape, strides = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
    layout = (DTYPE_NAMES[tensor.dtype], shape, strides, str(tensor.device), tensor.is_conj())
    if not tensor.numel():
        return Place(0, 0, layout)
    size = tensor.itemsize
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    steps = tuple((n, stride * size) for n, stride in zip(shape, strides, strict=True) if n > 1)
    return Place(start, start + (last + 1) * size, layout, (*steps, (size, 1)))


# --- What becomes of a parameter ----------------------------------------------------------------

_Ends = dict[str, torch.Tensor]
"""What follows a parameter's name in the new state dict, and the tensor of that name."""


def _baked(checkpoint: _StateDict, parameter: Parameter, items: Mapping[str, PlanItem]) -> _Ends:
    tensor = checkpoint.held[parameter.tensor.name].detach()
    if parameter.mask:
        new = masked(tensor, checkpoint.held[parameter.mask.name])
    else:
        new = tensor.clone()
    item = items.get(parameter.name)
    if item:
        zero_channels_(new, item.dim, torch.tensor(item.pruned, dtype=torch.int64))
    return {"": new}


def _under_masks(
    checkpoint: _StateDict, parameter: Parameter, items: Mapping[str, PlanItem]
) -> _Ends:
    tensor = checkpoint.held[parameter.tensor.name]
    mask = checkpoint.held[parameter.mask.name] if parameter.mask else torch.ones_like(tensor)
    new, item = mask.detach().clone(), items.get(parameter.name)
    if item:
        dead = torch.tensor((*item.already_pruned, *item.pruned), dtype=torch.int64)
        zero_channels_(new, item.dim, dead)
    return {ORIG_SUFFIX: tensor, MASK_SUFFIX: new}


def _renamed(
    checkpoint: Checkpoint, parameter: Parameter, ends: _Ends
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield each name that `parameter` had in the state dict, with what stands there now."""
    names = (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ()))
    for name in names:
        old = f"{name}{ORIG_SUFFIX}" if parameter.mask else name
        yield old, {f"{name}{end}": tensor for end, tensor in ends.items()}
        if parameter.mask:
            yield f"{name}{MASK_SUFFIX}", {}


# --- Masks onto a module ------------------------------------------------------------------------


def _pairs_to_mask(model: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the names of parameters that the checkpoint has a mask for, and the model has none."""
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: parameter.mask
        for parameter in checkpoint.parameters
        if parameter.mask
        for name in (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ()))
        if name in held
    }


def _tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a state dict by name; what is extra state is not here."""
    found = model.state_dict(keep_vars=True)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _refuse_misfits(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    stored: Mapping[str, str],
    pairs: Mapping[str, TensorInfo],
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in _tensors_of(model).items()}
    for name in pairs:
        shapes[f"{name}{ORIG_SUFFIX}"] = shapes[f"{name}{MASK_SUFFIX}"] = shapes.pop(name)
    have = {name: checkpoint.tensors[at].shape for name, at in stored.items()}
    both = shapes.keys() & have.keys()
    problems = [
        *_named("the checkpoint lacks", shapes.keys() - both),
        *_named("the model has no", have.keys() - both),
        *_named(
            "of another shape is",
            (
                f"{name} ({list(have[name])}, and in the model {list(shapes[name])})"
                for name in both
                if have[name] != shapes[name]
            ),
        ),
    ]
    if problems:
        kind = type(model).__name__
        raise RequestError(f"{checkpoint.path} does not fit {kind}: {'; '.join(problems)}")


def _refuse_masks(
    model: torch.nn.Module, checkpoint: Checkpoint, pairs: Mapping[str, TensorInfo]
) -> None:
    problems = []
    for name, mask in pairs.items():
        try:
            GivenMask.check(*_owner(model, name), _tensor(checkpoint, mask))
        except ParameterError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ParameterError("\n".join(problems))


def _owner(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """Return the module that holds the parameter `name`, and its name there."""
    module, _, param = name.rpartition(".")
    return model.get_submodule(module), param


def _named(problem: str, names: Iterable[str]) -> Iterator[str]:
    found = sorted(names)
    more = len(found) - _MOST_NAMED
    if found:
        listed = ", ".join(found[:_MOST_NAMED])
        yield f"{problem} {listed}" + (f" and {more} more" if more > 0 else "")


def _tensor(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """Return a copy of a tensor of a checkpoint, on the CPU."""
    bits = checkpoint.bits(info).copy()
    dtype = getattr(torch, DTYPES[info.dtype].torch or "")
    return torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(dtype)


def _compute_pruned(model: torch.nn.Module) -> None:
    """Compute what is pruned from the values that were loaded, as the hooks do before a forward."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                hook(module, ())
