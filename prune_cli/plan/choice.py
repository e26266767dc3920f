"""Choice: how channels are chosen, where that is not the usual way, as frozen facts.

The usual way: the same amount of every tensor, and which channels is left to chance.

See also: quotas.py (how many of each layer), scores.py (which ones).
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from prune_cli.errors import UsageError
from prune_cli.plan.allocation import KINDS, Allocation, Kind
from prune_cli.plan.budget import parse_target

Criterion = Literal["random", "l1", "l2", "fpgm", "scores"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

BETWEEN = (0.1, 0.9)
"""The bounds of each layer's fraction for the allocation random."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How channels are chosen, as the report records it.

    Attributes:
        allocate: how the amount is spread over the layers; see allocation.py.
        between: the bounds of each layer's fraction; None where they are not drawn.
        target: what is to remain, as parse_target reads it; None where an amount is given.
        is_global: whether all channels of all layers are ranked together.
        criterion: what ranks channels; the smallest go.
        scores: the name of the file that has the scores; None without one.
        round_to: channels are left in multiples of this.
        at_least: how many channels stay in every layer.
    """

    allocate: Kind = "uniform"
    between: tuple[float, float] | None = None
    target: str | None = None
    is_global: bool = False
    criterion: Criterion = "random"
    scores: str | None = None
    round_to: int = 1
    at_least: int = 0

    def allocation(self, seed: int) -> Allocation:
        """Return how the amount is spread by a run with this seed."""
        return Allocation(self.allocate, self.between or BETWEEN, seed)


USUAL = Choice()


def make_choice(
    *,
    allocate: str = USUAL.allocate,
    between: tuple[float, float] | None = None,
    target: str | None = None,
    is_global: bool = False,
    criterion: str | None = None,
    scores: str | None = None,
    round_to: int = 1,
    at_least: int = 0,
) -> Choice | None:
    """Return the Choice that the user asks for; None for the usual one.

    A score file alone is criterion "scores". A target is kept as it prints, so "50%" is 0.5.

    Raises:
        UsageError: the parts do not fit each other; all misfits are named.
    """
    criterion = criterion or ("scores" if scores else "random")
    choice = Choice(
        allocate,  # type: ignore[arg-type]
        between,
        None if target is None else str(parse_target(target)),
        is_global,
        criterion,  # type: ignore[arg-type]
        scores,
        round_to,
        at_least,
    )
    check_choice(choice)
    if allocate == "random" and not between:
        choice = replace(choice, between=BETWEEN)
    return None if choice == USUAL else choice


def check_choice(choice: Choice) -> None:
    """Raise a UsageError if the parts of a choice do not fit each other; all misfits are named."""
    allocate, between, criterion = choice.allocate, choice.between, choice.criterion
    problems = [
        problem
        for is_wrong, problem in (
            (allocate not in KINDS, f"no allocation {allocate!r}: {', '.join(KINDS)}"),
            (criterion not in CRITERIA, f"no criterion {criterion!r}: {', '.join(CRITERIA)}"),
            (between and allocate != "random", "--between is for the allocation random only"),
            (between and not 0 <= between[0] <= between[1] <= 1, f"no bounds {between}: 0.1,0.9"),
            (
                choice.is_global and allocate != "uniform",
                f"--global ranks all layers together, so it takes no allocation ({allocate})",
            ),
            (
                choice.scores and criterion != "scores",
                f"the criterion {criterion} takes no --scores",
            ),
            (
                criterion == "scores" and not choice.scores,
                "the criterion scores needs a file: --scores",
            ),
            (choice.round_to < 1, f"--round-to {choice.round_to} is less than 1"),
            (choice.at_least < 0, f"--at-least {choice.at_least} is less than 0"),
        )
        if is_wrong
    ]
    if problems:
        raise UsageError("\n".join(problems))


def parse_between(text: str) -> tuple[float, float]:
    """Return the bounds that `text` spells: "0.1,0.9" or "10%,90%".

    Raises:
        UsageError: they are not two fractions.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        low, high = (
            float(part[:-1] + "e-2") if part.endswith("%") else float(part) for part in parts
        )
    except ValueError:
        raise UsageError(
            f"--between {text!r} is not two fractions; write it like 0.1,0.9"
        ) from None
    return low, high
