"""The output and its report: its files, tensors, and the zeros in them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from prune_cli.channels import live_channels
from prune_cli.checkpoint import Checkpoint, Part
from prune_cli.checkpoint.tensors import DTYPES, MASK_SUFFIX, ORIG_SUFFIX, TensorInfo
from prune_cli.plan.facts import (
    REMOVED,
    PlanItem,
)
from prune_cli.plan.prunable import why_not_zero
from prune_cli.report.report import Output, Report
from prune_cli.verify.differences import NOWHERE, Offsets, first_bits
from prune_cli.verify.facts import MAX_CHANNELS_LISTED, NOT_THE_SOURCE, NOT_ZERO, Disagreement
from prune_cli.verify.rows import has_its_dim, suffixes, tensors_of
from prune_cli.verify.shrink import output_problems
from prune_cli.write.in_kind import file_name, own_files
from prune_cli.write.segments import OutputTensor


def check_output(report: Report, told: Output, written: Checkpoint) -> Iterator[Disagreement]:
    """That the output has the files, tensors, dtypes, shapes and aliases that the report says."""
    files = own_files(written)
    there = sum(file.nbytes for file in files)
    if told.format != written.format:
        yield Disagreement(f"the report says {told.format}, the output is {written.format}")
    if told.tensors != len(written.tensors):
        yield Disagreement(
            f"the report says {told.tensors:,} tensors, there are {len(written.tensors):,}"
        )
    if told.bytes != there:
        yield Disagreement(f"the report says {told.bytes:,} bytes, there are {there:,}")
    # A file may have another name by now, the files of a folder may not: its index names them.
    is_folder = written.is_folder or written.format == "dcp"
    names = {file_name(written, file) for file in files} if is_folder else {told.path}
    if names != set(told.files):
        yield Disagreement("the files are not those that the report names")
    for item in report.tensors:
        yield from _tensor_problems(report, item, written)
    if report.shrink is not None:
        for name, fact in output_problems(report.shrink, written):
            yield Disagreement(fact, name)
    for skip in report.skipped:
        if not {skip.name, skip.name + ORIG_SUFFIX} & written.tensors.keys():
            yield Disagreement("it is missing; the report says that it was skipped", skip.name)
    for part in written.all_parts:
        if part.index and written.format == "safetensors":  # that of torch is the source's
            yield from _index_problems(written, part, part.index.name)


def _tensor_problems(report: Report, item: PlanItem, written: Checkpoint) -> Iterator[Disagreement]:
    encoding = written.encodings.get(item.name)
    if item.pruned and encoding and not encoding.holds_zero:
        yield Disagreement(f"it {why_not_zero(item.name, encoding)}", item.name)
    for suffix in suffixes(report):
        if item.name + suffix not in written.tensors:
            yield Disagreement("it is missing", item.name + suffix)
    for info in tensors_of(report, item, written):
        if info.dtype != item.dtype and info.name != item.name + MASK_SUFFIX:
            yield Disagreement(f"its dtype is {info.dtype}, it should be {item.dtype}", info.name)
        if info.shape != item.shape:
            yield wrong_shape(info, item.shape)
        for alias in item.aliases:
            name = alias + info.name.removeprefix(item.name)
            if written.aliases.get(name) != info.name:
                yield Disagreement(f"its alias {name} is missing", info.name)


def wrong_shape(info: TensorInfo, expected: Iterable[int]) -> Disagreement:
    """Return that a tensor has another shape than it should."""
    return Disagreement(
        f"its shape is {list(info.shape)}, it should be {list(expected)}", info.name
    )


def _index_problems(written: Checkpoint, part: Part, name: str) -> Iterator[Disagreement]:
    """Check that the index names each tensor's file, no other tensor, and the right size."""
    index = json.loads((written.path / part.folder / name).read_text(encoding="utf-8"))
    told, total = index["weight_map"], 0
    for shard in (shard for shard in written.shards if shard.folder == part.folder):
        total += sum(info.nbytes for info in shard.tensors)
        file = shard.name.removeprefix(part.folder)
        for info in shard.tensors:
            if told.pop(info.name.removeprefix(part.prefix), None) != file:
                yield Disagreement(f"{name} does not say that it is in {file}", info.name)
    for tensor in told:
        yield Disagreement(f"{name} names it, but it is not stored", part.prefix + tensor)
    if (index.get("metadata") or {}).get("total_size") != total:
        yield Disagreement(f"the total_size in {name} is not {total}")


def check_channels(
    items: Iterable[PlanItem], report: Report, written: Checkpoint
) -> Iterator[Disagreement]:
    """Check that every pruned channel is +0 bit for bit, and what was zero before is still zero."""
    suffix = "" if report.options.bake else MASK_SUFFIX
    for item in items:
        info = written.tensors.get(item.name + suffix)
        if info is None or not _can_be_read(info, item):
            continue
        # A -0 that was there before stays; but masks and what they bake to are all ours.
        is_ours = bool(suffix) or report.method == REMOVED
        strict = (*item.pruned, *item.already_pruned) if is_ours else item.pruned
        yield from list_channels(
            info.name, _first_bits(written, info, item, strict), lambda _: NOT_ZERO
        )
        if item.already_pruned and not is_ours:
            first = np.full(item.channels, NOWHERE)
            live = live_channels(written.bits(info), item.dim, info.dtype)
            first[sorted({*live} & {*item.already_pruned})] = -1
            yield from list_channels(
                info.name, first, lambda _: "the report says it was pruned before"
            )


def _first_bits(
    written: Checkpoint, info: TensorInfo, item: PlanItem, channels: Sequence[int]
) -> Offsets:
    """Return where each of `channels` is not +0; without offsets where the elements are spread."""
    if info.is_plain:
        return first_bits(written, info, item.dim, channels)
    first, bits = np.full(item.channels, NOWHERE), np.moveaxis(written.bits(info), item.dim, 0)
    first[[channel for channel in channels if bits[channel].any()]] = -1
    return first


def _can_be_read(info: TensorInfo, item: PlanItem) -> bool:
    """Return whether the row is about a tensor like this one, and its channels are there."""
    return (
        info.shape == item.shape
        and DTYPES[info.dtype].bits >= 8
        and DTYPES[info.dtype].holds_zero
        and has_its_dim(item)
        and has_its_channels(item)
    )


def has_its_channels(item: PlanItem) -> bool:
    """Return whether every channel of a row is there."""
    return all(0 <= channel < item.channels for channel in (*item.already_pruned, *item.pruned))


def list_channels(
    name: str, first: Offsets, describe: Callable[[int], str]
) -> Iterator[Disagreement]:
    """Yield a Disagreement for each channel of the tensor `name` that has an offset in `first`."""
    channels = np.flatnonzero(first != NOWHERE)
    if len(channels) > MAX_CHANNELS_LISTED:
        yield Disagreement(
            f"{len(channels):,} of its channels are wrong; the first {MAX_CHANNELS_LISTED:,} follow",
            name,
        )
    for channel in channels[:MAX_CHANNELS_LISTED].tolist():
        offset = int(first[channel])
        yield Disagreement(describe(channel), name, channel, offset if offset >= 0 else None)


def list_differences(tensor: OutputTensor, first: Offsets) -> Iterator[Disagreement]:
    """Yield what is wrong with a tensor, by channels where it loses some."""
    name, zero = tensor.info.name, set(tensor.zero)
    if not zero:
        yield Disagreement(NOT_THE_SOURCE, name, None, int(first[0]))
        return
    yield from list_channels(name, first, lambda c: NOT_ZERO if c in zero else NOT_THE_SOURCE)
