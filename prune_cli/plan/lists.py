"""Lists of modules that got shorter: which of their tensors are left, and what those are called.

The elements that stay are numbered anew: without layer 1, "layers.2.weight" is "layers.1.weight".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Lists = Mapping[str, tuple[int, ...]]
"""For the name of each list that got shorter, the numbers of the elements that stay, ascending."""


def name_after(lists: Lists, name: str) -> str | None:
    """Return the new name of a tensor or module; None if it goes with its element.

    Example:
        >>> name_after({"layers": (0, 2)}, "layers.2.weight")
        'layers.1.weight'
    """
    if not lists:
        return name
    before = name.split(".")
    after = list(before)
    for position, part in enumerate(before):
        kept = lists.get(".".join(before[:position])) if part.isdecimal() else None
        if kept is not None:
            if int(part) not in kept:
                return None
            after[position] = str(kept.index(int(part)))
    return ".".join(after)


def names_before(lists: Lists, names: Iterable[str]) -> dict[str, str]:
    """Return for the new name of each tensor that stays the name that it had."""
    after = {name: name_after(lists, name) for name in names}
    return {new: name for name, new in after.items() if new is not None}
