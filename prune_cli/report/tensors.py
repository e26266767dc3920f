"""The tensors of a report as rows.

See also: formats.py, which makes text of rows.
"""

from collections.abc import Iterable

from prune_cli.checkpoint.names import natural_key
from prune_cli.plan.facts import PlanItem
from prune_cli.report.formats import Column, Kind, Rows

_COLUMNS = (
    Column("name", Kind.TEXT, "tensor"),
    Column("dtype", Kind.TEXT),
    Column("shape", Kind.TEXT),
    Column("dim"),
    Column("channels"),
    Column("already_pruned", title="before"),
    Column("pruned"),
    Column("pruned_part", Kind.PART, "part"),
)


def list_tensors(tensors: Iterable[PlanItem]) -> Rows:
    """Return a row for each of `tensors`, in natural order."""
    items = sorted(tensors, key=lambda item: natural_key(item.name))
    rows = (
        (
            item.name,
            item.dtype,
            "x".join(map(str, item.shape)),
            item.dim,
            item.channels,
            len(item.already_pruned),
            len(item.pruned),
            len(item.pruned) / item.channels if item.channels else 0.0,
        )
        for item in items
    )
    return Rows(_COLUMNS, tuple(rows))
