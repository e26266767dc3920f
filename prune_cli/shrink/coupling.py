"""Which channels must go together: classes of indices, read into plain facts about a layer at a time.

What is proposed here is held against the model's own operations (agreement.py). See also: how the
classes are found (classes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prune_cli.shrink.channels import Cut, NotSliceableError
from prune_cli.shrink.classes import FIXED, Classes, Nodes, Place
from prune_cli.shrink.subject import Subject

_COUPLED = "its channels are coupled with each other"


@dataclass(frozen=True)
class Coupling:
    """Channels that share a fate with others, by the tensor that makes them.

    `channels` are those of axis `dim` of `root` that no earlier coupling holds; where `blocks` is
    more than 1, they stand in that many equal blocks that must lose the same positions: what goes
    with channel 0 is first in every block. `modules` are the layers that make the channels. An `obstacle` says why they have to stay.
    """

    root: str
    dim: int
    channels: tuple[int, ...]
    blocks: int
    modules: tuple[str, ...]
    obstacle: str | None = None


class Couplings:
    """The couplings of a model. A class because its classes are made once."""

    def __init__(self, subject: Subject) -> None:
        self._classes = _follow(subject)
        self._of = {place: self._classes.of(place) for place in self._classes.places}
        self._made = [place for place in self._of if place in self._classes.made]
        self._holders = _holders(self._of)

    def all(self) -> Iterator[Coupling]:
        """Yield every coupling once, its root the first tensor in the order of the model."""
        taken = {*range(FIXED)}
        for place in self._made:
            classes = self._of[place].tolist()
            free = [channel for channel, class_ in enumerate(classes) if class_ not in taken]
            if free:
                yield self._coupling(place, free)
                taken.update(classes)
            elif min(classes) < FIXED:
                yield self._fixed(place, min(classes))

    def removal(self, coupling: Coupling, channels: Sequence[int]) -> list[Cut]:
        """Everything that goes with `channels` of the root: in each cut, index to root channel.

        Raises:
            NotSliceableError: Other channels of the root would go with them.
        """
        root = Place(coupling.root, coupling.dim)
        own = self._of[root]
        owner = dict(zip(own[list(channels)].tolist(), channels, strict=True))
        cuts = [
            Cut(place.tensor, place.dim, self._gone(place, owner))
            for place in self._places(owner)
            if place != root
        ]
        gone = self._gone(root, owner)
        if gone.keys() != {*channels}:
            raise NotSliceableError(_COUPLED)
        return [Cut(root.tensor, root.dim, {channel: channel for channel in gone}), *cuts]

    def _places(self, classes: Mapping[int, object]) -> list[Place]:
        """Return the axes that hold some of the classes, in the order of the model."""
        found = {number for class_ in classes for number in self._holders.get(class_, ())}
        places = list(self._of)
        return [places[number] for number in sorted(found)]

    def _gone(self, place: Place, owner: Mapping[int, int]) -> dict[int, int]:
        classes = self._of[place]
        (indices,) = np.isin(classes, np.array([*owner])).nonzero()
        return {
            index: owner[class_]
            for index, class_ in zip(indices.tolist(), classes[indices].tolist(), strict=True)
        }

    def _coupling(self, root: Place, free: Sequence[int]) -> Coupling:
        """Return the coupling of some channels: one of each class first, then the next one of each."""
        own = self._of[root]
        members: dict[int, list[int]] = {}
        for channel in free:
            members.setdefault(int(own[channel]), []).append(channel)
        ((blocks, _),) = Counter(map(len, members.values())).most_common(1)
        columns = [channels for channels in members.values() if len(channels) == blocks]
        channels = tuple(channels[block] for block in range(blocks) for channels in columns)
        found = Coupling(root.tensor, root.dim, channels, blocks, self._makers(root, members))
        return found if _is_regular(columns) else replace(found, obstacle=_COUPLED)

    def _fixed(self, place: Place, class_: int) -> Coupling:
        channels = tuple((self._of[place] < FIXED).nonzero()[0].tolist())
        makers = (place.tensor.rpartition(".")[0],)
        return Coupling(place.tensor, place.dim, channels, 1, makers, self._classes.why(class_))

    def _makers(self, root: Place, classes: Mapping[int, object]) -> tuple[str, ...]:
        places = {*self._places(classes)}
        makers = [root, *(place for place in self._made if place in places)]
        return tuple(dict.fromkeys(place.tensor.rpartition(".")[0] for place in makers))


def _is_regular(columns: Sequence[Sequence[int]]) -> bool:
    """Return whether what goes together stands at equal distances, or side by side."""
    first = columns[0]
    apart = all(
        [c - d for c, d in zip(each, first, strict=True)] == [each[0] - first[0]] * len(first)
        for each in columns
    )
    beside = all([*each] == [*range(each[0], each[0] + len(each))] for each in columns)
    return apart or beside


def _holders(of: Mapping[Place, Nodes]) -> dict[int, list[int]]:
    """Return for each class the numbers of the axes that hold it."""
    holders: dict[int, list[int]] = {}
    for number, classes in enumerate(of.values()):
        for class_ in np.unique(classes).tolist():
            holders.setdefault(class_, []).append(number)
    return holders


def _follow(subject: Subject) -> Classes:
    """Return the classes that evaluation makes and, where it reads other tensors, training."""
    stored = subject.model.state_dict(keep_vars=True)
    names = dict.fromkeys(subject.first_names.values())
    there = {subject.first_names[name] for name in subject.theirs}

    def movable(name: str) -> bool:
        """Return whether a tensor is in the checkpoint: what the code makes itself, it makes whole."""
        is_there = name in stored and (not subject.theirs or name in there)
        return is_there and stored[name].is_floating_point()

    classes = Classes({name: subject.shape(name) for name in names}, movable)
    for recording in filter(None, (subject.recording, subject.training)):
        classes.follow(recording, {recording.named[name].index: name for name in names})
    return classes
