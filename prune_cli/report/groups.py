"""A report of shrink as one of pruning: its groups are the rows, so all that shows rows shows them.

See also: plan/shrink.py, whose facts these are.
"""

from dataclasses import replace

from prune_cli.plan.facts import PlanItem, Skipped
from prune_cli.plan.selection import split_name
from prune_cli.plan.shrink import Group
from prune_cli.report.report import Report, Totals


def show_groups_as_tensors(report: Report) -> Report:
    """Return `report`, and if it is one of shrink with a row for each group that lost channels.

    A row is named after the root of its group and has its channels; the tensors that lost some
    with it are its `aliases`, and it has no shape. Elements are those of the whole model, and
    zero are those that went. Groups that were left whole are skipped.
    """
    plan = report.shrink
    if plan is None:
        return report
    before, after = plan.effect.parameters_before, plan.effect.parameters_after
    return replace(
        report,
        tensors=tuple(_row(group) for group in plan.groups),
        totals=Totals(
            tensors_pruned=sum(bool(group.removed) for group in plan.groups),
            channels=sum(group.channels for group in plan.groups),
            channels_pruned=sum(len(group.removed) for group in plan.groups),
            elements=before,
            elements_zero=before - after,
            sparsity=(before - after) / before if before else 0.0,
        ),
        skipped=(*report.skipped, *(Skipped(whole.root, whole.reason) for whole in plan.whole)),
    )


def _row(group: Group) -> PlanItem:
    module, param = split_name(group.root)
    names = dict.fromkeys(name for name, _ in group.members if name != group.root)
    return PlanItem(
        name=group.root,
        module=module,
        param=param,
        aliases=tuple(names),
        dtype="",
        shape=(),
        dim=group.dim,
        amount=0 if group.amount is None else group.amount,
        seed=group.seed,
        channels=group.channels,
        already_pruned=(),
        pruned=group.removed,
    )
