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
for load_shrunk (or the config.json) have to follow from them and, with the source, every byte; so
do those that were drawn from their seed, and how many of each group go from the options.
Whether they are the right ones is not told here, for that takes the model's code: shrink holds each
plan against it before it writes.
"""

import glob
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import PurePosixPath

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.liveness import DeadRowError
from prune_cli.checkpoint.tensors import MASK_SUFFIX, ORIG_SUFFIX, TensorInfo
from prune_cli.cluster.engine import Engine
from prune_cli.errors import InputError, UsageError
from prune_cli.jsontext import encode
from prune_cli.plan.facts import (
    CHOSEN,
    REMOVED,
    REPLAYED,
    SHRUNK,
    PlanItem,
    Skipped,
)
from prune_cli.report.report import Report, read_report
from prune_cli.stores import Location, locate
from prune_cli.verify.contents import check_contents
from prune_cli.verify.decisions import check_decisions
from prune_cli.verify.facts import Disagreement, Verification
from prune_cli.verify.output import check_channels, check_output
from prune_cli.verify.rows import check_report
from prune_cli.write.progress import OnTensor
from prune_cli.write.target import Execution, report_path

STDIN = "-"
"""Means standard input, where a file is meant."""


def verify_checkpoint(
    output: str | Location,
    *,
    report: str | Location | None = None,
    source: str | Location | None = None,
    scores: str | Location | None = None,
    loading: Loading | None = None,
    workers: int = 1,
    on_tensor: OnTensor | None = None,
    engine: Engine | None = None,
) -> Verification:
    """Check the checkpoint `output` against its report and, if given, its source.

    Args:
        output: what prune-cli wrote: a file or a folder, or "-" for stdin.
        report: its report; by default where prune-cli puts it.
        source: the checkpoint that was pruned; without it, only what the report names is checked.
        scores: the score file, where the channels were chosen by one.
        loading: which parts of the checkpoints are wanted.
        workers: threads.
        on_tensor: called with a name and how many more of its bytes are compared with the source.
        engine: compares the shards of safetensors with the source; by default this process does.

    Raises:
        InputError: one of them cannot be read, or the report is one of a dry run.
        UsageError: the output is stdin and no report is named, or two of them are stdin.

    Example:
        >>> verify_checkpoint("model.pruned.safetensors", source="model.pt").is_verified
        True
    """
    _refuse_stdin(output, report, source)
    written, told = _open_with_report(locate(output), report, loading or Loading())
    written = _named_as_told(written, told)
    if source is not None and scores is None and told.method == "scores_structured":
        raise UsageError("the channels were chosen by a score file; name it: --scores")
    if told.output is None:
        raise InputError("the report is of a dry run, so there is no output to verify")
    found = [*check_report(told, written), *check_output(told, told.output, written)]
    if source is None:
        found += check_channels(told.tensors, told, written)
    else:
        original = open_checkpoint(source, _as_written(loading or Loading(), written))
        execution = Execution(workers=workers, on_tensor=on_tensor, engine=engine)
        if engine:
            original.liveness.look()
        found += _check_source(told, written, original, scores, execution)
    return Verification(
        tensors=len(written.tensors),
        nbytes=sum(info.nbytes for info in written.tensors.values()),
        with_source=source is not None,
        disagreements=_in_order(found),
    )


def _check_source(
    told: Report,
    written: Checkpoint,
    original: Checkpoint,
    scores: str | Location | None,
    execution: Execution,
) -> list[Disagreement]:
    """Check the output and its report against the source, which is read once if it can be."""
    try:
        return [
            *check_decisions(told, original, scores, execution.threads),
            *check_contents(told, written, original, execution),
        ]
    except DeadRowError:
        if original.liveness.looks:
            raise
        original.liveness.look()
        return _check_source(told, written, original, scores, execution)


def to_json(verification: Verification) -> str:
    """Return the verification as JSON, a line for each disagreement, ending in a newline."""
    facts = asdict(verification)
    facts["disagreements"] = list(facts["disagreements"])
    return encode({"verified": verification.is_verified, **facts})


def _refuse_stdin(
    output: str | Location, report: str | Location | None, source: str | Location | None
) -> None:
    stdin = [name for name in (output, report, source) if name and str(name) == STDIN]
    if len(stdin) > 1:
        raise UsageError("only one of output, report and source can be stdin")
    if str(output) == STDIN and report is None:
        raise UsageError("the output is stdin, so say where its report is: --report")


def _open_with_report(
    output: Location, named: str | Location | None, loading: Loading
) -> tuple[Checkpoint, Report]:
    """The output, and its report, which tells whether the output is several in subfolders."""
    alone = replace(loading, subfolders=())
    if not output.is_dir():
        written = _open_file(output, alone)
        place = report_path(written.path, is_folder=written.is_folder)
        return written, _read_report(locate(named or place), is_named=named is not None)
    place = report_path(output, is_folder=True)
    report = _read_report(locate(named or place), is_named=named is not None)
    files = report.output.files if report.output else ()
    folders = dict.fromkeys(glob.escape(str(PurePosixPath(file).parent)) for file in files)
    try:
        written = open_checkpoint(output, alone)
        if folders.keys() <= {"."} or {*files} == {shard.name for shard in written.shards}:
            return written, report
    except InputError:
        if folders.keys() <= {"."}:
            raise
    return open_checkpoint(output, replace(loading, subfolders=tuple(folders))), report


def _named_as_told(written: Checkpoint, report: Report) -> Checkpoint:
    """Return the output with each tensor of several names under that which the report has for it.

    A plain file of torch does not say which of its names was the first.
    """
    named: list[PlanItem | Skipped] = [*report.tensors, *report.skipped]
    told = {item.name + suffix for item in named for suffix in ("", ORIG_SUFFIX, MASK_SUFFIX)}
    renamed = {written.aliases[name]: name for name in written.aliases.keys() & told}
    renamed = {old: new for old, new in renamed.items() if old not in told}
    if not renamed:
        return written
    shards = tuple(
        replace(shard, tensors=tuple(_renamed(info, renamed) for info in shard.tensors))
        for shard in written.shards
    )
    kept = {key: of for key, of in written.aliases.items() if key not in renamed.values()}
    aliases = {key: renamed.get(of, of) for key, of in kept.items()} | renamed
    return replace(written, shards=shards, aliases=aliases)


def _renamed(info: TensorInfo, names: Mapping[str, str]) -> TensorInfo:
    return info._replace(name=names[info.name]) if info.name in names else info


def _open_file(output: Location, loading: Loading) -> Checkpoint:
    """Open the output; where it is a plain state dict, it has nothing at the keys of its source."""
    try:
        return open_checkpoint(output, loading)
    except InputError:
        if loading.state_dict_keys and str(output) != STDIN:
            with suppress(InputError):
                return open_checkpoint(output, replace(loading, state_dict_keys=()))
        raise


def _as_written(loading: Loading, written: Checkpoint) -> Loading:
    """Return how to open the source of what was read from these subfolders."""
    folders = tuple(part.folder.rstrip("/") or "." for part in written.parts)
    return replace(loading, subfolders=loading.subfolders or tuple(map(glob.escape, folders)))


def _read_report(path: Location, *, is_named: bool) -> Report:
    if not is_named and not path.exists():
        raise InputError(f"{path}, where the report would be, is not there; name it: --report")
    report = read_report(path)
    if (report.shrink is None) == (report.method == SHRUNK):
        raise InputError(f"{path} reports {report.method!r}, but its part 'shrink' says otherwise")
    if report.method not in (*CHOSEN, REPLAYED, REMOVED, SHRUNK):
        raise InputError(f"{path} reports {report.method!r}, which verify knows nothing of")
    return report


def _in_order(found: Iterable[Disagreement]) -> tuple[Disagreement, ...]:
    """Return the sorted each once, those of a tensor as a whole before those of its channels."""
    return tuple(sorted(dict.fromkeys(found), key=_place_in_list))


def _place_in_list(problem: Disagreement) -> tuple[str, int, int, str]:
    channel = -1 if problem.channel is None else problem.channel
    return (problem.tensor or "", channel, problem.offset or 0, problem.fact)
