"""One output shard: written whole, here or by a worker elsewhere.

See also: `folder`, what becomes of all of them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prune_cli.cluster.engine import StoppedError
from prune_cli.cluster.runs import RunEnded, RunMark
from prune_cli.errors import OutputError
from prune_cli.stores import Location
from prune_cli.write.atomic import pending
from prune_cli.write.layout import OutputFile
from prune_cli.write.narrow import Narrowed
from prune_cli.write.sinks import Sink
from prune_cli.write.stream import write_output
from prune_cli.write.zeroing import find_zero_channels

WriteShard = Callable[[OutputFile, Sink, threading.Event], None]
"""Writes all the bytes of a shard to a sink, unless the event is set before."""


@dataclass(frozen=True)
class ShardUnit:
    """All that a worker needs to know of one shard; it can be pickled.

    Attributes:
        number: of the shard, for whoever waits for it.
        path: where the shard goes; its folder is there.
        made: what it is made of.
        mark: of the run.
        device: where channels are zeroed.
        threads: that write it.
        fsync: whether to wait for the disk.
    """

    number: int
    path: Path
    made: Narrowed
    mark: RunMark
    device: str = "cpu"
    threads: int = 1
    fsync: bool = False


def write_unit(unit: ShardUnit) -> int:
    """Write a shard unless it is there, and return its number.

    Raises:
        InputError: what it is made of cannot be read.
        OutputError: it cannot be written.
        StoppedError: the run is over.
    """
    file = unit.made.file
    if is_whole(unit.path, file):
        return unit.number
    zero = find_zero_channels(unit.device)
    ended = RunEnded(unit.mark)

    def write(file: OutputFile, sink: Sink, stopped: threading.Event) -> None:
        checkpoint = unit.made.checkpoint
        write_output(file, checkpoint, sink, zero=zero, workers=unit.threads, stopped=stopped)

    try:
        write_whole(file, unit.path, write, ended, fsync=unit.fsync)
    except OutputError as error:
        if not unit.mark.is_there:  # and so the folder is gone, too
            raise StoppedError from error
        raise
    return unit.number


def write_whole(
    file: OutputFile,
    path: Path,
    write: WriteShard,
    stopped: threading.Event,
    *,
    fsync: bool = False,
) -> None:
    """Have `write` make the whole of `file` at `path`, or leave nothing there."""
    with pending(path, fsync=fsync) as output:
        output.set_size(file.nbytes)
        write(file, output.sink, stopped)
        output.commit()


def is_whole(path: Location, shard: OutputFile) -> bool:
    """Return whether the file is as long as `shard` and has its first bytes."""
    if not path.is_file() or path.stat().st_size != shard.nbytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.head)) == shard.head
