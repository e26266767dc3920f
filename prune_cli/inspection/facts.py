"""What is in a checkpoint, as frozen facts and as JSON.

See also: inspect.py, which finds them; `prune_cli.show`, which shows them to people.
"""

from dataclasses import asdict, dataclass, fields

from prune_cli.checkpoint import Dropped
from prune_cli.jsontext import encode

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ZeroCount:
    """How many of a tensor's channels along `dim` are all zero."""

    dim: int
    channels: int
    zero: int


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """One parameter, as its module knows it.

    Attributes:
        name: full dotted name without `_orig`; module, param: its two parts.
        aliases: further names of the same memory.
        dtype, shape: dtype as safetensors spells it.
        elements, bytes: of the parameter, without its mask.
        file: the shard that holds it.
        mask: the name of the tensor that is its mask, where torch pruned it.
        prunable_dims: the dims along which it can be pruned, counted from the front.
        reason: why there are none.
        zeros: for each dim that was asked for; None if not counted.
    """

    name: str
    module: str
    param: str
    aliases: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    file: str
    mask: str | None
    prunable_dims: tuple[int, ...]
    reason: str | None
    zeros: tuple[ZeroCount, ...] | None = None


@dataclass(frozen=True, slots=True)
class DtypeTotal:
    """All tensors of one dtype, masks included."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern for `--module`, and what can be pruned of what it matches.

    `param` is a pattern for `--param` that matches all of it; `depth` is the number of patterns
    listed above that contain its modules.
    """

    pattern: str
    param: str
    depth: int
    modules: int
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CoupledGroup:
    """Channels of the axis `dim` of `root` that can only go together with those of `members`.

    They fall into `blocks` equal blocks that lose the same positions.
    """

    root: str
    dim: int
    channels: int
    blocks: int
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class WholeGroup:
    """Channels that cannot go, and why."""

    root: str
    dim: int
    channels: int
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model's code tells; `flops` are those of one forward pass on the example."""

    parameters: int
    flops: int
    groups: tuple[CoupledGroup, ...]
    whole: tuple[WholeGroup, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a checkpoint; parameters and totals are those that were asked for.

    Attributes:
        path: its name, without the folders above it.
        format: as in Checkpoint.
        files: the number of files that hold tensors.
        bytes: the size of these files.
        dtypes: totals, the largest first.
        parameters: as a torch file orders them; safetensors has no order, so by name there
            ("layers.2" before "layers.10").
        globs: patterns that group the modules; None if not asked for.
        dropped: entries that are not tensors.
        notes: what a user should know about how it was read.
        model: what its code tells; None if not asked for.
    """

    path: str
    format: str
    files: int
    bytes: int
    dtypes: tuple[DtypeTotal, ...]
    parameters: tuple[ParameterFacts, ...]
    globs: tuple[Glob, ...] | None
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    model: ModelFacts | None = None


def inspection_to_json(inspection: Inspection) -> str:
    """Return the inspection as JSON, one line for each parameter, ending in a newline.

    The keys are those of Inspection in their order, after "schema"; "globs", "model" and the "zeros"
    of a parameter are there only if they were asked for.
    """
    facts = {entry.name: getattr(inspection, entry.name) for entry in fields(inspection)}
    facts["dtypes"] = [asdict(total) for total in inspection.dtypes]
    facts["parameters"] = [_row(each) for each in inspection.parameters]
    facts["globs"] = [asdict(glob) for glob in inspection.globs or ()]
    facts["dropped"] = [asdict(drop) for drop in inspection.dropped]
    if inspection.globs is None:
        del facts["globs"]
    facts["model"] = inspection.model and asdict(inspection.model)
    if inspection.model is None:
        del facts["model"]
    return encode({"schema": SCHEMA, **facts})


def _row(facts: ParameterFacts) -> dict[str, object]:
    """Return the row of a parameter; not by `asdict`, which takes seconds for many of them."""
    row: dict[str, object] = {name: getattr(facts, name) for name in _OF_PARAMETER}
    if facts.zeros is not None:
        row["zeros"] = [asdict(count) for count in facts.zeros]
    return row


_OF_PARAMETER = tuple(entry.name for entry in fields(ParameterFacts) if entry.name != "zeros")
