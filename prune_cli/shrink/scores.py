"""What the weights, or a score file, say of each channel: asked for by planning, which has shapes only.

See also: plan/scores.py, which reads them; sizing.py, which adds them up over a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import ParameterError
from prune_cli.plan import masks
from prune_cli.plan.choice import Criterion
from prune_cli.plan.criterion import has_order
from prune_cli.plan.scores import Ranks, Weight, rank_channels
from prune_cli.shrink.request import Site


def score_sites(
    checkpoint: Checkpoint,
    criterion: Criterion,
    scores: Checkpoint | None,
    workers: int,
    sites: Sequence[Site],
) -> list[Ranks]:
    """Return a score for each index of each site.

    Those of l2 are squares, so that their sum over a group is the square of its norm. A score file
    has to have scores of the roots; of what is coupled to them it may have some.

    Raises:
        ParameterError: a tensor has no order, or the score file does not fit; all are named.
    """
    parameters = _parameters(checkpoint)
    if criterion == "scores":
        sites_scored = [s for s in sites if s.is_root or _has_all(s, parameters, scores)]
    else:
        _refuse_unordered(sites, parameters)
        sites_scored = list(sites)
    weights = [_weight(checkpoint, parameters[site.tensor], site) for site in sites_scored]
    ranks = rank_channels(
        checkpoint, weights, criterion, seed_of=hash, scores=scores, workers=workers
    )
    lowest = -np.inf if criterion == "scores" else 0.0
    found = {
        site: _fill(weight, np.square(rank) if criterion == "l2" else rank, lowest)
        for site, weight, rank in zip(sites_scored, weights, ranks, strict=True)
    }
    return [found[s] if s in found else _nothing(parameters[s.tensor], s) for s in sites]


def _parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    found = {parameter.name: parameter for parameter in checkpoint.parameters}
    for parameter in checkpoint.parameters:
        for alias in checkpoint.names_of.get(parameter.tensor.name, ()):
            found.setdefault(alias, parameter)
    return found


def _weight(checkpoint: Checkpoint, parameter: Parameter, site: Site) -> Weight:
    """Channels that a mask took away already are not ranked: they go first."""
    channels = parameter.tensor.shape[site.dim]
    live = masks.live(checkpoint, parameter, site.dim) if parameter.mask else range(channels)
    names = (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ()))
    return Weight(parameter, names, site.dim, live)


def _fill(weight: Weight, ranks: Ranks, lowest: float) -> Ranks:
    whole = np.full(weight.parameter.tensor.shape[weight.dim], lowest)
    whole[np.asarray(weight.live, dtype=np.intp)] = ranks
    return whole


def _nothing(parameter: Parameter, site: Site) -> Ranks:
    return np.zeros(parameter.tensor.shape[site.dim])


def _has_all(site: Site, parameters: Mapping[str, Parameter], scores: Checkpoint | None) -> bool:
    """Whether the score file has one for each element; one for each channel is the root's."""
    tensor = parameters[site.tensor].tensor
    info = scores.tensors.get(site.tensor) if scores else None
    return info is not None and info.shape == tensor.shape


def _refuse_unordered(sites: Sequence[Site], parameters: Mapping[str, Parameter]) -> None:
    problems = dict.fromkeys(_unordered(sites, parameters))
    if problems:
        raise ParameterError("\n".join(problems))


def _unordered(sites: Sequence[Site], parameters: Mapping[str, Parameter]) -> Iterator[str]:
    for site in sites:
        dtype = parameters[site.tensor].tensor.dtype
        if not has_order(dtype):
            yield f"{site.tensor}: it is {dtype}, which has no order; exclude its module (-x)"
