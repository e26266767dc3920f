"""JSON as the tool writes it, and facts out of JSON by the types of their fields."""

import json
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prune_cli.errors import InputError

_Fact = TypeVar("_Fact")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON spells a surrogate. Two halves are a character; one alone cannot be written."""

_MOST_DIGITS = 18  # of a number that stands for itself as a key

_to_text = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder each time
_Decoder = Callable[[object], Any]


class _MisfitError(Exception):
    """A value is not of the type that is wanted."""


def encode(facts: Mapping[str, object]) -> str:
    """Return `facts` as JSON, ending in a newline: one key a line, one line for a row of a list.

    An iterator is a list whose rows need not be there all at once.

    Example:
        >>> print(encode({"schema": 1, "tensors": [{"name": "a"}, {"name": "b"}]}), end="")
        {
          "schema": 1,
          "tensors": [
            {"name": "a"},
            {"name": "b"}
          ]
        }
    """
    return "".join(_pieces(facts))  # once: a report can have tens of megabytes


def _pieces(facts: Mapping[str, object]) -> Iterator[str]:
    yield "{"
    before = "\n"
    for key, value in facts.items():
        yield f"{before}  {_to_text(key)}: "
        yield from _rows(value) if isinstance(value, Iterator | list) else [_to_text(value)]
        before = ",\n"
    yield "\n}\n"


def _rows(rows: Iterable[object]) -> Iterator[str]:
    yield "["
    before = "\n"
    for row in rows:
        yield f"{before}    {_to_text(row)}"
        before = ",\n"
    yield "]" if before == "\n" else "\n  ]"


def parse(
    text: str,
    pairs: Callable[[list[tuple[str, Any]]], object] | None = None,
    constants: Callable[[str], object] | None = None,
) -> Any:
    """Return what JSON means, which has to be text: half a character cannot be shown or written.

    Args:
        text: the JSON.
        pairs: makes an object of its pairs, as for `json.loads`.
        constants: makes something of "NaN" and infinities, which Python reads and JSON has not.

    Raises:
        ValueError: it is not JSON, or holds half a character.
        RecursionError: it is nested too deep.
    """
    found = json.loads(text, object_pairs_hook=pairs, parse_constant=constants)
    if _HALF_CHARACTER.search(text) and not _is_text(found):
        raise ValueError("it holds half a character (a lone surrogate), so it is no text")
    return found


def _is_text(found: object) -> bool:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def decode(kind: type[_Fact], found: object) -> _Fact:
    """Return a `kind` from a JSON object that has exactly its fields, each of the type it has there.

    A field that is None by default may be left out. Fields can be numbers, text, dataclasses,
    tuples (from lists) and mappings, whose keys can be int (from text).

    Args:
        kind: a dataclass.
        found: what `json.loads` gave.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    if not isinstance(found, dict):
        raise InputError(f"{kind.__name__}: expected an object, not {found!r:.80}")
    decoders, required = _decoders(cast(Hashable, kind))
    check_keys(kind.__name__, found, required, decoders.keys())
    values = {}
    for name, value in found.items():
        try:
            values[name] = decoders[name](value)
        except _MisfitError:
            raise InputError(f"{kind.__name__}: {name!r} cannot be {value!r:.80}") from None
    return kind(**values)


def check_keys(
    what: str, found: Mapping[str, object], required: Collection[str], known: Collection[str]
) -> None:
    """Raise an InputError if `found` lacks a required key or has an unknown one."""
    missing, unknown = {*required} - found.keys(), found.keys() - {*known}
    if missing:
        raise InputError(f"{what} lacks {', '.join(map(repr, sorted(missing)))}")
    if unknown:
        raise InputError(f"{what} has the unknown {', '.join(map(repr, sorted(unknown)))}")


@cache
def _decoders(kind: Any) -> tuple[dict[str, _Decoder], frozenset[str]]:
    """Return the decoder of each field, and the fields that must be there."""
    hints = get_type_hints(kind)
    required = frozenset(entry.name for entry in fields(kind) if entry.default is not None)
    return {entry.name: _decoder(hints[entry.name]) for entry in fields(kind)}, required


def _decoder(hint: Any) -> _Decoder:
    """Return what makes a value of the type `hint` from JSON, or raises a _MisfitError."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _any_of([_decoder(entry) for entry in sorted(inner, key=_none_first)])
    if origin is Literal:
        return _one_of(inner)
    if origin is tuple:
        return _all_like(inner[0]) if inner[-1] is Ellipsis else _each_like(inner)
    if origin is not None:
        return _mapping(*inner)
    if is_dataclass(hint):
        return lambda value: decode(cast(Any, hint), value)
    return _any_value if hint is Any else _plain(hint)


def _none_first(hint: Any) -> bool:
    return hint is not NoneType


def _any_value(value: object) -> object:
    return value


def _plain(kind: type) -> _Decoder:
    def plain(value: object) -> object:
        if type(value) is not kind:
            raise _MisfitError
        return value

    return plain


def _one_of(values: Collection[object]) -> _Decoder:
    def one_of(value: object) -> object:
        if type(value) is not str or value not in values:
            raise _MisfitError
        return value

    return one_of


def _any_of(decoders: Collection[_Decoder]) -> _Decoder:
    def any_of(value: object) -> object:
        for decoder in decoders:
            try:
                return decoder(value)
            except _MisfitError:
                continue
        raise _MisfitError

    return any_of


def _all_like(kind: Any) -> _Decoder:
    decoder = _decoder(kind)

    def all_like(value: object) -> object:
        if not isinstance(value, list):
            raise _MisfitError
        return tuple(map(decoder, value))

    return all_like


def _each_like(kinds: Collection[Any]) -> _Decoder:
    decoders = [_decoder(kind) for kind in kinds]

    def each_like(value: object) -> object:
        if not isinstance(value, list) or len(value) != len(decoders):
            raise _MisfitError
        return tuple(decoder(entry) for decoder, entry in zip(decoders, value, strict=True))

    return each_like


def _mapping(key: type, kind: Any) -> _Decoder:
    decoder = _decoder(kind)

    def mapping(value: object) -> object:
        if not isinstance(value, dict):
            raise _MisfitError
        return {_key(key, name): decoder(entry) for name, entry in value.items()}

    return mapping


def _key(kind: type, name: str) -> object:
    if kind is not int:
        return name
    if len(name) > _MOST_DIGITS or not name.isdecimal() or str(int(name)) != name:
        raise _MisfitError
    return int(name)
