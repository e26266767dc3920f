"""What is left of the axes of a tensor, who took the rest, and the exception for what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import filterfalse


@dataclass(frozen=True)
class Owner:
    """Who took an index away: a group, by the name of its root tensor, and the channel there."""

    group: str
    channel: int


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a tensor of the whole model.

    `removed` maps the indices that the shrunk model lacks to their owners; at the indices in `zero`
    the tensor is known to be all zero. An axis is not `known` behind a disagreement. Of one whose
    indices are all alike (zeros, what was broadcast) only the number that is `left` matters.
    """

    size: int
    removed: Mapping[int, Owner] = field(default_factory=dict)
    zero: frozenset[int] = frozenset()
    known: bool = True
    left: int | None = None

    @property
    def count(self) -> int:
        """How many indices the shrunk model has."""
        return len(self.kept) if self.left is None else self.left

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The indices that are left, ascending."""
        return tuple(filterfalse(self.removed.__contains__, range(self.size)))

    def agrees(self, other: Axis) -> bool:
        """Return whether the same indices are left on both."""
        if self is other or not (self.known and other.known):
            return True
        if self.left is not None or other.left is not None:
            return self.size == other.size and self.count == other.count
        return self.size == other.size and self.removed.keys() == other.removed.keys()

    def with_zero(self, zero: Iterable[int]) -> Axis:
        """Return the same axis with other indices known to be zero."""
        zero = frozenset(zero)
        return self if zero == self.zero else replace(self, zero=zero)


Axes = tuple[Axis, ...]


def whole_axes(shape: Iterable[int]) -> Axes:
    """Return the axes of a tensor that lost nothing."""
    return tuple(map(Axis, shape))


class DisagreementError(Exception):
    """Raised where the channels of two tensors do not correspond, caught where the call is known.

    `channels` names those at fault where that is known.
    """

    def __init__(self, reason: str, channels: Iterable[Owner] = ()) -> None:
        super().__init__(reason)
        self.channels = frozenset(channels)


def require(
    condition: bool, reason: str = "its operands keep channels that do not correspond"
) -> None:
    """Disagree unless `condition` holds."""
    if not condition:
        raise DisagreementError(reason)


def same_axis(axes: Iterable[Axis]) -> Axis:
    """Return the axis that all of these are, the one that says most of it.

    Raises:
        DisagreementError: They keep other indices.
    """
    axes = list(axes)
    telling = next((axis for axis in axes if axis.known and axis.left is None), axes[0])
    require(all(axis.agrees(telling) for axis in axes))
    return next((axis for axis in axes if not axis.known), telling)
