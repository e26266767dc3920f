"""Writes a folder of shards that is either complete or can be taken up again.

Each file is finished in a hidden folder inside the output, under its final name only once it is
whole; when all are there they are moved out, the index last, so that no loader sees half a model.
A killed run leaves that folder, and `resume` redoes only what is missing from it.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.errors import OutputError
from prune_cli.outputs import OutputFile
from prune_cli.stream import Job, run
from prune_cli.writer import Sink, output_errors, pending, write_file

_FINGERPRINT = "fingerprint"
_MOVING = "moving"

WriteShard = Callable[[OutputFile, Sink], None]
"""Writes all the bytes of a shard to a sink."""


@dataclass(frozen=True)
class FolderOutput:
    """All that will be in the output folder.

    Attributes:
        folder: it.
        shards: files of tensors.
        others: files of the input to copy, relative to it.
        texts: small files by name: the report and the index, if they are in it.
        index: which of the texts is the index, if there is one.
    """

    folder: Path
    shards: tuple[OutputFile, ...]
    others: tuple[str, ...]
    texts: dict[str, bytes]
    index: str | None

    @property
    def staging(self) -> Path:
        """Where files wait until all are finished."""
        return self.folder / STAGING

    @property
    def names(self) -> list[str]:
        """Every file, in the order they are moved into place: the index is the last."""
        early = [*self.others, *(name for name in self.texts if name != self.index)]
        return [*early, *(shard.name for shard in self.shards), *filter(None, [self.index])]


def write_folder(
    output: FolderOutput,
    checkpoint: Checkpoint,
    write_shard: WriteShard,
    *,
    workers: int,
    force: bool,
    resume: bool,
) -> None:
    """Writes `output`, or what is missing of it.

    Args:
        output: what to write.
        checkpoint: the input, from which other files are copied.
        write_shard: writes one shard.
        workers: how many shards at a time.
        force: replace the checkpoint that is in the folder, or start over.
        resume: take up a run that was killed.

    Raises:
        OutputError: the folder cannot be written, is not empty, or holds another run's leftovers.
    """
    with output_errors(output.folder):
        fingerprint = _fingerprint(output, checkpoint)
        if resume and _is_complete(output):
            return
        _prepare(output, fingerprint, force=force, resume=resume)
        if not (output.staging / _MOVING).exists():
            _fill(output, checkpoint, write_shard, workers)
            write_file(output.staging / _MOVING, b"")
        _move(output)


def check_folder(output: Path, checkpoint: Checkpoint, *, force: bool, resume: bool) -> None:
    """Refuses an output folder that touches the input, or that is not empty.

    Raises:
        OutputError: either.
    """
    folder = output.resolve()
    source = checkpoint.path.resolve()
    if checkpoint.is_folder and folder.is_relative_to(source):
        raise OutputError(f"{output} is the input folder or inside it; choose another --output")
    if source.is_relative_to(folder) and folder.exists() and checkpoint.is_folder:
        raise OutputError(f"{output} holds the input folder; choose another --output")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{output} is a file, but the output is a folder")
    if force or resume or not folder.exists() or not any(folder.iterdir()):
        return
    if (folder / STAGING).exists():
        done = len(list((folder / STAGING).rglob("*.safetensors")))
        raise OutputError(
            f"{output} holds the leftovers of a run that did not end ({done} shards are finished): "
            "--resume takes it up again, --force starts over"
        )
    raise OutputError(f"{output} is not empty; --force replaces the checkpoint in it")


# --- before ----------------------------------------------------------------------------------


def _fingerprint(output: FolderOutput, checkpoint: Checkpoint) -> bytes:
    """Of the plan (the report has it), of every output header, and of the input's files."""
    digest = hashlib.sha256()
    for content in (*output.texts.values(), *(shard.header for shard in output.shards)):
        digest.update(hashlib.sha256(content).digest())
    for shard in checkpoint.shards:
        facts = shard.path.stat()
        digest.update(f"{shard.name}:{facts.st_size}:{facts.st_mtime_ns};".encode())
    return digest.hexdigest().encode()


def _is_complete(output: FolderOutput) -> bool:
    """Whether an earlier run wrote all of this: its report, which has the plan, is the same."""
    has_report = any(name != output.index for name in output.texts)
    texts = has_report and all(
        (output.folder / name).is_file() and (output.folder / name).read_bytes() == content
        for name, content in output.texts.items()
    )
    return (
        texts
        and not output.staging.exists()
        and all(_is_whole(output.folder / shard.name, shard) for shard in output.shards)
        and all((output.folder / name).exists() for name in output.others)
    )


def _prepare(output: FolderOutput, fingerprint: bytes, *, force: bool, resume: bool) -> None:
    """Makes the staging folder ready for this run, or refuses what is in it."""
    mark = output.staging / _FINGERPRINT
    if output.staging.exists() and not resume:
        shutil.rmtree(output.staging)
    if mark.exists() and mark.read_bytes() != fingerprint:
        raise OutputError(
            f"{output.folder} holds the leftovers of another run: the options, the input or the "
            "version of prune-cli were not the same; --force without --resume starts over"
        )
    others = [path for path in _listed(output.folder) if path.name != STAGING]
    if others and not mark.exists() and not force:
        raise OutputError(f"{output.folder} is not empty; --force replaces the checkpoint in it")
    output.staging.mkdir(parents=True, exist_ok=True)
    write_file(mark, fingerprint)


def _listed(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.exists() else ()


def _is_whole(path: Path, shard: OutputFile) -> bool:
    """Whether the file is as long as `shard` and has its header."""
    if not path.is_file() or path.stat().st_size != shard.nbytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


# --- during ----------------------------------------------------------------------------------


def _fill(
    output: FolderOutput, checkpoint: Checkpoint, write_shard: WriteShard, workers: int
) -> None:
    missing = [
        shard for shard in output.shards if not _is_whole(output.staging / shard.name, shard)
    ]
    jobs: list[Job] = [partial(_write_shard, output, shard, write_shard) for shard in missing]
    try:
        run(jobs, min(workers, max(len(jobs), 1)))
    except BaseException:
        if not any(_is_whole(output.staging / shard.name, shard) for shard in output.shards):
            _withdraw(output)
        raise
    for name in output.others:
        target = output.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint.path / name, target)
    for name, content in output.texts.items():
        write_file(output.staging / name, content)


def _write_shard(output: FolderOutput, shard: OutputFile, write_shard: WriteShard) -> None:
    path = output.staging / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with pending(path) as file:
        file.set_size(shard.nbytes)
        write_shard(shard, file.sink)
        file.commit()


def _withdraw(output: FolderOutput) -> None:
    """Leaves nothing behind where nothing was finished."""
    shutil.rmtree(output.staging, ignore_errors=True)
    if not any(output.folder.iterdir()):
        output.folder.rmdir()


# --- after -----------------------------------------------------------------------------------


def _move(output: FolderOutput) -> None:
    """Moves every file to its place; the old index goes first and the new one comes last."""
    for old in sorted(output.folder.glob("*.safetensors*"), reverse=True):
        if old.name not in output.names or old.name.endswith(".index.json"):
            old.unlink()
    for name in output.names:
        staged, place = output.staging / name, output.folder / name
        if staged.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)
    shutil.rmtree(output.staging)
