"""Amounts: a number of channels, or a fraction of the live ones; as people write them, and what they mean."""

import math
import numbers
import re
from typing import TypeAlias

from prune_cli.errors import AmountError, AmountTypeError, UsageError

Amount: TypeAlias = int | float
"""How many channels: an int is a number of them, a float a fraction of the live ones."""


def validate_amount(amount: Amount, name: str = "the tensor") -> None:
    """Validate an amount independently of any tensor: the rules of torch, and neither bool nor NaN.

    Args:
        amount: the int or float; NumPy's are as good.
        name: what an error calls the tensor.

    Raises:
        AmountTypeError: it is not a real number, or it is a bool.
        AmountError: it is a float outside 0.0 to 1.0, NaN, or a negative int.
    """
    if type(amount) is float and 0.0 <= amount <= 1.0 or type(amount) is int and amount >= 0:
        return  # as nearly every amount of a hundred thousand tensors; an ABC takes its time
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise AmountTypeError(
            f"{name}: amount={amount!r} is a {type(amount).__name__}; give an int (a number of "
            "channels) or a float (a fraction of them)"
        )
    if isinstance(amount, numbers.Integral):
        if amount < 0:
            raise AmountError(f"{name}: amount={amount} is negative: an int is at least 0")
    elif not 0.0 <= float(amount) <= 1.0:
        raise AmountError(
            f"{name}: amount={amount} is not a fraction: a float is at least 0.0 and at most 1.0 "
            "(an int is a number of channels)"
        )


def number_to_prune(amount: Amount, live: int, name: str = "the tensor") -> int:
    """Return the number of channels that `amount` means where `live` of them are left.

    An int is that number; a float is a fraction, rounded as torch rounds it (half to even).

    Args:
        amount: as in `validate_amount`.
        live: how many channels are not pruned yet.
        name: what an error calls the tensor.

    Raises:
        AmountTypeError, AmountError: as `validate_amount`, and for more channels than are left.

    Example:
        >>> number_to_prune(0.25, 10), number_to_prune(3, 10)
        (2, 3)
    """
    validate_amount(amount, name)
    is_fraction = isinstance(amount, float) or not isinstance(amount, numbers.Integral)
    k = int(round(amount * live) if is_fraction else amount)
    if k > live:
        raise AmountError(f"{name}: amount={k} is too large: at most {live} channels can be pruned")
    return k


def parse_amount(text: str) -> Amount:
    """Return an amount as the command line spells it: "3" channels, "0.25" or "25%" of them.

    Raises:
        UsageError: it is neither, or out of range.

    Example:
        >>> parse_amount("25%"), parse_amount("1"), parse_amount("1.0")
        (0.25, 1, 1.0)
    """
    try:
        if text.endswith("%"):
            amount: Amount = float(text[:-1].strip() + "e-2")  # 33.3 / 100 is not quite 0.333
        elif re.fullmatch(r"[+-]?\d+", text.strip()):
            amount = int(text)
        else:
            amount = float(text)
    except ValueError:
        amount = math.nan
    return check_amount(amount, repr(text))


def check_amount(amount: object, shown: str | None = None) -> Amount:
    """`amount`, if it is a whole number of channels >= 0 or a fraction from 0.0 to 1.0.

    Raises:
        UsageError: it is not; `shown` is how the message spells it.
    """
    match amount:
        case bool():
            pass
        case int() if amount >= 0:
            return amount
        case float() if 0.0 <= amount <= 1.0:
            return abs(amount)  # -0.0 is 0.0
    raise UsageError(
        f"the amount {shown or repr(amount)} is neither a whole number of channels (3), nor a "
        "fraction from 0.0 to 1.0 (0.25), nor a percentage (25%)"
    )
