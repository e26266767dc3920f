"""In words how much a run pruned, and how the channels were chosen."""

from collections.abc import Iterator

from prune_cli.amounts import Amount
from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import Options
from prune_cli.report.numbers import format_count


def describe_amount(options: Options, of: str = "tensor") -> str:
    """Return the amount, or the target, as it was understood; `of` is what loses channels."""
    amount, choice = options.amount, options.choice
    if choice and choice.target:
        return f"target {choice.target}"
    match amount:
        case None:
            return "amounts of the recipe"
        case _ if options.rules:
            return f"amounts of the recipe, or {amount} where it gives none"
        case _ if choice and choice.is_global:
            return f"amount {amount}{_part(amount)} of all live channels together"
        case int():
            return f"amount {amount}: {format_count(amount, 'channel')} of each {of}"
        case _ if choice and not choice.allocate.startswith("uniform"):
            return f"amount {amount}: {100 * amount:.6g}% of all live elements"
        case _:
            return f"amount {amount}: {100 * amount:.6g}% of each {of}'s live channels"


def describe_choice(choice: Choice | None) -> Iterator[str]:
    """Yield what is not as usual in how channels were chosen."""
    if choice is None:
        return
    if choice.is_global:
        yield "all tensors ranked together"
    if choice.allocate != "uniform":
        between = f" between {choice.between[0]} and {choice.between[1]}" if choice.between else ""
        yield f"allocated {choice.allocate}{between}"
    if choice.criterion != "random":
        yield f"the smallest by {choice.scores or choice.criterion}"
    if choice.round_to > 1:
        yield f"left in multiples of {choice.round_to}"
    if choice.at_least:
        yield f"at least {choice.at_least} left in each"


def name_amount(amount: Amount | None, choice: Choice | None) -> str:
    """Return an amount, or a target, for a narrow column."""
    if choice and choice.target:
        return choice.target
    return "-" if amount is None else str(amount)


def name_choice(choice: Choice | None) -> str:
    """Return how channels were chosen, for a column; nothing for the usual way."""
    return ", ".join(describe_choice(choice))


def _part(amount: Amount) -> str:
    return "" if isinstance(amount, int) else f": {100 * amount:.6g}%"
