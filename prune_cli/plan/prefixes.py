"""Prefixes that wrappers put before every name: the same model draws the same channels without them.

`DataParallel` and DDP write "module.", torch.compile "_orig_mod.", Lightning and others "model.".
"""

from collections.abc import Iterable, Sequence

AUTO = "auto"
"""Stands for each of the wrappers' prefixes that every name has."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")


def find_prefixes(names: Iterable[str], asked: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes that `asked` mean for a checkpoint with these names.

    Example:
        >>> find_prefixes(["module.fc.weight", "module.fc.bias"], ["auto"])
        ('module.',)
    """
    found = [prefix for prefix in asked if prefix != AUTO]
    if AUTO not in asked:
        return tuple(found)
    rest = [strip_prefixes(name, found) for name in names]
    while common := next((one for one in _WRAPPERS if _all_begin_with(rest, one)), None):
        found += [] if common in found else [common]
        rest = [name.removeprefix(common) for name in rest]
    return tuple(found)


def strip_prefixes(name: str, prefixes: Sequence[str]) -> str:
    """Return `name` without whichever of `prefixes` it begins with, one after the other.

    Example:
        >>> strip_prefixes("module._orig_mod.fc.weight", ("module.", "_orig_mod."))
        'fc.weight'
    """
    while prefix := next((one for one in prefixes if one and name.startswith(one)), None):
        name = name.removeprefix(prefix)
    return name


def all_names(names: Sequence[str], prefixes: Sequence[str]) -> Sequence[str]:
    """Return `names`, and each without its prefixes too."""
    if not prefixes:
        return names
    return list(dict.fromkeys([*names, *(strip_prefixes(name, prefixes) for name in names)]))


def _all_begin_with(names: Sequence[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)
