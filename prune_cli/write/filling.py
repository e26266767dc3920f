"""Fills the staging folder with shards: threads of this process write them, or workers elsewhere.

See also: `folder`, what comes before and after; `shards`, one of them.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prune_cli.checkpoint import Checkpoint
from prune_cli.cluster.engine import Call, Engine, run_units, threads
from prune_cli.cluster.runs import RunMark, marked
from prune_cli.errors import OutputError
from prune_cli.write.layout import OutputFile
from prune_cli.write.narrow import narrow, refuse_unreachable
from prune_cli.write.progress import tell_all
from prune_cli.write.shards import ShardUnit, WriteShard, is_whole, write_unit, write_whole

if TYPE_CHECKING:
    from prune_cli.write.target import Execution

_MOST_NAMED = 5


@dataclass(frozen=True)
class Crew:
    """Who writes shards.

    Attributes:
        write: writes the bytes of one in this process.
        execution: says how many threads do it, or which engine does.
    """

    write: WriteShard
    execution: "Execution"


@dataclass(frozen=True)
class Place:
    """Where shards are put, once they are whole.

    Attributes:
        files: the folder.
        mark: the file that says which run is on.
        fsync: whether to wait for the disk.
    """

    files: Path
    mark: Path
    fsync: bool


def fill(shards: Sequence[OutputFile], place: Place, crew: Crew, checkpoint: Checkpoint) -> None:
    """Write `shards`, which are made of `checkpoint`, where they are not yet.

    Raises:
        InputError: the checkpoint cannot be read.
        OutputError: the folder cannot be written, or is another one where the workers are.
    """
    for folder in _folders(shards, place.files):
        folder.mkdir(parents=True, exist_ok=True)
    if crew.execution.engine:
        _fill_elsewhere(shards, place, crew.execution, crew.execution.engine, checkpoint)
    else:
        _fill_here(shards, place, crew)


def missing(shards: Iterable[OutputFile], files: Path) -> list[OutputFile]:
    """Return those of `shards` that are not whole in the folder `files`."""
    return [shard for shard in shards if not is_whole(files / shard.name, shard)]


def refresh(shards: Iterable[OutputFile], files: Path) -> None:
    """Look into the folders anew: a file system in the network may still know them as empty."""
    for folder in _folders(shards, files):
        if folder.is_dir():
            for _ in folder.iterdir():
                pass


def _folders(shards: Iterable[OutputFile], files: Path) -> Iterable[Path]:
    return dict.fromkeys((files / shard.name).parent for shard in shards)


def _fill_here(shards: Sequence[OutputFile], place: Place, crew: Crew) -> None:
    stopped = threading.Event()

    def unit(shard: OutputFile) -> None:
        write_whole(shard, place.files / shard.name, crew.write, stopped, fsync=place.fsync)

    with threads(min(crew.execution.threads, max(len(shards), 1))) as engine:
        run_units((Call(unit, (shard,)) for shard in shards), engine, stop=stopped.set)


def _fill_elsewhere(
    shards: Sequence[OutputFile],
    place: Place,
    execution: "Execution",
    engine: Engine,
    checkpoint: Checkpoint,
) -> None:
    refuse_unreachable(checkpoint.files)

    def on_end(number: int) -> None:
        if execution.on_tensor:
            tell_all(shards[number].segments, execution.on_tensor)

    with marked(place.mark) as mark:
        units = _units(shards, place, execution, checkpoint, mark)
        run_units(units, engine, on_end)
    refresh(shards, place.files)
    unseen = missing(shards, place.files)
    if unseen:
        names = ", ".join(shard.name for shard in unseen[:_MOST_NAMED])
        raise OutputError(
            f"workers wrote {len(unseen)} shards that are not in {place.files}: {names}; is it the "
            "same folder for every worker?"
        )


def _units(
    shards: Iterable[OutputFile],
    place: Place,
    execution: "Execution",
    checkpoint: Checkpoint,
    mark: RunMark,
) -> Iterator[Call]:
    for number, shard in enumerate(shards):
        made = narrow(shard, checkpoint)
        path = (place.files / shard.name).absolute()
        unit = ShardUnit(
            number, path, made, mark, execution.device, execution.workers or 1, place.fsync
        )
        yield Call(write_unit, (unit,))
