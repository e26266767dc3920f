"""A plan onto a checkpoint: what is decided there happens here, to a file or to a folder.

`prune_checkpoint` is the main job from Python: open, plan, apply. The command line takes the same
three steps, with something to show between them.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.errors import DeviceError, UsageError
from prune_cli.outputs import Kept, OutputFile, encode_index, index_name, lay_out
from prune_cli.plan import Options, Plan, make_plan
from prune_cli.report import FOLDER_REPORT, Output, Report, make_report, report_path, to_json
from prune_cli.selection import Amount, Rule, check_amount
from prune_cli.staging import FolderOutput, check_folder, write_folder
from prune_cli.stream import OnTensor, write_output
from prune_cli.writer import STDOUT, check_can_write, is_special, pending, write_file


@dataclass(frozen=True)
class Destination:
    """Where the output goes, and how it is written.

    Attributes:
        output: a file, a folder, or "-" for stdout.
        report: a file, "-" for stdout, or None for no report.
        force: whether to replace what is there.
        resume: whether to take up a run on a folder that was killed.
        max_shard_size: in bytes; the output is then a folder of shards that are no larger.
        device: where channels are zeroed: "cpu", "cuda", "cuda:1", "mps" or "auto".
        workers: threads; None for a sensible number.
    """

    output: Path
    report: Path | None = None
    force: bool = False
    resume: bool = False
    max_shard_size: int | None = None
    device: str = "cpu"
    workers: int | None = None


def prune_checkpoint(
    path: str | Path,
    output: str | Path | None = None,
    *,
    amount: Amount | None = None,
    dim: int = -1,
    seed: int = 0,
    modules: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    params: Sequence[str] = ("weight",),
    rules: Sequence[Rule] = (),
    bake: bool = True,
    with_bias: bool = False,
    report: str | Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
) -> Report:
    """Removes channels at random from the checkpoint at `path`: the main job, from Python.

    Args:
        path: a checkpoint: a file, or a folder in the Hugging Face layout.
        output: where the pruned one goes; by default beside the input.
        amount: an int is a number of channels, a float a fraction of the live ones.
        dim: the dim whose indices are the channels.
        seed: of the draw; the same seed gives the same bytes everywhere.
        modules: globs of dotted module names.
        exclude: globs of modules to leave alone.
        params: globs of parameter names within a module.
        rules: a recipe; the last rule that matches wins. Without one, the above are the rule.
        bake: write the zeros; else write `NAME_orig` and `NAME_mask`, as torch has them.
        with_bias: let the bias element of each pruned channel of dim 0 go too.
        report: where the JSON report goes; by default beside the output.
        dry_run: only plan: write nothing but a report that was asked for.
        force: replace an output that is there.
        resume: take up a run on a folder that was killed.
        max_shard_size: in bytes; see Destination.
        device: where channels are zeroed; the bytes are the same on each.
        workers: threads; the bytes are the same for any number.
        loading: how a pickle may be loaded.
        on_tensor: called with a name and a number of bytes, from any thread.

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
        modules=tuple(modules),
        exclude=tuple(exclude),
        params=tuple(params),
        bake=bake,
        with_bias=with_bias,
        rules=tuple(rules),
    )
    checkpoint = open_checkpoint(path, loading)
    target = find_destination(
        checkpoint,
        output=None if output is None else Path(output),
        report=None if report is None else Path(report),
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        device=device,
        workers=workers,
    )
    if not dry_run:
        check_destination(checkpoint, target)
    plan = make_plan(checkpoint, options)
    if dry_run:
        return report_dry_run(checkpoint, plan, None if report is None else target)
    return apply_plan(checkpoint, plan, target, on_tensor=on_tensor)


def apply_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    *,
    kept: Kept | None = None,
    metadata: dict[str, str] | None = None,
    on_tensor: OnTensor | None = None,
) -> Report:
    """Writes what `plan` makes of `checkpoint`, and the report.

    Args:
        checkpoint: the input.
        plan: what is zeroed.
        destination: where to; see check_destination for what is refused.
        kept: what is removed, for `shrink`.
        metadata: more of it, for every output file.
        on_tensor: progress.

    Raises:
        InputError: the checkpoint cannot be read.
        OutputError: the destination cannot be written.
    """
    files = lay_out(
        checkpoint,
        plan,
        kept=kept,
        max_shard_size=destination.max_shard_size,
        metadata=metadata,
    )
    write = partial(
        write_output,
        checkpoint=checkpoint,
        device=find_device(destination.device),
        on_tensor=on_tensor,
    )
    if is_folder_output(checkpoint, destination):
        return _apply_to_folder(checkpoint, plan, destination, files, write)
    return _apply_to_file(checkpoint, plan, destination, files[0], write)


def report_dry_run(checkpoint: Checkpoint, plan: Plan, destination: Destination | None) -> Report:
    """The report of `plan` alone, written if a destination for it is given.

    Raises:
        OutputError: it cannot be written.
    """
    report = make_report(checkpoint, plan, None)
    if destination and destination.report:
        check_can_write([destination.report], _inputs(checkpoint), force=destination.force)
        write_file(destination.report, to_json(report).encode())
    return report


# --- where to --------------------------------------------------------------------------------


def find_destination(
    checkpoint: Checkpoint, *, output: Path | None, report: Path | None, **rest: Any
) -> Destination:
    """The Destination with the default paths filled in: beside the input, beside the output.

    Raises:
        UsageError: there is no default for stdin, or stdout is wanted for both.
    """
    to_folder = checkpoint.is_folder or rest.get("max_shard_size") is not None
    if output is None and checkpoint.path == STDOUT:
        raise UsageError("the input is stdin, so say where the output goes: --output")
    if output is None and to_folder:
        path = checkpoint.path.resolve()
        output = path.with_name(f"{path.name if path.is_dir() else path.stem}.pruned")
    elif output is None:
        output = checkpoint.path.with_name(f"{checkpoint.path.stem}.pruned.safetensors")
    if output == STDOUT == report:
        raise UsageError("the output and the report cannot both go to stdout")
    if to_folder and (output == STDOUT or output.suffix == ".safetensors"):
        raise UsageError(f"the output is a folder of files, so it cannot be {str(output)!r}")
    if report is None and not (output == STDOUT or is_special(output)):
        report = report_path(output, is_folder=to_folder)
    return Destination(output, report, **rest)


def check_destination(checkpoint: Checkpoint, destination: Destination) -> None:
    """Refuses, before any work, a destination that cannot be written or a missing device.

    Raises:
        OutputError: the output or the report exists, is the input, or has no folder.
        DeviceError: the device is not there.
    """
    find_device(destination.device)
    paths = [destination.report] if destination.report else []
    if is_folder_output(checkpoint, destination):
        force, resume = destination.force, destination.resume
        check_folder(destination.output, checkpoint, force=force, resume=resume)
        paths = [path for path in paths if path.parent != destination.output]
    else:
        paths = [destination.output, *paths]
    check_can_write(paths, _inputs(checkpoint), force=destination.force or destination.resume)


def is_folder_output(checkpoint: Checkpoint, destination: Destination) -> bool:
    """Whether the output is a folder."""
    return checkpoint.is_folder or destination.max_shard_size is not None


def _inputs(checkpoint: Checkpoint) -> list[Path]:
    return [shard.path for shard in checkpoint.shards]


def find_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first accelerator, or else the CPU.

    Raises:
        DeviceError: it is not there; the message says what is.
    """
    there = available_devices()
    if name == "auto":
        return torch.device(there[-1] if len(there) == 1 else there[1])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = {name if name != "cuda:0" else "cuda" for name in there} | set(there)
    if device is None or str(device) not in known:
        raise DeviceError(f"there is no device {name!r}; there is {', '.join(there)} (and auto)")
    return device


def available_devices() -> list[str]:
    """The devices that `--device` can name here: "cpu" first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


# --- writing ---------------------------------------------------------------------------------


def _apply_to_file(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    file: OutputFile,
    write: Callable[..., None],
) -> Report:
    output = Output(
        path=destination.output.name,
        format="safetensors",
        files=(destination.output.name,),
        tensors=len(file.tensors),
        bytes=file.nbytes,
    )
    report = make_report(checkpoint, plan, output)
    with contextlib.ExitStack() as stack:
        pending_output = stack.enter_context(pending(destination.output))
        pending_output.set_size(file.nbytes)
        write(file, sink=pending_output.sink, workers=_workers(destination))
        if destination.report:
            pending_report = stack.enter_context(pending(destination.report))
            pending_report.sink.write(to_json(report).encode(), 0)
            pending_report.commit()
        pending_output.commit()
    return report


def _apply_to_folder(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    files: tuple[OutputFile, ...],
    write: Callable[..., None],
) -> Report:
    output = Output(
        path=destination.output.resolve().name,
        format="safetensors",
        files=tuple(file.name for file in files),
        tensors=sum(len(file.tensors) for file in files),
        bytes=sum(file.nbytes for file in files),
    )
    report = make_report(checkpoint, plan, output)
    index = index_name(checkpoint) if _needs_index(checkpoint, destination, files) else None
    texts = {index: encode_index(checkpoint, files)} if index else {}
    inside = destination.report == destination.output / FOLDER_REPORT
    if inside:
        texts[FOLDER_REPORT] = to_json(report).encode()
    names = {*texts, *(file.name for file in files), FOLDER_REPORT}
    others = tuple(name for name in checkpoint.others if name not in names)
    folder = FolderOutput(destination.output, files, others, texts, index)
    workers = _workers(destination)
    write_folder(
        folder,
        checkpoint,
        lambda file, sink: write(file, sink=sink, workers=max(workers // len(files), 1)),
        workers=workers,
        force=destination.force,
        resume=destination.resume,
    )
    if destination.report and not inside:
        write_file(destination.report, to_json(report).encode())
    return report


def _needs_index(
    checkpoint: Checkpoint, destination: Destination, files: tuple[OutputFile, ...]
) -> bool:
    """A folder keeps the index it had, and gets one where it is split."""
    return len(files) > 1 or (destination.max_shard_size is None and checkpoint.index is not None)


def _workers(destination: Destination) -> int:
    """As many as asked for; by default one for each core, up to 8: then the disk is the limit."""
    return destination.workers or min(os.cpu_count() or 1, 8)
