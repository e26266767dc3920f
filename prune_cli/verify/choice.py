"""Whether the rows of a report lose as many channels as its choice gives them.

Numbers alone tell that: shapes, amounts and the seed. Which channels of a weight have the smallest
scores only the source tells.
"""

from collections.abc import Iterator, Sequence

from prune_cli.channels import uniform_draws
from prune_cli.errors import RequestError, UsageError
from prune_cli.plan.choice import Choice
from prune_cli.plan.draw import layer_of
from prune_cli.plan.facts import Options, PlanItem
from prune_cli.plan.quotas import set_quotas
from prune_cli.plan.scores import Ranks
from prune_cli.plan.selection import Rule


def quota_problems(
    options: Options, choice: Choice, rows: Sequence[PlanItem], rules: Sequence[Rule]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each row that has another amount or number of channels, and what is wrong.

    Args:
        options: of the report.
        choice: that of the options.
        rows: of the weights, in order.
        rules: the rule for each.
    """
    if choice.is_global and choice.criterion != "random":
        return  # what the weights are, only the source tells
    amounts = [None if choice.target else rule.amount for rule in rules]
    try:
        quotas = set_quotas(
            [layer_of(row, options, choice) for row in rows],
            amounts,
            choice,
            options.seed,
            lambda: _draws(rows, options),
        )
    except (RequestError, UsageError) as error:
        yield "", f"what the options of the report ask for is impossible: {error}"
        return
    for row, quota in zip(rows, quotas, strict=True):
        if repr(row.amount) != repr(quota.amount):
            yield row.name, f"its amount in the report is not {quota.amount!r}, as its options give"
        if len(row.pruned) != quota.channels:
            yield (
                row.name,
                (
                    f"the report prunes {len(row.pruned)} of its channels, its options "
                    f"{quota.channels}"
                ),
            )


def _draws(rows: Sequence[PlanItem], options: Options) -> list[Ranks]:
    return [
        uniform_draws(row.channels - len(row.already_pruned), options.seed_of(row.name))
        for row in rows
    ]
