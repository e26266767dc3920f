"""What the planning of shrink is asked: a model, and what of it to remove. Needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from prune_cli.amounts import Amount
from prune_cli.errors import UsageError
from prune_cli.plan.choice import Choice
from prune_cli.plan.selection import Rule

if TYPE_CHECKING:
    from prune_cli.plan.scores import Ranks

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
        choice: how channels are chosen, where that is not the usual way.
        looks_only: remove nothing: plan to, to say which groups can go.
        as_code: leave the config of a folder as it is; what it cannot say may go too.
        item_bytes: the bytes of one element of each stored tensor, for a target in bytes.
        units: how much of each kind of unit goes, in their order; empty for channels alone.
    """

    rules: tuple[Rule, ...]
    exclude: tuple[str, ...] = ()
    seed: int = 0
    round_to: int = 1
    zeros: Zeros | None = None
    choice: Choice | None = None
    looks_only: bool = False
    as_code: bool = False
    item_bytes: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, Amount] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """An axis of a tensor of the checkpoint; of each group one is the root's."""

    tensor: str
    dim: int
    is_root: bool


@dataclass(frozen=True)
class Sites:
    """What the child asks while it plans: a score for each index of each of these axes."""

    sites: tuple[Site, ...]


Score: TypeAlias = "Callable[[Sequence[Site]], Sequence[Ranks]]"
"""Gives for each site the score of each of its indices; those of one group are added up."""


@dataclass(frozen=True)
class Task:
    """What the child is asked; `path` is where the caller imports from."""

    path: tuple[str, ...]
    source: Source
    wanted: Request
    checkpoint: Mapping[str, tuple[int, ...]] | None
    memory_limit: int


@dataclass(frozen=True)
class Failure:
    """An error instead of a plan: the name of its class in errors.py, or "bug" with a traceback."""

    kind: str
    message: str


OnStage = Callable[[str], None]
"""Called with what the planning is doing."""


def parse_model_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; a value is a Python literal, or else text.

    Example:
        ["width=64", "norm=batch"] gives {"width": 64, "norm": "batch"}.

    Raises:
        UsageError: A pair has no "=".
    """
    arguments = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"{pair!r} is no argument of a model; write NAME=VALUE")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments
