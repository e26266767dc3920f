"""What one output file is made of, without the rest of the checkpoint: small enough to be sent.

A worker on another machine gets this and no plan: all units together are the plan, once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prune_cli.checkpoint import Checkpoint, Shard
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.errors import InputError
from prune_cli.write.in_kind import InKindFile
from prune_cli.write.layout import OutputFile, SafetensorsFile
from prune_cli.write.segments import OutputTensor


@dataclass(frozen=True)
class Narrowed:
    """A file and the shards that it is made of; nothing in it is open, and paths are absolute."""

    file: OutputFile
    checkpoint: Checkpoint


def narrow(file: OutputFile, checkpoint: Checkpoint) -> Narrowed:
    """Return `file` with no more of `checkpoint` than it is made of."""
    if isinstance(file, InKindFile):
        alone = replace(file, source=bare(file.source))
        return Narrowed(alone, Checkpoint(checkpoint.path.absolute(), checkpoint.format, ()))
    if not isinstance(file, SafetensorsFile):
        raise TypeError(f"{type(file).__name__} is no file of a folder")
    content, part = narrow_tensors(file.content, checkpoint)
    return Narrowed(replace(file, content=content), part)


def narrow_tensors(
    tensors: Sequence[OutputTensor], checkpoint: Checkpoint
) -> tuple[tuple[OutputTensor, ...], Checkpoint]:
    """Return `tensors`, and of `checkpoint` the shards that they are made of, numbered anew."""
    used = sorted({info.shard for one in tensors for info in (one.source, one.mask) if info})
    number = {old: new for new, old in enumerate(used)}

    def moved(info: TensorInfo | None) -> TensorInfo | None:
        return info and info._replace(shard=number[info.shard])

    shards = tuple(bare(checkpoint.shards[old]) for old in used)
    content = tuple(replace(one, source=moved(one.source), mask=moved(one.mask)) for one in tensors)
    return content, Checkpoint(checkpoint.path.absolute(), checkpoint.format, shards)


def refuse_unreachable(files: Iterable[Shard]) -> None:
    """Refuse an input that only this process can read.

    Raises:
        InputError: it came through a pipe, or was unpacked from text.
    """
    here = [file.name for file in files if file.owner is not None]
    if here:
        raise InputError(
            f"{', '.join(here[:3])} came through a pipe or is packed as text, which only this "
            "process has unpacked; leave out --scheduler, or save it as a file first"
        )


def bare(shard: Shard) -> Shard:
    """Return the file alone: not its tensors, and not the memory it is mapped to."""
    parts = tuple(bare(part) for part in shard.parts)
    return Shard(shard.name, shard.path.absolute(), shard.nbytes, (), parts=parts)
