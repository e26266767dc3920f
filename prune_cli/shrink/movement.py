"""Follow data movement (reshapes, slices, joins) by doing it, on integers that name positions.

Done once as the whole model does it, and once on what is left as the shrunk one does: what comes out
says which indices of each axis are left. See also: which operations move data (rules.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from prune_cli.shrink.axes import Axes, Axis, Owner, require, whole_axes

LARGEST_LABELLED = 1 << 24
"""More positions than this are not followed; it bounds the memory of a plan."""

Move = Callable[[list[Tensor]], list[Tensor]]


def moved(whole: Move, shrunk: Move, operands: list[Axes]) -> list[Axes]:
    """Move numbered positions as both models do, and read off which indices of each axis are left."""
    require(
        all(axis.known and axis.left is None for axes in operands for axis in axes),
        "what it moves is not known",
    )
    require(
        sum(math.prod(axis.size for axis in axes) for axes in operands) <= LARGEST_LABELLED,
        "it moves more elements than can be followed",
    )
    labels = _number(operands)
    results = whole(labels)
    results_after = shrunk([_keep(label, axes) for label, axes in zip(labels, operands)])
    zeros = whole([_zero_mask(axes) for axes in operands]) if _any_zero(operands) else None
    origin = _Origin(operands)
    read = [
        _read_off(result, after, origin)
        for result, after in zip(results, results_after, strict=True)
    ]
    if zeros is None:
        return read
    return [
        tuple(axis.with_zero(_zero_slabs(zero, dim)) for dim, axis in enumerate(axes))
        for axes, zero in zip(read, zeros, strict=True)
    ]


def _number(operands: list[Axes]) -> list[Tensor]:
    labels, start = [], 0
    for axes in operands:
        sizes = [axis.size for axis in axes]
        labels.append(torch.arange(start, start + math.prod(sizes)).reshape(sizes))
        start += math.prod(sizes)
    return labels


def _keep(tensor: Tensor, axes: Axes) -> Tensor:
    for dim, axis in enumerate(axes):
        if axis.removed:
            tensor = tensor.index_select(dim, torch.tensor(axis.kept))
    return tensor


def _any_zero(operands: list[Axes]) -> bool:
    return any(axis.zero for axes in operands for axis in axes)


def _zero_mask(axes: Axes) -> Tensor:
    mask = torch.zeros([axis.size for axis in axes], dtype=torch.bool)
    for dim, axis in enumerate(axes):
        if axis.zero:
            mask.index_fill_(dim, torch.tensor(sorted(axis.zero)), True)
    return mask


def _zero_slabs(mask: Tensor, dim: int) -> list[int]:
    """Return the indices along `dim` at which the mask is all true."""
    slabs: list[int] = (
        mask.movedim(dim, 0).reshape(mask.shape[dim], -1).all(1).nonzero().flatten().tolist()
    )
    return slabs


class _Origin:
    """Finds, for a numbered position, the owner of the index that was removed there."""

    def __init__(self, operands: list[Axes]) -> None:
        self._operands = operands

    def owner(self, label: int) -> Owner | None:
        for axes in self._operands:
            count = math.prod(axis.size for axis in axes)
            if label < count:
                return self._owner_within(axes, label)
            label -= count
        return None

    @staticmethod
    def _owner_within(axes: Axes, label: int) -> Owner | None:
        for axis in reversed(axes):
            label, index = divmod(label, axis.size)
            if index in axis.removed:
                return axis.removed[index]
        return None


def _read_off(result: Tensor, after: Tensor, origin: _Origin) -> Axes:
    if not result.numel() and result.shape == after.shape:
        return whole_axes(result.shape)  # a slice of nothing, as where all of a head is rotated
    reason = "it would mix channels or move them elsewhere"
    require(result.dim() == after.dim() and after.numel() > 0, reason)
    places = (result == after.flatten()[0]).nonzero()
    require(len(places) > 0, reason)
    place = places[0].tolist()
    axes, rest = [], result
    for dim in range(result.dim()):
        line = _line(result, place, dim)
        line_after = _line(after, [0] * after.dim(), dim)
        kept = _positions(line.tolist(), line_after.tolist())
        require(kept is not None, reason)
        removed = _owners(line.tolist(), kept or [], origin)
        axes.append(Axis(len(line), removed))
        if removed:
            rest = rest.index_select(dim, torch.tensor(kept))
    require(torch.equal(rest, after), reason)
    return tuple(axes)


def _line(tensor: Tensor, place: list[int], dim: int) -> Tensor:
    """Return the elements along `dim` through one place."""
    for other in reversed(range(tensor.dim())):
        if other != dim:
            tensor = tensor.select(other, place[other])
    return tensor


def _positions(line: list[int], left: list[int]) -> list[int] | None:
    """Return where the labels `left` stand in `line`, if they do in ascending order."""
    if line == left:
        return list(range(len(line)))
    where = {label: position for position, label in reversed(list(enumerate(line)))}
    positions = [where.get(label, -1) for label in left]
    ascending = all(a < b for a, b in zip([-1, *positions], positions))
    return positions if ascending else None


def _owners(line: list[int], kept: list[int], origin: _Origin) -> dict[int, Owner]:
    removed = {}
    for position in sorted(set(range(len(line))) - set(kept)):
        owner = origin.owner(line[position])
        require(owner is not None, "it cuts an axis that did not lose channels")
        if owner is not None:
            removed[position] = owner
    return removed
