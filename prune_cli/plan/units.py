"""Units: what `shrink` removes, and how much of each kind. Channels are the usual ones.

See also: shrink/units.py, which plans them one kind after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prune_cli.amounts import Amount, check_amount, parse_amount
from prune_cli.errors import UsageError

CHANNELS, HEADS, HEAD_DIM, EXPERTS, LAYERS = "channels", "heads", "head-dim", "experts", "layers"

UNITS = (LAYERS, EXPERTS, HEADS, HEAD_DIM, CHANNELS)
"""Every kind, in the order in which they go: what goes first is not counted by the later ones."""


def parse_units(texts: Sequence[str], amount: Amount | None) -> dict[str, Amount]:
    """Read `KIND` or `KIND=AMOUNT`; a kind without an amount of its own has `amount`.

    Example:
        >>> parse_units(["heads", "layers=2"], 0.25)
        {'layers': 2, 'heads': 0.25}

    Raises:
        UsageError: there is no such kind, it is there twice, or it has no amount.
    """
    found: dict[str, Amount | None] = {}
    for text in texts:
        kind, separator, given = text.partition("=")
        if kind in found:
            raise UsageError(f"--unit {kind} is there twice; give it once")
        found[kind] = parse_amount(given) if separator else amount
    return check_units(found)


def check_units(units: Mapping[str, Amount | None]) -> dict[str, Amount]:
    """Return the units in the order in which they go.

    Raises:
        UsageError: there is no such kind, or it has no amount, or an impossible one.
    """
    unknown = [kind for kind in units if kind not in UNITS]
    if unknown:
        known = ", ".join(sorted(UNITS))
        raise UsageError(f"{unknown[0]!r} is no unit that can be removed; there are {known}")
    without = [kind for kind, amount in units.items() if amount is None]
    if without:
        raise UsageError(f"say how many {without[0]} go: --unit {without[0]}=0.25, or --amount")
    return {kind: check_amount(units[kind]) for kind in UNITS if kind in units}
