"""Shrink a model that is in memory, with the state of its optimizer, in place.

See also: shrink.py, the same for a checkpoint on disk, in a process of its own and within limits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prune_cli.amounts import Amount, check_amount
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.model import Inputs
from prune_cli.shrink.planning import plan_subject
from prune_cli.shrink.request import Request
from prune_cli.shrink.subject import checkpoint_names, record_subject
from prune_cli.shrink.trace import named_tensors


def shrink_module(
    model: nn.Module,
    example: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    amount: Amount | None = None,
    seed: int = 0,
    round_to: int = 1,
    modules: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> ShrinkPlan:
    """Remove channels from `model`, in place, as `prune-cli shrink` removes them from its checkpoint.

    Parameters stay the objects that they are, so an optimizer that holds them goes on; give it, and
    what it remembers of each element is sliced with them.

    Args:
        model: in evaluation or in training, on any device.
        example: what the model is called with, of the right shapes and dtypes: a tensor, a sequence
            of positional arguments or a mapping of keyword arguments.
        amount: per group: an int is a number of channels, a float a fraction.
        seed: of the draws.
        round_to: leave channels in multiples of this.
        modules: globs of module names; a group goes if all layers that make its channels match.
        exclude: globs of modules whose channels stay.
        rules: a recipe; the last rule that matches wins. Without one, the above are the rule.
        optimizer: of the model's parameters.

    Returns:
        What went, and what was left whole and why.

    Raises:
        RequestError: the model cannot be followed, or nothing can be removed; it is as it was.

    Example:
        shrink_module(net, torch.zeros(1, 3, 224, 224), amount=0.25, optimizer=sgd)
    """
    everything = Rule(tuple(modules), ("weight",), check_amount(0 if amount is None else amount), 0)
    wanted = Request(tuple(rules) or (everything,), tuple(exclude), seed, round_to)
    subject = record_subject(_without_values(model), [_inputs(example)])
    plan = plan_subject(replace(subject, theirs=checkpoint_names(subject, None, None)), wanted)
    _slice_in_place(model, plan, optimizer)
    for path, values in plan.attributes.items():
        for attribute, value in values.items():
            setattr(model.get_submodule(path), attribute, value)
    return plan


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy on meta, for evaluation; no value is copied on the way."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo).eval()


def _inputs(example: Tensor | Sequence[Any] | Mapping[str, Any]) -> Inputs:
    given: Any = (example,) if isinstance(example, Tensor) else example
    given = dict(given) if isinstance(given, Mapping) else tuple(given)
    moved: Inputs = tree_map(
        lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, given
    )
    return moved


def _slice_in_place(
    model: nn.Module, plan: ShrinkPlan, optimizer: torch.optim.Optimizer | None
) -> None:
    done: set[int] = set()  # tied tensors have several names
    for name, tensor in list(named_tensors(model)):
        if name not in plan.kept or id(tensor) in done:
            continue
        done.add(id(tensor))
        kept = plan.kept[name]
        for key, value in _remembered(tensor, optimizer).items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                _remembered(tensor, optimizer)[key] = _sliced(value, kept)
        if tensor.grad is not None:
            grad, tensor.grad = tensor.grad, None
            tensor.data = _sliced(tensor.data, kept)
            tensor.grad = _sliced(grad, kept)
        else:
            tensor.data = _sliced(tensor.data, kept)


def _remembered(tensor: Tensor, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    if optimizer is None or tensor not in optimizer.state:
        return {}
    state: dict[str, Any] = optimizer.state[tensor]
    return state


def _sliced(tensor: Tensor, kept: Mapping[int, tuple[int, ...]]) -> Tensor:
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
    return tensor
