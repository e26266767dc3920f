"""ShrinkPlan: which channels leave a checkpoint, in frozen facts that need no torch.

See also: shrink/planning.py, which makes it; plan/config.py, which edits a config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from prune_cli.amounts import Amount
from prune_cli.errors import InputError
from prune_cli.jsontext import decode
from prune_cli.plan.config import (
    CONFIG_NAME,
    Changes,
    config_text,
    edit_config,
    read_config,
)
from prune_cli.plan.lists import Lists, name_after
from prune_cli.stores import Location

METADATA_KEY = "prune_cli.shrink"
"""The key in the `__metadata__` of a safetensors file under which the Resizing stands, as JSON."""

Attribute = int | tuple[int, ...]
"""A number of channels as a module holds it: `out_features`, or `normalized_shape`."""

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]
"""For a tensor's name and a dim: the channels that stay, where some are removed."""

_SCHEMA = 1
_SCHEMA_OF_LISTS = 2  # what reads only version 1 must not take such a file for a whole model


@dataclass(frozen=True)
class ShrinkOptions:
    """What only shrink was asked for, as the report records it.

    Attributes:
        round_to: channels are left in multiples of this.
        from_zeros: whether what is all zero went, instead of channels that were drawn.
        model: the factory of the model; None where the folder's config.json describes it.
        model_arguments: for the factory, each as a Python literal.
        examples: the model's inputs, as "1x3x224x224".
        as_code: whether a folder is written for `load_shrunk`, its config.json as it is.
        units: how much of each kind of unit goes; None where only channels do.
    """

    round_to: int
    from_zeros: bool
    model: str | None
    model_arguments: Mapping[str, str]
    examples: tuple[str, ...]
    as_code: bool | None = None
    units: Mapping[str, Amount] | None = None


@dataclass(frozen=True)
class Group:
    """Channels, or other units, that went together.

    Attributes:
        root: the tensor that the draw is keyed by; of layers the list that they are in.
        dim: its axis.
        amount: as asked for; None where zeros were removed. Where an amount or a target is spread
            over the groups, the fraction that this one was given, before it is rounded to
            channels; where all are ranked together, the number of channels that came of it.
        seed: of the group's own generator; None where the channels were not drawn.
        channels: how many there were.
        blocks: into how many equal blocks they fall that lost the same positions.
        removed: the channels of the root that went, ascending.
        members: every tensor and axis that lost some with them.
        unit: what they are; None for channels.
        width: how many indices of the root's axis one unit is; None for one.
    """

    root: str
    dim: int
    amount: Amount | None
    seed: int | None
    channels: int
    blocks: int
    removed: tuple[int, ...]
    members: tuple[tuple[str, int], ...]
    unit: str | None = None
    width: int | None = None


@dataclass(frozen=True)
class Whole:
    """A group that was left whole, and why."""

    root: str
    dim: int
    channels: int
    reason: str


@dataclass(frozen=True)
class Effect:
    """Before and after; FLOPs are those of one forward pass on the example."""

    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass of models that were run in turns.

    Attributes:
        milliseconds: the median of each.
        rounds: how often each was timed.
        threads: how many of torch's worked.
        spread: the interquartile range of each, in milliseconds; None in reports of version 1.
        batch: the size of the first axis of the inputs.
        device: what they ran on: "cpu", "cuda".
        memory: the bytes that one pass holds at the most, beyond the model and its inputs.
        tokens: tokens a second that a language model generates, the median of each.
    """

    milliseconds: Mapping[str, float]
    rounds: int
    threads: int
    spread: Mapping[str, float] | None = None
    batch: int | None = None
    device: str | None = None
    memory: Mapping[str, int] | None = None
    tokens: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Resizing:
    """How a freshly built model differs from the shrunk one.

    Attributes:
        shapes: the new shape of every tensor that changes, by its name in the state dict.
        attributes: for each module that changes, the attributes that count channels.
        lists: the lists of modules that get shorter, before all else; by the names in the whole
            model, where the other names are those in the shrunk one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, Attribute]]
    lists: Lists | None = None

    def to_json(self) -> str:
        """Return the value for `METADATA_KEY`; the keys stand in the order of the model."""
        facts = {"schema": self._schema, "shapes": self.shapes, "attributes": self.attributes}
        if self.lists:
            facts["lists"] = self.lists
        return json.dumps(facts, separators=(",", ":"), ensure_ascii=False)

    @property
    def _schema(self) -> int:
        return _SCHEMA_OF_LISTS if self.lists else _SCHEMA

    @classmethod
    def from_json(cls, text: str) -> Resizing:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            record = decode(_Record, json.loads(text))
            if record.schema != record._schema:
                known = f"{_SCHEMA} and {_SCHEMA_OF_LISTS}"
                raise InputError(f"its schema is {record.schema}, this version reads {known}")
            _refuse_no_sizes(record.shapes)
        except (ValueError, RecursionError, InputError) as error:
            raise InputError(f"the record of what was shrunk is damaged ({error})") from error
        return cls(record.shapes, record.attributes, record.lists)


@dataclass(frozen=True, kw_only=True)
class _Record(Resizing):
    """A Resizing as it stands in the metadata of a file."""

    schema: int


def _refuse_no_sizes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if not all(size > 0 for size in shape):
            raise InputError(f"the shape of {name} cannot be {list(shape)}")


@dataclass(frozen=True)
class ShrinkPlan:
    """Everything that shrinking a checkpoint does; tensors by their names in the checkpoint.

    Attributes:
        kept: for each tensor and each of its axes that lost channels, the indices that stay.
        shapes: the new shape of those tensors.
        attributes: for each module, the attributes that count channels and change.
        config: what to write into a Hugging Face config.json: dotted key to new value.
        groups: the channels that go together.
        whole: the groups that lose nothing.
        effect: what it saves.
        latency: of the model before and after, where it was measured.
        lists: the lists of modules that got shorter; the tensors of what left them go, and those of
            what stays are numbered anew.
    """

    kept: Kept
    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, Attribute]]
    config: Changes
    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    effect: Effect
    latency: Latency | None = None
    lists: Lists | None = None

    @property
    def resizing(self) -> Resizing:
        """What `load_shrunk` needs, for the metadata of the output."""
        shapes = {self.name_after(name): shape for name, shape in self.shapes.items()}
        there = {name: shape for name, shape in shapes.items() if name is not None}
        return Resizing(there, self.attributes, self.lists)

    def name_after(self, name: str) -> str | None:
        """Return what a tensor of the checkpoint is called in the output; None if it goes."""
        return name_after(self.lists or {}, name)


def kept_channels(plan: ShrinkPlan | None) -> Kept:
    """Return the channels that stay, of each tensor that loses some; without a plan, of none."""
    return plan.kept if plan else {}


def added_metadata(plan: ShrinkPlan | None) -> dict[str, str]:
    """Return what the metadata of every output file gets: the record that `load_shrunk` reads.

    A folder with a config.json needs none: the edited config says it.
    """
    return {} if plan is None or plan.config else {METADATA_KEY: plan.resizing.to_json()}


def edited_texts(plan: ShrinkPlan | None, folder: Location) -> dict[str, bytes]:
    """Return the files that replace those of the input folder: its config.json.

    Raises:
        InputError: the folder has no config.json that can be read.
        RequestError: the config has no place for what the plan changes in it.
    """
    if plan is None or not plan.config:
        return {}
    return {CONFIG_NAME: config_text(edit_config(read_config(folder), plan.config)).encode()}
