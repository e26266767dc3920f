"""Write a folder of shards to a store, where nothing can be moved into place: it can be resumed.

Every object appears whole, under its own name; what makes them a model, the index, is the last, and
the index that was there before goes first. Until then the folder holds what this run has done, as
empty objects under STAGING: each is called like an object that is finished, with its version. So a
killed run is taken up by `resume`, which redoes only what is missing or was changed since.

A run owns the folder whose mark it is: it begins by putting its own there, and looks for it before
anything appears. So of two runs one wins, and the other says so.

See also: `folder`, folders on this machine.
"""

import contextlib
import json
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import quote

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.checkpoint.source import open_source
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import OutputError, PruneError
from prune_cli.stores import Location, StorePath, name_within
from prune_cli.stores.requests import S3, copy_object, find_now, put_now, read_now, remove_object
from prune_cli.stores.s3 import abort_uploads
from prune_cli.stores.store import Fact
from prune_cli.write.atomic import write_file
from prune_cli.write.filling import Crew
from prune_cli.write.folder import (
    INDEX,
    SHARD_NUMBER,
    FolderOutput,
    fingerprint_of,
    is_complete,
)
from prune_cli.write.layout import OutputFile
from prune_cli.write.objects import pending_object
from prune_cli.write.originals import find_original
from prune_cli.write.shards import WriteShard
from prune_cli.write.workers import Job, run

_MARK = f"{STAGING}/run"
_DONE = f"{STAGING}/done/"
_BUSY = "{} is being written by another run; wait for it, or choose another --output"


@dataclass(frozen=True)
class _Run:
    """A run that writes a folder.

    Attributes:
        output: what it writes.
        folder: where, as a path of the store.
        mark: what the mark that it put there says.
        done: what is finished, by name.
        made: the names of what this run put there itself, finished or not.
    """

    output: FolderOutput
    folder: StorePath
    mark: bytes
    done: dict[str, Fact]
    made: list[str] = field(default_factory=list)

    def refuse_if_taken(self) -> None:
        """Raise an OutputError if another run put its own mark there."""
        if read_now(self.folder / _MARK) != self.mark:
            raise OutputError(_BUSY.format(self.folder))

    def note(self, name: str, fact: Fact) -> None:
        """Note, here and in the store, that an object is finished."""
        self.done[name] = fact
        put_now(self.folder / (_DONE + _describe(name, fact)), b"")


def write_store_folder(
    output: FolderOutput,
    checkpoint: Checkpoint,
    crew: Crew,
    *,
    force: bool,
    resume: bool,
) -> None:
    """Write `output`, or what is missing of it; see `folder.write_folder`.

    Raises:
        OutputError: the folder cannot be written, is not empty, is written by another run, or holds
            another run's leftovers.
    """
    assert isinstance(output.folder, StorePath)
    folder = output.folder.afresh()
    if resume and _is_complete(output, checkpoint, folder):
        crew.execution.before_commit()
        _write_beside(output)
        return
    run = _begin(output, folder, fingerprint_of(output, checkpoint), force=force, resume=resume)
    try:
        _remove_old(run)
        _write_texts(run, [name for name in output.texts if name not in output.indexes])
        _write_missing(run, checkpoint, crew.write, crew.execution.threads)
        _check_finished(run)
    except BaseException:
        with contextlib.suppress(PruneError):  # why it ended is what has to be told
            _leave_if_empty(run)
        raise
    crew.execution.before_commit()
    _write_beside(output)
    _write_texts(run, output.indexes)
    _clear(run)


def _write_beside(output: FolderOutput) -> None:
    for path, content in output.beside.items():
        write_file(path, content)


def _is_complete(output: FolderOutput, checkpoint: Checkpoint, folder: StorePath) -> bool:
    """Return whether an earlier run wrote all of this, and none has begun since."""
    is_begun = (folder / _MARK).exists()
    return not is_begun and is_complete(replace(output, folder=folder), checkpoint)


def _list_now(folder: StorePath) -> dict[str, Fact]:
    """Return all objects in a folder by their names in it, as they are now."""
    fresh = folder.afresh()
    found = {name_within(path, fresh): path.fact for path in fresh.rglob("*")}
    return {name: fact for name, fact in found.items() if fact}


# --- before ----------------------------------------------------------------------------------


def _begin(
    output: FolderOutput,
    folder: StorePath,
    fingerprint: bytes,
    *,
    force: bool,
    resume: bool,
) -> _Run:
    """Take the folder, or refuse it."""
    mark = json.dumps({"run": secrets.token_hex(8), "work": fingerprint.decode()}).encode()
    with pending_object(folder / _MARK) as file:
        there = _list_now(folder)
        _check_there(folder, there, fingerprint, force=force, resume=resume)
        file.sink.write(mark, 0)
        file.commit()
    if _MARK in there and folder.scheme in S3:
        abort_uploads(folder, output.names)
    run = _Run(output, folder, mark, _find_done(there) if resume else {})
    _remove(run, [name for name in there if name.startswith(_DONE) and not resume])
    return run


def _check_there(
    folder: StorePath,
    there: Mapping[str, Fact],
    fingerprint: bytes,
    *,
    force: bool,
    resume: bool,
) -> None:
    """Refuse what is in the folder, unless it may be replaced or is of the run that is resumed."""
    if _MARK in there and not resume and not force:
        raise OutputError(_BUSY.format(folder))
    if _MARK in there and resume:
        found = json.loads(read_now(folder / _MARK) or "{}")
        if found.get("work") != fingerprint.decode():
            raise OutputError(
                f"{folder} holds the leftovers of another run: the options, the input or the "
                "version of prune-cli were not the same; --force without --resume starts over"
            )
    if _MARK not in there and any(not name.startswith(STAGING) for name in there) and not force:
        raise OutputError(f"{folder} is not empty; --force replaces the checkpoint in it")


def _describe(name: str, fact: Fact) -> str:
    """Return what the mark of a finished object is called.

    Example:
        >>> _describe("model.safetensors", Fact(24, "d41d8c"))
        'model.safetensors/24-d41d8c'
    """
    return f"{name}/{fact.nbytes}-{quote(fact.version, safe='')}"


def _find_done(there: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return what is finished: what has a mark and is still as it says."""
    return {name: fact for name, fact in there.items() if _DONE + _describe(name, fact) in there}


def _remove_old(run: _Run) -> None:
    """Remove what makes the old objects a model, then what of them will not be replaced.

    The indexes first. Without any, files of tensors are a model by themselves, or the last of them
    names the others.
    """
    output = run.output
    names = [name for name in _list_now(run.folder) if not name.startswith(f"{STAGING}/")]
    folders = {shard.name.rpartition("/")[0] for shard in output.shards} | {""}
    single = {SHARD_NUMBER.sub("", shard.name) for shard in output.shards}
    inside = [name for name in names if name.rpartition("/")[0] in folders]
    old = [
        name
        for name in inside
        if name not in run.done
        and (SHARD_NUMBER.search(name) or name in single or name == FOLDER_REPORT)
        and (name not in output.names or not output.indexes or name == FOLDER_REPORT)
    ]
    _remove(run, [name for name in inside if INDEX.search(name) or name in output.indexes])
    _remove(run, sorted(old, key=lambda name: name != output.shards[-1].name))


def _remove(run: _Run, names: Iterable[str]) -> None:
    for name in names:
        remove_object(run.folder / name)


# --- during ----------------------------------------------------------------------------------


def _copy(path: Location, target: StorePath) -> Fact:
    """Copy a file or an object, by the store itself if it can."""
    copied = _copy_in_store(path, target)
    if copied:
        return copied
    with open_source(path) as source, pending_object(target) as file:
        nbytes = path.stat().st_size
        file.set_size(nbytes)
        file.sink.copy(source, 0, nbytes, 0)
        return file.commit()


def _copy_in_store(path: Location | None, target: StorePath) -> Fact | None:
    """Have the store copy an object; None if it cannot, or the bytes are not in it."""
    if not (isinstance(path, StorePath) and copy_object(path, target)):
        return None
    fact = find_now(target)
    if fact is None or fact.nbytes != path.stat().st_size:
        raise OutputError(f"{target} is not a whole copy of {path}: the store made another one")
    return fact


def _write_texts(run: _Run, names: Iterable[str]) -> None:
    for name in names:
        run.refuse_if_taken()
        run.made.append(name)
        write_file(run.folder / name, run.output.texts[name])


def _write_missing(of: _Run, checkpoint: Checkpoint, write_shard: WriteShard, workers: int) -> None:
    """Write several objects at once; the last alone, if no index comes after it."""
    output, stopped = of.output, threading.Event()
    missing = [shard for shard in output.shards if shard.name not in of.done]
    at_once = min(workers, max(len(missing), 1))
    jobs: list[Job] = [
        partial(_copy_other, of, checkpoint.path / name, name)
        for name in output.others
        if name not in of.done
    ]
    jobs += [
        partial(_write_shard, of, shard, checkpoint, write_shard, stopped, at_once)
        for shard in missing
    ]
    last = [] if output.indexes or not missing else [jobs.pop()]
    run(jobs, at_once, stopped)
    run(last, 1, stopped)


def _copy_other(of: _Run, path: Location, name: str) -> None:
    of.refuse_if_taken()
    of.made.append(name)
    of.note(name, _copy(path, of.folder / name))


def _write_shard(
    of: _Run,
    shard: OutputFile,
    checkpoint: Checkpoint,
    write_shard: WriteShard,
    stopped: threading.Event,
    at_once: int,
) -> None:
    path = of.folder / shard.name
    of.refuse_if_taken()
    of.made.append(shard.name)
    copied = _copy_in_store(find_original(shard, checkpoint), path)
    if copied:
        of.note(shard.name, copied)
        return
    with pending_object(path, shared_by=at_once, stopped=stopped) as file:
        file.set_size(shard.nbytes)
        write_shard(shard, file.sink, stopped)
        of.refuse_if_taken()
        of.note(shard.name, file.commit())


def _check_finished(run: _Run) -> None:
    """Hold all objects against what they were when this run finished them."""
    run.refuse_if_taken()
    there = _list_now(run.folder)
    wanted = [*run.output.others, *(shard.name for shard in run.output.shards)]
    for name in wanted:
        found = there.get(name)
        if found is None or _describe(name, found) != _describe(name, run.done[name]):
            raise OutputError(
                f"{run.folder / name} was changed by another run; --force starts over"
            )


# --- after -----------------------------------------------------------------------------------


def _leave_if_empty(run: _Run) -> None:
    """Leave nothing where no shard is finished: there would be nothing to resume."""
    if any(shard.name in run.done for shard in run.output.shards):
        return
    run.refuse_if_taken()
    _remove(run, {*run.made, *run.done})
    _clear(run)


def _clear(run: _Run) -> None:
    """Remove the marks, that of the run last."""
    names = [name for name in _list_now(run.folder) if name.startswith(_DONE)]
    _remove(run, [*names, _MARK])
