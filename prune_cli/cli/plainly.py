"""Values of options without pydantic, which Typer would import for every one of them.

That takes as long as all else before a command begins. Whatever is not plain goes Typer's way, and
so do the errors. In versions of Typer without pydantic nothing is changed.
"""

from collections.abc import Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

_NOT_PLAIN = object()


def convert_plainly(parameters: Iterable[Any]) -> None:
    """Make each of Typer's `parameters` convert what is plain by itself."""
    for parameter in parameters:
        if hasattr(parameter, "type_descriptor"):
            parameter.process_value = partial(_process, parameter)


def _process(parameter: Any, context: Any, value: Any) -> Any:
    if value is None and context.resilient_parsing:  # a line that is being completed
        return None
    plain = _convert(parameter, value)
    if plain is _NOT_PLAIN:
        return type(parameter).process_value(parameter, context, value)
    return parameter.callback(context, parameter, plain) if parameter.callback else plain


def _convert(parameter: Any, value: Any) -> Any:
    """Return `value` as the command wants it, or _NOT_PLAIN."""
    kind = parameter.type_descriptor.annotation
    if parameter.required and parameter.value_is_missing(value):
        return _NOT_PLAIN
    if get_origin(kind) is list:
        [item_kind] = get_args(kind)
        items = [_convert_one(parameter, item_kind, item) for item in value or ()]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    return None if value is None else _convert_one(parameter, kind, value)


def _convert_one(parameter: Any, kind: type, value: Any) -> Any:
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if kind is Path and isinstance(value, str | Path):
        return (parameter.type_descriptor.parameter_info.parser or Path)(value)
    if issubclass(kind, Enum):
        return kind(value) if value in list(kind) else _NOT_PLAIN
    if kind in (int, float):
        return _convert_number(parameter, kind, value)
    return _NOT_PLAIN


def _convert_number(parameter: Any, kind: type, value: Any) -> Any:
    try:
        number = kind(value)
    except ValueError:
        return _NOT_PLAIN
    low, high = parameter.min, parameter.max
    is_within = (low is None or number >= low) and (high is None or number <= high)
    return number if is_within else _NOT_PLAIN
