"""What a sweep was asked for, as its folder keeps it: sweep.json, which marks the folder as its own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune_cli.amounts import Amount
from prune_cli.errors import InputError
from prune_cli.jsontext import encode
from prune_cli.sweep.grid import RANDOM, UNIFORM, Grid

SCHEMA = 1
SETTINGS = "sweep.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The facts of a sweep that its summary tells; nothing of it changes a trial.

    Attributes:
        input: the name of the checkpoint; `sha256` is its digest.
        protocol: digest of the input and the evaluation, as the records have it.
        amounts, targets, seeds, allocations, criteria, modules: the grid.
        evaluate, finetune: the commands, or the name of a function.
        metric: which one counts, where the user said so.
        is_minimized: whether less is better.
        repeats: evaluations of each checkpoint.
        is_shrunk: whether channels were removed instead of zeroed.
        is_each: whether each module was pruned alone.
        keep_best: how many of the search were fine-tuned.
        lose: the loss that a recipe may have.
        options: the other options of every trial.
        assertions: as they were spelt.
        versions: of prune-cli, Python, NumPy, torch.
    """

    input: str
    sha256: str
    protocol: str
    amounts: tuple[Amount, ...]
    seeds: tuple[int, ...]
    evaluate: str
    targets: tuple[str, ...] = ()
    allocations: tuple[str, ...] = (UNIFORM,)
    criteria: tuple[str, ...] = (RANDOM,)
    modules: tuple[str | None, ...] = (None,)
    finetune: str | None = None
    metric: str | None = None
    is_minimized: bool = False
    repeats: int = 1
    is_shrunk: bool = False
    is_each: bool = False
    keep_best: int | None = None
    lose: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    assertions: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def grid(self) -> Grid:
        """The grid."""
        return Grid(
            self.amounts, self.seeds, self.allocations, self.criteria, self.targets, self.modules
        )


def to_json(settings: Settings) -> str:
    """Return the settings as JSON, ending in a newline."""
    facts = asdict(settings)
    schema = {"schema": facts.pop("schema")}
    return encode({**schema, **facts})


def read_settings(folder: Path) -> Settings:
    """Return the settings of the sweep in `folder`.

    Raises:
        InputError: it is not the folder of a sweep, or of a newer version's.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not the folder of a sweep: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of a sweep that this version of prune-cli reads")
    return _build(path, found)


def _build(path: Path, found: Mapping[str, Any]) -> Settings:
    facts: dict[str, Any] = dict(found)
    facts |= {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    try:
        return Settings(**facts)
    except TypeError as error:
        raise InputError(f"{path} is not of a sweep: {error}") from None
