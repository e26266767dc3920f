"""Quotas: how many channels each layer loses, out of shapes, amounts and the choice.

`draw` decides them from a checkpoint, and `verify` again from the rows of a report. Layers are in
the order of their names.

See also: allocation.py, the arithmetic; scores.py, which channels it is then.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from prune_cli.amounts import Amount, number_to_prune
from prune_cli.errors import AmountError, PruneError, RequestError
from prune_cli.plan.allocation import (
    Layer,
    ends,
    fractions,
    round_to_step,
    whole_channels,
)
from prune_cli.plan.budget import parse_target
from prune_cli.plan.choice import Choice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ranks: TypeAlias = Callable[[], Sequence[npt.NDArray[np.generic]]]
    """Gives for each layer a number for each of its live channels; the smallest go first."""


class Quota(NamedTuple):
    """What one layer loses: the amount as it is reported, and the number of channels."""

    amount: Amount
    channels: int


def set_quotas(
    layers: Sequence[Layer],
    amounts: Sequence[Amount | None],
    choice: Choice,
    seed: int,
    ranks: "Ranks",
) -> tuple[Quota, ...]:
    """Return what each layer loses.

    Args:
        layers: in the order of their names.
        amounts: of their rules; None where there is a target.
        choice: how.
        seed: the user's.
        ranks: called where all channels are ranked together.

    Raises:
        RequestError: that cannot be had; the message says what can.
    """
    if choice.is_global:
        return _ranked_together(layers, amounts, choice, ranks)
    if choice.target is None and choice.allocate.startswith("uniform"):
        return _each_for_itself(layers, amounts, choice)
    allocation = choice.allocation(seed)
    gone = _elements_to_go(layers, amounts, choice)
    wanted = fractions(layers, allocation, gone)
    numbers = whole_channels(layers, wanted, gone)
    return tuple(Quota(part, k) for part, k in zip(wanted, numbers, strict=True))


def _each_for_itself(
    layers: Sequence[Layer], amounts: Sequence[Amount | None], choice: Choice
) -> tuple[Quota, ...]:
    keeps_ends = choice.allocate == "uniform-keep-ends" and layers
    whole = ends([layer.name for layer in layers]) if keeps_ends else ()
    quotas, errors = [], []
    for layer, amount in zip(layers, amounts, strict=True):
        asked = 0.0 if layer.name in whole or amount is None else amount
        try:
            k = number_to_prune(asked, layer.live, layer.name)
        except RequestError as error:
            errors.append(error)
        else:
            quotas.append(Quota(asked, round_to_step(layer, k)))
    _raise_together(errors)
    return tuple(quotas)


def _raise_together(errors: Sequence[PruneError]) -> None:
    if errors:
        raise AmountError("\n".join(map(str, errors)))


def _elements_to_go(
    layers: Sequence[Layer], amounts: Sequence[Amount | None], choice: Choice
) -> float:
    """Return the budget: of all elements that are live, how many go."""
    live = sum(layer.elements for layer in layers)
    if choice.target is not None:
        return live - _elements_to_remain(layers, choice.target)
    amount = _only(amounts)
    if isinstance(amount, int):
        raise AmountError(
            f"the allocation {choice.allocate} spreads a part of all elements over the layers, and "
            f"{amount} is a number of channels; give a fraction, such as 0.5"
        )
    return amount * live


def _elements_to_remain(layers: Sequence[Layer], text: str) -> float:
    target = parse_target(text)
    if target.metric != "params":
        raise RequestError(
            f"the target {target}: zeroing channels changes no {target.metric}; give params=, or "
            "remove channels with shrink"
        )
    return target.of(sum(layer.shape[layer.dim] * layer.width for layer in layers))


def _only(amounts: Sequence[Amount | None]) -> Amount:
    different = sorted({repr(amount) for amount in amounts})
    if len(different) != 1 or amounts[0] is None:
        raise AmountError(
            f"one amount is spread over all layers, and the recipe has {', '.join(different)}; "
            "give its rules the same"
        )
    return amounts[0]


def _ranked_together(
    layers: Sequence[Layer],
    amounts: Sequence[Amount | None],
    choice: Choice,
    ranks: "Ranks",
) -> tuple[Quota, ...]:
    """The first channels of one ranking over all layers; rounded to steps where that is asked."""
    import numpy as np

    from prune_cli.plan.criterion import rank_together

    owners = rank_together(ranks(), layers)
    widths = np.array([layer.width for layer in layers], dtype=np.int64)
    gone = np.concatenate([[0], np.cumsum(widths[owners])])
    if choice.target is not None:
        k = _nearest(gone, layers, _elements_to_go(layers, amounts, choice))
    else:
        k = _number_of_all(_only(amounts), layers, len(owners))
    numbers = np.bincount(owners[:k], minlength=len(layers)).tolist()
    if any(layer.step > 1 for layer in layers):
        wanted = [k / max(layer.live, 1) for k, layer in zip(numbers, layers, strict=True)]
        numbers = whole_channels(layers, wanted, float(gone[k]))
    return tuple(Quota(int(k), int(k)) for k in numbers)


def _nearest(gone: Any, layers: Sequence[Layer], wanted: float) -> int:
    """After how many channels the sum in `gone` is nearest to what is wanted."""
    import numpy as np

    slack, live = 1e-9 * float(gone[-1]), sum(layer.elements for layer in layers)
    if not -slack <= wanted <= gone[-1] + slack:
        raise AmountError(
            f"{live - wanted:,.0f} of {live:,} selected elements cannot be what remains: the least "
            f"is {live - int(gone[-1]):,} and the most is {live:,}"
        )
    return int(np.abs(gone - wanted).argmin())


def _number_of_all(amount: Amount, layers: Sequence[Layer], most: int) -> int:
    k = number_to_prune(amount, sum(layer.live for layer in layers), "all layers together")
    if k > most:
        raise AmountError(
            f"{k:,} channels cannot go: with --at-least {layers[0].at_least} the most is {most:,}"
        )
    return k
