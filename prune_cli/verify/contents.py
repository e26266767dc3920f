"""The output and the source: every byte of files of safetensors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prune_cli.checkpoint import Checkpoint, Part, Shard
from prune_cli.checkpoint.source import is_same_content
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.plan.facts import (
    REMOVED,
    PlanItem,
)
from prune_cli.plan.replay import misfits
from prune_cli.plan.shrink import ShrinkPlan, edited_texts
from prune_cli.report.card import is_card
from prune_cli.report.report import Report
from prune_cli.verify.compare import Pair, compare
from prune_cli.verify.facts import Disagreement
from prune_cli.verify.in_kind import compare_in_kind, is_in_kind
from prune_cli.verify.output import (
    check_channels,
    has_its_channels,
    wrong_shape,
)
from prune_cli.verify.rows import has_its_dim, is_same
from prune_cli.verify.shrink import source_problems
from prune_cli.write.layout import (
    SafetensorsFile,
    index_name,
    lay_out_like,
    output_name,
)
from prune_cli.write.segments import Place
from prune_cli.write.target import Execution


def check_contents(
    report: Report,
    written: Checkpoint,
    original: Checkpoint,
    execution: Execution,
) -> Iterator[Disagreement]:
    """Check that the output is, byte for byte, what the rows of the report make of the source."""
    usable = {item.name: item for item in report.tensors if _is_usable(report, item, original)}
    others = [item for item in report.tensors if item.name not in usable]
    yield from check_channels(others, report, written)
    plan = replace(report.plan, items=tuple(usable.values()))
    if report.shrink and (misfitting := source_problems(report.shrink, original)):
        yield Disagreement(f"the report does not fit the source: {'; '.join(misfitting[:8])}")
        return
    if written.format != "safetensors":
        in_kind = is_in_kind(report, original)
        yield from compare_in_kind(plan, written, original, execution, in_kind=in_kind)
        return
    files = lay_out_like(original, plan, written.shards)
    for file, shard in zip(files, written.shards, strict=True):
        problems = list(_header_problems(file, shard))
        yield from problems or _layout_problems(file, shard)
    pairs = zip(files, written.shards, strict=True)
    yield from compare(
        (Pair(shard, tuple(_places(file, shard))) for file, shard in pairs), original, execution
    )
    if written.is_folder and original.is_folder:
        yield from _folder_problems(written, original, files, report.shrink)


def _is_usable(report: Report, item: PlanItem, original: Checkpoint) -> bool:
    """Whether the row can be carried out on the source; those of `remove` need nothing done."""
    is_sound = has_its_dim(item) and has_its_channels(item)
    return report.method != REMOVED and is_sound and not any(misfits(item, original))


def _header_problems(file: SafetensorsFile, shard: Shard) -> Iterator[Disagreement]:
    expected = {tensor.info.name: tensor.info for tensor in file.content}
    there = {info.name: info for info in shard.tensors}
    for name in expected.keys() - there.keys():
        yield Disagreement(f"it is missing from {shard.name}", name)
    for name in there.keys() - expected.keys():
        yield Disagreement(f"it should not be in {shard.name}", name)
    for name in expected.keys() & there.keys():
        is_, should = there[name], expected[name]
        if is_.dtype != should.dtype:
            yield Disagreement(f"its dtype is {is_.dtype}, it should be {should.dtype}", name)
        if is_.shape != should.shape:
            yield wrong_shape(is_, should.shape)
    for key in file.metadata.keys() | shard.metadata.keys():
        is_text, should_text = shard.metadata.get(key), file.metadata.get(key)
        if is_text != should_text and should_text in expected and is_text is None:
            yield Disagreement(f"its alias {key} is missing", should_text)
        elif is_text != should_text:
            yield Disagreement(f"the metadata {key!r} of {shard.name} is not as it should be")


def _layout_problems(file: SafetensorsFile, shard: Shard) -> Iterator[Disagreement]:
    """Check that the header, whose facts are right, is the same to the byte."""
    with shard.path.open("rb") as stream:
        if stream.read(len(file.head)) != file.head:
            yield Disagreement(f"the header of {shard.name} is not the one that prune-cli writes")


def _folder_problems(
    written: Checkpoint,
    original: Checkpoint,
    files: Sequence[SafetensorsFile],
    shrink: ShrinkPlan | None,
) -> Iterator[Disagreement]:
    """Check that each index has the source's metadata, and that all other files are copies.

    But for a model card, which tells of the run.
    """
    made = {FOLDER_REPORT, *(file.name for file in files)}
    there = {part.folder: part for part in written.all_parts}
    kept = {output_name(shard.name) for shard in original.shards}
    is_split = not {shard.name for shard in written.shards} <= kept
    for part in original.all_parts:
        name = index_name(original, part)
        made.add(name)
        yield from _index_differences(there.get(part.folder), part, name, is_split)
    texts = edited_texts(shrink, original.path)
    for other in original.others:
        copy = written.path / other
        if other in made:
            continue
        if not copy.is_file():
            yield Disagreement(f"{other} is missing")
        elif other in texts:
            if copy.read_bytes() != texts[other]:
                yield Disagreement(f"{other} is not the source's, edited as the report says")
        elif not (is_same_content(original.path / other, copy) or is_card(copy)):
            yield Disagreement(f"{other} is not the source's")


def _index_differences(
    written: Part | None, original: Part, name: str, is_split: bool
) -> Iterator[Disagreement]:
    """Check that the index is called `name` and has the metadata of the source's."""
    if written is None or written.index is None:
        if original.index and not is_split:
            yield Disagreement(f"{name} is missing")
        return
    if written.folder + written.index.name != name:
        found = written.folder + written.index.name
        yield Disagreement(f"the index is {found}, it should be {name}")
        return
    expected = dict(original.index.metadata if original.index else {})
    there = dict(written.index.metadata)
    for key in (expected.keys() | there.keys()) - {"total_size"}:
        if not is_same(expected.get(key), there.get(key)):
            yield Disagreement(f"the metadata {key!r} of {name} is not the source's")


def _places(file: SafetensorsFile, shard: Shard) -> Iterator[Place]:
    """Yield where in the shard the tensors lie that can be compared."""
    there = {info.name: info for info in shard.tensors}
    for tensor in file.content:
        if _is_alike(tensor.info, there.get(tensor.info.name)):
            yield Place(there[tensor.info.name].offset or 0, tensor)


def _is_alike(expected: TensorInfo, there: TensorInfo | None) -> bool:
    return (
        there is not None
        and there.is_plain
        and (there.dtype, there.shape) == (expected.dtype, expected.shape)
    )
