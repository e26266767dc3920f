"""Which numbers of a Hugging Face config stand for which channels.

A number is tried by building the model that it describes: the axes that get shorter say what it
counts. See also: reading and editing config.json (huggingface.py).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn

from prune_cli.errors import RequestError
from prune_cli.shrink.channels import NotSliceableError
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.proposals import Proposal, Proposer, Unit, places
from prune_cli.shrink.subject import Subject

Numbers = Mapping[str, int | float | None]
"""The numbers of a config, and what could be one, by dotted key."""

Changes = Mapping[str, int | float]
"""What is new in a config: dotted key to new value."""

_HIDDEN_SIZES = {"n_inner", "intermediate_size", "ffn_dim", "ffn_hidden_size", "hidden_dim", "d_ff"}
NO_NUMBER = "no number in config.json stands for it alone"
"""Why a group stays whole that the model itself could lose."""

_MOST_ROUNDING = 0.1
"""What part of the channels may go beyond what was asked for: MobileNet rounds by as much."""

_RATIO = re.compile(r"(.*[._])?(ratio|multiplier|expansion_factor)s?(\.\d+)?")


def by_number(
    proposer: Proposer,
    folder: ModelFolder,
    proposals: list[Proposal],
    without: Collection[str] = (),
) -> list[Unit]:
    """Sort proposals by the numbers of the config that stand for them, as few as possible.

    Args:
        proposer: What notes the proposals for which there is no number.
        folder: The config.
        proposals: What is to go.
        without: Keys of numbers that are not tried.
    """
    units: list[Unit] = []
    rest = {proposal.coupling.root: proposal for proposal in proposals}
    numbers = {key: n for key, n in folder.numbers().items() if key not in without}
    for propose in (_counted, _unset, _ratios):
        for changes in propose(numbers, rest):
            unit = _unit_of_numbers(proposer, folder, changes, list(rest.values()))
            for root in unit.roots if unit else ():
                del rest[root]
            units += [unit] if unit else []
    for proposal in rest.values():
        proposer.leave(proposal.coupling, NO_NUMBER)
    return units


def _counted(numbers: Numbers, rest: Mapping[str, Proposal]) -> Iterator[Changes]:
    """Yield numbers that are those of channels, less."""
    counting = {key: value for key, value in numbers.items() if type(value) is int and value > 1}
    for keys, value in _combinations(counting):
        counts = {count for p in rest.values() for count in _counts(p, value)}
        if counts:
            yield dict.fromkeys(keys, value - min(counts))


def _unset(numbers: Numbers, rest: Mapping[str, Proposal]) -> Iterator[Changes]:
    """Yield numbers that are not set, so that a multiple of another stands for them."""
    for key, value in numbers.items():
        if value is None and key.rpartition(".")[2] in _HIDDEN_SIZES:
            left = Counter(len(p.coupling.channels) - len(p.removed) for p in rest.values())
            yield from ({key: count} for count, _ in left.most_common())


def _ratios(numbers: Numbers, rest: Mapping[str, Proposal]) -> Iterator[Changes]:
    """Numbers by which others are multiplied: a ratio of 4 becomes 3 where a quarter goes."""
    for key, value in numbers.items():
        if value and _RATIO.fullmatch(key):
            for part in _parts_left(rest.values()):
                less = value * part.numerator / part.denominator
                if type(value) is float or less.is_integer():
                    yield {key: type(value)(less)}


def _parts_left(proposals: Iterable[Proposal]) -> list[Fraction]:
    """Return what part of its channels a proposal leaves, the most frequent first."""
    wholes = [(len(p.coupling.channels), len(p.removed)) for p in proposals]
    counts = Counter(Fraction(whole - gone, whole) for whole, gone in wholes)
    return [part for part, _ in counts.most_common()]


def _unit_of_numbers(
    proposer: Proposer, folder: ModelFolder, changes: Changes, proposals: list[Proposal]
) -> Unit | None:
    """The proposals that these changes of the config come to, if they come to nothing else."""
    try:
        lost = lost_sizes(proposer.subject, folder.build(changes))
        fitted = tuple(
            _with_count(proposer, p, lost[(p.coupling.root, p.coupling.dim)])
            for p in proposals
            if places(p) <= lost.keys()
        )
    except (RequestError, NotSliceableError):
        return None
    return Unit(fitted, changes) if fitted and _total(fitted) == lost else None


def _with_count(proposer: Proposer, proposal: Proposal, count: int) -> Proposal:
    """Return the same proposal for another number of channels."""
    if count == len(proposal.removed):
        return proposal
    if proposer.zeros is None:
        if count - len(proposal.removed) > len(proposal.coupling.channels) * _MOST_ROUNDING:
            raise NotSliceableError("the number in config.json would take many more channels")
        return proposer.drawn(proposal.coupling, proposal.rule, count)
    if count > len(proposal.removed):
        raise NotSliceableError("too few of its channels are zero")
    removed = proposal.removed[:count]
    return replace(
        proposal, removed=removed, cuts=tuple(proposer.graph.removal(proposal.coupling, removed))
    )


def config_of(units: Sequence[Unit]) -> dict[str, int | float]:
    """Return everything that these units change in the config: dotted key to new value."""
    return {key: value for unit in units for key, value in unit.config.items()}


def _combinations(numbers: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each number of a config, then pairs and threes of equal ones: a ResNet's stem and first stage."""
    for size in (1, 2, 3):
        for value in dict.fromkeys(numbers.values()):
            keys = [key for key, other in numbers.items() if other == value]
            for chosen in itertools.combinations(keys, size):
                yield chosen, value


def _counts(proposal: Proposal, value: int) -> Iterator[int]:
    """How much less a number of the config would be, if it counts the channels or those of a block."""
    coupling = proposal.coupling
    for blocks in {1, coupling.blocks}:
        if len(coupling.channels) == value * blocks and len(proposal.removed) % blocks == 0:
            yield len(proposal.removed) // blocks


def _total(proposals: Iterable[Proposal]) -> dict[tuple[str, int], int]:
    """Return how many indices each axis loses."""
    lost: dict[tuple[str, int], set[int]] = {}
    for proposal in proposals:
        for cut in proposal.cuts:
            lost.setdefault((cut.tensor, cut.dim), set()).update(cut.channels)
    return {place: len(indices) for place, indices in lost.items()}


def lost_sizes(subject: Subject, changed: nn.Module) -> dict[tuple[str, int], int]:
    """Return how much shorter each axis is in `changed`; empty if it has other tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in changed.state_dict().items()}
    ours = {name: subject.shape(name) for name in subject.model.state_dict()}
    if shapes.keys() != ours.keys():
        return {}
    return {
        (name, dim): size - shapes[name][dim]
        for name, sizes in ours.items()
        for dim, size in enumerate(sizes)
        if len(shapes[name]) == len(sizes) and shapes[name][dim] != size
    }
