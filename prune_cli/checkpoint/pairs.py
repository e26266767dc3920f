"""Whether NAME_orig and NAME_mask are what torch.nn.utils.prune made of one NAME.

Their names and shapes say so in the headers; a mask also holds nothing but 0 and 1.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from prune_cli.checkpoint.contents import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, MASK_SUFFIX, ORIG_SUFFIX, TensorInfo

_BLOCK = 1 << 18  # elements that are looked at together


def separate_odd_pairs(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with every pair that is no pruned parameter as two tensors, and a note.

    Reads the masks, and nothing where there are none.
    """
    odd = frozenset(
        parameter.tensor.name
        for parameter in checkpoint.parameters
        if parameter.mask and not _is_mask(checkpoint, parameter.mask)
    )
    notes = tuple(_notes(checkpoint, odd))
    return (
        replace(checkpoint, unpaired=odd, notes=checkpoint.notes + notes) if notes else checkpoint
    )


def _notes(checkpoint: Checkpoint, odd: frozenset[str]) -> Iterator[str]:
    paired = {parameter.tensor.name for parameter in checkpoint.parameters if parameter.mask}
    for name, info in checkpoint.tensors.items():
        plain = name.removesuffix(ORIG_SUFFIX)
        mask = checkpoint.tensors.get(plain + MASK_SUFFIX)
        if plain == name or mask is None or (name in paired and name not in odd):
            continue
        if name in odd:
            fact = f"{mask.name} holds values other than 0 and 1"
        elif mask.shape != info.shape:
            fact = f"the shape of {mask.name} is {list(mask.shape)}, not {list(info.shape)}"
        else:
            fact = f"{plain} is there as well"
        yield f"{name} is left as it is, for it is not a pruned {plain}: {fact}"


def _is_mask(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    """Return whether a tensor holds nothing but 0 and 1, looked at a few rows at a time."""
    dtype = DTYPES[info.dtype]
    if dtype.bits < 8:
        return False
    rows = info.shape[0] if info.shape else 1
    step = max(_BLOCK // max(math.prod(info.shape[1:]), 1), 1)
    for first in range(0, rows, step):
        bits = checkpoint.rows(info, first, min(first + step, rows))
        significant = bits & bits.dtype.type((1 << dtype.bits) - 1 - dtype.sign)
        if not ((significant == 0) | (bits == bits.dtype.type(dtype.one))).all():
            return False
    return True
