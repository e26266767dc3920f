"""Which parameters are pruned, by how much and along which dim: rules of glob patterns.

Patterns are case-sensitive fnmatch on the dotted module name (`*` crosses dots) and on the
parameter's own name. A pattern of modules that matches none, but whole names of parameters as they
are shown ("fc.weight"), means those. Names and numbers only.

See also: `recipe`, rules in a file.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import NamedTuple, TypeAlias

from prune_cli.amounts import Amount
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import AmountTypeError, SelectionError
from prune_cli.plan.prefixes import all_names

Fits: TypeAlias = Callable[[tuple[str, str]], bool]
"""Tells whether a module and a parameter's own name are meant."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Prune `amount` of the channels along `dim` of whatever matches `modules` and `params`.

    Attributes:
        modules: globs of dotted module names; a string is one glob.
        params: globs of parameter names within a module, likewise.
        amount: an int is a number of channels, a float a fraction of the live ones; required.
        dim: the dim whose indices are the channels.

    Example:
        >>> Rule("encoder.*", amount=0.25, dim=0)
        Rule(modules=('encoder.*',), params=('weight',), amount=0.25, dim=0)
    """

    modules: tuple[str, ...] = ("*",)
    params: tuple[str, ...] = ("weight",)
    amount: Amount = math.nan  # stands for none, which is refused
    dim: int = -1

    def __post_init__(self) -> None:
        """Read a string as one glob, and refuse a rule without an amount."""
        if self.amount != self.amount:
            raise AmountTypeError("a rule needs an amount: Rule(amount=0.25)")
        for name in ("modules", "params"):
            object.__setattr__(self, name, as_globs(getattr(self, name)))


def as_globs(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return `patterns` as a tuple; a string is one glob.

    Example:
        >>> as_globs("layer*")
        ('layer*',)
    """
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


@dataclass(frozen=True, slots=True)
class Selection:
    """Rules, of which the last that matches wins, and modules that none of them may touch."""

    rules: tuple[Rule, ...]
    exclude: tuple[str, ...] = ()


class Selected(NamedTuple):
    """A parameter and the rule for it; `by_name`: patterns without wildcards named it."""

    parameter: Parameter
    rule: Rule
    by_name: bool


def select(
    parameters: Iterable[Parameter],
    selection: Selection,
    *,
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    prefixes: Sequence[str] = (),
) -> list[Selected]:
    """Return the parameters that `selection` picks, in their order.

    Args:
        parameters: of the checkpoint.
        selection: what to pick.
        aliases: further names of a tensor, any of which can be matched.
        prefixes: of wrappers; names can be matched without them too.

    Raises:
        SelectionError: a pattern matches nothing; all such patterns are named at once.
    """
    aliases = aliases or {}
    named = [
        (parameter, [split_name(name) for name in all_names((parameter.name, *further), prefixes)])
        for parameter in parameters
        for further in [aliases.get(parameter.tensor.name, ())]
    ]
    everything = [pair for _, pairs in named for pair in pairs]
    whole = patterns_of_whole_names(everything, selection)
    _refuse_idle_patterns(everything, selection, whole)
    excluded = pair_matcher(selection.exclude, ("*",), whole)
    rules = [(rule, pair_matcher(rule.modules, rule.params, whole)) for rule in selection.rules]
    picked: list[Selected] = []
    for parameter, pairs in named:
        if selection.exclude and any(map(excluded, pairs)):
            continue
        for rule, fits in reversed(rules):
            hits = list(filter(fits, pairs))
            if hits:
                by_name = any(_is_spelt_out(pair, rule) for pair in hits)
                picked.append(Selected(parameter, rule, by_name))
                break
    return picked


def _is_spelt_out(pair: tuple[str, str], rule: Rule) -> bool:
    module, param = pair
    return (module in rule.modules and param in rule.params) or _join(pair) in rule.modules


def split_name(name: str) -> tuple[str, str]:
    """The module and the parameter's own name of a full name: "a.b.weight" is ("a.b", "weight")."""
    module, _, param = name.rpartition(".")
    return module, param


def _join(pair: tuple[str, str]) -> str:
    module, param = pair
    return f"{module}.{param}" if module and param else module or param


def pair_matcher(modules: Sequence[str], params: Sequence[str], whole: Collection[str]) -> Fits:
    """Return what tells whether a module and a parameter fit, by their patterns or by their whole name."""
    fits_module = matcher([pattern for pattern in modules if pattern not in whole])
    fits_param = matcher(params)
    fits_whole = matcher([pattern for pattern in modules if pattern in whole])
    if not whole:
        return lambda pair: fits_param(pair[1]) and fits_module(pair[0])
    return lambda pair: (fits_module(pair[0]) and fits_param(pair[1])) or fits_whole(_join(pair))


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a name matches any of `patterns`, and remembers it."""
    if "*" in patterns:
        return lambda _: True
    match = re.compile("|".join(map(translate, patterns)) or r"(?!)").match
    return cache(lambda name: match(name) is not None)


def _module_patterns(selection: Selection) -> list[str]:
    patterns = (pattern for rule in selection.rules for pattern in rule.modules)
    return list(dict.fromkeys((*patterns, *selection.exclude)))


def patterns_of_whole_names(
    names: Sequence[tuple[str, str]], selection: Selection
) -> frozenset[str]:
    """Return the patterns that match no module but the whole name of a parameter.

    Args:
        names: the module and own name of each parameter there is, by each of its names.
        selection: whose patterns are meant.
    """
    modules = {module for module, _ in names}
    unknown = [
        pattern
        for pattern in _module_patterns(selection)
        if not any(map(matcher([pattern]), modules))
    ]
    whole = list(map(_join, names)) if unknown else []
    return frozenset(pattern for pattern in unknown if any(map(matcher([pattern]), whole)))


# --- patterns that match nothing -------------------------------------------------------------


def _refuse_idle_patterns(
    names: Sequence[tuple[str, str]], selection: Selection, whole: Collection[str]
) -> None:
    problems = list(_idle_patterns(names, selection, whole))
    if problems:
        raise SelectionError("\n".join(dict.fromkeys(problems)))


def _idle_patterns(
    names: Sequence[tuple[str, str]], selection: Selection, whole: Collection[str]
) -> Iterator[str]:
    modules = list(dict.fromkeys(module for module, _ in names))
    for pattern in _module_patterns(selection):
        if pattern not in whole and not any(map(matcher([pattern]), modules)):
            yield f"no module matches {pattern!r}; {_nearest(pattern, modules)}"
    for rule in selection.rules:
        fits = matcher(rule.modules)
        params = sorted({param for module, param in names if fits(module)})
        for pattern in rule.params if params else ():
            if not any(map(matcher([pattern]), params)):
                yield f"no parameter of the matched modules is called {pattern!r}; " + (
                    f"they have {', '.join(map(repr, params[:8]))}"
                    + (f" and {len(params) - 8} more" if len(params) > 8 else "")
                    + "; choose with --param"
                )


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """Return the names that the user may have meant, as a clause."""
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
