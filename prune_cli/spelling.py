"""Options in the words of Python: what a message calls --force is force=True to a Python caller.

Messages are written once, with the options of the command line. The public functions, as
`prune_cli` hands them out, raise them with keywords instead.
"""

import re
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar

from prune_cli.errors import PruneError

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEYWORDS = {
    "--allocate": "allocate",
    "--amount": "amount",
    "--at-least": "at_least",
    "--between": "between",
    "--criterion": "criterion",
    "--device": "device",
    "--dim": "dim",
    "--eval": "evaluate",
    "--example": "examples",
    "--exclude": "exclude",
    "--export": "export",
    "--finetune": "finetune",
    "--jobs": "jobs",
    "--max-shard-size": "max_shard_size",
    "--metric": "metric",
    "--model": "model",
    "--model-arg": "model_arguments",
    "--module": "modules",
    "--output": "output",
    "--param": "params",
    "--report": "report",
    "--round-to": "round_to",
    "--scores": "scores",
    "--seed": "seed",
    "--seeds": "seeds",
    "--source": "source",
    "--strip-prefix": "strip_prefixes",
    "--target": "target",
    "--time-limit": "time_limit",
    "-m": "modules",
    "-p": "params",
    "-x": "exclude",
}
_SWITCHES = {
    "--as-code": "as_code=True",
    "--card": "card=True",
    "--copy-all": "loading=Loading(copy_all=True)",
    "--drop-unwritable": "loading=Loading(drop_unwritable=True)",
    "--dry-run": "dry_run=True",
    "--force": "force=True",
    "--from-zeros": "from_zeros=True",
    "--global": "is_global=True",
    "--keep-masks": "bake=False",
    "--measure": "measure=True",
    "--resume": "resume=True",
    "--state-dict-key": "loading=Loading(state_dict_keys=[...])",
    "--subfolder": "loading=Loading(subfolders=[...])",
    "--with-bias": "with_bias=True",
}
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)(?: (-?\d[\d.]*|'[^']*'))?(?![\w-])")


def as_keywords(message: str) -> str:
    """Return `message` with keywords where it names options of the command line.

    Example:
        >>> as_keywords("out exists; --force replaces it; or give --dim 0")
        'out exists; force=True replaces it; or give dim=0'
    """
    return _OPTION.sub(_keyword, message)


def _keyword(found: re.Match[str]) -> str:
    option, value = found[1], found[2]
    if option in _SWITCHES:
        return _SWITCHES[option] + (f" {value}" if value else "")
    if option not in _KEYWORDS:
        return found[0]
    return f"{_KEYWORDS[option]}={value}" if value else f"`{_KEYWORDS[option]}`"


def for_python(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function`, with errors and notes that speak of keywords."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return _in_keywords(function(*args, **kwargs))
        except PruneError as error:
            error.args = (as_keywords(str(error)), *error.args[1:])
            raise

    call.__module__ = "prune_cli"  # where pickle finds it, for another process
    return call


def _in_keywords(result: _R) -> _R:
    """Return a report, or whatever else has notes, with keywords in them."""
    notes = getattr(result, "notes", ())
    if not notes or not is_dataclass(result) or isinstance(result, type):
        return result
    return replace(result, notes=tuple(map(as_keywords, notes)))
