"""Parameters, or modules of some depth, as rows: sorted, cut, with the part that each has of all.

See also: outline.py, which makes a tree of them instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from prune_cli.checkpoint.names import natural_key
from prune_cli.inspection.facts import Inspection, ModelFacts, ParameterFacts
from prune_cli.report.formats import Cell, Column, Kind, Rows
from prune_cli.report.numbers import format_shape


class Order(StrEnum):
    """By what rows are sorted: names in natural order, sizes from the largest."""

    NAME = "name"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class ModuleTotal:
    """All parameters whose module begins with `name`."""

    name: str
    tensors: int
    elements: int
    bytes: int


_Sized = TypeVar("_Sized", ParameterFacts, ModuleTotal)

_MODULES = (
    Column("name", Kind.TEXT),
    Column("tensors"),
    Column("parameters"),
    Column("part", Kind.PART),
    Column("bytes", Kind.BYTES, "size"),
)

_PARAMETERS = (
    Column("name", Kind.TEXT),
    Column("shape", Kind.TEXT),
    Column("dtype", Kind.TEXT),
    Column("dims", Kind.TEXT),
    Column("parameters"),
    Column("part", Kind.PART),
    Column("bytes", Kind.BYTES, "size"),
)

_GROUPS = (
    Column("root", Kind.TEXT, "channels of"),
    Column("dim"),
    Column("channels"),
    Column("blocks"),
    Column("members", title="coupled"),
)

_ZERO = Column("zero", Kind.TEXT, "zero channels")


def list_parameters(
    inspection: Inspection, *, order: Order = Order.NAME, top: int | None = None
) -> Rows:
    """Return a row for each parameter; for the `top` first only, if that is given.

    The last column is there if zeros were counted.
    """
    facts = _sorted(inspection.parameters, order)[:top]
    elements = sum(each.elements for each in inspection.parameters)
    has_zeros = any(each.zeros is not None for each in inspection.parameters)
    rows = tuple(_parameter(each, elements, has_zeros=has_zeros) for each in facts)
    return Rows((*_PARAMETERS, _ZERO) if has_zeros else _PARAMETERS, rows)


def list_groups(model: ModelFacts) -> Rows:
    """Return a row for each group of channels that can go together."""
    rows = tuple(
        (group.root, group.dim, group.channels, group.blocks, len(group.members))
        for group in model.groups
    )
    return Rows(_GROUPS, rows)


def list_modules(
    inspection: Inspection, depth: int, *, order: Order = Order.NAME, top: int | None = None
) -> Rows:
    """Return a row for each module down to `depth`, with all that is in it."""
    totals = _sorted(sum_modules(inspection.parameters, depth), order)[:top]
    elements = sum(each.elements for each in inspection.parameters)
    rows = tuple(
        (each.name, each.tensors, each.elements, _part(each.elements, elements), each.bytes)
        for each in totals
    )
    return Rows(_MODULES, rows)


def sum_modules(parameters: Iterable[ParameterFacts], depth: int) -> list[ModuleTotal]:
    """Return the totals of the modules at `depth`, and of parameters that lie higher by name.

    Example:
        >>> [t.name for t in sum_modules(inspect_checkpoint("llama.safetensors").parameters, 1)]
        ['lm_head', 'model']
    """
    groups: dict[str, list[ParameterFacts]] = {}
    for facts in parameters:
        parts = facts.name.split(".")
        groups.setdefault(".".join(parts[: min(depth, max(len(parts) - 1, 1))]), []).append(facts)
    return [
        ModuleTotal(
            name,
            len(group),
            sum(facts.elements for facts in group),
            sum(facts.bytes for facts in group),
        )
        for name, group in groups.items()
    ]


def _sorted(entries: Iterable[_Sized], order: Order) -> list[_Sized]:
    if order is Order.NAME:
        return sorted(entries, key=lambda entry: natural_key(entry.name))
    return sorted(entries, key=lambda entry: (-entry.bytes, natural_key(entry.name)))


def _part(elements: int, of: int) -> float:
    return elements / of if of else 0.0


def _parameter(facts: ParameterFacts, elements: int, *, has_zeros: bool) -> tuple[Cell, ...]:
    row: tuple[Cell, ...] = (
        facts.name,
        format_shape(facts.shape),
        facts.dtype,
        span_dims(facts.prunable_dims),
        facts.elements,
        _part(facts.elements, elements),
        facts.bytes,
    )
    return (*row, _zeros(facts)) if has_zeros else row


def span_dims(dims: Sequence[int]) -> str:
    """Return the dims that can be pruned as people read them: "0-3", or "-" for none."""
    return f"{dims[0]}-{dims[-1]}" if dims else "-"


def _zeros(facts: ParameterFacts) -> str:
    """Return the dims that have zero channels, as "dim 0: 3/64"."""
    if facts.zeros is None:
        return "-"
    counts = [count for count in facts.zeros if count.zero]
    shown = (f"dim {count.dim}: {count.zero:,}/{count.channels:,}" for count in counts)
    return ", ".join(shown) or "none"
