"""The list of tensors on a page: cut where it would be too long, divided by blocks of the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Generic, Protocol, TypeVar

MAX_TENSORS = 1000
"""A page shows no more tensors; the report has every one."""

MAX_BYTES = 5_000_000
"""A page is never larger."""

BYTES_OF_PICTURES = 3_500_000
"""How much of it pictures may take, with the texts beside them."""

_UNDIVIDED = 40  # a longer list has headings


class Named(Protocol):
    """Whatever has the dotted name of a tensor."""

    @property
    def name(self) -> str:
        """The dotted name."""


_Named = TypeVar("_Named", bound=Named)


@dataclass(frozen=True, slots=True)
class Section(Generic[_Named]):
    """Tensors of one block of the model.

    `title` is None where they stand without a heading, "" for those outside of any block; `prefix`
    is what all their names begin with.
    """

    title: str | None
    prefix: str
    tensors: tuple[_Named, ...]


def take_fitting(
    tensors: Iterable[_Named], nbytes_of: Callable[[_Named], int], limit: int = BYTES_OF_PICTURES
) -> list[_Named]:
    """Return the first `tensors`: as many as a page shows, and no more bytes than `limit`.

    No more of them are made than are looked at.
    """
    taken: list[_Named] = []
    nbytes = 0
    for tensor in islice(tensors, MAX_TENSORS):
        nbytes += nbytes_of(tensor)
        if nbytes > limit:
            break
        taken.append(tensor)
    return taken


def divide(tensors: Sequence[_Named]) -> list[Section[_Named]]:
    """Return `tensors` in sections: only one, if there are few."""
    if len(tensors) <= _UNDIVIDED:
        return [Section(None, "", tuple(tensors))]
    blocks = groupby(tensors, key=lambda tensor: _block(tensor.name))
    return [_section(block, tuple(group)) for block, group in blocks]


def _section(block: str, tensors: tuple[_Named, ...]) -> Section[_Named]:
    if len(tensors) == 1:
        return Section(None, "", tensors)
    return Section(block, f"{block}." if block else "", tensors)


def _block(name: str) -> str:
    """Return what a name has up to its first number, or else its first part.

    Example:
        >>> _block("model.layers.3.mlp.up_proj.weight"), _block("fc.weight"), _block("weight")
        ('model.layers.3', 'fc', '')
    """
    parts = name.split(".")[:-1]
    number = next((at for at, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[: number + 1])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Names that were left out, by reason; `more` of them are not listed."""

    title: str
    reasons: dict[str, list[str]]
    more: int


def list_left_out(title: str, pairs: Sequence[tuple[str, str]]) -> list[LeftOut]:
    """Return the (reason, name) `pairs` by reason, as many as a page shows; nothing for none."""
    reasons: dict[str, list[str]] = {}
    for reason, name in pairs[:MAX_TENSORS]:
        reasons.setdefault(reason, []).append(name)
    return [LeftOut(title, reasons, max(len(pairs) - MAX_TENSORS, 0))] if pairs else []
