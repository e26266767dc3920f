"""Report <-> JSON: a plan plus what happened, versioned and reproducible.

No times and no absolute paths are in it, and its keys stand in one order, so that the same run
gives the same bytes. `report.schema.json`, beside this file, is its JSON Schema.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

import prune_cli
from prune_cli.checkpoint import Checkpoint, Dropped
from prune_cli.checkpoint.tensors import MAX_DIMS
from prune_cli.errors import InputError, UsageError
from prune_cli.jsontext import check_keys, decode, encode, parse
from prune_cli.plan.choice import check_choice
from prune_cli.plan.facts import Options, Plan, PlanItem, Skipped
from prune_cli.plan.notes import find_notes
from prune_cli.plan.shrink import Group, Latency, ShrinkOptions, ShrinkPlan
from prune_cli.report.notebook import to_html
from prune_cli.report.numbers import format_count
from prune_cli.report.tensors import list_tensors
from prune_cli.stores import Location, locate
from prune_cli.stores.hub import find_model
from prune_cli.write.atomic import write_file
from prune_cli.write.checks import check_can_write

SCHEMA = 2
"""What is written. Version 1, which is read too, had no `options.shrink`."""

_COLUMNS = tuple(entry.name for entry in fields(PlanItem))


@dataclass(frozen=True, slots=True)
class Tool:
    """What wrote the report; versions without the build ("2.13.0", not "2.13.0+cu130")."""

    name: str
    version: str
    torch: str


@dataclass(frozen=True, slots=True)
class Input:
    """The checkpoint that was read; `path` is its name, without the folders above it.

    `revision` is the commit of a model of the Hugging Face Hub, whose `path` is ORG/MODEL.
    """

    path: str
    format: str
    tensors: int
    bytes: int
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """The checkpoint that was written; `files` are those that hold tensors."""

    path: str
    format: str
    files: tuple[str, ...]
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the tensors of the report.

    `channels` and `channels_pruned` leave out rows that follow another. `elements_zero` counts
    the elements in pruned channels, those pruned before included, and `sparsity` is its part
    of `elements`.
    """

    tensors_pruned: int
    channels: int
    channels_pruned: int
    elements: int
    elements_zero: int
    sparsity: float


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """A plan and what came of it. `output` is None after a dry run.

    Example:
        >>> prune_checkpoint("model.pt", amount=0.25, dim=0)
        <Report of model.pt: random_structured, 128 of 512 channels of 4 tensors pruned>
    """

    tool: Tool
    method: str
    options: Options
    input: Input
    output: Output | None
    totals: Totals
    tensors: tuple[PlanItem, ...]
    skipped: tuple[Skipped, ...]
    dropped: tuple[Dropped, ...]
    shrink: ShrinkPlan | None = None
    """What was removed, where that is the method."""
    schema: int = SCHEMA
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What to tell the user; not part of the JSON."""

    @property
    def plan(self) -> Plan:
        """The plan that it reports."""
        return Plan(self.method, self.options, self.tensors, self.skipped, self.shrink)

    def to_json(self) -> str:
        """Return the report as JSON, as the command line writes it."""
        return to_json(self)

    def save(self, path: str | Location, *, force: bool = False) -> None:
        """Write the report as JSON to `path`; `read_report` reads it.

        Raises:
            OutputError: it cannot be written, or it is there and `force` is not given.
        """
        path = locate(path)
        check_can_write([path], (), force=force)
        write_file(path, self.to_json().encode())

    def __repr__(self) -> str:
        totals = self.totals
        return (
            f"<Report of {self.input.path}: {self.method}, {totals.channels_pruned:,} of "
            f"{totals.channels:,} channels of {format_count(len(self.tensors), 'tensor')} pruned>"
        )

    def _repr_html_(self) -> str:
        return to_html(repr(self)[1:-1], list_tensors(self.tensors))


def make_report(
    checkpoint: Checkpoint, plan: Plan, output: Output | None, *, drops: bool = True
) -> Report:
    """Return the Report of `plan` on `checkpoint`.

    Args:
        checkpoint: the input.
        plan: what was decided.
        output: what was written; None for a dry run.
        drops: whether the output lacks what safetensors cannot hold.
    """
    return Report(
        tool=Tool("prune-cli", prune_cli.__version__, torch_version()),
        method=plan.method,
        options=plan.options,
        input=_describe_input(checkpoint),
        output=output,
        totals=sum_up(plan.items),
        tensors=plan.items,
        skipped=plan.skipped,
        dropped=checkpoint.dropped if drops else (),
        shrink=plan.shrink,
        notes=(
            *checkpoint.notes,
            *(_tied(checkpoint) if drops else ()),
            *find_notes(checkpoint, plan, is_dry_run=output is None),
        ),
    )


def _describe_input(checkpoint: Checkpoint) -> Input:
    model = find_model(checkpoint.path)
    return Input(
        path=model.path if model else checkpoint.path.name or checkpoint.path.resolve().name,
        format=checkpoint.format,
        tensors=len(checkpoint.tensors),
        bytes=checkpoint.nbytes,
        revision=model.commit if model else None,
    )


def torch_version() -> str:
    """The version of the torch that is installed, without its build; "none" where there is none."""
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return "none"


def _tied(checkpoint: Checkpoint) -> Iterator[str]:
    count = len(checkpoint.aliases)
    if count:
        yield (
            f"{count} name(s) share memory with a tensor that is stored once, under another name; "
            "safetensors.torch.load_model restores them"
        )


def sum_up(items: Sequence[PlanItem]) -> Totals:
    """Return the Totals of `items`."""
    leading = [item for item in items if item.follows is None]
    elements = sum(item.elements for item in items)
    zero = sum(item.elements_zero for item in items)
    return Totals(
        tensors_pruned=sum(bool(item.pruned) for item in items),
        channels=sum(item.channels for item in leading),
        channels_pruned=sum(len(item.pruned) for item in leading),
        elements=elements,
        elements_zero=zero,
        sparsity=zero / elements if elements else 0.0,
    )


# --- to JSON ---------------------------------------------------------------------------------


_OPTIONAL = {
    entry.name
    for kind in (Options, ShrinkOptions, ShrinkPlan, Group, Latency, Input)
    for entry in fields(kind)
    if entry.default is None
}
"""What is written only if there is something to say."""


def to_json(report: Report) -> str:
    """Return the report as JSON, a line for each tensor, ending in a newline."""
    facts: dict[str, Any] = {
        "schema": report.schema,
        "tool": asdict(report.tool),
        "method": report.method,
        "options": _given(report.options),
        "input": _given(report.input),
        "output": asdict(report.output) if report.output else None,
        "totals": asdict(report.totals),
        "tensors": map(_row, report.tensors),
        "skipped": [asdict(skip) for skip in report.skipped],
        "dropped": [asdict(drop) for drop in report.dropped],
    }
    if report.shrink:
        facts["shrink"] = _given(report.shrink)
    text = encode(facts)
    if text.isascii():
        return text
    # A file's name can have bytes that are no text; JSON cannot.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _given(fact: Options | ShrinkPlan | Input) -> dict[str, Any]:
    """Its fields and theirs, but for those that are there only if there is something to say."""
    return asdict(
        fact,
        dict_factory=lambda pairs: {
            key: value for key, value in pairs if value is not None or key not in _OPTIONAL
        },
    )


def _row(item: PlanItem) -> dict[str, Any]:
    row = {name: getattr(item, name) for name in _COLUMNS}
    if item.follows is None:
        del row["follows"]
    return row


# --- from JSON -------------------------------------------------------------------------------


def read_report(path: str | Location) -> Report:
    """Return the Report in the file at `path`, or in stdin ("-").

    Raises:
        InputError: the file cannot be read, is no report, or one of a newer version.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else locate(path).read_bytes()
        return from_json(content.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a report of prune-cli: {error}") from error


def from_json(text: str) -> Report:
    """Return the Report that to_json wrote.

    Raises:
        InputError: it is not JSON, lacks a key, or has one of another type.
    """
    try:
        found = parse(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from None
    schema = _take(found, "schema", int)
    if not 1 <= schema <= SCHEMA:
        raise InputError(f"its schema is {schema}; this version of prune-cli reads {SCHEMA}")
    keys = {entry.name for entry in fields(Report)} - {"notes"}
    check_keys("the report", found, keys - {"shrink"}, keys)
    output = found["output"]
    tensors = tuple(decode(PlanItem, row) for row in _take(found, "tensors", list))
    shrink = decode(ShrinkPlan, _take(found, "shrink", dict)) if "shrink" in found else None
    _refuse_shapes([*(row.shape for row in tensors), *(shrink.shapes.values() if shrink else ())])
    return Report(
        schema=schema,
        tool=decode(Tool, _take(found, "tool", dict)),
        method=_take(found, "method", str),
        options=_options(found),
        input=decode(Input, _take(found, "input", dict)),
        output=None if output is None else decode(Output, _take(found, "output", dict)),
        totals=decode(Totals, _take(found, "totals", dict)),
        tensors=tensors,
        skipped=tuple(decode(Skipped, row) for row in _take(found, "skipped", list)),
        dropped=tuple(decode(Dropped, row) for row in _take(found, "dropped", list)),
        shrink=shrink,
    )


def _options(found: object) -> Options:
    """Return the options, of which every part is possible."""
    options = decode(Options, _take(found, "options", dict))
    try:
        if options.choice:
            check_choice(options.choice)
    except UsageError as error:
        raise InputError(f"its options are impossible: {error}") from None
    return options


def _refuse_shapes(shapes: Iterable[Sequence[int]]) -> None:
    """Raise InputError for a shape that no tensor has: its elements could not even be told."""
    for shape in shapes:
        if len(shape) > MAX_DIMS or abs(math.prod(shape)) >= 1 << 63:
            raise InputError(f"no tensor has the shape {[*shape]!r:.80}")


def _take(found: object, key: str, kind: type) -> Any:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise InputError(f"{key!r} is missing, or is no {kind.__name__}")
    return value
