"""Find output files that are input files, byte for byte: such a file needs no stream, only a copy."""

from collections.abc import Sequence

from prune_cli.checkpoint import Checkpoint
from prune_cli.stores import Location
from prune_cli.write.layout import OutputFile
from prune_cli.write.segments import New, Place, Segment, Verbatim


def find_original(file: OutputFile, checkpoint: Checkpoint) -> Location | None:
    """Return the input file whose bytes `file` has; None if it is made of anything else.

    Raises:
        InputError: the input cannot be read.
    """
    parts = [one for one in file.segments if one.nbytes]
    paths = {_path_of(one, checkpoint) for one in parts if not isinstance(one, New)}
    path = paths.pop() if len(paths) == 1 else None
    if path is None or path.stat().st_size != file.nbytes or _has_to_be_read(parts, checkpoint):
        return None
    new = [one for one in parts if isinstance(one, New)]
    return path if all(_has(path, one) for one in new) else None


def _path_of(segment: Segment, checkpoint: Checkpoint) -> Location | None:
    """Return the file that has a segment's bytes at the same place; None if there is none."""
    match segment:
        case Verbatim(at, _, file, start) if at == start:
            return file
        case Place(at, tensor) if tensor.is_contiguous_source and not tensor.zero:
            source = tensor.source
            if source and source.offset == at:
                return checkpoint.shards[source.shard].path
    return None


def _has_to_be_read(segments: Sequence[Segment], checkpoint: Checkpoint) -> bool:
    """Return whether rows of it were taken as live that nobody has looked at."""
    places = (one.tensor.source for one in segments if isinstance(one, Place))
    return checkpoint.liveness.watch(filter(None, places)) is not None


def _has(path: Location, new: New) -> bool:
    with path.open("rb") as file:
        file.seek(new.at)
        return file.read(new.nbytes) == new.content
