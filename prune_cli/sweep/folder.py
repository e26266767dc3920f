"""The output folder of a sweep: taken by one sweep at a time, never by mistake.

sweep.json  trials.jsonl  results.csv  summary.json  summary.md  sweep.html
trials/NAME/  report.json  record.json  eval.stdout  eval.stderr
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import InputError, OutputError
from prune_cli.stores import is_inside
from prune_cli.sweep.record import Record, latest, mend, read_records
from prune_cli.sweep.settings import SETTINGS, Settings, read_settings, to_json
from prune_cli.sweep.trial import RECORD, TRIALS
from prune_cli.write.atomic import write_file
from prune_cli.write.locks import lock

LOG = "trials.jsonl"


@contextlib.contextmanager
def taken(folder: Path, settings: Settings, *, resume: bool, force: bool) -> Iterator[list[Record]]:
    """Take `folder` for a sweep and yield the records that are in it already.

    Args:
        folder: where it goes; made where it is not there.
        settings: of the sweep, kept in the folder.
        resume: whether to go on with the sweep that is in it.
        force: whether to replace the sweep that is in it.

    Raises:
        OutputError: it is not empty, holds another sweep, or one that runs.
    """
    is_new = _check(folder, resume=resume, force=force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if force and not resume and not is_new:
                _clear(folder)
            mend(folder / LOG)
            records = _records(folder)
            _remove_leftovers(folder)
            write_file(folder / SETTINGS, _to_bytes(settings))
            (folder / LOG).touch()
            yield records
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def joined(folder: Path, settings: Settings) -> Iterator[None]:
    """Take part in the sweep in `folder`, beside others who do: each touches its own trials only.

    Raises:
        OutputError: it is not empty, or holds another sweep, or one that runs as a whole.
    """
    _check(folder, resume=True, force=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, wait=False, shared=True):
            if not is_sweep(folder):
                write_file(folder / SETTINGS, _to_bytes(settings))
            check_same(folder, settings)
            yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def check_same(folder: Path, settings: Settings) -> None:
    """Raise OutputError where `folder` holds another sweep; assertions do not count."""
    found = replace(read_settings(folder), assertions=settings.assertions)
    if to_json(found) != to_json(settings):
        raise OutputError(
            f"{folder} holds parts of another sweep: the options, the input or the versions were not "
            "the same; choose another --output, or --force without --part"
        )


def _to_bytes(settings: Settings) -> bytes:
    return to_json(settings).encode("utf-8", "surrogateescape")


def refuse_inside(source: Checkpoint, folder: Path) -> None:
    """Raise OutputError where `folder` is the checkpoint's own folder, or inside it."""
    if source.is_folder and is_inside(folder.resolve(), source.path.resolve()):
        raise OutputError(f"{folder} is the input folder or inside it; choose another --output")


def is_sweep(path: Path) -> bool:
    """Return whether `path` is the folder of a sweep."""
    return (path / SETTINGS).is_file()


def read_sweep(folder: Path) -> tuple[Settings, list[Record]]:
    """Return the settings and records of the sweep in `folder`, the records in grid order.

    Those of an earlier input or evaluation, and those that are not of the grid any more, are not
    among them.

    Raises:
        InputError: it is none.
    """
    settings = read_settings(folder)
    found = {
        record.trial: record
        for record in (read_records(folder / LOG) if (folder / LOG).exists() else [])
        if record.protocol == settings.protocol
    }
    names = [trial.name for trial in settings.grid.trials]
    further = [
        name
        for name, record in found.items()
        if (record.tuned and settings.keep_best) or (record.recipe and settings.lose is not None)
    ]
    return settings, [found[name] for name in [*names, *further] if name in found]


def _records(folder: Path) -> list[Record]:
    path = folder / LOG
    return [*latest(read_records(path)).values()] if path.exists() else []


def _check(folder: Path, *, resume: bool, force: bool) -> bool:
    """Return whether the folder is new; raise OutputError where it must not be taken."""
    try:
        is_empty = not folder.exists() or not any(folder.iterdir())
    except NotADirectoryError:
        raise OutputError(f"{folder} is a file; a sweep needs a folder: --output") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}") from error
    if is_empty:
        return True
    if not is_sweep(folder):
        raise OutputError(f"{folder} is not empty and holds no sweep; choose another --output")
    if not (resume or force):
        raise OutputError(_why_taken(folder))
    return False


def _why_taken(folder: Path) -> str:
    with contextlib.suppress(InputError):
        settings, records = read_sweep(folder)
        return (
            f"{folder} holds a sweep of {settings.input} ({len(records)} trials): --resume runs "
            "what is missing, --force replaces it"
        )
    return f"{folder} holds a sweep that cannot be read; --force replaces it"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder while this process lives; the kernel lets go whatever ends it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _take_lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _take_lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another sweep runs in {folder}; choose another --output") from None
    except OSError:  # the file system has no locks
        return


def _clear(folder: Path) -> None:
    """Remove what a sweep wrote, and nothing else."""
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    names = (LOG, "results.csv", "summary.json", "summary.md", "sweep.html", "recipe.toml")
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what trials that were killed left: their folders have no record."""
    trials = folder / TRIALS
    for path in trials.iterdir() if trials.exists() else ():
        if not (path / RECORD).exists():
            shutil.rmtree(path)
