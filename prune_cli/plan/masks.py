"""Masks that a checkpoint has already: whether they can be made permanent, and what they take away."""

import math
from collections.abc import Sequence

from prune_cli.channels import live_channels, masked_elements, other_channels
from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.errors import InputError

_BLOCK = 1 << 18  # elements that are looked at together


def refuse_odd_masks(checkpoint: Checkpoint) -> None:
    """Read every mask, so that one that cannot be baked stops the run before it writes.

    Raises:
        InputError: some hold values other than 0 and 1; all are named.
    """
    problems = [
        str(error)
        for parameter in checkpoint.parameters
        if parameter.mask and (error := _error(checkpoint, parameter.mask))
    ]
    if problems:
        raise InputError("\n".join(problems))


def live(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> Sequence[int]:
    """Return the channels of `parameter` that are not pruned yet, by its mask if it has one."""
    info = parameter.mask or parameter.tensor
    if len(info.pieces) > 1:
        return _live_by_rows(checkpoint, info, dim)
    return live_channels(checkpoint.bits(info), dim, info.dtype)


def _live_by_rows(checkpoint: Checkpoint, info: TensorInfo, dim: int) -> Sequence[int]:
    """live_channels, a few rows at a time: a tensor in pieces would have to be put together."""
    step = max(_BLOCK // max(math.prod(info.shape[1:]), 1), 1)
    found: set[int] = set()
    for first in range(0, info.shape[0], step):
        bits = checkpoint.rows(info, first, min(first + step, info.shape[0]))
        channels = live_channels(bits, dim, info.dtype)
        found.update(channel + first if dim == 0 else channel for channel in channels)
    return sorted(found)


def dead(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> tuple[int, ...]:
    """Return the channels of `parameter` that are pruned already."""
    return other_channels(live(checkpoint, parameter, dim), parameter.tensor.shape[dim])


def _error(checkpoint: Checkpoint, info: TensorInfo) -> InputError | None:
    bits = checkpoint.bits(info)
    bits = bits.reshape(-1) if bits.flags.c_contiguous else bits
    rows = max(_BLOCK * len(bits) // max(bits.size, 1), 1)
    try:
        for start in range(0, len(bits), rows):
            masked_elements(bits[start : start + rows], info.dtype, info.name)
    except InputError as error:
        return error
    return None
