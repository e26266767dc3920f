"""A recipe: the rules of a run in a TOML file."""

import tomllib
from collections.abc import Sequence
from typing import Any

from prune_cli.amounts import Amount, check_amount, parse_amount
from prune_cli.errors import InputError, UsageError
from prune_cli.plan.selection import Rule
from prune_cli.stores import Location


def read_recipe(
    path: Location,
    *,
    modules: Sequence[str],
    params: Sequence[str],
    amount: Amount | None,
    dim: int,
) -> tuple[Rule, ...]:
    """Return the rules of the recipe at `path`; the other arguments fill what a rule leaves out.

    A recipe is TOML, a list of tables: `[[rules]]` with `module` and `param` (a glob or a list of
    globs), `amount` (as parse_amount, or a number) and `dim`.

    Raises:
        InputError: the file cannot be read or is not TOML.
        UsageError: a rule is not as above, or neither it nor `amount` says how much.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    tables = content.pop("rules", None)
    if content or not isinstance(tables, list) or not tables:
        raise UsageError(f"{path} must hold a list of tables [[rules]], and nothing else")
    fill = {"module": list(modules), "param": list(params), "amount": amount, "dim": dim}
    return tuple(
        _read_rule(f"{path}, rule {number}", table, fill) for number, table in enumerate(tables, 1)
    )


def _read_rule(where: str, table: object, fill: dict[str, Any]) -> Rule:
    unknown = sorted(table.keys() - fill.keys()) if isinstance(table, dict) else [table]
    if not isinstance(table, dict) or unknown:
        known = ", ".join(fill)
        raise UsageError(f"{where}: a rule has only the keys {known}, and not {unknown[0]!r}")
    rule = fill | table
    if rule["amount"] is None:
        raise UsageError(f"{where} has no amount, and --amount is not given")
    if type(rule["dim"]) is not int:
        raise UsageError(f"{where}: dim must be a whole number, not {rule['dim']!r}")
    return Rule(
        _globs(where, rule["module"]),
        _globs(where, rule["param"]),
        _amount(where, rule["amount"]),
        rule["dim"],
    )


def _amount(where: str, value: object) -> Amount:
    try:
        return parse_amount(value) if isinstance(value, str) else check_amount(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _globs(where: str, value: object) -> tuple[str, ...]:
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs) or not globs:
        raise UsageError(f"{where}: module and param are globs or lists of globs, not {value!r}")
    return tuple(globs)
