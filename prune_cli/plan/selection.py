"""Which parameters are pruned, by how much and along which dim: rules of glob patterns.

Patterns are case-sensitive fnmatch on the dotted module name (`*` crosses dots) and on the
parameter's own name. Names and numbers only.

See also: `recipe`, rules in a file.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cache

from prune_cli.amounts import Amount
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import SelectionError


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
