"""Which tensors lie in the same bytes: wholly (aliases) or in part (overlaps). Numbers only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from prune_cli.checkpoint.tensors import TensorInfo, pair_masks

_MOST_STEPS = 5_000_000


class Place(NamedTuple):
    """Where a tensor lies: the address of its first byte, the end of its last, and its layout.

    `steps` are the (size, stride in bytes) of its dims and `base` the address of the storage that
    it is a view of, where that is known.
    """

    start: int
    stop: int
    layout: tuple[object, ...]
    steps: tuple[tuple[int, int], ...] | None = None
    base: int | None = None

    @property
    def key(self) -> tuple[int, int, tuple[object, ...]]:
        """What two names of the same memory in the same layout have in common."""
        return self[:3]


def find_parameter_aliases(
    infos: Iterable[TensorInfo], places: Mapping[str, Place]
) -> dict[str, str]:
    """find_aliases, but of a pruned parameter NAME_orig and NAME_mask are aliases both or neither.

    Two modules may share the one and not the other, and then are not the same when baked.
    """
    pairs = {pair.tensor.name: pair.mask.name for pair in pair_masks(infos) if pair.mask}
    halves = {*pairs, *pairs.values()}
    aliases = find_aliases({name: place for name, place in places.items() if name not in halves})
    both = {
        orig: places[orig]._replace(layout=(places[orig].layout, places[mask]))
        for orig, mask in pairs.items()
    }
    for alias, name in find_aliases(both).items():
        aliases |= {alias: name, pairs[alias]: pairs[name]}
    return aliases


def find_aliases(places: Mapping[str, Place]) -> dict[str, str]:
    """Return names for the same memory in the same layout -> the first of them, which is stored.

    The first in alphabetical order, as `safetensors.torch.save_model` has it.
    """
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(places):
        place = places[name]
        if place.start == place.stop:
            continue
        if place.key in first:
            aliases[name] = first[place.key]
        else:
            first[place.key] = name
    return aliases


def find_overlaps(places: Mapping[str, Place]) -> dict[str, str]:
    """Return each name that has bytes in common with another one -> such another one.

    Columns of one matrix reach into each other's range and have no byte in common: they are
    told apart where all dims of theirs are dims of one matrix. Where they are not, a range in
    common is taken for bytes in common.
    """
    named = {place.key: name for name, place in places.items() if place.start < place.stop}
    distinct = {places[name]: name for name in named.values()}
    overlaps: dict[str, str] = {}
    for cluster in _clusters([(place.start, place.stop, place) for place in distinct]):
        boxes = _boxes(cluster)
        if boxes is None:
            overlaps |= _overlaps_of_ranges([(distinct[place], place) for place in cluster])
            continue
        for one, other in _sharing(boxes):
            overlaps.setdefault(distinct[one], distinct[other])
            overlaps.setdefault(distinct[other], distinct[one])
    return overlaps


def channels_meet(shape: Sequence[int], strides: Sequence[int] | None, dim: int) -> bool:
    """Return whether an element of one channel along `dim` may be one of another channel too.

    So it may where a step along a dim is no longer than what the dims of shorter steps reach.

    Example:
        >>> channels_meet((5, 2), (1, 3), 0)  # 0 and 3, 1 and 4, 2 and 5, 3 and 6, 4 and 7
        True
        >>> channels_meet((5, 2), (1, 5), 0)
        False
    """
    if strides is None:
        return False
    reach = 0
    for step, size, axis in sorted(zip(strides, shape, range(len(shape)), strict=True)):
        if size > 1 and (step or axis == dim):
            if step <= reach:
                return True
            reach += step * (size - 1)
    return False


def _clusters(ranges: list[tuple[int, int, Place]]) -> Iterator[list[Place]]:
    """Yield the places of those ranges that hang together, where they are more than one."""
    cluster: list[Place] = []
    reach = -1
    for start, stop, place in sorted(ranges, key=lambda item: item[:2]):
        if start >= reach:
            if len(cluster) > 1:
                yield cluster
            cluster = []
        cluster.append(place)
        reach = max(reach, stop)
    if len(cluster) > 1:
        yield cluster


def _overlaps_of_ranges(named: Sequence[tuple[str, Place]]) -> dict[str, str]:
    overlaps: dict[str, str] = {}
    reaching, stop = "", -1
    for name, place in named:
        if place.start < min(stop, place.stop):
            overlaps[name] = reaching
            overlaps.setdefault(reaching, name)
        if place.stop > stop:
            reaching, stop = name, place.stop
    return overlaps


# --- Boxes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Box:
    """A place as ranges of coordinates, one a dim, in a matrix that it has in common with others."""

    place: Place
    ranges: tuple[tuple[int, int], ...]

    def meets(self, other: "_Box") -> bool:
        return all(
            one[0] < two[1] and two[0] < one[1]
            for one, two in zip(self.ranges, other.ranges, strict=True)
        )


def _boxes(cluster: Sequence[Place]) -> list[_Box] | None:
    """Return `cluster` as boxes of one matrix; None where they are not."""
    steps = {stride for place in cluster for size, stride in place.steps or ((2, 0),) if size > 1}
    strides = sorted(steps | {1}, reverse=True)
    if 0 in steps or any(one % two for one, two in pairwise(strides)):
        return None
    first = min(place.start for place in cluster)
    base = min(first if place.base is None else place.base for place in cluster)
    boxes = [_box(place, place.start - base, strides) for place in cluster]
    return [box for box in boxes if box] if all(boxes) else None


def _box(place: Place, offset: int, strides: Sequence[int]) -> _Box | None:
    """Return a place as a box; None where it goes beyond the end of a row."""
    sizes = dict.fromkeys(strides, 1)
    for size, stride in place.steps or ():
        if size > 1:
            if sizes[stride] > 1:
                return None  # two dims of one stride meet themselves
            sizes[stride] = size
    ranges = []
    for number, stride in enumerate(strides):
        first, offset = divmod(offset, stride)
        last = first + sizes[stride]
        if number and last > strides[number - 1] // stride:
            return None
        ranges.append((first, last))
    return _Box(place, tuple(ranges))


def boxes_meet(boxes: Sequence[tuple[tuple[int, int], ...]]) -> bool:
    """Whether any two of these boxes have a point in common: each is a (start, stop) for each dim."""
    places = [_Box(Place(number, number, ()), box) for number, box in enumerate(boxes)]
    return len(places) > 1 and any(True for _ in _sharing(places))


def _sharing(boxes: list[_Box]) -> Iterator[tuple[Place, Place]]:
    """Yield pairs of places that have bytes in common, so that each that has any is in one."""
    waiting = [(boxes, 0, 0)] if len(boxes) > 1 else []
    steps = _MOST_STEPS
    while waiting:
        group, dim, unsplit = waiting.pop()
        dims = len(group[0].ranges)
        if unsplit == dims and len(group) ** 2 < steps:
            steps -= len(group) ** 2
            yield from _pairs(group)
            continue
        if unsplit == dims or steps < 0:  # too many to compare: neighbours are taken to meet
            yield from ((one.place, two.place) for one, two in pairwise(group))
            continue
        steps -= len(group)
        parts = list(_split(group, dim))
        following = (dim + 1) % dims
        again = unsplit + 1 if len(parts) == 1 and len(parts[0]) == len(group) else 0
        waiting += [(part, following, again) for part in parts]


def _split(group: list[_Box], dim: int) -> Iterator[list[_Box]]:
    """Yield those of `group` whose ranges along `dim` hang together, where they are several."""
    part: list[_Box] = []
    reach = -1
    for box in sorted(group, key=lambda box: box.ranges[dim]):
        if box.ranges[dim][0] >= reach:
            if len(part) > 1:
                yield part
            part = []
        part.append(box)
        reach = max(reach, box.ranges[dim][1])
    if len(part) > 1:
        yield part


def _pairs(group: list[_Box]) -> Iterator[tuple[Place, Place]]:
    """Yield a pair for each box that meets another."""
    for box in group:
        other = next((other for other in group if other is not box and box.meets(other)), None)
        if other:
            yield box.place, other.place
