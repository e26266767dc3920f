"""Budgets: how much is to remain, in parameters, FLOPs, bytes or time, and the amount that does it.

    params=0.5          half of the parameters
    flops=1.2G          1.2 * 10**9 FLOPs
    bytes=500MiB        500 * 2**20 bytes
    latency=12.5ms      a forward pass in 12.5 milliseconds

What something costs is a function that the caller gives: `random-structured` counts elements,
`shrink` a whole model. See also: allocation.py (how an amount is spread over layers).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from prune_cli.errors import AmountError, UsageError

Metric = Literal["params", "flops", "bytes", "latency"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_UNITS = {
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12},
    "flops": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15},
    "bytes": {
        f"{prefix}{end}": float(base ** " kmgt".index(prefix or " "))
        for prefix in ("", "k", "m", "g", "t")
        for end, base in (("", 1000), ("b", 1000), ("ib", 1024))
        if prefix or end != "ib"
    },
    "latency": {"ms": 1.0, "s": 1e3, "us": 1e-3},
}
"""What stands behind a number, and how much one of it is; latency is in milliseconds."""

_EXAMPLES = {"params": "1.5M", "flops": "1.2G", "bytes": "500MiB", "latency": "12.5ms"}
_NEAR = 5e-4  # of the target: nearer than this, the search ends
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Target:
    """How much of `metric` is to remain.

    `value` is a fraction of the whole from 0 to 1, or where it `is_absolute` a number of
    parameters, FLOPs, bytes or milliseconds.
    """

    metric: Metric
    value: float
    is_absolute: bool = False

    def of(self, whole: float) -> float:
        """Return how much is to remain of `whole`."""
        return self.value if self.is_absolute else self.value * whole

    def __str__(self) -> str:
        """Return the target as parse_target reads it."""
        if not self.is_absolute:
            return f"{self.metric}={self.value!r}"
        return f"{self.metric}={self.value:.15g}{'ms' if self.metric == 'latency' else ''}"


@dataclass(frozen=True, slots=True)
class Solution:
    """An amount, and what remains with it."""

    amount: float
    cost: float


def parse_target(text: str) -> Target:
    """Return the target that `text` spells: "params=0.5", "params=50%", "flops=1.2G".

    A whole number, and one with a unit, is absolute; other numbers are fractions.

    Raises:
        UsageError: it is no target.

    Example:
        >>> parse_target("flops=1.2G").of(0), parse_target("params=50%").of(200)
        (1200000000.0, 100.0)
    """
    name, _, rest = text.partition("=")
    metric = name.strip().lower()
    if metric not in METRICS or not rest.strip():
        raise UsageError(
            f"the target {text!r} does not say what is to remain of what; write it like "
            f"params=0.5 (there is {', '.join(METRICS)})"
        )
    found = re.fullmatch(r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+) *([a-z%]*)", rest.strip().lower())
    target = _target(metric, found[1], found[2]) if found else None
    if target is None:
        raise UsageError(
            f"the target {text!r}: {rest.strip()!r} is neither a fraction from 0.0 to 1.0 (0.5), "
            f"nor a percentage (50%), nor a quantity ({_EXAMPLES[metric]})"
        )
    return target


def solve_budget(
    cost: Callable[[float], float],
    wanted: float,
    *,
    least: float = 0.0,
    most: float = 1.0,
    unit: str = "elements",
) -> Solution:
    """Return the amount between `least` and `most` with which nearest to `wanted` remains.

    Args:
        cost: what remains with an amount. It falls, in steps (of channels), as the amount rises.
        wanted: how much is to remain.
        least: the smallest amount to try.
        most: the largest.
        unit: what the costs count, for the message.

    Raises:
        AmountError: more is wanted than remains with `least`, or less than with `most`.

    Example:
        >>> solve_budget(lambda amount: 100 * (1 - amount) ** 2, 25.0).amount
        0.5
    """
    low, high = Solution(least, cost(least)), Solution(most, cost(most))
    _check_between(high.cost, wanted, low.cost, unit)
    best = min(low, high, key=lambda found: abs(found.cost - wanted))
    for _ in range(_HALVINGS):
        if abs(best.cost - wanted) <= _NEAR * wanted:
            break
        amount = (low.amount + high.amount) / 2
        middle = Solution(amount, cost(amount))
        best = min(best, middle, key=lambda found: abs(found.cost - wanted))
        low, high = (middle, high) if middle.cost > wanted else (low, middle)
    return best


def _check_between(least: float, wanted: float, most: float, unit: str) -> None:
    slack = 1e-9 * abs(most)
    if not least - slack <= wanted <= most + slack:
        raise AmountError(
            f"{wanted:,.6g} {unit} cannot be what remains: the least is {least:,.6g} and the "
            f"most is {most:,.6g} ({_percent(least, most)} to 100%)"
        )


def _percent(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0:.1%}"


def _target(metric: Metric, number: str, unit: str) -> Target | None:
    if unit == "%":
        return _fraction(metric, float(number + "e-2"))  # 33.3 / 100 is not quite 0.333
    if unit not in _UNITS[metric] and unit:
        return None
    if unit or number.isdigit() or float(number) > 1:
        if not unit and metric == "latency":
            return None  # of which unit?
        return Target(metric, float(number) * _UNITS[metric][unit], is_absolute=True)
    return _fraction(metric, float(number))


def _fraction(metric: Metric, value: float) -> Target | None:
    return Target(metric, value) if 0.0 <= value <= 1.0 else None
