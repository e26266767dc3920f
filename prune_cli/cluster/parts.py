"""Parts: shares of the units of a run, for the jobs of an array that know nothing of each other."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prune_cli.errors import UsageError

_T = TypeVar("_T")
_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True, order=True)
class Part:
    """One of `count` shares of the units, counted from 1.

    Example:
        >>> Part(2, 3).of(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, units: Sequence[_T]) -> list[_T]:
        """Return its share: every `count`-th, so that neighbours, which are alike, are spread."""
        return list(units[self.number - 1 :: self.count])


def parse_part(text: str) -> Part:
    """Return the part that is spelt "2/3".

    Raises:
        UsageError: it is none.
    """
    found = _SPELLING.fullmatch(text.strip())
    part = Part(*map(int, found.groups())) if found else Part(0, 0)
    if not 1 <= part.number <= part.count:
        raise UsageError(f"--part {text!r} is no part; write 2/3 for the second of three")
    return part


def find_array_part(environment: Mapping[str, str]) -> Part | None:
    """Return the part that a SLURM array job says it is; None where it is none.

    Where the lowest index of the array and its step are given too, indices need not begin at 1.

    Raises:
        UsageError: the indices of the array do not follow each other, so they number no parts.
    """
    given = [environment.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT")]
    if None in given:
        return None
    least, step = (environment.get(f"SLURM_ARRAY_TASK_{name}", "1") for name in ("MIN", "STEP"))
    try:
        index, count = (int(each or "") for each in given)
        number, rest = divmod(index - int(least), int(step))
    except (ValueError, ZeroDivisionError):
        number, count, rest = 0, 0, 1
    if rest or not 0 <= number < count:
        raise UsageError(
            f"SLURM_ARRAY_TASK_ID={given[0]} is no part of SLURM_ARRAY_TASK_COUNT={given[1]}; "
            "number the array 1-N, or give --part I/N (1/1 for all)"
        )
    return Part(number + 1, count)
