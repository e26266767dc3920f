"""One decorator: a command declares groups of options, and Typer sees the options in them.

A group is a frozen dataclass whose fields are `Annotated[..., typer.Option(...)]` with defaults;
the command receives it as one object. See also: groups.py, where the groups are.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

ENVIRONMENT_PREFIX = "PRUNE_CLI_"
"""Every option can be set in the environment too: --seed is PRUNE_CLI_SEED."""


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` as Typer wants it: with one parameter for each option of its groups.

    Example:
        >>> @dataclass(frozen=True)
        ... class Draw:
        ...     seed: Annotated[int, typer.Option("--seed")] = 0
        >>> @grouped
        ... def sample(draw: Draw) -> None: ...
        >>> list(inspect.signature(sample).parameters)
        ['seed']
    """
    signature = inspect.signature(command, eval_str=True)
    spelt = [
        _as_option(one) for given in signature.parameters.values() for one in _spell_out(given)
    ]

    @wraps(command)
    def call(**values: Any) -> None:
        command(**dict(_gather(signature, values)))

    call.__signature__ = inspect.Signature(spelt)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in spelt}
    return call


def also_called(command: Callable[..., None], name: str, description: str) -> Callable[..., None]:
    """Return `command`, which is grouped, under another name and with another description."""

    @wraps(command)
    def call(**values: Any) -> None:
        command(**values)

    call.__name__, call.__doc__ = name, description
    return call


def _spell_out(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yield the fields of a group; any other parameter is itself."""
    group = parameter.annotation
    if not (is_dataclass(group) and isinstance(group, type)):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    annotations = _annotations(group)
    for field in fields(group):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=annotations[field.name],
        )


@cache
def _annotations(group: type) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _as_option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return `parameter` with what every option has: a variable in the environment."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, info = get_args(parameter.annotation)
    if not isinstance(info, OptionInfo):
        return parameter
    info = copy(info)
    names = (str(name) for name in (info.default, *(info.param_decls or ())))
    long = next(name for name in names if name.startswith("--"))
    variable = long.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    info.envvar = info.envvar or ENVIRONMENT_PREFIX + variable
    info.show_envvar = False
    return parameter.replace(annotation=Annotated[kind, info])


def _gather(signature: inspect.Signature, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of the command: a group is made of the values of its fields."""
    for name, parameter in signature.parameters.items():
        group = parameter.annotation
        if is_dataclass(group) and isinstance(group, type):
            yield name, group(**{field.name: values[field.name] for field in fields(group)})
        else:
            yield name, values[name]
