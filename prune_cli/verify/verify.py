"""Holds a pruned checkpoint against its report, and against its source if that is there.

Three questions, each asked in its own way: does the report follow from itself and its seed; are
the pruned channels +0 bit for bit; and is every byte the one that pruning the source again gives,
which is found by letting the same stream run into a sink that compares instead of writing.

What cannot be told without the source: any byte outside the pruned channels, tensors and aliases
that no row names, metadata, copied files, and whether the report is right about what was there
before (`already_pruned`, `skipped`, `dropped`, `input`). What cannot be told at all: who wrote the
report (`tool`), what the input was called, what a folder is called, and options that decide
nothing, such as another glob for the same modules.

Of what `shrink` wrote, the channels that stay are taken from the report: the shapes and the record
for load_shrunk (or the config.json) have to follow from them and, with the source, every byte.
Whether they are the right ones is not told here, for that takes the model's code: shrink holds each
plan against it before it writes.
"""

import filecmp
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from prune_cli.channels import live_channels
from prune_cli.checkpoint import Checkpoint, Loading, Shard, open_checkpoint
from prune_cli.checkpoint.tensors import DTYPES, MASK_SUFFIX, ORIG_SUFFIX, TensorInfo
from prune_cli.errors import InputError, RequestError, UsageError
from prune_cli.jsontext import encode
from prune_cli.plan.biases import bias_name
from prune_cli.plan.draw import channels_to_prune, make_plan, method_of
from prune_cli.plan.facts import (
    CHOSEN,
    RANDOM,
    REMOVED,
    REPLAYED,
    SHRUNK,
    Options,
    Plan,
    PlanItem,
    derive_seed,
)
from prune_cli.plan.replay import misfits, plan_removal, replay
from prune_cli.plan.scores import open_scores
from prune_cli.plan.selection import Rule, matcher, split_name
from prune_cli.plan.shrink import ShrinkPlan, edited_texts
from prune_cli.report.report import Output, Report, read_report, sum_up
from prune_cli.verify.choice import quota_problems
from prune_cli.verify.differences import NOWHERE, ComparingSink, Offsets, first_bits
from prune_cli.verify.shrink import output_problems, report_problems, source_problems
from prune_cli.write.layout import (
    OutputFile,
    OutputTensor,
    index_name,
    lay_out_like,
    output_name,
)
from prune_cli.write.progress import OnTensor, ToldSink
from prune_cli.write.stream import write_tensors
from prune_cli.write.target import FOLDER_REPORT, report_path

MAX_CHANNELS_LISTED = 1000
"""A tensor with more wrong channels than this has the rest of them counted, not listed."""

STDIN = Path("-")
"""Means standard input, where a file is meant."""

_NOT_ZERO = "a pruned channel is not +0"
_NOT_THE_SOURCE = "its bytes are not the source's"
_NOT_ASKED_FOR = "the options of the report do not ask for its amount and dim"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Something that is not as it should be.

    Attributes:
        fact: what is wrong.
        tensor: the tensor of the output that it is about, if it is about one.
        channel: the channel of it, along the dim that was pruned.
        offset: the first wrong element's first byte, counted from the start of the tensor's file.
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
        disagreements: sorted by tensor and channel; empty if all is well. Of a tensor with more
            than MAX_CHANNELS_LISTED wrong channels the last one says how many more there are.
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
    scores: str | Path | None = None,
    loading: Loading | None = None,
    workers: int = 1,
    on_tensor: OnTensor | None = None,
) -> Verification:
    """Holds the checkpoint `output` against its report and, if given, its source.

    Args:
        output: what prune-cli wrote: a file or a folder, or "-" for stdin.
        report: its report; by default where prune-cli puts it.
        source: the checkpoint that was pruned; without it, only what the report names is checked.
        scores: the score file, where the channels were chosen by one.
        loading: how the source may be loaded.
        workers: threads.
        on_tensor: called with a name and how many more of its bytes are compared with the source.

    Raises:
        InputError: one of them cannot be read, or the report is one of a dry run.
        UsageError: the output is stdin and no report is named, or two of them are stdin.

    Example:
        >>> verify_checkpoint("model.pruned.safetensors", source="model.pt").is_verified
        True
    """
    _refuse_stdin(output, report, source)
    written = open_checkpoint(output)
    told = _read_report(written, report)
    if source is not None and scores is None and told.method == "scores_structured":
        raise UsageError("the channels were chosen by a score file; name it: --scores")
    if told.output is None:
        raise InputError("the report is of a dry run, so there is no output to verify")
    found = [*_check_report(told, written), *_check_output(told, told.output, written)]
    if source is None:
        found += _check_channels(told.tensors, told, written)
    else:
        original = open_checkpoint(source, loading)
        found += _check_decisions(told, original, scores, workers)
        found += _check_contents(told, written, original, workers, on_tensor)
    return Verification(
        tensors=len(written.tensors),
        nbytes=sum(info.nbytes for info in written.tensors.values()),
        with_source=source is not None,
        disagreements=_in_order(found),
    )


def to_json(verification: Verification) -> str:
    """The verification as JSON, a line for each disagreement, ending in a newline."""
    facts = asdict(verification)
    facts["disagreements"] = list(facts["disagreements"])
    return encode({"verified": verification.is_verified, **facts})


def _refuse_stdin(output: str | Path, report: str | Path | None, source: str | Path | None) -> None:
    stdin = [name for name in (output, report, source) if name and Path(name) == STDIN]
    if len(stdin) > 1:
        raise UsageError("only one of output, report and source can be stdin")
    if Path(output) == STDIN and report is None:
        raise UsageError("the output is stdin, so say where its report is: --report")


def _read_report(written: Checkpoint, named: str | Path | None) -> Report:
    path = Path(named or report_path(written.path, is_folder=written.is_folder))
    if named is None and not path.exists():
        raise InputError(f"{path}, where the report would be, is not there; name it: --report")
    report = read_report(path)
    if (report.shrink is None) == (report.method == SHRUNK):
        raise InputError(f"{path} reports {report.method!r}, but its part 'shrink' says otherwise")
    if report.method not in (*CHOSEN, REPLAYED, REMOVED, SHRUNK):
        raise InputError(f"{path} reports {report.method!r}, which verify knows nothing of")
    return report


def _in_order(found: Iterable[Disagreement]) -> tuple[Disagreement, ...]:
    """Sorted, each once, those of a tensor as a whole before those of its channels."""
    return tuple(sorted(dict.fromkeys(found), key=_place_in_list))


def _place_in_list(problem: Disagreement) -> tuple[str, int, int, str]:
    channel = -1 if problem.channel is None else problem.channel
    return (problem.tensor or "", channel, problem.offset or 0, problem.fact)


# --- the report by itself --------------------------------------------------------------------


def _check_report(report: Report, written: Checkpoint) -> Iterator[Disagreement]:
    """That the rows follow from the options and the seed, and the totals from the rows."""
    rows = {item.name: item for item in report.tensors}
    for name, count in Counter(item.name for item in report.tensors).items():
        if count > 1:
            yield Disagreement(f"the report has {count} rows of it", name)
    if list(rows) != sorted(rows):
        yield Disagreement("the rows of the report are not in the order of their names")
    for item in report.tensors:
        for fact in _row_problems(report, item, rows, written):
            yield Disagreement(fact, item.name)
    if report.method in CHOSEN:
        yield from _choice_problems(report)
    if report.shrink is not None:
        yield from map(Disagreement, report_problems(report.shrink, report.options.seed))
    if not _is_same(report.totals, sum_up(report.tensors)):
        yield Disagreement("the totals of the report are not the sums of its rows")


def _row_problems(
    report: Report, item: PlanItem, rows: Mapping[str, PlanItem], written: Checkpoint
) -> Iterator[str]:
    if (item.module, item.param) != split_name(item.name):
        yield "the report's module and param are not the parts of its name"
    if not _has_its_dim(item):
        yield "the report's shape, dim and channels do not fit each other"
        return
    channels = (*item.already_pruned, *item.pruned)
    if len(set(channels)) != len(channels) or not all(0 <= c < item.channels for c in channels):
        yield "the report names a channel twice, or one that is not there"
        return
    if item.follows is not None:
        yield from _follower_problems(item, rows.get(item.follows))
    elif report.method != RANDOM:
        if item.seed is not None:
            yield f"the report gives it a seed, but {report.method} draws nothing"
        if report.method in CHOSEN and not _is_asked_for(report.options, item):
            yield _NOT_ASKED_FOR
    elif any(info.shape == item.shape for info in _tensors_of(report, item, written)):
        yield from _draw_problems(report, item)


def _has_its_dim(item: PlanItem) -> bool:
    """Whether `dim` and `channels` are those of `shape`; one without dims is one channel."""
    shape = item.shape or (1,)
    return 0 <= item.dim < len(shape) and shape[item.dim] == item.channels


def _follower_problems(item: PlanItem, leader: PlanItem | None) -> Iterator[str]:
    biases = {bias_name(name) for name in (leader.name, *leader.aliases)} if leader else set()
    if (
        leader is None
        or leader.follows is not None
        or biases.isdisjoint((item.name, *item.aliases))
    ):
        yield f"the report says that it follows {item.follows}, which has no such bias"
        return
    expected = replace(
        leader,
        name=item.name,
        module=item.module,
        param=item.param,
        aliases=item.aliases,
        dtype=item.dtype,
        shape=(leader.channels,),
        already_pruned=(),
        follows=leader.name,
    )
    if keys := _differing(item, expected):
        yield f"the report's {', '.join(keys)} are not those of {item.follows}, which it follows"


def _draw_problems(report: Report, item: PlanItem) -> Iterator[str]:
    options = report.options
    if not _is_asked_for(options, item):
        yield _NOT_ASKED_FOR
    if item.seed != derive_seed(options.seed, item.name):
        yield f"its seed in the report does not follow from the seed {options.seed}"
        return
    try:
        drawn = channels_to_prune(item, options.choice)
    except RequestError as error:
        yield f"its amount in the report is impossible: {error}"
        return
    if drawn != item.pruned:
        yield "the pruned channels of the report are not those that its seed draws"


def _is_asked_for(options: Options, item: PlanItem) -> bool:
    """Whether the last rule that matches the tensor, by any of its names, is what its row says."""
    rule = _rule_for(options, item)
    if rule is None or rule.dim not in (item.dim, item.dim - len(item.shape)):
        return False
    return options.choice is not None or repr(rule.amount) == repr(item.amount)


def _rule_for(options: Options, item: PlanItem) -> Rule | None:
    """The last rule that matches the tensor, by any of its names."""
    pairs = [split_name(name) for name in (item.name, *item.aliases)]
    excluded = matcher(options.exclude)
    if any(excluded(module) for module, _ in pairs):
        return None
    for rule in reversed(_rules(options)):
        module_fits, param_fits = matcher(rule.modules), matcher(rule.params)
        if any(module_fits(module) and param_fits(param) for module, param in pairs):
            return rule
    return None


def _rules(options: Options) -> tuple[Rule, ...]:
    has_target = options.choice is not None and options.choice.target is not None
    if options.rules or (options.amount is None and not has_target):
        return options.rules
    return (Rule(options.modules, options.params, options.amount or 0, options.dim),)


def _choice_problems(report: Report) -> Iterator[Disagreement]:
    """That the method is that of the options, and each row loses what they give it."""
    options, choice = report.options, report.options.choice
    if report.method != method_of(options):
        yield Disagreement(f"the options of the report are not those of {report.method}")
    leading = [item for item in report.tensors if item.follows is None]
    rules = [rule for item in leading if (rule := _rule_for(options, item))]
    if choice is None or len(rules) < len(leading) or not all(map(_has_its_dim, leading)):
        return
    for name, fact in quota_problems(options, choice, leading, rules):
        yield Disagreement(fact, name or None)


def _is_same(one: object, other: object) -> bool:
    """Whether both are equal in type too: the amounts 1 and 1.0 are not the same."""
    return repr(one) == repr(other)


def _differing(one: PlanItem, other: PlanItem) -> list[str]:
    """The fields in which two rows differ."""
    if one == other and type(one.amount) is type(other.amount):
        return []
    keys = [entry.name for entry in fields(PlanItem)]
    return [key for key in keys if not _is_same(getattr(one, key), getattr(other, key))]


# --- the report and the output ---------------------------------------------------------------


def _check_output(report: Report, told: Output, written: Checkpoint) -> Iterator[Disagreement]:
    """That the output has the files, tensors, dtypes, shapes and aliases that the report says."""
    there = sum(shard.nbytes for shard in written.shards)
    if told.format != written.format:
        yield Disagreement(f"the report says {told.format}, the output is {written.format}")
    if told.tensors != len(written.tensors):
        yield Disagreement(
            f"the report says {told.tensors:,} tensors, there are {len(written.tensors):,}"
        )
    if told.bytes != there:
        yield Disagreement(f"the report says {told.bytes:,} bytes, there are {there:,}")
    # A file may have another name by now, the files of a folder may not: its index names them.
    names = {shard.name for shard in written.shards} if written.is_folder else {told.path}
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
    if written.index:
        yield from _index_problems(written, written.index.name)


def _tensors_of(report: Report, item: PlanItem, written: Checkpoint) -> list[TensorInfo]:
    names = [item.name + suffix for suffix in _suffixes(report)]
    return [written.tensors[name] for name in names if name in written.tensors]


def _suffixes(report: Report) -> tuple[str, ...]:
    return ("",) if report.options.bake else (ORIG_SUFFIX, MASK_SUFFIX)


def _tensor_problems(report: Report, item: PlanItem, written: Checkpoint) -> Iterator[Disagreement]:
    for suffix in _suffixes(report):
        if item.name + suffix not in written.tensors:
            yield Disagreement("it is missing", item.name + suffix)
    for info in _tensors_of(report, item, written):
        if info.dtype != item.dtype and info.name != item.name + MASK_SUFFIX:
            yield Disagreement(f"its dtype is {info.dtype}, it should be {item.dtype}", info.name)
        if info.shape != item.shape:
            yield _wrong_shape(info, item.shape)
        for alias in item.aliases:
            name = alias + info.name.removeprefix(item.name)
            if written.aliases.get(name) != info.name:
                yield Disagreement(f"its alias {name} is missing", info.name)


def _wrong_shape(info: TensorInfo, expected: Iterable[int]) -> Disagreement:
    return Disagreement(
        f"its shape is {list(info.shape)}, it should be {list(expected)}", info.name
    )


def _index_problems(written: Checkpoint, name: str) -> Iterator[Disagreement]:
    """That the index names each tensor's file, no other tensor, and the right size."""
    index = json.loads((written.path / name).read_text(encoding="utf-8"))
    told = index["weight_map"]
    for shard in written.shards:
        for info in shard.tensors:
            if told.pop(info.name, None) != shard.name:
                yield Disagreement(f"{name} does not say that it is in {shard.name}", info.name)
    for tensor in told:
        yield Disagreement(f"{name} names it, but it is not stored", tensor)
    total = sum(info.nbytes for info in written.tensors.values())
    if (index.get("metadata") or {}).get("total_size") != total:
        yield Disagreement(f"the total_size in {name} is not {total}")


def _check_channels(
    items: Iterable[PlanItem], report: Report, written: Checkpoint
) -> Iterator[Disagreement]:
    """That every pruned channel is +0 bit for bit, and what was zero before is still zero."""
    suffix = "" if report.options.bake else MASK_SUFFIX
    for item in items:
        info = written.tensors.get(item.name + suffix)
        if info is None or not _can_be_read(info, item):
            continue
        # A -0 that was there before stays; but masks and what they bake to are all ours.
        is_ours = bool(suffix) or report.method == REMOVED
        strict = (*item.pruned, *item.already_pruned) if is_ours else item.pruned
        yield from _list(
            info.name, first_bits(written, info, item.dim, strict), lambda _: _NOT_ZERO
        )
        if item.already_pruned and not is_ours:
            first = np.full(item.channels, NOWHERE)
            live = live_channels(written.bits(info), item.dim, info.dtype)
            first[sorted({*live} & {*item.already_pruned})] = -1
            yield from _list(info.name, first, lambda _: "the report says it was pruned before")


def _can_be_read(info: TensorInfo, item: PlanItem) -> bool:
    """Whether the row is about a tensor like this one, and its channels are there."""
    return (
        info.is_plain
        and info.shape == item.shape
        and DTYPES[info.dtype].bits >= 8
        and DTYPES[info.dtype].holds_zero
        and _has_its_dim(item)
        and _has_its_channels(item)
    )


def _has_its_channels(item: PlanItem) -> bool:
    return all(0 <= channel < item.channels for channel in (*item.already_pruned, *item.pruned))


def _list(name: str, first: Offsets, describe: Callable[[int], str]) -> Iterator[Disagreement]:
    """A Disagreement for each channel of the tensor `name` that has an offset in `first`."""
    channels = np.flatnonzero(first != NOWHERE)
    if len(channels) > MAX_CHANNELS_LISTED:
        yield Disagreement(
            f"{len(channels):,} of its channels are wrong; the first {MAX_CHANNELS_LISTED:,} follow",
            name,
        )
    for channel in channels[:MAX_CHANNELS_LISTED].tolist():
        offset = int(first[channel])
        yield Disagreement(describe(channel), name, channel, offset if offset >= 0 else None)


# --- the report and the source ---------------------------------------------------------------


def _check_decisions(
    report: Report, original: Checkpoint, scores: str | Path | None, workers: int
) -> Iterator[Disagreement]:
    """That planning the source again gives this report."""
    told = _facts(report.input.format, report.input.tensors, report.input.bytes)
    there = _facts(original.format, len(original.tensors), original.nbytes)
    if told != there:
        yield Disagreement(f"the report says that its input is {told}; the source is {there}")
    if report.dropped != original.dropped:
        yield Disagreement("the report does not name what of the source was dropped")
    try:
        plan = _decide_again(report, original, scores, workers)
    except (RequestError, UsageError) as error:
        yield Disagreement(f"the report does not fit the source: {error}")
        return
    if not _is_same(plan.options, report.options):
        yield Disagreement(f"the options of the report are not those of {report.method}")
    if plan.skipped != report.skipped:
        yield Disagreement("the report does not name what was skipped")
    rows = {item.name: item for item in report.tensors}
    planned = {item.name: item for item in plan.items}
    for name in sorted(rows.keys() | planned.keys()):
        if name not in rows:
            yield Disagreement("the report has no row of it, but its options prune it", name)
        elif name not in planned:
            yield Disagreement("the report has a row of it, but its options do not prune it", name)
        elif keys := _differing(rows[name], planned[name]):
            yield Disagreement(
                f"the report's {', '.join(keys)} are not what the source gives", name
            )


def _facts(format: str, tensors: int, nbytes: int) -> str:
    return f"{format} of {tensors:,} tensors in {nbytes:,} bytes"


def _decide_again(
    report: Report, original: Checkpoint, scores: str | Path | None, workers: int
) -> Plan:
    match report.method:
        case method if method == REPLAYED:
            return replay(report.plan, original)
        case method if method == REMOVED:
            return plan_removal(original)
        case method if method == SHRUNK:
            return report.plan  # deciding that again takes the model's code
    opened = open_scores(scores) if scores else None
    return make_plan(original, report.options, scores=opened, workers=workers)


# --- the output and the source ---------------------------------------------------------------


def _check_contents(
    report: Report,
    written: Checkpoint,
    original: Checkpoint,
    workers: int,
    on_tensor: OnTensor | None,
) -> Iterator[Disagreement]:
    """That the output is, byte for byte, what the rows of the report make of the source."""
    usable = {item.name: item for item in report.tensors if _is_usable(report, item, original)}
    others = [item for item in report.tensors if item.name not in usable]
    yield from _check_channels(others, report, written)
    plan = replace(report.plan, items=tuple(usable.values()))
    if report.shrink and (misfitting := source_problems(report.shrink, original)):
        yield Disagreement(f"the report does not fit the source: {'; '.join(misfitting[:8])}")
        return
    files = lay_out_like(original, plan, written.shards)
    for file, shard in zip(files, written.shards, strict=True):
        problems = list(_header_problems(file, shard))
        yield from problems or _layout_problems(file, shard)
        yield from _compare(file, shard, original, workers, on_tensor)
    if written.is_folder and original.is_folder:
        yield from _folder_problems(written, original, files, report.shrink)


def _is_usable(report: Report, item: PlanItem, original: Checkpoint) -> bool:
    """Whether the row can be carried out on the source; those of `remove` need nothing done."""
    is_sound = _has_its_dim(item) and _has_its_channels(item)
    return report.method != REMOVED and is_sound and not any(misfits(item, original))


def _header_problems(file: OutputFile, shard: Shard) -> Iterator[Disagreement]:
    expected = {tensor.info.name: tensor.info for tensor in file.tensors}
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
            yield _wrong_shape(is_, should.shape)
    for key in file.metadata.keys() | shard.metadata.keys():
        is_text, should_text = shard.metadata.get(key), file.metadata.get(key)
        if is_text != should_text and should_text in expected and is_text is None:
            yield Disagreement(f"its alias {key} is missing", should_text)
        elif is_text != should_text:
            yield Disagreement(f"the metadata {key!r} of {shard.name} is not as it should be")


def _layout_problems(file: OutputFile, shard: Shard) -> Iterator[Disagreement]:
    """That the header, whose facts are right, is the same to the byte."""
    with shard.path.open("rb") as stream:
        if stream.read(len(file.header)) != file.header:
            yield Disagreement(f"the header of {shard.name} is not the one that prune-cli writes")


def _folder_problems(
    written: Checkpoint,
    original: Checkpoint,
    files: Sequence[OutputFile],
    shrink: ShrinkPlan | None,
) -> Iterator[Disagreement]:
    """That the index has the source's metadata, and that all other files are copies."""
    name = index_name(original)
    metadata = dict(original.index.metadata if original.index else {})
    is_split = not {file.name for file in files} <= {output_name(s.name) for s in original.shards}
    if written.index is None and original.index and not is_split:
        yield Disagreement(f"{name} is missing")
    elif written.index and written.index.name != name:
        yield Disagreement(f"the index is {written.index.name}, it should be {name}")
    elif written.index:
        there = dict(written.index.metadata)
        for key in (metadata.keys() | there.keys()) - {"total_size"}:
            if not _is_same(metadata.get(key), there.get(key)):
                yield Disagreement(f"the metadata {key!r} of {name} is not the source's")
    made = {name, FOLDER_REPORT, *(file.name for file in files)}
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
        elif not filecmp.cmp(original.path / other, copy, shallow=False):
            yield Disagreement(f"{other} is not the source's")


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
        sink = ComparingSink(stream.fileno(), places)
        told = ToldSink(sink, places, on_tensor) if on_tensor else sink
        write_tensors(places, original, told, workers=workers)
    for tensor, _ in places:
        if tensor.info.name in sink.first:
            yield from _list_differences(tensor, sink.first[tensor.info.name])


def _list_differences(tensor: OutputTensor, first: Offsets) -> Iterator[Disagreement]:
    name, zero = tensor.info.name, set(tensor.zero)
    if not zero:
        yield Disagreement(_NOT_THE_SOURCE, name, None, int(first[0]))
        return
    yield from _list(name, first, lambda c: _NOT_ZERO if c in zero else _NOT_THE_SOURCE)


def _is_alike(expected: TensorInfo, there: TensorInfo | None) -> bool:
    return (
        there is not None
        and there.is_plain
        and (there.dtype, there.shape) == (expected.dtype, expected.shape)
    )
