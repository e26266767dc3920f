"""Which attributes of a module count its channels, by the shapes of its tensors.

One table for the modules of torch.nn; whether it is right is checked for every plan (agreement.py).
See also: which modules share channels (coupling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from prune_cli.plan.shrink import Attribute

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
_PLAIN_NORMS = (nn.LayerNorm, nn.RMSNorm)
_CONV = nn.modules.conv._ConvNd


class NotSliceableError(Exception):
    """The channels of this module cannot be taken out by selecting indices; the text says why."""


@dataclass(frozen=True)
class Cut:
    """Indices to take out of one axis of one tensor, each with the channel that it belongs to."""

    tensor: str
    dim: int
    channels: Mapping[int, int]


def is_conv1d(module: object) -> bool:
    """Return whether it is transformers' Conv1D: a linear layer whose weight is transposed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def changed_attributes(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, Attribute]]:
    """Return the attributes that count channels, where the new shapes of the tensors change them.

    Example:
        `{"fc": {"out_features": 6}}` for `{"fc.weight": (6, 4), "fc.bias": (6,)}`.
    """
    changed = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        sizes = {
            name: shapes.get(prefix + name, tuple(tensor.shape))
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None
        }
        now = _attributes(module, sizes)
        new = {name: value for name, value in now.items() if getattr(module, name) != value}
        if new:
            changed[path] = new
    return changed


def _attributes(module: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Attribute]:
    match module:
        case nn.MultiheadAttention() if "in_proj_weight" in sizes:
            embed = sizes["in_proj_weight"][1]
            counts = dict.fromkeys(("embed_dim", "kdim", "vdim"), embed)
            return {**counts, "head_dim": embed // module.num_heads}
        case nn.RNNBase() if not module.proj_size:
            inner, hidden = sizes["weight_ih_l0"][1], sizes["weight_hh_l0"][1]
            return {"input_size": inner, "hidden_size": hidden}
        case nn.RNNCellBase():
            return {"input_size": sizes["weight_ih"][1], "hidden_size": sizes["weight_hh"][1]}
        case _ if "weight" not in sizes:
            return {}
        case _CONV():
            return _conv_attributes(module, *sizes["weight"][:2])
        case _ if is_conv1d(module):
            return {"nx": sizes["weight"][0], "nf": sizes["weight"][1]}
        case nn.Linear():
            return {"out_features": sizes["weight"][0], "in_features": sizes["weight"][1]}
        case nn.Embedding():
            return {"embedding_dim": sizes["weight"][1]}
        case nn.GroupNorm():
            return {"num_channels": sizes["weight"][0]}
        case nn.PReLU():
            return {"num_parameters": sizes["weight"][0]}
        case _ if isinstance(module, _NORMS):
            return {"num_features": sizes["weight"][0]}
        case _ if isinstance(module, _PLAIN_NORMS):
            return {"normalized_shape": tuple(sizes["weight"])}
    return {}


def _conv_attributes(
    module: nn.modules.conv._ConvNd, first: int, second: int
) -> dict[str, Attribute]:
    """Return the counts of a convolution by the first sizes of its weight.

    Where each channel that goes in has filters of its own, there are as many groups as channels.
    """
    is_depthwise = module.groups == module.in_channels > 1
    if module.transposed:
        groups = first if is_depthwise else module.groups
        return {"out_channels": second * groups, "in_channels": first, "groups": groups}
    filters = module.out_channels // module.groups
    groups = first // filters if is_depthwise else module.groups
    return {"out_channels": first, "in_channels": second * groups, "groups": groups}
