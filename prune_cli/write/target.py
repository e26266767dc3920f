"""Where the output goes: chosen and checked before any work, and begun while torch is imported."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.errors import OutputError, UsageError
from prune_cli.write.atomic import (
    STDOUT,
    PendingFile,
    check_can_write,
    is_special,
    output_errors,
    pending,
    resolve,
)

FOLDER_REPORT = "prune-report.json"
"""What the report is called inside an output folder."""

_MOST_WORKERS = 8  # with more the disk is the limit


@dataclass(frozen=True)
class Destination:
    """Where the output goes, and how it is written.

    Attributes:
        output: a file, a folder, or "-" for stdout.
        report: a file, "-" for stdout, or None for no report.
        force: whether to replace what is there.
        resume: whether to take up a run on a folder that was killed.
        max_shard_size: in bytes; the output is then a folder of shards that are no larger.
        device: where channels are zeroed: "cpu", "cuda", "cuda:1", "mps" or "auto".
        workers: threads; None for a sensible number.
        reads: what is read besides the checkpoint, a report or a recipe: never written either.
    """

    output: Path
    report: Path | None = None
    force: bool = False
    resume: bool = False
    max_shard_size: int | None = None
    device: str = "cpu"
    workers: int | None = None
    reads: tuple[Path, ...] = ()

    @property
    def is_report_inside(self) -> bool:
        """Whether the report is one of the files of the output folder."""
        return self.report is not None and self.report.parent.resolve() == self.output.resolve()


class Where(TypedDict, total=False):
    """Where the output goes and how it is written, as keywords; see Destination.

    `report` is by default beside the output.
    """

    report: str | Path | None
    force: bool
    resume: bool
    max_shard_size: int | None
    device: str
    workers: int | None
    reads: Sequence[Path]


def report_path(output: Path, *, is_folder: bool) -> Path:
    """Where the report of `output` is unless said otherwise: beside a file, inside a folder.

    Example:
        >>> report_path(Path("a/model.pruned.safetensors"), is_folder=False).as_posix()
        'a/model.pruned.report.json'
    """
    if is_folder:
        return output / FOLDER_REPORT
    return output.parent / (output.name.removesuffix(".safetensors") + ".report.json")


def count_workers(wanted: int | None) -> int:
    """As many as `wanted`; by default one for each core, up to 8."""
    return wanted or min(os.cpu_count() or 1, _MOST_WORKERS)


def is_folder_output(checkpoint: Checkpoint, destination: Destination) -> bool:
    """Whether the output is a folder."""
    return checkpoint.is_folder or destination.max_shard_size is not None


# --- chosen ----------------------------------------------------------------------------------


def find_destination(
    checkpoint: Checkpoint, output: str | Path | None, **where: Unpack[Where]
) -> Destination:
    """The Destination with the default paths filled in: beside the input, beside the output.

    Raises:
        UsageError: there is no default for stdin, or stdout is wanted for both.
    """
    to_folder = checkpoint.is_folder or where.get("max_shard_size") is not None
    path = _default_output(checkpoint, to_folder) if output is None else Path(output)
    named = where.get("report")
    report = None if named is None else Path(named)
    if path == STDOUT == report:
        raise UsageError("the output and the report cannot both go to stdout")
    if to_folder and (path == STDOUT or path.suffix == ".safetensors"):
        raise UsageError(f"the output is a folder of files, so it cannot be {str(path)!r}")
    if report is None and not (path == STDOUT or is_special(path)):
        report = report_path(path, is_folder=to_folder)
    return Destination(
        path,
        report,
        force=where.get("force", False),
        resume=where.get("resume", False),
        max_shard_size=where.get("max_shard_size"),
        device=where.get("device", "cpu"),
        workers=where.get("workers"),
        reads=_files_read(where),
    )


def find_report_destination(checkpoint: Checkpoint, **where: Unpack[Where]) -> Destination | None:
    """The Destination of a dry run: that of its report, if one is asked for.

    Raises:
        OutputError: the report cannot be written.
    """
    report = where.get("report")
    if report is None:
        return None
    force = where.get("force", False)
    destination = Destination(STDOUT, Path(report), force=force, reads=_files_read(where))
    check_can_write([Path(report)], _inputs(checkpoint, destination), force=force)
    return destination


def _default_output(checkpoint: Checkpoint, to_folder: bool) -> Path:
    if checkpoint.path == STDOUT or is_special(checkpoint.path):
        raise UsageError("the input is no file, so say where the output goes: --output")
    path = checkpoint.path.resolve() if checkpoint.is_folder else checkpoint.path
    if to_folder:
        return path.with_name(f"{path.name if checkpoint.is_folder else path.stem}.pruned")
    return path.with_name(f"{path.stem}.pruned.safetensors")


def _files_read(where: Where) -> tuple[Path, ...]:
    return tuple(path for path in where.get("reads", ()) if path != STDOUT and not is_special(path))


# --- checked ---------------------------------------------------------------------------------


def check_destination(checkpoint: Checkpoint, destination: Destination) -> None:
    """Refuses, before any work, a destination that cannot be written.

    Raises:
        OutputError: the output or the report exists, is the input, or has no folder.
    """
    force, resume = destination.force, destination.resume
    reports = [destination.report] if destination.report else []
    if destination.output == STDOUT and os.isatty(1):
        raise OutputError("stdout is a terminal; send it to a file or a pipe")
    if not is_folder_output(checkpoint, destination):
        outputs = [destination.output, *reports]
        check_can_write(outputs, _inputs(checkpoint, destination), force=force)
        return
    _check_folder(destination.output, checkpoint, destination.reads, start=not (force or resume))
    if destination.is_report_inside:
        reports = []
    check_can_write(reports, _inputs(checkpoint, destination), force=force or resume)


def _inputs(checkpoint: Checkpoint, destination: Destination) -> list[Path]:
    files = [*(shard.path for shard in checkpoint.shards), *destination.reads]
    if checkpoint.index:
        files.append(checkpoint.path / checkpoint.index.name)
    return files + [checkpoint.path / name for name in checkpoint.others]


def _check_folder(
    output: Path, checkpoint: Checkpoint, reads: Iterable[Path], *, start: bool
) -> None:
    """Refuses an output folder that touches an input, or, for a run that starts, is not empty."""
    with output_errors(output):
        folder = resolve(output)
    inputs = [checkpoint.path, *(shard.path for shard in checkpoint.shards), *reads]
    if checkpoint.is_folder and folder.is_relative_to(resolve(checkpoint.path)):
        raise OutputError(f"{output} is the input folder or inside it; choose another --output")
    if any(folder in (*path.absolute().parents, *path.resolve().parents) for path in inputs):
        raise OutputError(f"{output} holds what is read; choose another --output")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{output} is a file, but the output is a folder")
    if not (start and folder.exists() and any(folder.iterdir())):
        return
    if (folder / STAGING).exists():
        done = len(list((folder / STAGING).rglob("*.safetensors")))
        raise OutputError(
            f"{output} holds the leftovers of a run that did not end ({done} shards are finished): "
            "--resume takes it up again, --force starts over"
        )
    raise OutputError(f"{output} is not empty; --force replaces the checkpoint in it")


# --- begun -----------------------------------------------------------------------------------


@contextlib.contextmanager
def begin_output(checkpoint: Checkpoint, destination: Destination) -> Iterator[PendingFile | None]:
    """The output file, which is filled with the input while other things are done; or None.

    For whoever has torch to import: meanwhile the other cores have nothing to do. What is in the
    file does not count, all of it is written over; but the memory and the blocks for it are found.

    Raises:
        OutputError: the file cannot be written.
    """
    output = destination.output
    needs_torch_first = checkpoint.format != "safetensors"
    is_file = not (is_folder_output(checkpoint, destination) or output == STDOUT)
    if needs_torch_first or not is_file or is_special(output):
        yield None
        return
    with pending(output) as file:
        if count_workers(destination.workers) > 1:
            file.fill(checkpoint.shards[0].path)
        yield file
