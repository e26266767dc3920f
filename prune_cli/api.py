"""The one pipeline, `carry_out`, and what it does from Python.

    open_checkpoint ──► decide ──► lay out, write ──► report

`prune_checkpoint`, `apply_report` and `remove_masks` differ in what they decide. The command line
and `shrink` go through `carry_out` as well.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from prune_cli.amounts import Amount, check_amount
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.liveness import DeadRowError
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import OutputError
from prune_cli.plan.choice import make_choice
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import Options, Plan
from prune_cli.plan.replay import plan_removal, replay
from prune_cli.plan.scores import open_scores
from prune_cli.plan.selection import Rule, as_globs
from prune_cli.plan.shrink import edited_texts
from prune_cli.report.card import CARD, describe_deed, find_base, write_card
from prune_cli.report.report import Output, Report, make_report, read_report, to_json
from prune_cli.stores import Location, StorePath, locate
from prune_cli.stores.hub import is_on_hub, name_of
from prune_cli.write.atomic import pending, write_file
from prune_cli.write.checks import refuse_unloadable
from prune_cli.write.filling import Crew
from prune_cli.write.folder import FolderOutput, write_folder
from prune_cli.write.hub import write_hub
from prune_cli.write.hub_target import read_there
from prune_cli.write.layout import OutputFile
from prune_cli.write.layouts import Layout, lay_out_target
from prune_cli.write.locks import lock
from prune_cli.write.objects import PendingObject
from prune_cli.write.paths import STDOUT, is_special
from prune_cli.write.progress import OnTensor, ToldSink
from prune_cli.write.sinks import Sink
from prune_cli.write.stream import ZeroChannels, write_output
from prune_cli.write.target import Execution, Target, check_target, find_target
from prune_cli.write.zeroing import find_zero_channels


def prune_checkpoint(
    path: str | Location,
    output: str | Location | None = None,
    *,
    amount: Amount | None = None,
    dim: int = -1,
    seed: int = 0,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    params: str | Sequence[str] = ("weight",),
    rules: Sequence[Rule] = (),
    strip_prefixes: str | Sequence[str] = (),
    bake: bool = True,
    with_bias: bool = False,
    allocate: str = "uniform",
    between: tuple[float, float] | None = None,
    target: str | None = None,
    is_global: bool = False,
    criterion: str | None = None,
    scores: str | Location | None = None,
    round_to: int = 1,
    at_least: int = 0,
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    report: str | Location | None = None,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    fsync: bool = False,
    format: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    reads: Sequence[str | Location] = (),
    card: bool | None = None,
) -> Report:
    """Remove channels at random from the checkpoint at `path`: the main job, from Python.

    Args:
        path: a checkpoint: a file, or a folder in the Hugging Face layout.
        output: where the pruned one goes; by default beside the input.
        amount: an int is a number of channels, a float a fraction of the live ones.
        dim: the dim whose indices are the channels.
        seed: of the draw; the same seed gives the same bytes everywhere.
        modules: globs of dotted module names; a string is one glob.
        exclude: globs of modules to leave alone.
        params: globs of parameter names within a module.
        strip_prefixes: what wrappers put before every name ("module.", or "auto" for the usual
            ones): the same model draws the same channels with and without them.
        rules: a recipe; the last rule that matches wins. Without one, the above are the rule.
        bake: write the zeros; else write `NAME_orig` and `NAME_mask`, as torch has them.
        with_bias: let the bias element of each pruned channel of dim 0 go too.
        allocate: how the amount is spread over layers: "uniform", "uniform-keep-ends", "er", "erk"
            or "random"; for the last three it is the part of all selected elements that goes.
        between: for "random", the bounds of each layer's fraction; by default (0.1, 0.9).
        target: in place of an amount, what is to remain of the selected elements: "params=0.5".
        is_global: rank all channels of all layers together.
        criterion: what ranks channels: "random", "l1", "l2", "fpgm" or "scores".
        scores: a score file: for each weight, by name, a tensor of its shape or of one number for
            each channel; the smallest go.
        round_to: leave channels in multiples of this.
        at_least: how many channels stay in every layer.
        dry_run: only plan: write nothing but a report that was asked for.
        loading: how a pickle may be loaded.
        on_tensor: called with a name and a number of bytes, from any thread.
        report: where the JSON report goes; by default beside the output.
        force: replace an output that is there.
        resume: continue an interrupted run on a folder.
        max_shard_size: in bytes; the output is then a folder of shards that are no larger.
        fsync: wait for the disk, so that the output survives a power failure.
        format: "safetensors", "torch" or "in-kind"; by default what the output's name says.
        device: where channels are zeroed: "cpu", "cuda", "cuda:1", "mps" or "auto".
        workers: threads; the bytes are the same for any number.
        reads: files that must not be written, such as the recipe that the rules are from.
        card: whether an output folder gets a model card, README.md; None where the input has one,
            or one of the two is a model of the Hugging Face Hub.

    Returns:
        What was done; `report.tensors` has the channels of each tensor.

    Raises:
        PruneError: whatever a user can cause; its class says what.

    Example:
        >>> report = prune_checkpoint("model.pt", "pruned.safetensors", amount=0.25, dim=0)
        >>> report.totals.sparsity
        0.25
    """
    options = Options(
        amount=None if amount is None else check_amount(amount),
        dim=dim,
        seed=seed,
        modules=as_globs(modules),
        exclude=as_globs(exclude),
        params=as_globs(params),
        bake=bake,
        with_bias=with_bias,
        rules=tuple(rules),
        strip_prefixes=as_globs(strip_prefixes) or None,
        choice=make_choice(
            allocate=allocate,
            between=between,
            target=target,
            is_global=is_global,
            criterion=criterion,
            scores=None if scores is None else locate(scores).name,
            round_to=round_to,
            at_least=at_least,
        ),
    )
    checkpoint = open_checkpoint(path, loading)
    place = find_target(
        checkpoint,
        output,
        report=report,
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        fsync=fsync,
        format=format,
        dry_run=dry_run,
        reads=reads if scores is None else [*reads, scores],
        card=card,
    )
    execution = Execution(device, workers, on_tensor)
    return carry_out(
        checkpoint,
        partial(plan_choice, checkpoint, options, scores, execution.threads),
        place,
        execution,
    )


def plan_choice(
    checkpoint: Checkpoint, options: Options, scores: str | Location | None, workers: int
) -> Plan:
    """Return the plan of `options`, with the score file that they are about.

    Raises:
        InputError: the score file cannot be read.
        RequestError: something does not fit the checkpoint.
    """
    opened = None if scores is None else open_scores(scores)
    return make_plan(checkpoint, options, scores=opened, workers=workers)


def apply_report(
    report: str | Location | Report,
    path: str | Location,
    output: str | Location | None = None,
    *,
    bake: bool | None = None,
    strip_prefixes: str | Sequence[str] = (),
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    output_report: str | Location | None = None,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    fsync: bool = False,
    format: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    reads: Sequence[str | Location] = (),
    card: bool | None = None,
) -> Report:
    """Prune in the checkpoint at `path` exactly the channels that a report names.

    For the fine-tuned or averaged copy of what was pruned before, or for a plan edited by hand.

    Args:
        report: a Report, or the file of one; that of a dry run, perhaps edited, also works.
        path: another checkpoint, with tensors of the same names and shapes.
        output: as in prune_checkpoint; so are the rest.
        bake: None is as the report has it.
        strip_prefixes: of wrappers: names fit without them too.
        dry_run: only check that it fits.
        loading: how a pickle may be loaded.
        on_tensor: progress.
        output_report: where the report of this run goes; by default beside the output.
        force: replace an output that is there.
        resume: continue an interrupted run on a folder.
        max_shard_size: in bytes.
        fsync: wait for the disk.
        format: as in prune_checkpoint.
        device: where channels are zeroed.
        workers: threads.
        reads: files that must not be written.
        card: as in prune_checkpoint.

    Raises:
        RequestError: the report does not fit the checkpoint; every misfit is named.
        PruneError: whatever else a user can cause.
    """
    if not isinstance(report, Report):
        reads = [*reads, report]
        report = read_report(report)
    checkpoint = open_checkpoint(path, loading)
    target = find_target(
        checkpoint,
        output,
        report=output_report,
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        fsync=fsync,
        format=format,
        dry_run=dry_run,
        reads=reads,
        card=card,
    )
    prefixes = as_globs(strip_prefixes)
    decide = partial(replay, report.plan, checkpoint, bake=bake, prefixes=prefixes)
    return carry_out(checkpoint, decide, target, Execution(device, workers, on_tensor))


def remove_masks(
    path: str | Location,
    output: str | Location | None = None,
    *,
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    report: str | Location | None = None,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    fsync: bool = False,
    format: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    reads: Sequence[str | Location] = (),
    card: bool | None = None,
) -> Report:
    """Make the masks of a checkpoint permanent: `NAME_orig` and `NAME_mask` become `NAME`.

    Whoever pruned it, by whatever method: where the mask is 0, the tensor is +0.

    Args:
        path: a checkpoint with masks.
        output: as in prune_checkpoint; so are the rest.
        dry_run: only say what would be done.
        loading: how a pickle may be loaded.
        on_tensor: progress.
        report: where the JSON report goes.
        force: replace an output that is there.
        resume: continue an interrupted run on a folder.
        max_shard_size: in bytes.
        fsync: wait for the disk.
        format: as in prune_checkpoint.
        device: where channels are zeroed; masks are applied on the CPU.
        workers: threads.
        reads: files that must not be written.
        card: as in prune_checkpoint.

    Raises:
        SelectionError: there are no masks.
        PruneError: whatever else a user can cause.
    """
    checkpoint = open_checkpoint(path, loading)
    target = find_target(
        checkpoint,
        output,
        report=report,
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        fsync=fsync,
        format=format,
        dry_run=dry_run,
        reads=reads,
        card=card,
    )
    execution = Execution(device, workers, on_tensor)
    return carry_out(checkpoint, partial(plan_removal, checkpoint), target, execution)


# --- the pipeline ----------------------------------------------------------------------------


def carry_out(
    checkpoint: Checkpoint, decide: Callable[[], Plan], target: Target, execution: Execution
) -> Report:
    """Check where the output goes, decide what goes, write it, and report it.

    Args:
        checkpoint: the input.
        decide: makes the plan; called when everything else was found to be possible.
        target: where the output and the report go; without an output only the report is written.
        execution: how.

    Returns:
        The plan and what came of it.

    Raises:
        OutputError: the target cannot be written.
        InputError: the checkpoint cannot be read, or has a dtype that torch has not.
        DeviceError: the device is not there.
        RequestError: what is asked for does not fit the checkpoint.
    """
    check_target(checkpoint, target)
    refuse_unloadable(checkpoint)
    zero = find_zero_channels("cpu" if execution.engine else execution.device)
    if execution.is_spread:
        checkpoint.liveness.look()  # no worker can say that the plan was wrong, once others went on
    try:
        return _decide_and_write(checkpoint, decide, target, execution, zero)
    except DeadRowError:
        checkpoint.liveness.look()
        again = replace(target, resume=False)  # what is left there is of the plan that was wrong
        return _decide_and_write(checkpoint, decide, again, execution, zero)


def _decide_and_write(
    checkpoint: Checkpoint,
    decide: Callable[[], Plan],
    target: Target,
    execution: Execution,
    zero: ZeroChannels,
) -> Report:
    plan = decide()
    if target.output is None:
        report = make_report(checkpoint, plan, None)
        execution.before_commit()
        write_report(report, target)
        return report
    layout = lay_out_target(checkpoint, plan, target)
    work = _Work(checkpoint, plan, target, target.output, execution, zero, layout)
    if is_on_hub(target.output):
        return _to_hub(work, target.output)
    return _to_folder(work) if target.is_folder else _to_file(work)


def write_report(report: Report, target: Target) -> None:
    """Write the report where `target` has it, if it does.

    Raises:
        OutputError: it cannot be written.
    """
    if target.report:
        write_file(target.report, to_json(report).encode(), fsync=target.fsync)


@dataclass(frozen=True)
class _Work:
    """All that was decided, for whoever writes it."""

    checkpoint: Checkpoint
    plan: Plan
    target: Target
    output: Location
    execution: Execution
    zero: ZeroChannels
    layout: Layout

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files of the output."""
        return self.layout.files

    def report(self, name: str) -> Report:
        """Report it as an output called `name`."""
        files = [file for file in self.files if file.name not in self.layout.unnamed]
        output = Output(
            path=name,
            format=self._format,
            files=tuple(file.name for file in files) if self.target.is_folder else (name,),
            tensors=sum(file.tensors for file in files),
            bytes=sum(file.nbytes for file in files),
        )
        return make_report(
            self.checkpoint, self.plan, output, drops=self.target.format != "in-kind"
        )

    @property
    def _format(self) -> str:
        """What the reader will find the output to be."""
        of_input = self.target.format == "in-kind"
        return self.checkpoint.format if of_input else self.target.format

    def write(self, file: OutputFile, sink: Sink, stopped: threading.Event | None = None) -> None:
        """Write the bytes of one file."""
        if self.execution.on_tensor:
            sink = ToldSink(sink, file.segments, self.execution.on_tensor)
        write_output(
            file,
            self.checkpoint,
            sink,
            zero=self.zero,
            workers=max(self.execution.threads // len(self.files), 1),
            stopped=stopped,
        )


def _to_file(work: _Work) -> Report:
    [file] = work.files
    report = work.report(work.output.name)
    with pending(work.output, fsync=work.target.fsync) as output:
        output.set_size(file.nbytes)
        work.write(file, output.sink)
        work.execution.before_commit()
        if isinstance(output, PendingObject):  # which refuses if another run came first
            output.commit()
            write_report(report, work.target)
            return report
        with _turn(output.path):
            check_target(work.checkpoint, work.target)  # another run may have come first
            write_report(report, work.target)
            output.commit()
    return report


def _turn(output: Path) -> AbstractContextManager[None]:
    """Return what keeps other runs from a file while its report and then it get their names."""
    if output == STDOUT or is_special(output):
        return nullcontext()
    return lock(output.parent, wait=True)


def _to_folder(work: _Work) -> Report:
    report = work.report(work.output.resolve().name)
    _find_folder_writer(work.output)(
        _folder_output(work, report),
        work.checkpoint,
        Crew(work.write, work.execution),
        force=work.target.force,
        resume=work.target.resume,
    )
    return report


def _find_folder_writer(folder: Location) -> Callable[..., None]:
    if isinstance(folder, Path):
        return write_folder
    from prune_cli.write.store_folder import write_store_folder  # and with it all of asyncio

    return write_store_folder


def _to_hub(work: _Work, output: StorePath) -> Report:
    """Write to a model of the Hugging Face Hub, where a file, too, goes with its report and card."""
    report = work.report(name_of(output))
    is_folder = work.target.is_folder
    write_hub(
        _folder_output(work, report) if is_folder else _hub_file(work, report),
        work.checkpoint,
        work.write,
        message=f"{describe_deed(report)}, by prune-cli {report.tool.version}",
        replaces=is_folder,
        force=work.target.force,
        resume=work.target.resume and is_folder,
        before_commit=work.execution.before_commit,
    )
    return report


def _hub_file(work: _Work, report: Report) -> FolderOutput:
    folder, target = work.output.parent, work.target
    texts, beside = dict[str, bytes](), dict[Location, bytes]()
    if target.report and target.report.parent == folder:
        texts[target.report.name] = to_json(report).encode()
    elif target.report:
        beside[target.report] = to_json(report).encode()
    texts |= _card(work, report, next(iter(texts), None))
    [file] = work.files
    named = replace(cast(Any, file), name=work.output.name)
    return FolderOutput(folder, (named,), (), texts, (), beside)


def _card(work: _Work, report: Report, report_file: str | None) -> dict[str, bytes]:
    """Return the model card by its name, if there is to be one."""
    target, base = work.target, find_base(work.checkpoint)
    wanted = target.card
    if wanted is None:
        wanted = is_on_hub(work.output) or base.is_known
    if not wanted:
        return {}
    folder = work.output if target.is_folder else work.output.parent
    there = read_there(folder, CARD)
    return {CARD: write_card(report, base, report_file=report_file, there=there).encode()}


def _folder_output(work: _Work, done: Report) -> FolderOutput:
    checkpoint, target, files = work.checkpoint, work.target, work.files
    report = to_json(done).encode()
    texts = {**edited_texts(work.plan.shrink, checkpoint.path), **work.layout.indexes}
    names = {file.name for file in files}
    beside: dict[Location, bytes] = {target.report: report} if target.report else {}
    if target.report and target.is_report_inside:
        _refuse_taken(target.report, {*texts, *names, *checkpoint.others})
        texts[target.report.name] = beside.pop(target.report)
    texts |= _card(work, done, target.report.name if target.report and not beside else None)
    made = {*texts, *names, FOLDER_REPORT}
    others = tuple(name for name in checkpoint.others if name not in made)
    indexes = tuple(work.layout.indexes)
    return FolderOutput(work.output, files, others, texts, indexes, beside, target.fsync)


def _refuse_taken(report: Location, names: Collection[str]) -> None:
    if report.name in names and report.name != FOLDER_REPORT:
        raise OutputError(f"{report} is another file of the output; choose another --report")
