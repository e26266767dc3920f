"""How far sets of channels are the same, and how far chance alone makes them so.

Sets of one tensor are compared as bits of whole numbers: a thousand runs are half a million pairs.
See also: comparison.py, which compares reports.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, prod, sqrt

from prune_cli.plan.facts import PlanItem

_MOST_DIGITS = 1 << 18
_ONE = ord("1")


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far sets of channels are the same.

    Attributes:
        shared: how many channels are in every set.
        union: how many are in any.
        jaccard: shared / union; 1.0 where nothing was pruned at all.
    """

    shared: int
    union: int
    jaccard: float


@dataclass(frozen=True, slots=True)
class Likeness:
    """The Jaccard indices of all pairs of some runs.

    Attributes:
        pairs: how many there are.
        mean: of them.
        sigma: their standard deviation (of a sample); None for one pair.
        by_chance: the mean that independent draws of the same sizes have; None where the draws
            began from different channels.
    """

    pairs: int
    mean: float
    sigma: float | None
    by_chance: float | None


@dataclass(frozen=True, slots=True)
class PairCount:
    """Two sets of channels of one tensor, or the sums over several tensors.

    Attributes:
        first, second: the sizes of the sets.
        shared: how many channels are in both.
        expected: how many are in both on average if drawn independently; None where the draws
            began from different channels.
        tensors: of how many tensors they are.
    """

    first: int
    second: int
    shared: int
    expected: float | None
    tensors: int = 1

    def __add__(self, other: "PairCount") -> "PairCount":
        """Return the counts of the same two runs over the tensors of both."""
        is_known = self.expected is not None and other.expected is not None
        return PairCount(
            self.first + other.first,
            self.second + other.second,
            self.shared + other.shared,
            (self.expected or 0.0) + (other.expected or 0.0) if is_known else None,
            self.tensors + other.tensors,
        )

    @property
    def union(self) -> int:
        """How many channels are in either."""
        return self.first + self.second - self.shared

    @property
    def jaccard(self) -> float:
        """The part of the channels in either that is in both; 1.0 for no channels at all."""
        return self.shared / self.union if self.union else 1.0

    @property
    def by_chance(self) -> float | None:
        """The Jaccard index of independent draws: the expected share of the expected union."""
        if self.expected is None:
            return None
        union = self.first + self.second - self.expected
        return self.expected / union if union else 1.0

    @property
    def is_nested(self) -> bool:
        """Whether one set holds the whole of the other, and neither is empty."""
        return 0 < self.shared == min(self.first, self.second)


def make_overlap(shared: int, union: int) -> Overlap:
    """Return the Overlap of these counts."""
    return Overlap(shared, union, shared / union if union else 1.0)


def measure_overlap(items: Sequence[PlanItem]) -> Overlap:
    """Return how far all `items`, rows of one tensor, pruned the same channels."""
    union = len(frozenset().union(*(item.pruned for item in items)))
    return make_overlap(len(shared_channels(items)), union)


def shared_channels(items: Sequence[PlanItem]) -> frozenset[int]:
    """Return the channels that each of `items` pruned."""
    return frozenset.intersection(*(frozenset(item.pruned) for item in items))


def expect_shared(items: Sequence[PlanItem]) -> float | None:
    """Return how many channels `items` share on average if drawn independently.

    Each live channel is in all of them with the product of their odds. None where they did not
    begin from the same live channels.
    """
    if len({item.already_pruned for item in items}) > 1:
        return None
    return _expect(items[0], *(len(item.pruned) for item in items))


def _expect(item: PlanItem, *sizes: int) -> float:
    live = item.channels - len(item.already_pruned)
    return prod(sizes) / live ** (len(sizes) - 1) if live > 0 else 0.0


def to_bits(items: Sequence[PlanItem]) -> list[int]:
    """Return the pruned channels of each of `items`, rows of one tensor, as bits of a number."""
    named = sorted(frozenset[int]().union(*(item.pruned for item in items)))
    if not named:
        return [0] * len(items)
    is_odd = named[0] < 0 or named[-1] >= _MOST_DIGITS  # of a report that was edited by hand
    places = {channel: at for at, channel in enumerate(named)} if is_odd else None
    digits = len(named) if is_odd else named[-1] + 1
    return [_spell([places[c] for c in i.pruned] if places else i.pruned, digits) for i in items]


def _spell(places: Sequence[int], digits: int) -> int:
    """Return the number of so many binary digits that has ones at `places`."""
    spelt = bytearray(b"0") * digits
    for place in places:
        spelt[place] = _ONE
    return int(spelt, base=2)


def count_pair(one: PlanItem, other: PlanItem, bits: int, other_bits: int) -> PairCount:
    """Return how far two rows of one tensor pruned the same, given what to_bits made of them."""
    first, second = bits.bit_count(), other_bits.bit_count()
    is_same_past = one.already_pruned == other.already_pruned
    return PairCount(
        first,
        second,
        shared=(bits & other_bits).bit_count(),
        expected=_expect(one, first, second) if is_same_past else None,
    )


def measure_likeness(counts: Iterable[PairCount]) -> Likeness | None:
    """Return the Likeness of runs from the counts of their pairs; None if there is no pair."""
    found = list(counts)
    if not found:
        return None
    indices = [count.jaccard for count in found]
    chances = [count.by_chance for count in found if count.by_chance is not None]
    return Likeness(
        pairs=len(found),
        mean=_mean(indices),
        sigma=_deviation(indices) if len(indices) > 1 else None,
        by_chance=_mean(chances) if len(chances) == len(found) else None,
    )


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
