"""Which tensors of a module hold its channels, and which of its attributes count them.

One table for the modules of torch.nn. What is not in it is not pruned; whether the table is right is
checked for every plan (agreement.py). See also: which modules share channels (coupling.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from prune_cli.plan.shrink import Attribute

Side = Literal["out", "in"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
_PLAIN_NORMS = (nn.LayerNorm, nn.RMSNorm)
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


class NotSliceableError(Exception):
    """The channels of this module cannot be taken out by selecting indices; the text says why."""


@dataclass(frozen=True)
class Cut:
    """Indices to take out of one axis of one tensor, each with the channel that it belongs to."""

    tensor: str
    dim: int
    channels: Mapping[int, int]


def cuts(module: nn.Module, path: str, side: Side, channels: Mapping[int, int]) -> Iterator[Cut]:
    """Yield what goes out of a module with some of its channels.

    Args:
        module: A module of torch.nn.
        path: Its dotted name.
        side: "out" for the channels that it makes, "in" for those that it reads.
        channels: The channels to remove, each mapped to whatever the caller wants to find again.

    Raises:
        NotSliceableError: The channels are not slices of plain parameters.

    Example:
        For `nn.Linear(4, 8)` at "fc", side "out": `Cut("fc.weight", 0, ...)`, `Cut("fc.bias", 0, ...)`.
    """
    prefix = f"{path}." if path else ""
    for name, dim, indices in _cuts(module, side, channels):
        if name in module._parameters or name in module._buffers:
            if getattr(module, name) is not None:
                yield Cut(prefix + name, dim, indices)
        elif getattr(module, name, None) is not None:
            raise NotSliceableError(
                f"{prefix}{name} is computed from other tensors (weight_norm or the like): "
                "bake it into the model and the checkpoint first"
            )


def _cuts(
    module: nn.Module, side: Side, channels: Mapping[int, int]
) -> Iterable[tuple[str, int, Mapping[int, int]]]:
    match module:
        case _TRANSPOSED() if module.groups > 1:
            raise NotSliceableError("a transposed convolution in groups")
        case _CONV() if is_depthwise(module):
            return [("weight", 0, channels), ("bias", 0, channels)]
        case _CONV() if side == "in":
            within = _within_groups(channels, module.in_channels, module.groups)
            return [("weight", 0 if module.transposed else 1, within)]
        case _CONV():
            return [("weight", 1 if module.transposed else 0, channels), ("bias", 0, channels)]
        case _ if is_conv1d(module):
            out = [("weight", 1, channels), ("bias", 0, channels)]
            return [("weight", 0, channels)] if side == "in" else out
        case nn.Linear() if side == "in":
            return [("weight", 1, channels)]
        case nn.Linear():
            return [("weight", 0, channels), ("bias", 0, channels)]
        case nn.Embedding():
            return [("weight", 1, channels)]
        case nn.PReLU():
            return [("weight", 0, channels)] if module.num_parameters > 1 else []
        case nn.MultiheadAttention():
            return _attention_cuts(module, channels)
        case _ if isinstance(module, _NORMS):
            names = ("weight", "bias", "running_mean", "running_var")
            return [(name, 0, channels) for name in names if hasattr(module, name)]
        case _ if isinstance(module, _PLAIN_NORMS):
            if len(module.normalized_shape) != 1:
                raise NotSliceableError("it normalises over several axes")
            return [(name, 0, channels) for name in ("weight", "bias") if hasattr(module, name)]
    raise NotSliceableError(f"the channels of a {type(module).__name__} cannot be sliced")


def is_conv1d(module: object) -> bool:
    """Return whether it is transformers' Conv1D: a linear layer whose weight is transposed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each channel that goes in has its own filter, so that both sides are one."""
    return (
        isinstance(module, _CONV)
        and not module.transposed
        and module.groups == module.out_channels == module.in_channels
        and module.groups > 1
    )


def _within_groups(channels: Mapping[int, int], size: int, groups: int) -> Mapping[int, int]:
    """Input channels as positions within each group of a convolution: the same ones in every group."""
    width = size // groups
    first = {index: owner for index, owner in channels.items() if index < width}
    if {group * width + index for group in range(groups) for index in first} != set(channels):
        raise NotSliceableError("each group of the convolution would lose other channels")
    return first


def _attention_cuts(
    module: nn.MultiheadAttention, channels: Mapping[int, int]
) -> Iterable[tuple[str, int, Mapping[int, int]]]:
    if not module._qkv_same_embed_dim or module.bias_k is not None:
        raise NotSliceableError("attention with its own key and value sizes or biases")
    size = module.embed_dim
    thrice = {part * size + index: owner for part in range(3) for index, owner in channels.items()}
    return [
        ("in_proj_weight", 0, thrice),
        ("in_proj_weight", 1, channels),
        ("in_proj_bias", 0, thrice),
    ]


def blocks(module: nn.Module) -> int:
    """Into how many equal blocks the channels fall that must lose the same positions each."""
    match module:
        case nn.GroupNorm():
            return int(module.num_groups)
        case nn.MultiheadAttention():
            return int(module.num_heads)
        case _CONV() if not is_depthwise(module):
            return int(module.groups)
    return 1


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
        case _ if "weight" not in sizes:
            return {}
        case _CONV():
            out, inner = sizes["weight"][:2]
            groups = out if is_depthwise(module) else module.groups
            if module.transposed:
                out, inner = inner * groups, out // groups
            return {"out_channels": out, "in_channels": inner * groups, "groups": groups}
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
