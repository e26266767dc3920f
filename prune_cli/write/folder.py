"""Write a folder of shards that is either complete or can be resumed.

Each file is finished in a hidden folder inside the output, under its final name only once it is
whole; when all are there they are moved out, the index last, so that no loader sees half a model.
A killed run leaves that folder, and `resume` redoes only what is missing from it.
"""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.checkpoint.source import changed_at, identity_of, open_source
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import OutputError
from prune_cli.stores import Location
from prune_cli.write.atomic import pending, sync_folder, write_file
from prune_cli.write.layout import OutputFile
from prune_cli.write.locks import alone_in
from prune_cli.write.paths import is_special, output_errors
from prune_cli.write.sinks import Sink
from prune_cli.write.workers import Job, run

_FINGERPRINT = "fingerprint"
_MOVING = "moving"
_FILES = "files"
INDEX = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")
SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)")

WriteShard = Callable[[OutputFile, Sink, threading.Event], None]
"""Writes all the bytes of a shard to a sink, unless the event is set before."""


@dataclass(frozen=True)
class FolderOutput:
    """All that will be in the output folder.

    Attributes:
        folder: it.
        shards: files of tensors.
        others: files of the input to copy, relative to it.
        texts: small files by name: the report and the index, if they are in it.
        indexes: which of the texts are indexes: one, or one in each of several subfolders.
        beside: files outside the folder that belong to it: the report, if it is there.
        fsync: whether each step waits for the disk: files, then their names, then the indexes.
    """

    folder: Location
    shards: tuple[OutputFile, ...]
    others: tuple[str, ...]
    texts: Mapping[str, bytes]
    indexes: tuple[str, ...]
    beside: Mapping[Location, bytes] = field(default_factory=dict)
    fsync: bool = False

    @property
    def here(self) -> Path:
        """It, on this machine; `store_folder` is for those in a store."""
        assert isinstance(self.folder, Path)
        return self.folder

    @property
    def staging(self) -> Path:
        """What is there only until the run ends."""
        return self.here / STAGING

    @property
    def files(self) -> Path:
        """Where files wait until all are finished; apart from the marks, whatever their names."""
        return self.staging / _FILES

    @property
    def names(self) -> list[str]:
        """Every file, in the order they are moved into place: indexes are the last."""
        early = [*self.others, *(name for name in self.texts if name not in self.indexes)]
        return [*early, *(shard.name for shard in self.shards), *self.indexes]


def write_folder(
    output: FolderOutput,
    checkpoint: Checkpoint,
    write_shard: WriteShard,
    *,
    workers: int,
    force: bool,
    resume: bool,
    before_commit: Callable[[], None] = lambda: None,
) -> None:
    """Write `output`, or what is missing of it.

    Args:
        output: what to write.
        checkpoint: the input, from which other files are copied.
        write_shard: writes one shard.
        workers: how many shards at a time.
        force: replace the checkpoint that is in the folder, or start over.
        resume: continue an interrupted run.
        before_commit: called before the files get their places.

    Raises:
        OutputError: the folder cannot be written, is not empty, is being written by another run,
            or holds another run's leftovers.
    """
    with output_errors(output.here), alone_in(output.here):
        fingerprint = fingerprint_of(output, checkpoint)
        is_there = resume and is_complete(output, checkpoint)
        if not is_there:
            _check_leftovers(output, fingerprint, force=force, resume=resume)
            _fill(output, checkpoint, write_shard, workers, fingerprint)
        before_commit()
        for path, content in output.beside.items():
            write_file(path, content, fsync=output.fsync)
        if not is_there:
            _move(output)
        shutil.rmtree(output.staging, ignore_errors=True)


# --- before ----------------------------------------------------------------------------------


def fingerprint_of(output: FolderOutput, checkpoint: Checkpoint) -> bytes:
    """Return a digest of the plan (the report has it), every output header and the input's files."""
    digest = hashlib.sha256()
    for content in (*output.texts.values(), *(shard.head for shard in output.shards)):
        digest.update(hashlib.sha256(content).digest())
    for file in checkpoint.files:
        digest.update(f"{file.name}:{identity_of(file.path)};".encode())
    return digest.hexdigest().encode()


def is_complete(output: FolderOutput, checkpoint: Checkpoint) -> bool:
    """Return whether an earlier run wrote all of this.

    Its report, which has the plan, is then the same, and younger than the input.
    """
    texts = {output.folder / name: content for name, content in output.texts.items()}
    indexes = {output.folder / name for name in output.indexes}
    texts |= {path: content for path, content in output.beside.items() if not is_special(path)}
    reports = [path for path in texts if path not in indexes]
    return (
        bool(reports)
        and all(path.is_file() and path.read_bytes() == texts[path] for path in texts)
        and all(_is_whole(output.folder / shard.name, shard) for shard in output.shards)
        and all((output.folder / name).exists() for name in output.others)
        and _is_younger(reports[0], [file.path for file in checkpoint.files])
    )


def _is_younger(report: Location, files: Iterable[Location]) -> bool:
    """Return whether no file changed after the report; of some stores that is not known."""
    newest = max(map(changed_at, files))
    return newest < float("inf") and newest <= changed_at(report)


def _check_leftovers(
    output: FolderOutput, fingerprint: bytes, *, force: bool, resume: bool
) -> None:
    """Remove what an earlier run left, keep it for this one, or refuse it."""
    mark = output.staging / _FINGERPRINT
    if output.staging.exists() and not resume:
        shutil.rmtree(output.staging)
    if mark.exists() and mark.read_bytes() != fingerprint:
        raise OutputError(
            f"{output.here} holds the leftovers of another run: the options, the input or the "
            "version of prune-cli were not the same; --force without --resume starts over"
        )
    others = [path for path in _listed(output.here) if path.name != STAGING]
    if others and not mark.exists() and not force:
        raise OutputError(f"{output.here} is not empty; --force replaces the checkpoint in it")


def _listed(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.exists() else ()


def _is_whole(path: Location, shard: OutputFile) -> bool:
    """Return whether the file is as long as `shard` and has its first bytes."""
    if not path.is_file() or path.stat().st_size != shard.nbytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.head)) == shard.head


# --- during ----------------------------------------------------------------------------------


def _fill(
    output: FolderOutput,
    checkpoint: Checkpoint,
    write_shard: WriteShard,
    workers: int,
    fingerprint: bytes,
) -> None:
    """Finish in the staging folder whatever is not there; nothing if that was done before."""
    if (output.staging / _MOVING).exists():
        return
    try:
        output.staging.mkdir(parents=True, exist_ok=True)
        write_file(output.staging / _FINGERPRINT, fingerprint)
        _write_missing(output, write_shard, workers)
    except BaseException:
        if not any(_is_whole(output.files / shard.name, shard) for shard in output.shards):
            shutil.rmtree(output.staging, ignore_errors=True)
        raise
    for name in output.others:
        _copy(checkpoint.path / name, output.files / name, fsync=output.fsync)
    for name, content in output.texts.items():
        write_file(output.files / name, content, fsync=output.fsync)
    write_file(output.staging / _MOVING, b"")


def _write_missing(output: FolderOutput, write_shard: WriteShard, workers: int) -> None:
    missing = [shard for shard in output.shards if not _is_whole(output.files / shard.name, shard)]
    stopped = threading.Event()
    jobs: list[Job] = [
        partial(_write_shard, output, shard, write_shard, stopped) for shard in missing
    ]
    run(jobs, min(workers, max(len(jobs), 1)), stopped)


def _write_shard(
    output: FolderOutput, shard: OutputFile, write_shard: WriteShard, stopped: threading.Event
) -> None:
    path = output.files / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with pending(path, fsync=output.fsync) as file:
        file.set_size(shard.nbytes)
        write_shard(shard, file.sink, stopped)
        file.commit()


def _copy(path: Location, target: Path, *, fsync: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_source(path) as source, pending(target, fsync=fsync) as file:
        file.sink.copy(source, 0, path.stat().st_size, 0)
        file.commit()


# --- after -----------------------------------------------------------------------------------


def _move(output: FolderOutput) -> None:
    """Move every file to its place; the old index goes first and the new one comes last."""
    for name in _replaced(output):
        (output.here / name).unlink()
    _move_files(output, [name for name in output.names if name not in output.indexes])
    _move_files(output, output.indexes)


def _move_files(output: FolderOutput, names: Iterable[str]) -> None:
    folders = {output.here, output.here.parent}
    for name in names:
        staged, place = output.files / name, output.here / name
        if staged.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)
            folders |= {output.here / above for above in Path(name).parents}
    if output.fsync:
        for folder in folders:
            sync_folder(folder)


def _replaced(output: FolderOutput) -> list[str]:
    """Return what has to go of the checkpoint that was in the folder, its indexes first.

    These, its shards and its report, and no file that only may be part of it.
    """
    folders = dict.fromkeys((output.here, *((output.here / s.name).parent for s in output.shards)))
    names = [
        path.relative_to(output.here).as_posix()
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_file()
    ]
    single = {SHARD_NUMBER.sub("", shard.name) for shard in output.shards}
    indexes = [
        name
        for name in names
        if INDEX.search(name) and (name not in output.names or (output.files / name).exists())
    ]
    return indexes + [
        name
        for name in names
        if name not in output.names
        and (SHARD_NUMBER.search(name) or name in single or name == FOLDER_REPORT)
    ]
