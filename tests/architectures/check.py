"""One model, shrunk and checked: each tensor is a slice of the source's, the outputs are the masked model's.

The masked model is the whole one with zeros in all that made and read the removed channels; where a
layer normalises over channels, it does so over those that are left. It is calculated in float64, so
that what differs is no rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prune_cli.plan.shrink import Kept
from prune_cli.shrink.trace import tensors_in

Inputs = Mapping[str, Tensor] | tuple[Tensor, ...]

TOLERANCE = 1e-5


def draw_weights(model: nn.Module) -> None:
    """Give every parameter and running statistic values of its own, so that no two channels are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
            elif isinstance(tensor, nn.Parameter) or "running_" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)


def refuse_no_slices(source: Mapping[str, Tensor], small: Mapping[str, Tensor], kept: Kept) -> None:
    """Raise AssertionError unless each tensor of `small` is that of `source` at the kept indices."""
    if source.keys() != small.keys():
        raise AssertionError(f"other tensors: {sorted(source.keys() ^ small.keys())[:4]}")
    for name, tensor in source.items():
        for dim, indices in kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(indices))
        if not torch.equal(tensor, small[name]):
            raise AssertionError(f"{name} is no slice of the source's")


def refuse_other_outputs(
    whole: nn.Module, small: nn.Module, kept: Kept, inputs: Inputs, *, training: bool
) -> None:
    """Raise AssertionError unless the small model gives what the masked one does."""
    masked = masked_model(whole, kept).train(training)
    small = copy.deepcopy(small).train(training)
    for module in (*masked.modules(), *small.modules()):
        _switch_dropout_off(module)
    try:
        expected, found = _outputs(masked.double(), small.double(), _double(inputs))
    except RuntimeError:  # a mask of float32's least number, or another fixed dtype
        expected, found = _outputs(masked.float(), small.float(), inputs)
    if len(expected) != len(found):
        raise AssertionError("another number of outputs")
    for one, other in zip(expected, found, strict=True):
        _refuse_difference(one, other)


def _outputs(
    masked: nn.Module, small: nn.Module, inputs: Inputs
) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        return list(tensors_in(_run(masked, inputs))), list(tensors_in(_run(small, inputs)))


def masked_model(whole: nn.Module, kept: Kept) -> nn.Module:
    """Return a copy with zeros wherever channels go, which normalises over those that stay."""
    masked = copy.deepcopy(whole)
    tensors = dict(masked.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, indices in dims.items():
                gone = sorted({*range(tensors[name].shape[dim])} - {*indices})
                tensors[name].index_fill_(dim, torch.tensor(gone), 0)
    for path, module in masked.named_modules():
        left = kept.get(f"{path}.weight", {}).get(0)
        if left is not None and _normalises_channels(module):
            _normalise_over(module, torch.tensor(left))
    return masked


def _normalises_channels(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Norm" in name and "Batch" not in name and "Instance" not in name


def _normalise_over(module: nn.Module, left: Tensor) -> None:
    """Let a norm see only the channels that are left; the others come out as zeros."""
    small = copy.deepcopy(module)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(small, name, nn.Parameter(parameter[left]))
    if isinstance(small, nn.LayerNorm | nn.RMSNorm):
        small.normalized_shape = (len(left),)
    if isinstance(small, nn.GroupNorm):
        small.num_channels = len(left)
    module.forward = _over(small, left, 1 if _channels_come_second(module) else -1)
    module.add_module("small", small)


def _channels_come_second(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.GroupNorm) or getattr(module, "data_format", "") == "channels_first"
    )


def _over(small: nn.Module, left: Tensor, dim: int) -> Callable[..., Tensor]:
    def forward(x: Tensor, *rest: Any) -> Tensor:
        part = small(x.index_select(dim, left), *(r.index_select(dim, left) for r in rest))
        return torch.zeros_like(x, dtype=part.dtype).index_copy(dim, left, part)

    return forward


def _switch_dropout_off(module: nn.Module) -> None:
    for name in ("p", "dropout", "drop_prob", "drop_path", "attention_dropout", "layerdrop"):
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)
    if type(module).__name__ in ("StochasticDepth", "Dropout", "DropPath"):
        module.eval()


def _double(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: _wide(tensor) for name, tensor in inputs.items()}
    return tuple(map(_wide, inputs))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _run(model: nn.Module, inputs: Inputs) -> Any:
    torch.manual_seed(0)  # for what is drawn in training
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _refuse_difference(expected: Tensor, found: Tensor) -> None:
    if expected.shape != found.shape:
        raise AssertionError(f"outputs are {list(found.shape)} and not {list(expected.shape)}")
    if not expected.is_floating_point():
        return
    scale = max(1.0, float(expected.abs().nan_to_num(0).max())) if expected.numel() else 1.0
    if not torch.allclose(expected, found, atol=TOLERANCE * scale, rtol=0, equal_nan=True):
        raise AssertionError(f"outputs differ by {float((expected - found).abs().max()):.2g}")
