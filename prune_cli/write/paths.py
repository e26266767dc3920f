"""The paths of outputs: what stdout is called, what they lead to, and errors that name them."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from prune_cli.errors import OutputError
from prune_cli.stores import Location, StorePath

Place = TypeVar("Place", bound=Location)

STDOUT = Path("-")
"""Means standard output, where a file is meant."""


@contextlib.contextmanager
def output_errors(path: Location) -> Iterator[None]:
    """Turn an OSError into an OutputError that names `path`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputError(f"{_shown(path)} was closed before everything was written") from error
    except OSError as error:
        raise OutputError(f"{_shown(path)} cannot be written: {error.strerror or error}") from error


def resolve(path: Place) -> Place:
    """Return `path` without links, whether it is there or not; a store has none.

    Raises:
        OSError: the links lead around in a circle.
    """
    if isinstance(path, StorePath):
        return path
    try:
        resolved = path.resolve()
        circle = resolved.is_symlink()  # Python 3.13 gives back a link of the circle
    except RuntimeError:  # and older ones raise this
        circle = True
    if circle:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return resolved


def is_special(path: Location) -> bool:
    """Return whether `path` is there and is a device, a pipe or a socket."""
    if isinstance(path, StorePath):
        return False
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _shown(path: Location) -> str:
    return "stdout" if path == STDOUT else str(path)
