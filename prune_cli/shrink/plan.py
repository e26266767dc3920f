"""ShrinkPlan: what goes, in frozen facts, to JSON and back. Not here: how it is made (planning.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prune_cli.errors import InputError
from prune_cli.plan.selection import Amount, Rule
from prune_cli.shrink.channels import Attribute
from prune_cli.shrink.effect import Effect
from prune_cli.shrink.load import Resizing

Zeros = Mapping[str, Mapping[int, Sequence[int]]]
"""For each tensor and dim the channels that are all zero."""


@dataclass(frozen=True)
class Source:
    """Where the model comes from: a factory with its arguments, or a Hugging Face folder.

    `examples` are its inputs as `parse_example` reads them; a folder needs none.
    """

    model: str
    is_folder: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShrinkOptions:
    """What to remove.

    Attributes:
        rules: As for pruning; the last that matches a group wins. `dim` and what is no module of
            a group's own tensors does not matter here.
        exclude: Modules that no group may touch.
        seed: Of the draws.
        round_to: Channels are left in multiples of this; the count is rounded up to one.
        zeros: Instead of drawing, remove what is all zero.
    """

    rules: tuple[Rule, ...]
    exclude: tuple[str, ...] = ()
    seed: int = 0
    round_to: int = 1
    zeros: Zeros | None = None


@dataclass(frozen=True)
class Group:
    """Channels that went together.

    Attributes:
        root: The tensor that the draw is keyed by.
        dim: Its axis.
        amount: As asked for; None where zeros were removed.
        seed: Of the group's own generator; None where zeros were removed.
        channels: How many there were.
        blocks: Into how many equal blocks they fall that lost the same positions.
        removed: The channels of the root that went, ascending.
        members: Every tensor and axis that lost some with them.
    """

    root: str
    dim: int
    amount: Amount | None
    seed: int | None
    channels: int
    blocks: int
    removed: tuple[int, ...]
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Whole:
    """A group that was left whole, and why."""

    root: str
    dim: int
    channels: int
    reason: str


@dataclass(frozen=True)
class ShrinkPlan:
    """Everything that shrinking a checkpoint does; tensors by their names in the checkpoint.

    Attributes:
        kept: For each tensor and each of its axes that lost channels, the indices that stay.
        shapes: The new shape of those tensors.
        attributes: For each module, the attributes that count channels and change.
        config: What to write into a Hugging Face config.json: dotted key to new value.
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, Attribute]]
    config: Mapping[str, int]
    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    effect: Effect

    @property
    def resizing(self) -> Resizing:
        """What `load_shrunk` needs, for the metadata of the output."""
        return Resizing(self.shapes, self.attributes)

    def to_facts(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, in the order in which they are written."""
        facts = asdict(self)
        facts["kept"] = {
            name: {str(dim): list(kept) for dim, kept in dims.items()}
            for name, dims in self.kept.items()
        }
        return facts

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ShrinkPlan:
        """Read what `to_facts` gave, after a way through JSON.

        Raises:
            InputError: It is something else.
        """
        try:
            resizing = Resizing.from_json(
                json.dumps({"schema": 1, **{k: facts[k] for k in ("shapes", "attributes")}})
            )
            return cls(
                kept={
                    name: {int(dim): tuple(kept) for dim, kept in dims.items()}
                    for name, dims in facts["kept"].items()
                },
                shapes=resizing.shapes,
                attributes=resizing.attributes,
                config=dict(facts["config"]),
                groups=tuple(_read_group(group) for group in facts["groups"]),
                whole=tuple(Whole(**whole) for whole in facts["whole"]),
                effect=Effect(**facts["effect"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no plan of prune-cli shrink ({error!r})") from error


def _read_group(facts: Mapping[str, Any]) -> Group:
    members = tuple((str(tensor), int(dim)) for tensor, dim in facts["members"])
    return Group(**{**facts, "removed": tuple(facts["removed"]), "members": members})
