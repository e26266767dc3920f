"""Runs that write to one place take turns: a lock on a folder, which ends with the process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from prune_cli.errors import OutputError


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool, shared: bool = False) -> Iterator[None]:
    """Hold a folder against other runs; nothing is held where the file system has no locks.

    Args:
        folder: it.
        wait: for another run to end; else that is an error.
        shared: with others who hold it so.

    Raises:
        OutputError: another run holds it.
    """
    descriptor = None
    try:
        with contextlib.suppress(PermissionError):  # it can be written, but not listed
            descriptor = os.open(folder, os.O_RDONLY)
        if descriptor is not None:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            _take(descriptor, folder, kind | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(descriptor: int, folder: Path, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise OutputError(
            f"{folder} is being written by another run; wait for it, or choose another --output"
        ) from None
    except OSError:
        return


@contextlib.contextmanager
def alone_in(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an output folder, which is made, and goes again if it stays empty.

    `shared` is with the other parts of one run.

    Raises:
        OutputError: another run writes to it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, wait=False, shared=shared):
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # what is not empty stays
                each.rmdir()
