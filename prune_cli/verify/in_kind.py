"""The output and the source: every byte of files of torch."""

from collections.abc import Iterator, Sequence

from prune_cli.checkpoint import Checkpoint, Shard
from prune_cli.checkpoint.source import is_same_content, open_source
from prune_cli.errors import RequestError
from prune_cli.plan.facts import (
    Plan,
)
from prune_cli.report.card import is_card
from prune_cli.report.report import Report
from prune_cli.verify.differences import ComparingSink
from prune_cli.verify.facts import MAX_CHANNELS_LISTED, NOT_THE_SOURCE, Disagreement
from prune_cli.verify.output import list_differences
from prune_cli.write.in_kind import lay_out_in_kind, own_files
from prune_cli.write.layout import (
    OutputFile,
)
from prune_cli.write.progress import OnTensor, ToldSink
from prune_cli.write.segments import Place
from prune_cli.write.stream import write_segments
from prune_cli.write.target import Execution
from prune_cli.write.torch_zip import lay_out_torch


def is_in_kind(report: Report, original: Checkpoint) -> bool:
    """Return whether the output is the input with zeros in it, and so has everything that is in it.

    A plain state dict can be called "torch" too, but does not come to the same bytes.
    """
    made = report.output
    if made is None or made.format == "safetensors" or made.format != original.format:
        return False
    size = sum(file.nbytes for file in own_files(original))
    return made.format != "torch" or original.is_folder or made.bytes == size


def compare_in_kind(
    plan: Plan,
    written: Checkpoint,
    original: Checkpoint,
    execution: Execution,
    *,
    in_kind: bool,
) -> Iterator[Disagreement]:
    """Check that each file of torch is, byte for byte, what `plan` makes of the source.

    `in_kind` says that it is the source with zeros in it, and no plain state dict.
    """
    try:
        files: Sequence[OutputFile] = (
            lay_out_in_kind(original, plan)
            if in_kind
            else (lay_out_torch(original, plan, written.path.name),)
        )
    except RequestError as error:
        yield Disagreement(f"the report does not fit the source: {error}")
        return
    there = own_files(written)
    if len(files) != len(there):
        yield Disagreement(f"it has {len(there)} files, it should have {len(files)}")
        return
    for file, is_ in zip(files, there, strict=True):
        if is_.nbytes != file.nbytes:
            yield Disagreement(
                f"{is_.name} has {is_.nbytes:,} bytes, it should have {file.nbytes:,}"
            )
            continue
        yield from _compare_file(file, is_, original, execution.threads, execution.on_tensor)
    if written.is_folder or written.format == "dcp":
        yield from _copy_problems(written, original)


def _compare_file(
    file: OutputFile,
    there: Shard,
    original: Checkpoint,
    workers: int,
    on_tensor: OnTensor | None,
) -> Iterator[Disagreement]:
    with open_source(there.path) as is_there:
        sink = ComparingSink(is_there, file.segments)
        told = ToldSink(sink, file.segments, on_tensor) if on_tensor else sink
        write_segments(file.segments, original, told, workers=workers)
    for segment in file.segments:
        if isinstance(segment, Place) and segment.tensor.info.name in sink.first:
            yield from list_differences(segment.tensor, sink.first[segment.tensor.info.name])
    for offset in sorted(sink.elsewhere)[:MAX_CHANNELS_LISTED]:
        yield Disagreement(NOT_THE_SOURCE, _tensor_at(there, offset), None, offset)


def _tensor_at(file: Shard, offset: int) -> str | None:
    """Return the tensor that the byte belongs to, if it lies in the file as it is."""
    return next(
        (
            info.name
            for info in file.tensors
            if info.is_plain and 0 <= offset - (info.offset or 0) < info.nbytes
        ),
        None,
    )


def _copy_problems(written: Checkpoint, original: Checkpoint) -> Iterator[Disagreement]:
    """Check that the index and all other files are copies, but for a model card of ours."""
    index = [part.folder + part.index.name for part in original.all_parts if part.index]
    for name in (*index, *original.others):
        copy = written.path / name
        if not copy.is_file():
            yield Disagreement(f"{name} is missing")
        elif not (is_same_content(original.path / name, copy) or is_card(copy)):
            yield Disagreement(f"{name} is not the source's")
