"""Plan and PlanItem: which channels of which tensors go, as frozen facts.

See also: `draw`, `replay`, which make plans.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from prune_cli.amounts import Amount
from prune_cli.checkpoint.names import natural_key
from prune_cli.plan.choice import CRITERIA, Choice, Criterion
from prune_cli.plan.prefixes import strip_prefixes
from prune_cli.plan.selection import Rule, as_globs
from prune_cli.plan.shrink import ShrinkOptions, ShrinkPlan

RANDOM, REPLAYED, REMOVED, SHRUNK = "random_structured", "apply", "remove", "shrink"
"""The methods of plans, as a report names them; those of other criteria are in CHOSEN."""

CHOSEN: dict[str, Criterion] = {f"{criterion}_structured": criterion for criterion in CRITERIA}
"""The methods that choose channels, and the criterion of each."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, as the report records it.

    Attributes:
        amount: None where every rule of a recipe has its own, or there is a target.
        dim: as given, so -1 is the last of each tensor.
        seed: the user's, from which each tensor's own is derived.
        modules, exclude, params: glob patterns; a string is one.
        bake: whether the zeros are permanent; else NAME_orig and NAME_mask are written.
        with_bias: whether the bias elements of pruned channels go too.
        rules: of a recipe; without one, the options above are the only rule.
        strip_prefixes: what wrappers put before names, and the draw does not count.
        choice: how channels are chosen, where that is not the usual way.
        shrink: what only `shrink` was asked for; None where that is not the method.
    """

    amount: Amount | None
    dim: int = -1
    seed: int = 0
    modules: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    params: tuple[str, ...] = ("weight",)
    bake: bool = True
    with_bias: bool = False
    rules: tuple[Rule, ...] = ()
    strip_prefixes: tuple[str, ...] | None = None
    choice: Choice | None = None
    shrink: ShrinkOptions | None = None

    def __post_init__(self) -> None:
        """Read a string where globs are meant as one glob."""
        for name in ("modules", "exclude", "params"):
            object.__setattr__(self, name, as_globs(getattr(self, name)))

    def seed_of(self, name: str) -> int:
        """Return the seed of the generator of the tensor `name`, whatever wraps its model."""
        return derive_seed(self.seed, self.plain_name(name))

    def plain_name(self, name: str) -> str:
        """Return `name` without the prefixes of wrappers."""
        return strip_prefixes(name, self.strip_prefixes) if self.strip_prefixes else name


@dataclass(frozen=True, slots=True, repr=False)
class PlanItem:
    """One tensor and its channels; the row of it in a report.

    Attributes:
        name: full dotted name without `_orig`; module, param: its two parts.
        aliases: further names of the same memory.
        dtype, shape: as in the checkpoint, dtype as safetensors spells it.
        dim: counted from the front.
        amount: as asked for, an int or a float. Where an amount or a target is spread over the
            layers, the fraction that this one was given, before it is rounded to channels; where
            all are ranked together, the number of channels that came of it.
        seed: of this tensor's own generator; None where the channels were not drawn.
        channels: how many there are along `dim`.
        already_pruned, pruned: ascending; `pruned` are those that go now.
        follows: the weight whose channels these are, for a bias.
    """

    name: str
    module: str
    param: str
    aliases: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    dim: int
    amount: Amount
    seed: int | None
    channels: int
    already_pruned: tuple[int, ...]
    pruned: tuple[int, ...]
    follows: str | None = None

    @property
    def elements(self) -> int:
        """The number of elements of the tensor."""
        return self.elements_per_channel * self.channels

    @property
    def elements_per_channel(self) -> int:
        """The number of elements that one channel has."""
        others = self.shape[: self.dim] + self.shape[self.dim + 1 :]
        return math.prod(others)

    @property
    def elements_zero(self) -> int:
        """The number of elements in pruned channels, those pruned before included."""
        return (len(self.pruned) + len(self.already_pruned)) * self.elements_per_channel

    def __repr__(self) -> str:
        return (
            f"<PlanItem {self.name}: {len(self.pruned):,} of {self.channels:,} channels "
            f"of dim {self.dim}>"
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor that the patterns match and that is left alone, and why."""

    name: str
    reason: str


_Row = TypeVar("_Row", PlanItem, Skipped)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """Everything that was decided; `items` and `skipped` are sorted by name, 2 before 10.

    `shrink` has the channels that leave the checkpoint, beside those of `items` that are zeroed.
    """

    method: str
    options: Options
    items: tuple[PlanItem, ...]
    skipped: tuple[Skipped, ...] = ()
    shrink: ShrinkPlan | None = None

    def __repr__(self) -> str:
        return f"<Plan {self.method}: items={len(self.items)}, skipped={len(self.skipped)}>"


def in_order(rows: Iterable[_Row]) -> tuple[_Row, ...]:
    """Return rows in the natural order of their names, as reports have them."""
    return tuple(sorted(rows, key=lambda row: natural_key(row.name)))


def derive_seed(seed: int, name: str) -> int:
    """Return the seed of the generator of the tensor `name`, from 0 to 2**64 - 1.

    A contract: it depends on nothing else, so a tensor loses the same channels whatever else is
    in the checkpoint, on every device and in any order.

    Example:
        >>> derive_seed(0, "fc.weight")
        4845879779924941752
    """
    return int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
