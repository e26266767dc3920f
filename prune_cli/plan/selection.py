"""Which parameters are pruned, by how much and along which dim: rules of glob patterns.

Patterns are case-sensitive fnmatch on the dotted module name (`*` crosses dots) and on the
parameter's own name. Names and numbers only: no tensor, no torch.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cache
from pathlib import Path
from typing import Any

from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import InputError, SelectionError, UsageError

Amount = int | float
"""How many channels: an int is a number of them, a float a fraction of the live ones."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Prune `amount` of the channels along `dim` of whatever matches `modules` and `params`."""

    modules: tuple[str, ...]
    params: tuple[str, ...]
    amount: Amount
    dim: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Rules, of which the last that matches wins, and modules that none of them may touch."""

    rules: tuple[Rule, ...]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selected:
    """A parameter and the rule for it; `by_name`: patterns without wildcards named it."""

    parameter: Parameter
    rule: Rule
    by_name: bool


def select(
    parameters: Iterable[Parameter],
    selection: Selection,
    *,
    aliases: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Selected]:
    """The parameters that `selection` picks, in their order.

    Args:
        parameters: of the checkpoint.
        selection: what to pick.
        aliases: further names of a tensor, any of which can be matched.

    Raises:
        SelectionError: a pattern matches nothing; all such patterns are named at once.
    """
    aliases = aliases or {}
    named = [
        (parameter, [split_name(name) for name in (parameter.name, *further)])
        for parameter in parameters
        for further in [aliases.get(parameter.tensor.name, ())]
    ]
    _refuse_idle_patterns([pair for _, pairs in named for pair in pairs], selection)
    excluded = matcher(selection.exclude)
    rules = [(rule, matcher(rule.modules), matcher(rule.params)) for rule in selection.rules]
    picked: list[Selected] = []
    for parameter, pairs in named:
        if any(excluded(module) for module, _ in pairs):
            continue
        for rule, fits_module, fits_param in reversed(rules):
            hits = [pair for pair in pairs if fits_module(pair[0]) and fits_param(pair[1])]
            if hits:
                by_name = any(m in rule.modules and p in rule.params for m, p in hits)
                picked.append(Selected(parameter, rule, by_name))
                break
    return picked


def split_name(name: str) -> tuple[str, str]:
    """The module and the parameter's own name of a full name: "a.b.weight" is ("a.b", "weight")."""
    module, _, param = name.rpartition(".")
    return module, param


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a name matches any of `patterns`, and remembers it."""
    match = re.compile("|".join(map(translate, patterns)) or r"(?!)").match
    return cache(lambda name: match(name) is not None)


# --- patterns that match nothing -------------------------------------------------------------


def _refuse_idle_patterns(names: Sequence[tuple[str, str]], selection: Selection) -> None:
    problems = list(_idle_patterns(names, selection))
    if problems:
        raise SelectionError("\n".join(dict.fromkeys(problems)))


def _idle_patterns(names: Sequence[tuple[str, str]], selection: Selection) -> Iterator[str]:
    modules = list(dict.fromkeys(module for module, _ in names))
    for pattern in (*(p for rule in selection.rules for p in rule.modules), *selection.exclude):
        if not any(fnmatchcase(module, pattern) for module in modules):
            yield f"no module matches {pattern!r}; {_nearest(pattern, modules)}"
    for rule in selection.rules:
        fits = matcher(rule.modules)
        params = sorted({param for module, param in names if fits(module)})
        for pattern in rule.params if params else ():
            if not any(fnmatchcase(param, pattern) for param in params):
                yield f"no parameter of the matched modules is called {pattern!r}; " + (
                    f"they have {', '.join(map(repr, params[:8]))}"
                    + (f" and {len(params) - 8} more" if len(params) > 8 else "")
                    + "; choose with --param"
                )


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """The names that the user may have meant, as a clause."""
    inside = [name for name in names if name.startswith(f"{pattern}.")]
    if inside:
        return f"it holds modules, though: {pattern + '.*'!r} matches {len(inside)} of them"
    plain = re.sub(r"[*?\[\]!]+", "", pattern).strip(".")
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    near = near or [name for name in names if plain and plain in name][:3]
    if near:
        return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(map(repr, near))}"
    shown = ", ".join(map(repr, names[:5]))
    return f"there are {len(names)}: {shown}{', ...' if len(names) > 5 else ''}"


# --- from text and from files ----------------------------------------------------------------


def parse_amount(text: str) -> Amount:
    """An amount as the command line spells it: "3" channels, "0.25" or "25%" of them.

    Raises:
        UsageError: it is neither, or out of range.

    Example:
        >>> parse_amount("25%"), parse_amount("1"), parse_amount("1.0")
        (0.25, 1, 1.0)
    """
    try:
        if text.endswith("%"):
            amount: Amount = float(text[:-1].strip() + "e-2")  # 33.3 / 100 is not quite 0.333
        elif re.fullmatch(r"[+-]?\d+", text.strip()):
            amount = int(text)
        else:
            amount = float(text)
    except ValueError:
        amount = math.nan
    return check_amount(amount, repr(text))


def check_amount(amount: object, shown: str | None = None) -> Amount:
    """`amount`, if it is a whole number of channels >= 0 or a fraction from 0.0 to 1.0.

    Raises:
        UsageError: it is not; `shown` is how the message spells it.
    """
    match amount:
        case bool():
            pass
        case int() if amount >= 0:
            return amount
        case float() if 0.0 <= amount <= 1.0:
            return abs(amount)  # -0.0 is 0.0
    raise UsageError(
        f"the amount {shown or repr(amount)} is neither a whole number of channels (3), nor a "
        "fraction from 0.0 to 1.0 (0.25), nor a percentage (25%)"
    )


def parse_size(text: str) -> int:
    """A size in bytes as people spell it: "5GB" is 5 * 10**9, "500MiB" 500 * 2**20.

    Raises:
        UsageError: it is not a size, or is zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([kmgt]?)(i?)b?)?", text.strip(), re.IGNORECASE)
    if found:
        base = 1024 if found[3] else 1000
        size = int(float(found[1]) * base ** " kmgt".index((found[2] or " ").lower()))
        if size > 0:
            return size
    raise UsageError(f"{text!r} is not a size; write it like 5GB or 500MiB")


def read_recipe(
    path: Path,
    *,
    modules: Sequence[str],
    params: Sequence[str],
    amount: Amount | None,
    dim: int,
) -> tuple[Rule, ...]:
    """The rules of the recipe at `path`; the other arguments fill what a rule leaves out.

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
