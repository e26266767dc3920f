"""Write a folder of shards that is either complete or can be resumed.

Each file is finished in a hidden folder inside the output, under its final name only once it is
whole; when all are there they are moved out, the index last, so that no loader sees half a model.
A killed run leaves that folder, and `resume` redoes only what is missing from it.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.checkpoint.source import changed_at, identity_of, open_source
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import OutputError
from prune_cli.stores import Location
from prune_cli.write.atomic import pending, sync_folder, write_file
from prune_cli.write.filling import Crew, Place, fill, missing, refresh
from prune_cli.write.layout import OutputFile
from prune_cli.write.locks import alone_in
from prune_cli.write.parts import note_part, refuse_missing
from prune_cli.write.paths import is_special, output_errors
from prune_cli.write.shards import is_whole

_FINGERPRINT = "fingerprint"
_MOVING = "moving"
_FILES = "files"
_RUN = "run"
INDEX = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")
SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)")


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
        run: the fingerprint of the run, once that is known.
    """

    folder: Location
    shards: tuple[OutputFile, ...]
    others: tuple[str, ...]
    texts: Mapping[str, bytes]
    indexes: tuple[str, ...]
    beside: Mapping[Location, bytes] = field(default_factory=dict)
    fsync: bool = False
    run: str = ""

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
        """Where files wait until all are finished; apart from the marks, whatever their names.

        Each run has its own: a worker that is late must not put a shard among those of the next.
        """
        return self.staging / f"{_FILES}-{self.run[:16]}"

    @property
    def missing(self) -> list[OutputFile]:
        """The shards that are not finished."""
        return missing(self.shards, self.files)

    @property
    def names(self) -> list[str]:
        """Every file, in the order they are moved into place: indexes are the last."""
        early = [*self.others, *(name for name in self.texts if name not in self.indexes)]
        return [*early, *(shard.name for shard in self.shards), *self.indexes]


def write_folder(
    output: FolderOutput, checkpoint: Checkpoint, crew: Crew, *, force: bool, resume: bool
) -> None:
    """Write `output`, or what is missing of it; or a part of that, which gets no place yet.

    Args:
        output: what to write.
        checkpoint: the input, from which other files are copied.
        crew: writes the shards.
        force: replace the checkpoint that is in the folder, or start over.
        resume: continue an interrupted run.

    Raises:
        OutputError: the folder cannot be written, is not empty, is being written by another run,
            holds another run's leftovers, or lacks what other parts should have written.
    """
    execution = crew.execution
    shared = alone_in(output.here, shared=execution.part is not None)
    with output_errors(output.here), shared:
        fingerprint = fingerprint_of(output, checkpoint)
        output = replace(output, run=fingerprint.decode())
        is_there = resume and is_complete(output, checkpoint)
        if not is_there:
            _check_leftovers(output, fingerprint, force=force, resume=resume)
            if execution.finishes and not (output.staging / _MOVING).exists():
                _refuse_missing(output)
            _fill(output, checkpoint, crew, fingerprint)
        if execution.part is None:
            execution.before_commit()
            _commit(output, is_complete=is_there)


def _commit(output: FolderOutput, *, is_complete: bool) -> None:
    for path, content in output.beside.items():
        write_file(path, content, fsync=output.fsync)
    if not is_complete:
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
        and all(is_whole(output.folder / shard.name, shard) for shard in output.shards)
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


def _refuse_missing(output: FolderOutput) -> None:
    """Raise OutputError where not every part has written its shards."""
    refresh(output.shards, output.files)
    names = [shard.name for shard in output.shards]
    left = {shard.name for shard in output.missing}
    refuse_missing(output.staging, names, left, "shards")


# --- during ----------------------------------------------------------------------------------


def _fill(output: FolderOutput, checkpoint: Checkpoint, crew: Crew, fingerprint: bytes) -> None:
    """Finish in the staging folder whatever is not there; nothing if that was done before."""
    if (output.staging / _MOVING).exists():
        return
    part = crew.execution.part
    try:
        output.staging.mkdir(parents=True, exist_ok=True)
        write_file(output.staging / _FINGERPRINT, fingerprint)
        if part:
            note_part(output.staging, part)
        shards = part.of(output.shards) if part else output.shards
        place = Place(output.files, output.staging / _RUN, output.fsync)
        fill(missing(shards, output.files), place, crew, checkpoint)
    except BaseException:
        if part is None and len(output.missing) == len(output.shards):
            shutil.rmtree(output.staging, ignore_errors=True)
        raise
    if part is None:
        _add_rest(output, checkpoint)


def _add_rest(output: FolderOutput, checkpoint: Checkpoint) -> None:
    """Finish what is no shard; from here on everything is there, and only has to be moved."""
    for name in output.others:
        _copy(checkpoint.path / name, output.files / name, fsync=output.fsync)
    for name, content in output.texts.items():
        write_file(output.files / name, content, fsync=output.fsync)
    write_file(output.staging / _MOVING, b"")


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
