"""Reports as rows, for tables in other programs: a row for each run, or group of runs.

See also: tensors.py, the tensors of one; formats.py, which makes text of rows.
"""

from prune_cli.amounts import Amount
from prune_cli.plan.choice import Choice
from prune_cli.report.comparison import Comparison, RunGroup
from prune_cli.report.formats import Cell, Column, Kind, Rows

_OF_RUNS = (
    Column("report", Kind.TEXT),
    Column("input", Kind.TEXT),
    Column("amount", Kind.TEXT),
    Column("dim"),
    Column("seed"),
    Column("tensors"),
    Column("channels"),
    Column("channels_pruned", title="pruned"),
    Column("sparsity", Kind.PART),
)

_OF_GROUPS = (
    Column("amount", Kind.TEXT),
    Column("dim"),
    Column("runs"),
    Column("pairs"),
    Column("mean", Kind.PART, "each two alike"),
    Column("sigma", Kind.PART, "\u00b1"),
    Column("by_chance", Kind.PART),
)


def list_runs(comparison: Comparison) -> Rows:
    """Return a row for each run of `comparison`."""
    rows = (
        (
            run.report,
            run.input,
            _amount(run.amount, run.choice),
            run.dim,
            run.seed,
            run.tensors,
            run.channels,
            run.channels_pruned,
            run.sparsity,
        )
        for run in comparison.runs
    )
    return Rows(_OF_RUNS, tuple(rows))


def list_groups(comparison: Comparison) -> Rows:
    """Return a row for each amount and dim: how alike its runs are, and how alike by chance."""
    return Rows(_OF_GROUPS, tuple(_group(group) for group in comparison.groups))


def _group(group: RunGroup) -> tuple[Cell, ...]:
    amount = _amount(group.amount, group.choice)
    runs, likeness = len(group.runs), group.likeness
    if likeness is None:
        return (amount, group.dim, runs, 0, None, None, None)
    measured = (likeness.mean, likeness.sigma, likeness.by_chance)
    return (amount, group.dim, runs, likeness.pairs, *measured)


def _amount(amount: Amount | None, choice: Choice | None) -> str | None:
    """Return the amount, or the target in its place."""
    if choice and choice.target:
        return choice.target
    return None if amount is None else str(amount)
