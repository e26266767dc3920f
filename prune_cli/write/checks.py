"""Refuse outputs that must not or cannot be written, before any work."""

import contextlib
import os
from collections.abc import Iterable, Iterator

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.errors import InputError, OutputError
from prune_cli.stores import Location, StorePath
from prune_cli.stores.hub import is_on_hub, is_whole_model
from prune_cli.stores.uploads import why_not_writable
from prune_cli.write.paths import STDOUT, is_special, output_errors, resolve

_MOST_NAMED = 5


def check_can_write(paths: Iterable[Location], inputs: Iterable[Location], *, force: bool) -> None:
    """Refuse outputs that are inputs, that exist (unless `force`), or that have no folder.

    Raises:
        OutputError: any of these; all are named at once.
    """
    paths, inputs, problems = list(paths), list(inputs), []
    for number, path in enumerate(paths):
        with output_errors(path):
            problems += list(_problems(path, inputs, force))
            if path != STDOUT and resolve(path) in map(resolve, paths[:number]):
                problems.append(f"{path} cannot be two outputs at once; choose another for one")
    if problems:
        raise OutputError("\n".join(problems))


def refuse_unloadable(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with tensors that torch could not load from the output either.

    Raises:
        InputError: it has some; they are named.
    """
    found = [info for info in checkpoint.tensors.values() if DTYPES[info.dtype].torch is None]
    if found:
        names = ", ".join(f"{info.name!r} ({info.dtype})" for info in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise InputError(
            f"{checkpoint.path}: torch has no dtype for {names}{more}, so no output with it could "
            "be loaded; convert it first"
        )


def _problems(path: Location, inputs: list[Location], force: bool) -> Iterator[str]:
    if path == STDOUT or is_special(path):
        return
    if problem := why_never_written(path):
        yield problem
        return
    if any(_is_same(path, other) for other in inputs):
        yield f"{path} is an input; choose another output"
    elif is_on_hub(path):
        yield from _problems_on_hub(path, force)
    elif path.is_dir():
        yield f"{path} is a folder; name a file in it"
    elif path.exists() and not force:
        yield f"{path} exists; --force replaces it"
    if isinstance(path, StorePath):  # a store needs no folder
        return
    if not path.parent.is_dir():
        fact = "is a file" if path.parent.exists() else "does not exist"
        yield f"{path} cannot be created: folder {path.parent} {fact}"
    elif not os.access(resolve(path).parent, os.W_OK | os.X_OK):
        yield f"{path} cannot be written: {path.parent} allows no new files"


def why_never_written(path: Location) -> str | None:
    """Return why nothing is written to a store like that of `path`; nothing is asked of it."""
    if not isinstance(path, StorePath) or is_on_hub(path):
        return None
    return why_not_writable(path)


def _problems_on_hub(path: StorePath, force: bool) -> Iterator[str]:
    from prune_cli.stores.hub_commit import is_there

    if is_whole_model(path):
        yield f"{path} is a folder; name a file in it"
    elif not force and is_there(path):
        yield f"{path} exists; --force replaces it"


def _is_same(path: Location, other: Location) -> bool:
    if isinstance(path, StorePath) or isinstance(other, StorePath):
        return path == other
    with contextlib.suppress(OSError):
        return path.samefile(other)
    return False
