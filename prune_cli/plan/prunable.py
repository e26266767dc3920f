"""Whether a tensor can be pruned, as far as its header and its neighbours' names tell.

Without torch, so that `inspect` is instant. The plan refuses by the same words.
"""

from collections.abc import Iterator

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, Parameter

_SCALES = ("_scale", "_scale_inv", ".scale")  # what follows the name of a quantised tensor
_ZERO_POINTS = ("_zero_point", ".zero_point")
_PACKED = (".absmax", ".quant_map", "_packed")


def find_problems(
    checkpoint: Checkpoint, parameter: Parameter, *, is_bias: bool = False
) -> Iterator[str]:
    """Why `parameter` cannot be pruned, whatever the amount and the dim; nothing if it can.

    `is_bias`: it has one element for each channel of a weight, and goes with that.
    """
    info, name = parameter.tensor, parameter.name
    if len(info.shape) < 2 and not is_bias:
        yield f"{name} is {len(info.shape)}-D, so it has no channels to prune; exclude it (-x)"
    if not DTYPES[info.dtype].holds_zero:
        yield f"{name} is {info.dtype}, which cannot hold zero; exclude it (-x)"
    if DTYPES[info.dtype].bits < 8:
        yield f"{name} is {info.dtype}, packed below a byte; exclude it (-x)"
    if info.name in checkpoint.overlaps:
        other = checkpoint.overlaps[info.name]
        yield f"{name} shares part of its memory with {other}; save the two apart (.clone())"
    for suffix in _ZERO_POINTS:
        if name + suffix in checkpoint.tensors:
            yield f"{name} is quantised with a zero point ({name + suffix}): 0 is not its zero"
    for suffix in _PACKED:
        if name + suffix in checkpoint.tensors:
            yield f"{name} is packed ({name + suffix} is with it): 0 is not its zero"


def scaled_by(name: str) -> str | None:
    """The name of what the tensor `name` is the scale of; None if it is not called like one."""
    end = next((end for end in _SCALES if name.endswith(end)), None)
    return end and name.removesuffix(end)
