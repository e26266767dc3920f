"""What a command is given, opened: a checkpoint, with a word on which files were taken."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from prune_cli.cli import groups, signals
from prune_cli.errors import InputError
from prune_cli.stores import Location

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint


def open_input(path: Location, loading: groups.Loading, messages: groups.Messages) -> "Checkpoint":
    """Return the checkpoint at `path`; of a folder, say which files were taken.

    Raises:
        InputError: it cannot be read, is no checkpoint, or is refused.
    """
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.show.progress import progress

    _refuse_report(path)
    began = time.perf_counter()
    with signals.Orderly(), progress(0, quiet=messages.quiet, before="reading"):
        checkpoint = open_checkpoint(path, loading.chosen())
    if messages.verbose:
        messages.tell(f"read {_describe(checkpoint)}", since=began)
    elif path.is_dir() and not messages.quiet:
        messages.tell(f"read {_name_files(checkpoint)}")
    return checkpoint


def _refuse_report(path: Location) -> None:
    if path.suffix == ".json" and path.is_file():
        with path.open("rb") as file:
            is_report = b'"tool": {"name": "prune-cli"' in file.read(200)
        if is_report:
            raise InputError(f"{path} is a report, not a checkpoint: prune-cli report {path}")


def _describe(checkpoint: "Checkpoint") -> str:
    from prune_cli.report.numbers import format_bytes, format_count

    tensors = format_count(len(checkpoint.tensors), "tensor")
    size = format_bytes(checkpoint.nbytes)
    return f"{_name_files(checkpoint)}: {checkpoint.format}, {tensors}, {size}"


def _name_files(checkpoint: "Checkpoint") -> str:
    if len(checkpoint.shards) == 1:
        return str(checkpoint.shards[0].path)
    return f"{len(checkpoint.shards):,} shards in {checkpoint.path}"


# --- arguments in the other order ------------------------------------------------------------


def put_pruned_first(
    pruned: Location, other: Location, messages: groups.Messages, order: str
) -> tuple[Location, Location]:
    """Return both paths, first the one that has a report: it is one, or one is with it.

    Args:
        pruned: what should be first.
        other: what should be second.
        messages: says so where they were the other way round.
        order: what it says then.
    """
    if _has_report(pruned) or not _has_report(other):
        return pruned, other
    messages.tell(f"{order}; taken the other way round")
    return other, pruned


def _has_report(path: Location) -> bool:
    from prune_cli.report.finding import find_report

    is_stream = path.exists() and not (path.is_file() or path.is_dir())
    if is_stream or path == Path("-"):
        return True
    try:
        return find_report(path).is_file()
    except InputError:
        return False
