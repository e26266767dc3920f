"""Which modules can lose how much: a recipe that keeps a given loss.

One module at a time tells what each alone may lose; together they lose more. So the recipe is tried
as a whole, and lowered until the loss is kept.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from prune_cli.amounts import Amount
from prune_cli.plan.selection import Rule
from prune_cli.sweep.grid import Point
from prune_cli.sweep.summary import Summary, loss, spell_amount

_HALVINGS = 3  # of what each module may lose alone, before amounts go down

Amounts = Mapping[str, Amount]
"""How much of each module goes; a module that must stay whole is not in it."""


def candidates(summary: Summary, lose: float) -> Iterator[Amounts]:
    """Yield what may go of each module, the boldest recipe first, none twice and none empty.

    Args:
        summary: of a sweep over single modules.
        lose: how much worse the metric may get.
    """
    seen: list[Amounts] = []
    amounts = sorted(amount for amount in summary.settings.amounts if amount != 0)
    for number in range(_HALVINGS + 1):
        seen.append(_within(summary, amounts, lose / 2**number))
    for down in range(1, len(amounts)):
        seen.append(_lowered(seen[_HALVINGS], amounts, down))
    told: list[Amounts] = []
    for candidate in seen:
        if candidate and candidate not in told:
            told.append(candidate)
            yield candidate


def to_toml(rules: Sequence[Rule], comments: Sequence[str]) -> str:
    """Return the recipe as `--recipe` reads it."""
    lines = [f"# {comment}" for comment in comments]
    for rule in rules:
        lines += [
            "",
            "[[rules]]",
            f"module = {_quote(rule.modules)}",
            f"param = {_quote(rule.params)}",
            f"amount = {rule.amount!r}",
            f"dim = {rule.dim}",
        ]
    return "\n".join(lines) + "\n"


def losses(summary: Summary) -> list[tuple[str, Amount, float]]:
    """Return the mean loss of each module at each amount, the worst last."""
    found = [
        (each.point.module, each.point.amount, lost)
        for each in summary.points
        if each.metric and each.point.module is not None and each.point.amount is not None
        for lost in [loss(summary, each.metric)]
        if lost is not None
    ]
    return sorted(found, key=lambda row: (row[2], row[0]))


def describe_recipe(amounts: Amounts) -> str:
    """Return the recipe in a sentence's words: "conv1 25%, conv2 50%"."""
    return ", ".join(f"{module} {spell_amount(Point(each))}" for module, each in amounts.items())


def _within(summary: Summary, amounts: Sequence[Amount], lose: float) -> dict[str, Amount]:
    """Return the largest amount of each module up to which every amount keeps the loss."""
    table: dict[str, dict[Amount, float]] = {}
    for module, amount, lost in losses(summary):
        table.setdefault(module, {})[amount] = lost
    found: dict[str, Amount] = {}
    for module in sorted(table):
        for amount in amounts:
            if not table[module].get(amount, math.inf) <= lose:
                break
            found[module] = amount
    return found


def _lowered(amounts: Amounts, steps: Sequence[Amount], down: int) -> dict[str, Amount]:
    places = {module: steps.index(amount) - down for module, amount in amounts.items()}
    return {module: steps[place] for module, place in places.items() if place >= 0}


def _quote(globs: Sequence[str]) -> str:
    """Return one glob as a string, several as a list; TOML's strings are JSON's, but for DEL."""
    value = globs[0] if len(globs) == 1 else list(globs)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
