"""Holds a pruned checkpoint against its report, and against its source if that is there.

Three questions, each asked in its own way: does the report follow from itself and its seed; are
the pruned channels +0 bit for bit; and is every byte the one that pruning the source again gives,
which is found by letting the same stream run into a sink that compares instead of writing.
"""

import json
import math
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from prune_cli.checkpoint import Checkpoint, Loading, Shard, open_checkpoint
from prune_cli.errors import InputError, RequestError
from prune_cli.outputs import OutputFile, OutputTensor, encode_index, lay_out_like
from prune_cli.plan import METHOD, PlanItem, channels_to_prune, derive_seed, make_plan
from prune_cli.pruning import live_channels
from prune_cli.report import Report, read_report, report_path, sum_up
from prune_cli.selection import split_name
from prune_cli.stream import OnTensor, write_tensors
from prune_cli.tensors import MASK_SUFFIX, ORIG_SUFFIX, TensorInfo
from prune_cli.writer import read_exactly, read_pieces

_BLOCK_ELEMENTS = 1 << 22
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Something that is not as it should be.

    Attributes:
        fact: what is wrong.
        tensor: the tensor of the output that it is about, if it is about one.
        channel: the channel of it, along the dim that was pruned.
        offset: the first such byte, counted from the start of the tensor's file.
    """

    fact: str
    tensor: str | None = None
    channel: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and every disagreement that was found.

    Attributes:
        tensors: how many tensors the output has.
        nbytes: how many bytes of tensors it has.
        with_source: whether every byte was compared, or only what the report says.
        disagreements: sorted by tensor and channel; empty if all is well.
    """

    tensors: int
    nbytes: int
    with_source: bool
    disagreements: tuple[Disagreement, ...]

    @property
    def is_verified(self) -> bool:
        """Whether there is no disagreement."""
        return not self.disagreements


def verify_checkpoint(
    output: str | Path,
    *,
    report: str | Path | None = None,
    source: str | Path | None = None,
    loading: Loading | None = None,
    workers: int = 1,
    on_tensor: OnTensor | None = None,
) -> Verification:
    """Holds the checkpoint `output` against its report and, if given, its source.

    Args:
        output: what prune-cli wrote: a file or a folder.
        report: its report; by default where prune-cli puts it.
        source: the checkpoint that was pruned; without it, only what the report names is checked.
        loading: how the source may be loaded.
        workers: threads.
        on_tensor: progress.

    Raises:
        InputError: one of them cannot be read, or the report is one of a dry run.

    Example:
        >>> verify_checkpoint("model.pruned.safetensors", source="model.pt").is_verified
        True
    """
    written = open_checkpoint(output)
    told = read_report(_find_report(written, report))
    if told.output is None:
        raise InputError("the report is of a dry run, so there is no output to verify")
    found = list(_check_report(told))
    found += _check_facts(told, written)
    found += _check_channels(told, written)
    if source is not None:
        original = open_checkpoint(source, loading)
        found += _check_decisions(told, original)
        found += _check_bytes(told, written, original, workers, on_tensor)
    return Verification(
        tensors=len(written.tensors),
        nbytes=sum(info.nbytes for info in written.tensors.values()),
        with_source=source is not None,
        disagreements=_in_order(found),
    )


def to_json(verification: Verification) -> str:
    """The verification as JSON, ending in a newline."""
    facts = {"verified": verification.is_verified, **asdict(verification)}
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _find_report(written: Checkpoint, report: str | Path | None) -> Path:
    return Path(report) if report else report_path(written.path, is_folder=written.is_folder)


def _in_order(found: Iterable[Disagreement]) -> tuple[Disagreement, ...]:
    """Sorted, and one for each channel: the first check that saw it names it."""
    distinct: dict[tuple[object, ...], Disagreement] = {}
    for problem in found:
        key = (problem.tensor, problem.channel if problem.channel is not None else problem.fact)
        distinct.setdefault(key, problem)
    return tuple(
        sorted(distinct.values(), key=lambda d: (d.tensor or "", d.channel or 0, d.offset or 0))
    )


# --- the report by itself --------------------------------------------------------------------


def _check_report(report: Report) -> Iterator[Disagreement]:
    """That the rows follow from the seed, and the totals from the rows."""
    rows = {item.name: item for item in report.tensors}
    for item in report.tensors:
        for fact in _row_problems(report, item, rows):
            yield Disagreement(fact, item.name)
    if report.totals != sum_up(report.tensors):
        yield Disagreement("the totals of the report are not the sums of its rows")


def _row_problems(report: Report, item: PlanItem, rows: Mapping[str, PlanItem]) -> Iterator[str]:
    if (item.module, item.param) != split_name(item.name):
        yield "the report's module and param are not the parts of its name"
    if not 0 <= item.dim < len(item.shape) or item.shape[item.dim] != item.channels:
        yield "the report's shape, dim and channels do not fit each other"
        return
    channels = (*item.already_pruned, *item.pruned)
    if len(set(channels)) != len(channels) or not all(0 <= c < item.channels for c in channels):
        yield "the report names a channel twice, or one that is not there"
        return
    if item.follows is not None:
        leader = rows.get(item.follows)
        if leader is None or leader.pruned != item.pruned or leader.seed != item.seed:
            yield f"the report's channels are not those of {item.follows}, which it follows"
    elif report.method == METHOD:
        yield from _draw_problems(report, item)


def _draw_problems(report: Report, item: PlanItem) -> Iterator[str]:
    if item.seed != derive_seed(report.options.seed, item.name):
        yield f"its seed in the report does not follow from the seed {report.options.seed}"
        return
    try:
        drawn = channels_to_prune(item)
    except RequestError as error:
        yield f"its amount in the report is impossible: {error}"
        return
    if drawn != item.pruned:
        yield "the pruned channels of the report are not those that its seed draws"


# --- the report and the output ---------------------------------------------------------------


def _check_facts(report: Report, written: Checkpoint) -> Iterator[Disagreement]:
    """That the output has the tensors, dtypes, shapes, aliases and sizes that the report says."""
    told = report.output
    if told is None:
        return
    if told.tensors != len(written.tensors):
        yield Disagreement(
            f"the report says {told.tensors} tensors, there are {len(written.tensors)}"
        )
    if told.bytes != written.nbytes:
        yield Disagreement(f"the report says {told.bytes:,} bytes, there are {written.nbytes:,}")
    if written.is_folder and set(told.files) != {shard.name for shard in written.shards}:
        yield Disagreement("the files are not those that the report names")
    for item in report.tensors:
        for name in _names(report, item):
            yield from _tensor_problems(name, item, written)


def _names(report: Report, item: PlanItem) -> Iterable[str]:
    if report.options.bake:
        return (item.name,)
    return (item.name + ORIG_SUFFIX, item.name + MASK_SUFFIX)


def _tensor_problems(name: str, item: PlanItem, written: Checkpoint) -> Iterator[Disagreement]:
    info = written.tensors.get(name)
    if info is None:
        yield Disagreement("it is missing", name)
        return
    if info.dtype != item.dtype and not name.endswith(MASK_SUFFIX):
        yield Disagreement(f"it is {info.dtype}, the report says {item.dtype}", name)
    if info.shape != item.shape:
        yield Disagreement(
            f"its shape is {list(info.shape)}, the report says {list(item.shape)}", name
        )
    suffix = name.removeprefix(item.name)
    for alias in item.aliases:
        if written.aliases.get(alias + suffix) != name:
            yield Disagreement(f"its alias {alias + suffix} is missing", name)


def _check_channels(report: Report, written: Checkpoint) -> Iterator[Disagreement]:
    """That every pruned channel is +0 bit for bit, and what was zero before is still zero."""
    for item in report.tensors:
        name = item.name if report.options.bake else item.name + MASK_SUFFIX
        info = written.tensors.get(name)
        if info is None or info.shape != item.shape or not _row_fits(item):
            continue
        for channel, offset in _channels_with_bits(written, info, item):
            yield Disagreement("a pruned channel is not +0", name, channel, offset)
        if item.already_pruned:
            live = set(live_channels(written.tensor(info), item.dim).tolist())
            for channel in item.already_pruned:
                if channel in live:
                    yield Disagreement("the report says it was pruned before", name, channel)


def _row_fits(item: PlanItem) -> bool:
    return (
        0 <= item.dim < len(item.shape)
        and item.shape[item.dim] == item.channels
        and all(0 <= channel < item.channels for channel in item.pruned)
    )


def _channels_with_bits(
    written: Checkpoint, info: TensorInfo, item: PlanItem
) -> Iterator[tuple[int, int]]:
    """The pruned channels that have a bit set -> the first such element's byte in the file."""
    tensor = written.tensor(info)
    channels = torch.tensor(item.pruned, dtype=torch.int64)
    outer, inner = math.prod(info.shape[: item.dim]), math.prod(info.shape[item.dim + 1 :])
    bits = tensor.view(_INTEGERS[tensor.itemsize]).view(outer, item.channels, inner)
    at_once = max(_BLOCK_ELEMENTS // max(inner, 1), 1)
    rows_at_once = max(_BLOCK_ELEMENTS // max(inner * len(channels), 1), 1)
    for first in range(0, len(channels), at_once):
        some = channels[first : first + at_once]
        for row in range(0, outer, rows_at_once):
            block = bits[row : row + rows_at_once].index_select(1, some) != 0
            of_channel = block.transpose(0, 1).reshape(len(some), -1) if block.any() else block[:0]
            for place in of_channel.any(dim=1).nonzero().flatten().tolist():
                r, i = divmod(int(of_channel[place].to(torch.uint8).argmax()), inner)
                element = ((row + r) * item.channels + int(some[place])) * inner + i
                yield int(some[place]), (info.offset or 0) + element * tensor.itemsize


# --- the report and the source ---------------------------------------------------------------


def _check_decisions(report: Report, original: Checkpoint) -> Iterator[Disagreement]:
    """That planning the source again gives this report."""
    if (report.input.tensors, report.input.bytes) != (len(original.tensors), original.nbytes):
        yield Disagreement("the source is not the input of the report: its size is another")
    if report.dropped != original.dropped:
        yield Disagreement("the report does not name what of the source was dropped")
    if report.method != METHOD:
        return
    try:
        plan = make_plan(original, report.options)
    except RequestError as error:
        yield Disagreement(f"the options of the report do not fit the source: {error}")
        return
    rows = {item.name: item for item in report.tensors}
    planned = {item.name: item for item in plan.items}
    for name in sorted(rows.keys() | planned.keys()):
        if name not in rows or name not in planned:
            where = "its options do not" if name in rows else "the report does not name it"
            yield Disagreement(f"the report and its options do not prune the same: {where}", name)
        elif rows[name] != planned[name]:
            keys = [f.name for f in fields(PlanItem) if _differ(rows[name], planned[name], f.name)]
            yield Disagreement(f"the report's {', '.join(keys)} are not what its seed gives", name)
    if plan.skipped != report.skipped:
        yield Disagreement("the report does not name what was skipped")


def _differ(one: PlanItem, other: PlanItem, key: str) -> bool:
    return bool(getattr(one, key) != getattr(other, key))


# --- the output and the source ---------------------------------------------------------------


def _check_bytes(
    report: Report,
    written: Checkpoint,
    original: Checkpoint,
    workers: int,
    on_tensor: OnTensor | None,
) -> Iterator[Disagreement]:
    """That the output is, byte for byte, what the rows of the report make of the source."""
    usable = tuple(item for item in report.tensors if _row_fits(item) and _fits(item, original))
    plan = replace(report.plan, items=usable)
    files = lay_out_like(original, plan, written.shards)
    for file, shard in zip(files, written.shards, strict=True):
        yield from _header_problems(file, shard)
        yield from _compare(file, shard, original, workers, on_tensor)
    if written.index:
        index = (written.path / written.index.name).read_bytes()
        if index != encode_index(original, files):
            yield Disagreement(f"{written.index.name} is not the index of these files")


def _fits(item: PlanItem, original: Checkpoint) -> bool:
    parameter = original.parameter_of.get(item.name)
    return parameter is not None and parameter.tensor.shape == item.shape


def _header_problems(file: OutputFile, shard: Shard) -> Iterator[Disagreement]:
    expected = {tensor.info.name: tensor.info for tensor in file.tensors}
    there = {info.name: info for info in shard.tensors}
    for name in sorted(expected.keys() - there.keys()):
        yield Disagreement(f"it is missing from {shard.name}", name)
    for name in sorted(there.keys() - expected.keys()):
        yield Disagreement(f"it should not be in {shard.name}", name)
    for name in expected.keys() & there.keys():
        for what in ("dtype", "shape"):
            is_, should = getattr(there[name], what), getattr(expected[name], what)
            if is_ != should:
                yield Disagreement(f"its {what} is {is_}, it should be {should}", name)
    for key in sorted(file.metadata.keys() | shard.metadata.keys()):
        if file.metadata.get(key) != shard.metadata.get(key):
            yield Disagreement(f"the metadata {key!r} of {shard.name} is not the source's")


def _compare(
    file: OutputFile,
    shard: Shard,
    original: Checkpoint,
    workers: int,
    on_tensor: OnTensor | None,
) -> Iterator[Disagreement]:
    there = {info.name: info for info in shard.tensors}
    places = [
        (tensor, there[tensor.info.name].offset or 0)
        for tensor in file.tensors
        if _is_alike(tensor.info, there.get(tensor.info.name))
    ]
    with shard.path.open("rb") as stream:
        sink = _ComparingSink(stream.fileno(), places)
        write_tensors(
            places,
            original,
            sink,
            device=torch.device("cpu"),
            workers=workers,
            on_tensor=on_tensor,
        )
    for (name, channel), offset in sorted(sink.differences.items(), key=lambda item: item[1]):
        yield Disagreement("its bytes are not the source's", name, channel, offset)


def _is_alike(expected: TensorInfo, there: TensorInfo | None) -> bool:
    return there is not None and (there.dtype, there.shape) == (expected.dtype, expected.shape)


class _ComparingSink:
    """A Sink that holds what it is given against a file, and notes where they differ."""

    seekable = True
    is_sparse = False

    def __init__(self, descriptor: int, places: Iterable[tuple[OutputTensor, int]]) -> None:
        self._descriptor = descriptor
        self._places = sorted(places, key=lambda place: place[1])
        self._starts = [start for _, start in self._places]
        self._lock = threading.Lock()
        self.differences: dict[tuple[str, int | None], int] = {}
        """(tensor, channel) -> the first byte in the file that differs."""

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Compares `data` with what is at byte `at`."""
        actual = bytearray(len(data))
        read_exactly(self._descriptor, memoryview(actual), at)
        if actual != memoryview(data):
            self._note(actual, bytearray(data), at)

    def copy(self, source: int, start: int, nbytes: int, at: int) -> None:
        """Compares `nbytes` of `source` with what is at byte `at`."""
        for piece in read_pieces(source, start, nbytes):
            self.write(piece, at)
            at += len(piece)

    def _note(self, actual: bytearray, expected: bytearray, at: int) -> None:
        """Notes the channels in which the two differ; a piece lies within one tensor."""
        tensor, start = self._places[bisect_right(self._starts, at) - 1]
        is_, should = (torch.frombuffer(b, dtype=torch.uint8) for b in (actual, expected))
        offsets = at + (is_ != should).nonzero().flatten()
        channels = _channels_at(tensor, offsets - start)
        with self._lock:
            for channel in sorted(set(channels.tolist())):
                first = int(offsets[channels == channel].min())
                key = (tensor.info.name, channel if channel >= 0 else None)
                self.differences[key] = min(first, self.differences.get(key, first))


def _channels_at(tensor: OutputTensor, offsets: torch.Tensor) -> torch.Tensor:
    """The channel that each byte of `tensor` is in; -1 where none is pruned."""
    info = tensor.info
    if not tensor.zero or not info.shape:
        return torch.full_like(offsets, -1)
    channel_bytes = math.prod(info.shape[tensor.dim + 1 :]) * info.nbytes // info.elements
    return offsets // channel_bytes % info.shape[tensor.dim]
