"""What the planning of shrink is asked: a model, and what of it to remove. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prune_cli.plan.selection import Rule

Zeros = Mapping[str, Mapping[int, tuple[int, ...]]]
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
class Request:
    """What to remove.

    Attributes:
        rules: as for pruning; the last that matches a group wins. `dim` and what is no module of
            a group's own tensors does not matter here.
        exclude: modules that no group may touch.
        seed: of the draws.
        round_to: channels are left in multiples of this; the count is rounded up to one.
        zeros: instead of drawing, remove what is all zero.
    """

    rules: tuple[Rule, ...]
    exclude: tuple[str, ...] = ()
    seed: int = 0
    round_to: int = 1
    zeros: Zeros | None = None
