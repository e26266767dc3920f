"""Outputs of the input's own format: its files, byte for byte, but for the zeros in them.

So whatever else a file of torch holds (an optimizer, an epoch, hyper-parameters) is still in it,
and what could load the input loads the output. Checksums over what changed are made right.

See also: `layout`, outputs of safetensors.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from prune_cli.checkpoint import Checkpoint, Shard
from prune_cli.checkpoint.strided import channels_meet
from prune_cli.checkpoint.tensors import Summed, TensorInfo
from prune_cli.checkpoint.torch_file import find_checksums, find_neighbours
from prune_cli.errors import RequestError
from prune_cli.plan.facts import REMOVED, Plan, PlanItem
from prune_cli.write.segments import Checksum, Cut, Segment, Verbatim, Zeroed

_HEAD_BYTES = 4096


@dataclass(frozen=True)
class InKindFile:
    """A file of the input with zeros in it.

    Attributes:
        name: of the output file.
        source: the file of the input.
        cuts: what is zeroed in it.
        tensors: how many tensors the output holds.
        summed: where it holds archives of its own, the bytes around `cuts` that have a checksum.
    """

    name: str
    source: Shard
    cuts: tuple[Cut, ...]
    tensors: int
    summed: tuple[Summed, ...] = ()

    @property
    def nbytes(self) -> int:
        """Its size in bytes: that of the input."""
        return self.source.nbytes

    @property
    def head(self) -> bytes:
        """Its first bytes, which nothing is zeroed in if the file is of torch."""
        stop = min([_HEAD_BYTES, self.nbytes, *(cut.offset for cut in self.cuts)])
        return bytes(self.source.mapped[:stop]) if stop else b""

    @cached_property
    def segments(self) -> Sequence[Segment]:
        """The zeroed tensors, the checksums of what holds them, and all between as it is."""
        zeroed = list(_zeroed(self.source, self.cuts))
        changed = [(one.at, one.at + one.nbytes) for one in zeroed]
        summed = self.summed or find_checksums(self.source, changed)
        sums = [Checksum(place, one.start, one.stop) for one in summed for place in one.checksums]
        return list(_fill(self.source, sorted([*zeroed, *sums], key=attrgetter("at"))))


def lay_out_in_kind(
    checkpoint: Checkpoint, plan: Plan, name: str | None = None
) -> tuple[InKindFile, ...]:
    """Return the files that `plan` makes of `checkpoint`, in its own format.

    Args:
        checkpoint: the input, of torch.
        plan: what is zeroed.
        name: of the output, if that is one file; the files of a folder keep theirs.

    Raises:
        RequestError: the plan cannot be carried out without changing anything else; every
            reason is named.
    """
    problems = list(_problems(checkpoint, plan))
    if problems:
        raise RequestError("\n".join(problems))
    cuts = [cut for item in plan.items for cut in _cuts(checkpoint, item)]
    return tuple(
        InKindFile(
            name or file_name(checkpoint, file),
            file,
            tuple(one.cut for one in cuts if one.file is file),
            len(file.tensors),
            tuple(dict.fromkeys(one.summed for one in cuts if one.file is file and one.summed)),
        )
        for file in own_files(checkpoint)
    )


def own_files(checkpoint: Checkpoint) -> list[Shard]:
    """Return the files of the input, what names the others last.

    What its reader unpacked into files of its own is none of them.
    """
    own = [file for file in checkpoint.files if file.owner is None or file in checkpoint.shards]
    return own[::-1] if checkpoint.format == "dcp" else own


def file_name(checkpoint: Checkpoint, file: Shard) -> str:
    """Return the name of a file of the input; the shard of a DCP folder is its metadata."""
    return file.path.name if checkpoint.format == "dcp" and file.parts else file.name


# --- what is refused -------------------------------------------------------------------------


def _problems(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    if plan.method == REMOVED or not plan.options.bake:
        yield "masks change the names of tensors, which only safetensors can take: -o x.safetensors"
        return
    if plan.shrink:
        yield "a smaller model is written as safetensors: -o x.safetensors"
        return
    names = {item.name for item in plan.items}
    for item in plan.items:
        parameter = checkpoint.parameter_of[item.name]
        if parameter.mask:
            yield f"{item.name} has a mask, which only safetensors can take: -o x.safetensors"
        yield from (f"{item.name} {why}" for why in _why_not(checkpoint, parameter.tensor, item))
    pruned = [checkpoint.parameter_of[name].tensor.name for name in sorted(names)]
    for name, neighbour in find_neighbours(checkpoint, pruned).items():
        yield (
            f"{name} shares memory with {neighbour}, which is not pruned and would change with it; "
            "save the two apart (.clone()), or write safetensors"
        )


def _why_not(checkpoint: Checkpoint, info: TensorInfo, item: PlanItem) -> Iterator[str]:
    """Yield why the channels cannot be zeroed where the tensor lies."""
    if info.flip:
        yield "is stored negated or conjugated, where 0 does not read as +0"
    if info.strides and info.strides[item.dim] == 0 and info.shape[item.dim] > 1:
        yield "has its channels expanded from one: they cannot be zeroed apart"
    elif any(channels_meet(one.shape, one.strides, item.dim) for one in info.pieces or (info,)):
        yield "has channels that share elements: they cannot be zeroed apart"
    parts = checkpoint.shards[info.shard].parts
    if any(parts[piece.part].owner is not None for piece in info.pieces):
        yield "is packed as text in its file, where nothing can be zeroed: write safetensors"


# --- what is zeroed --------------------------------------------------------------------------


class _CutIn(NamedTuple):
    """A cut, the file that it is in, and the bytes around it that have a checksum of their own."""

    file: Shard
    cut: Cut
    summed: Summed | None = None


def _cuts(checkpoint: Checkpoint, item: PlanItem) -> Iterator[_CutIn]:
    info = checkpoint.parameter_of[item.name].tensor
    shard = checkpoint.shards[info.shard]
    if not info.pieces:
        place = (item.name, info.dtype, info.offset or 0, info.shape, info.strides)
        yield _CutIn(shard, Cut(*place, item.dim, item.pruned))
    for piece in info.pieces:
        first, size = piece.start[item.dim], piece.shape[item.dim]
        channels = tuple(c - first for c in item.pruned if first <= c < first + size)
        place = (item.name, info.dtype, piece.offset, piece.shape, piece.strides)
        summed = piece.summed if channels else None
        yield _CutIn(shard.parts[piece.part], Cut(*place, item.dim, channels), summed)


def _zeroed(file: Shard, cuts: Iterable[Cut]) -> Iterator[Zeroed]:
    """Yield what changes in a file: tensors that lie among each other are taken together."""
    group: list[Cut] = []
    stop = 0
    for cut in sorted((cut for cut in cuts if cut.channels), key=attrgetter("offset")):
        if group and cut.offset >= stop:
            yield _together(file, group, stop)
            group = []
        group.append(cut)
        stop = max(stop, _stop(cut))
    if group:
        yield _together(file, group, stop)


def _together(file: Shard, cuts: Sequence[Cut], stop: int) -> Zeroed:
    start = cuts[0].offset
    return Zeroed(start, stop - start, file.path, start, tuple(cuts))


def _stop(cut: Cut) -> int:
    """Return the end of the last byte of a tensor."""
    info = TensorInfo(cut.name, cut.dtype, cut.shape, 0, cut.offset, cut.strides)
    if cut.strides is None:
        return cut.offset + info.nbytes
    itemsize = info.nbytes // info.elements
    last = sum((n - 1) * stride for n, stride in zip(cut.shape, cut.strides, strict=True))
    return cut.offset + (last + 1) * itemsize


def _fill(file: Shard, segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield `segments`, and between them the bytes of the file as they are."""
    begin, end = Checksum(0, 0, 0, 0), Checksum(file.nbytes, 0, 0, 0)
    for before, after in pairwise([begin, *segments, end]):
        at = before.at + before.nbytes
        if after.at > at:
            yield Verbatim(at, after.at - at, file.path, at)
        if after is not end:
            yield after
