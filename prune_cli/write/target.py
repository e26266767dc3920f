"""Where the output goes, and how it is made: chosen and checked before any work.

See also: `checks`, what is refused of a single file.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prune_cli.checkpoint import STAGING, Checkpoint
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.cluster.engine import Engine
from prune_cli.cluster.parts import Part
from prune_cli.errors import OutputError, UsageError
from prune_cli.stores import Location, is_inside, locate, name_within
from prune_cli.stores.hub import find_model, is_on_hub, is_whole_model
from prune_cli.write.checks import check_can_write, why_never_written
from prune_cli.write.formats import WEIGHT_SUFFIXES, Format, choose_format
from prune_cli.write.hub_target import check_hub
from prune_cli.write.locks import lock
from prune_cli.write.paths import STDOUT, is_special, output_errors, resolve
from prune_cli.write.progress import OnTensor

_MOST_WORKERS = 8  # with more the disk is the limit


@dataclass(frozen=True)
class Target:
    """Where the output goes.

    Attributes:
        output: a file, a folder, or "-" for stdout; None for a dry run, which makes none.
        report: a file, "-" for stdout, or None for no report.
        is_folder: whether the output is a folder.
        force: whether to replace what is there.
        resume: whether to continue an interrupted run on a folder.
        max_shard_size: in bytes; the output is then a folder of shards that are no larger.
        fsync: whether to wait until all of it is on the disk, the index last.
        format: of the output; see `formats`.
        reads: what is read besides the checkpoint, a report or a recipe: never written either.
        writes: what is written besides output and report, such as an exported program.
        card: whether a folder gets a model card; None where there is one to extend, or the input or
            the output is a model of the Hugging Face Hub.
    """

    output: Location | None
    report: Location | None = None
    is_folder: bool = False
    force: bool = False
    resume: bool = False
    max_shard_size: int | None = None
    fsync: bool = False
    format: Format = "safetensors"
    reads: tuple[Location, ...] = ()
    writes: tuple[Location, ...] = ()
    card: bool | None = None

    @property
    def is_report_inside(self) -> bool:
        """Whether the report is one of the files of the output folder."""
        if self.report is None or self.output is None or not self.is_folder:
            return False
        return self.report.parent.resolve() == self.output.resolve()


@dataclass(frozen=True)
class Execution:
    """How the output is made; none of it changes a byte.

    Attributes:
        device: where channels are zeroed: "cpu", "cuda", "cuda:1", "mps" or "auto".
        workers: threads; None for one a core, at most 8. Of units elsewhere, those of each.
        on_tensor: called, from any thread, with a tensor's name and how many bytes are done.
        before_commit: called when all bytes are there, before any file gets its name: the last
            moment to give up by raising.
        engine: writes the shards of a folder; by default threads of this process do.
        part: of the shards of a folder that are to be written, and put aside for `finishes`.
        finishes: whether parts wrote all shards, which only have to get their places.
    """

    device: str = "cpu"
    workers: int | None = None
    on_tensor: OnTensor | None = None
    before_commit: Callable[[], None] = lambda: None
    engine: Engine | None = None
    part: Part | None = None
    finishes: bool = False

    @property
    def is_spread(self) -> bool:
        """Whether others write the output too."""
        return self.engine is not None or self.part is not None or self.finishes

    @property
    def threads(self) -> int:
        """How many threads work."""
        return self.workers or min(os.cpu_count() or 1, _MOST_WORKERS)


def report_path(output: Location, *, is_folder: bool) -> Location:
    """Return where the report of `output` is unless said otherwise: beside a file, inside a folder.

    Example:
        >>> report_path(Path("a/model.pruned.safetensors"), is_folder=False).as_posix()
        'a/model.pruned.report.json'
    """
    if is_folder:
        return output / FOLDER_REPORT
    stem = output.stem if output.suffix.lower() in WEIGHT_SUFFIXES else output.name
    return output.with_name(f"{stem}.report.json")


# --- chosen ----------------------------------------------------------------------------------


def find_target(
    checkpoint: Checkpoint,
    output: str | Location | None,
    *,
    report: str | Location | None = None,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    fsync: bool = False,
    dry_run: bool = False,
    format: str | None = None,
    suffix: str = "pruned",
    reads: Iterable[str | Location] = (),
    writes: Iterable[str | Location] = (),
    card: bool | None = None,
) -> Target:
    """Return the Target with the default paths filled in: beside the input, beside the output.

    Args:
        checkpoint: the input.
        output: where the output goes, for a file also the folder it is put into; None for a
            default.
        report: where the report goes; None for a default, which a dry run does not have.
        force: see Target; so are the rest.
        resume: see Target.
        max_shard_size: see Target.
        fsync: see Target.
        dry_run: whether no output is made.
        format: of the output; None leaves it to the name.
        suffix: what a default output is called: NAME.pruned.safetensors.
        reads: see Target.
        writes: see Target.
        card: see Target.

    Raises:
        UsageError: there is no default for stdin, or stdout is wanted for both.
    """
    if checkpoint.parts and (max_shard_size is not None or format == "in-kind"):
        raise UsageError(
            "only one checkpoint can be split anew or written in kind; name its folder"
        )
    is_dcp_in_kind = checkpoint.format == "dcp" and format == "in-kind"
    to_folder = checkpoint.is_folder or max_shard_size is not None or is_dcp_in_kind
    if format == "in-kind" and max_shard_size is not None:
        raise UsageError("an output in kind keeps the input's files: leave out --max-shard-size")
    path = None if dry_run else _output(checkpoint, output, to_folder, suffix)
    named = None if report is None else locate(report)
    if path == STDOUT == named:
        raise UsageError("the output and the report cannot both go to stdout")
    if path and named is None and not (path == STDOUT or is_special(path)):
        named = report_path(path, is_folder=to_folder)
    return Target(
        path,
        named,
        is_folder=to_folder,
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        fsync=fsync,
        format=choose_format(checkpoint, path, format, is_folder=to_folder),
        reads=tuple(locate(read) for read in reads if not _is_stream(locate(read))),
        writes=tuple(map(locate, writes)),
        card=card,
    )


def _output(
    checkpoint: Checkpoint, named: str | Location | None, to_folder: bool, suffix: str
) -> Location:
    path = _default_output(checkpoint, to_folder, suffix) if named is None else locate(named)
    if problem := why_never_written(path):
        raise OutputError(problem)
    if named and not to_folder and _means_folder(named):
        return path / _default_output(checkpoint, to_folder, suffix).name
    if to_folder and (path == STDOUT or path.suffix == ".safetensors"):
        raise UsageError(f"the output is a folder of files, so it cannot be {str(path)!r}")
    return path


def _means_folder(named: str | Location) -> bool:
    """Whether a file is to be put into a folder, as for cp: it is there, or ends in a slash."""
    path = locate(named)
    if is_on_hub(path):
        return is_whole_model(path)
    with output_errors(path):
        return str(named).endswith("/") or locate(named).is_dir()


def _default_output(checkpoint: Checkpoint, to_folder: bool, suffix: str) -> Location:
    if _is_stream(checkpoint.path):
        raise UsageError("the input is not a file, so say where the output goes: --output")
    path = checkpoint.path.resolve() if checkpoint.is_folder else checkpoint.path
    model = find_model(path)
    if model:  # which is somebody else's, and the cache is the Hub's
        path = Path(PurePosixPath(model.path).name)
    if to_folder:
        return path.with_name(f"{path.name if checkpoint.is_folder else path.stem}.{suffix}")
    return path.with_name(f"{path.stem}.{suffix}.safetensors")


def _is_stream(path: Location) -> bool:
    return path == STDOUT or is_special(path)


# --- checked ---------------------------------------------------------------------------------


def check_target(checkpoint: Checkpoint, target: Target) -> None:
    """Refuse, before any work, a target that cannot be written.

    Every path that is written is held against every path that is read.

    Raises:
        OutputError: an output exists, is an input, or has no folder.
    """
    if target.output == STDOUT and os.isatty(1):
        raise OutputError("stdout is a terminal; send it to a file or a pipe")
    if target.card and not (target.is_folder or is_on_hub(target.output)):
        raise UsageError("a model card (--card) goes into a folder, and the output is a file")
    files = [*_reports(target), *target.writes]
    if is_on_hub(target.output):
        beside, files = files, [path for path in files if not is_on_hub(path)]
        is_folder = target.is_folder
        force = target.force or (target.resume and is_folder)
        check_hub(target.output, checkpoint, beside, is_folder=is_folder, force=force)
    elif target.output and target.is_folder:
        _check_folder(target.output, checkpoint, target)
    elif target.output:
        files.insert(0, target.output)
    force = target.force or (target.resume and target.is_folder)
    check_can_write(files, _inputs(checkpoint, target), force=force)


def _reports(target: Target) -> list[Location]:
    return [] if target.report is None or target.is_report_inside else [target.report]


def _inputs(checkpoint: Checkpoint, target: Target) -> list[Location]:
    files = [*(file.path for file in checkpoint.files), *target.reads]
    files += [
        checkpoint.path / (part.folder + part.index.name)
        for part in checkpoint.all_parts
        if part.index
    ]
    return files + [checkpoint.path / name for name in checkpoint.others]


def _check_folder(output: Location, checkpoint: Checkpoint, target: Target) -> None:
    """Refuse an output folder that touches an input, or, for a run that starts, is not empty."""
    with output_errors(output):
        folder = resolve(output)
    inputs = [checkpoint.path, *(file.path for file in checkpoint.files), *target.reads]
    if checkpoint.is_folder and is_inside(folder, resolve(checkpoint.path)):
        raise OutputError(f"{output} is the input folder or inside it; choose another --output")
    if any(folder in (*path.absolute().parents, *path.resolve().parents) for path in inputs):
        raise OutputError(f"{output} holds an input; choose another --output")
    with output_errors(output):
        _refuse_what_is_there(output, folder, target)


def _refuse_what_is_there(output: Location, folder: Location, target: Target) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{output} is a file, but the output is a folder")
    is_start = not (target.force or target.resume)
    if is_start and folder.exists() and any(folder.iterdir()):
        if isinstance(folder, Path):
            with lock(folder, wait=False):  # unless another run is just writing it
                pass
        raise OutputError(_why_not_empty(output, folder))


def _why_not_empty(output: Location, folder: Location) -> str:
    if not (folder / STAGING).exists():
        return f"{output} is not empty; --force replaces the checkpoint in it"
    names = [name_within(path, folder) for path in (folder / STAGING).rglob("*")]
    done = sum(".safetensors" in name for name in names)
    perhaps = "" if isinstance(folder, Path) else " or is still at it"  # a store has no locks
    return (
        f"{output} holds the leftovers of a run that did not end{perhaps} ({done} shards are "
        "finished): --resume continues it, --force starts over"
    )
