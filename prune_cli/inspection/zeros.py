"""Count the channels that are all zero: a tensor at a time, no further than it takes to tell."""

from collections.abc import Sequence

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, Parameter, TensorInfo
from prune_cli.errors import DimError
from prune_cli.inspection.facts import ZeroCount
from prune_cli.write.progress import OnTensor


def count_zeros(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    dim: int | None,
    on_tensor: OnTensor | None,
) -> dict[str, tuple[ZeroCount, ...]]:
    """Return the zero channels of each parameter whose dtype can hold zero, by its name.

    Raises:
        DimError: no parameter has `dim`.
    """
    counts: dict[str, tuple[ZeroCount, ...]] = {}
    if not any(_dims(parameter, dim) for parameter in parameters):
        raise DimError(f"none of the {len(parameters):,} tensors has a dim {dim}; leave out --dim")
    for parameter in parameters:
        if _can_be_counted(parameter.tensor):
            counts[parameter.name] = tuple(
                _count(checkpoint, parameter, each) for each in _dims(parameter, dim)
            )
        if on_tensor:
            on_tensor(parameter.name, parameter.tensor.nbytes)
    return counts


def _dims(parameter: Parameter, dim: int | None) -> Sequence[int]:
    size = len(parameter.tensor.shape)
    if dim is None:
        return range(size)
    return (dim % size,) if -size <= dim < size else ()


def _can_be_counted(info: TensorInfo) -> bool:
    dtype = DTYPES[info.dtype]
    return dtype.holds_zero and dtype.bits >= 8


def _count(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> ZeroCount:
    """Count by the mask where there is one, as the plan does."""
    from prune_cli.plan.masks import live  # which imports NumPy

    channels = parameter.tensor.shape[dim]
    return ZeroCount(dim, channels, channels - len(live(checkpoint, parameter, dim)))
