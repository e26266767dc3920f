"""What a pickle makes here: facts, and stand-ins for everything that is no fact.

See also: `pickles`, which makes them, and `torch_names` for those of torch and NumPy.
"""

from collections.abc import Callable
from typing import NamedTuple


class CorruptPickleError(Exception):
    """What a pickle says makes no sense; the caller knows the file, and tells it."""


class RefusedPickleError(Exception):
    """What a pickle says is understood, and cannot be used; the caller puts the file before it."""


class Name(NamedTuple):
    """A class or function that the pickle names, and that nobody imports."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Octets(NamedTuple):
    """Bytes that stay where they are: `at` is their place in the file.

    `is_latin1` says that they are UTF-8 there, and mean the Latin-1 encoding of that text, which
    is how pickle protocols before 3 hold bytes.
    """

    kind: str
    at: int
    nbytes: int
    is_latin1: bool = False


class Text(NamedTuple):
    """A long string that stays in the file, as UTF-8."""

    at: int
    nbytes: int


class Maker(NamedTuple):
    """A known class or function: `make` turns its arguments into a fact.

    Where it `copies`, it is given the Machine before them, and spends what it copies.
    """

    name: str
    make: Callable[..., object]
    copies: bool = False


class Key:
    """A key of a dict that is compared by identity, whatever it is."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Collection:
    """A set or a deque: its items, in the order they came."""

    __slots__ = ("items", "kind")

    def __init__(self, kind: str, items: list[object]) -> None:
        self.kind, self.items = kind, items


class StandIn:
    """In place of an object: what it is `of`, and what the pickle put into it."""

    __slots__ = ("args", "entries", "items", "of", "state")

    def __init__(self, of: object, args: object) -> None:
        self.of = of
        self.args = args
        self.state: object = None
        self.items: dict[object, object] | None = None
        self.entries: list[object] | None = None

    @property
    def class_name(self) -> str:
        """What it is an object of, as far as the pickle says."""
        return self.of.name.rpartition(".")[2] if isinstance(self.of, Name | Maker) else "object"


class Buildable:
    """A fact that a pickle completes after it was made."""

    __slots__ = ()

    def build(self, state: object) -> None:
        """Take `state`, or raise CorruptPickleError."""
        raise NotImplementedError


def printable(text: str) -> str:
    """Return `text` without halves of surrogate pairs, which no file and no terminal takes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
