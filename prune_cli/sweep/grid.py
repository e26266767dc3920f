"""Which trials a sweep has, and in which order. Names and numbers only: nothing is opened or run.

A trial is one draw: a point (how much, spread how, chosen how) and a seed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from typing import TypeVar

from prune_cli.amounts import Amount, parse_amount
from prune_cli.errors import UsageError
from prune_cli.plan.selection import Rule

UNIFORM = "uniform"
"""The allocation by default: the same amount of each tensor."""

RANDOM = "random"
"""The criterion by default: every k-subset of the channels equally likely."""

_LONGEST_NAME = 80  # of a trial's folder

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Point:
    """What the trials that are averaged have in common.

    Attributes:
        amount: 0 for the unpruned checkpoint; None where `target` or `rules` say how much.
        allocation: how the amount is spread over the layers.
        criterion: what chooses the channels.
        target: a budget in place of an amount ("flops=0.5").
        module: the only one that is pruned, in a sensitivity sweep.
        recipe: the name of a recipe that is tried as a whole.
        tuned: whether these are the best of a search, fine-tuned.
    """

    amount: Amount | None
    allocation: str = UNIFORM
    criterion: str = RANDOM
    target: str | None = None
    module: str | None = None
    recipe: str | None = None
    tuned: bool = False

    @property
    def is_unpruned(self) -> bool:
        """Whether this is the checkpoint as it was."""
        return self.amount == 0

    @property
    def how_much(self) -> str:
        """The amount, target or recipe in one word, as `{amount}` has it."""
        return self.recipe or self.target or str(self.amount)


@dataclass(frozen=True, slots=True)
class Trial:
    """One draw: a point and the seed. The unpruned checkpoint has seed 0.

    `rules` are those of the point's recipe.
    """

    point: Point
    seed: int
    rules: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """What its folder is called, whatever else is in the grid.

        Example:
            >>> Trial(Point(0.25, criterion="l1"), seed=3).name
            'a0.25-l1-s3'
        """
        point = self.point
        if point.is_unpruned:
            return "unpruned"
        parts = [
            point.recipe or f"a{point.how_much}",
            *(part for part in (point.allocation,) if part != UNIFORM),
            *(part for part in (point.criterion,) if part != RANDOM),
            *(part for part in (point.module,) if part is not None),
            f"s{self.seed}",
            *(["tuned"] if point.tuned else []),
        ]
        return _file_name("-".join(parts))


def recipe_point(rules: tuple[Rule, ...]) -> Point:
    """Return the point of a recipe, named after what is in it."""
    return Point(None, recipe=f"recipe-{_digest(repr(rules))}")


UNPRUNED = Trial(Point(0), 0)
"""The trial that every sweep has: all others are compared with it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The lists whose product is the trials. Either `amounts` or `targets` is empty."""

    amounts: tuple[Amount, ...]
    seeds: tuple[int, ...]
    allocations: tuple[str, ...] = (UNIFORM,)
    criteria: tuple[str, ...] = (RANDOM,)
    targets: tuple[str, ...] = ()
    modules: tuple[str | None, ...] = (None,)

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point but the unpruned one, the amounts fastest."""
        how_much: list[tuple[Amount | None, str | None]] = [
            *((amount, None) for amount in self.amounts if amount != 0),
            *((None, target) for target in self.targets),
        ]
        return tuple(
            Point(amount, allocation, criterion, target, module)
            for module, allocation, criterion, (amount, target) in product(
                self.modules, self.allocations, self.criteria, how_much
            )
        )

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The unpruned one, then seed by seed, so that a sweep cut short has every point."""
        drawn = (Trial(point, seed) for seed in self.seeds for point in self.points)
        return (UNPRUNED, *drawn)


def parse_amounts(text: str) -> tuple[Amount, ...]:
    """Return the amounts of a list as the command line spells it.

    Raises:
        UsageError: one of them is no amount, or stands there twice.

    Example:
        >>> parse_amounts("0.1,25%,3")
        (0.1, 0.25, 3)
    """
    return _distinct("amount", [parse_amount(part) for part in _split("amount", text)])


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of "5" (0 to 4), or of a list ("3,7"; "7," is a list of one).

    Raises:
        UsageError: it is neither.
    """
    if re.fullmatch(r"\d+", text.strip()):
        return count_seeds(int(text))
    parts = _split("seed", text.strip().removesuffix(","))
    if "," not in text or not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise UsageError(
            f"--seeds {text!r} is neither a number of seeds (5) nor a list of them (0,1,7)"
        )
    return _distinct("seed", [int(part) for part in parts])


def count_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds 0 to `count` - 1.

    Raises:
        UsageError: that is none.
    """
    if count < 1:
        raise UsageError("a sweep needs at least 1 seed: --seeds 5")
    return tuple(range(count))


def parse_names(what: str, text: str) -> tuple[str, ...]:
    """Return the names of a list ("uniform,erk"); `what` they name is for the message.

    Raises:
        UsageError: one of them is empty, or stands there twice.
    """
    return _distinct(what, _split(what, text))


def _split(what: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"the list {text!r} has an empty {what}")
    return parts


def _distinct(what: str, entries: Sequence[_Entry]) -> tuple[_Entry, ...]:
    twice = sorted(set(_repeated(repr(entry) for entry in entries)))
    if twice:
        raise UsageError(f"the {what} {', '.join(twice)} is given twice")
    return tuple(entries)


def _repeated(words: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for word in words:
        if word in seen:
            yield word
        seen.add(word)


def _file_name(text: str) -> str:
    """Return `text`, if a file can be called that everywhere; else near it, with a digest."""
    safe = re.sub(r"[^A-Za-z0-9._=%-]", "_", text)
    if safe == text and len(text) <= _LONGEST_NAME:
        return text
    return f"{safe[: _LONGEST_NAME - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
