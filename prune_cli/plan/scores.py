"""Scores: what ranks the channels of a run, out of its seed, its weights or a score file.

See also: criterion.py, the arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from prune_cli.channels import uniform_draws
from prune_cli.checkpoint import Checkpoint, open_checkpoint
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.errors import ParameterError, UsageError
from prune_cli.plan.choice import Criterion
from prune_cli.plan.criterion import has_order, score_channels, sum_scores
from prune_cli.stores import Location

Ranks: TypeAlias = npt.NDArray[Any]
"""A number for each live channel of a weight; the smallest go, ties in the order of channels."""


class Weight(NamedTuple):
    """A weight, the dim of its channels, and those that are not pruned yet."""

    parameter: Parameter
    names: tuple[str, ...]
    dim: int
    live: Sequence[int]


def open_scores(path: str | Location) -> Checkpoint:
    """Return the score file at `path`: a tensor for each weight, by name.

    Raises:
        InputError: it cannot be read.
    """
    return open_checkpoint(path)


def rank_channels(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    criterion: Criterion,
    *,
    seed_of: Callable[[str], int],
    scores: Checkpoint | None = None,
    workers: int = 1,
) -> list[Ranks]:
    """Return the rank of each live channel of each weight.

    Args:
        checkpoint: that the weights are of.
        weights: whose channels.
        criterion: what ranks them.
        seed_of: the seed of a tensor by its name, for "random".
        scores: the score file, for "scores".
        workers: threads, for what is read from the weights.

    Raises:
        ParameterError: the score file does not fit; all misfits are named.
        UsageError: there is none.
    """
    if criterion == "random":
        return [
            uniform_draws(len(weight.live), seed_of(weight.parameter.name)) for weight in weights
        ]
    if criterion == "scores":
        if scores is None:
            raise UsageError("the channels follow from a score file; name it: --scores")
        return _given(checkpoint, weights, scores, workers)
    return [
        score_channels(
            checkpoint.bits(weight.parameter.tensor),
            weight.parameter.tensor.dtype,
            weight.dim,
            criterion,
            weight.live,
            workers=workers,
        )
        for weight in weights
    ]


# --- a score file ----------------------------------------------------------------------------


def _given(
    checkpoint: Checkpoint, weights: Sequence[Weight], scores: Checkpoint, workers: int
) -> list[Ranks]:
    problems = list(_strangers(checkpoint, scores))
    found: list[Ranks] = []
    for weight in weights:
        name = weight.parameter.name
        info = next((scores.tensors[n] for n in weight.names if n in scores.tensors), None)
        if info is None:
            problems.append(f"{name}: {scores.path} has no scores of it; exclude it (-x)")
        elif misfit := _misfit(weight, info):
            problems.append(f"{name}: its scores in {scores.path} {misfit}")
        else:
            whole = _sum_up(weight, info, scores, workers)
            problems += _numberless(name, whole)
            found.append(whole[np.asarray(weight.live, dtype=np.intp)])
    if problems:
        raise ParameterError("\n".join(problems))
    return found


def _strangers(checkpoint: Checkpoint, scores: Checkpoint) -> Iterator[str]:
    known = checkpoint.parameter_of.keys() | checkpoint.parameter_aliases.keys()
    for name in scores.tensors:
        if name not in known:
            yield f"{name}: {scores.path} has scores of it, but the checkpoint has no such tensor"


def _misfit(weight: Weight, info: TensorInfo) -> str | None:
    shape = weight.parameter.tensor.shape
    if info.shape not in (shape, (shape[weight.dim],)):
        return (
            f"have the shape {list(info.shape)}; that must be {list(shape)}, or "
            f"[{shape[weight.dim]}]: one number for each channel"
        )
    return None if has_order(info.dtype) else f"are {info.dtype}, which has no order"


def _sum_up(weight: Weight, info: TensorInfo, scores: Checkpoint, workers: int) -> Ranks:
    dim = weight.dim if len(info.shape) > 1 else 0
    return sum_scores(scores.bits(info), info.dtype, dim, workers=workers)


def _numberless(name: str, whole: Ranks) -> Iterator[str]:
    wrong = np.flatnonzero(np.isnan(whole)).tolist()
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        yield f"{name}: its scores are NaN in channels {shown}"
