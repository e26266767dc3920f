"""A plan onto a checkpoint: what is decided there happens here, to a file or to a folder.

`prune_checkpoint` is the main job from Python: open, plan, apply. The command line takes the same
three steps, with something to show between them.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import torch

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.errors import DeviceError, OutputError
from prune_cli.plan.draw import Options, Plan, make_plan
from prune_cli.plan.replay import plan_removal, replay
from prune_cli.plan.selection import Amount, Rule, check_amount
from prune_cli.report.report import Output, Report, make_report, read_report, to_json
from prune_cli.write.atomic import PendingFile, pending, write_file
from prune_cli.write.folder import FolderOutput, write_folder
from prune_cli.write.layout import OutputFile, Removal, encode_index, index_name, lay_out
from prune_cli.write.stream import OnTensor, one_torch_thread, write_output
from prune_cli.write.target import (
    FOLDER_REPORT,
    Destination,
    Where,
    check_destination,
    count_workers,
    find_destination,
    find_report_destination,
    is_folder_output,
)


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
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    **where: Unpack[Where],
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
        dry_run: only plan: write nothing but a report that was asked for.
        loading: how a pickle may be loaded.
        on_tensor: called with a name and a number of bytes, from any thread.
        **where: the keywords of Where.

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
    decide = partial(make_plan, checkpoint, options)
    return _carry_out(checkpoint, decide, output, dry_run, on_tensor, where)


def apply_report(
    told: str | Path | Report,
    path: str | Path,
    output: str | Path | None = None,
    *,
    bake: bool | None = None,
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    **where: Unpack[Where],
) -> Report:
    """Prunes in the checkpoint at `path` exactly the channels that a report names.

    For the fine-tuned or averaged copy of what was pruned before, or for a plan edited by hand.

    Args:
        told: a Report, or the file of one; one of a dry run will do.
        path: another checkpoint, with tensors of the same names and shapes.
        output: as in prune_checkpoint; so are the rest.
        bake: None is as the report has it.
        dry_run: only check that it fits.
        loading: how a pickle may be loaded.
        on_tensor: progress.
        **where: the keywords of Where.

    Raises:
        RequestError: the report does not fit the checkpoint; every misfit is named.
        PruneError: whatever else a user can cause.
    """
    if isinstance(told, Report):
        report = told
    else:
        report = read_report(Path(told))
        where["reads"] = [*where.get("reads", ()), Path(told)]
    checkpoint = open_checkpoint(path, loading)
    decide = partial(replay, report.plan, checkpoint, bake=bake)
    return _carry_out(checkpoint, decide, output, dry_run, on_tensor, where)


def remove_masks(
    path: str | Path,
    output: str | Path | None = None,
    *,
    dry_run: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    **where: Unpack[Where],
) -> Report:
    """Makes the masks of a checkpoint permanent: `NAME_orig` and `NAME_mask` become `NAME`.

    Whoever pruned it, by whatever method: where the mask is 0, the tensor is +0.

    Args:
        path: a checkpoint with masks.
        output: as in prune_checkpoint; so are the rest.
        dry_run: only say what would be done.
        loading: how a pickle may be loaded.
        on_tensor: progress.
        **where: the keywords of Where.

    Raises:
        SelectionError: there are no masks.
        PruneError: whatever else a user can cause.
    """
    checkpoint = open_checkpoint(path, loading)
    decide = partial(plan_removal, checkpoint)
    return _carry_out(checkpoint, decide, output, dry_run, on_tensor, where)


def _carry_out(
    checkpoint: Checkpoint,
    decide: Callable[[], Plan],
    output: str | Path | None,
    dry_run: bool,
    on_tensor: OnTensor | None,
    where: Where,
) -> Report:
    find_device(where.get("device", "cpu"))
    if dry_run:
        reported = find_report_destination(checkpoint, **where)
        return report_dry_run(checkpoint, decide(), reported)
    destination = find_destination(checkpoint, output, **where)
    check_destination(checkpoint, destination)
    return apply_plan(checkpoint, decide(), destination, on_tensor=on_tensor)


def apply_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    *,
    removal: Removal | None = None,
    begun: PendingFile | None = None,
    on_tensor: OnTensor | None = None,
) -> Report:
    """Writes what `plan` makes of `checkpoint`, and the report.

    Args:
        checkpoint: the input.
        plan: what is zeroed.
        destination: where to; see check_destination for what is refused.
        removal: what is removed, for `shrink`.
        begun: the output, if it was begun before; see begin_output.
        on_tensor: progress.

    Raises:
        InputError: the checkpoint cannot be read.
        OutputError: the destination cannot be written.
    """
    files = lay_out(
        checkpoint,
        plan,
        removal=removal,
        max_shard_size=destination.max_shard_size,
    )
    write = partial(
        write_output,
        checkpoint=checkpoint,
        device=find_device(destination.device),
        on_tensor=on_tensor,
    )
    with one_torch_thread():
        if is_folder_output(checkpoint, destination):
            return _apply_to_folder(checkpoint, plan, destination, files, write, removal)
        with contextlib.nullcontext(begun) if begun else pending(destination.output) as output:
            return _apply_to_file(checkpoint, plan, destination, files[0], output, write, removal)


def report_dry_run(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination | None,
    *,
    removal: Removal | None = None,
) -> Report:
    """The report of `plan` alone, written if a destination for it is given.

    Raises:
        OutputError: it cannot be written.
    """
    report = make_report(checkpoint, plan, None, shrink=removal.facts if removal else None)
    if destination and destination.report:
        write_file(destination.report, to_json(report).encode())
    return report


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
    pending_output: PendingFile,
    write: Callable[..., None],
    removal: Removal | None,
) -> Report:
    output = Output(
        path=destination.output.name,
        format="safetensors",
        files=(destination.output.name,),
        tensors=len(file.tensors),
        bytes=file.nbytes,
    )
    report = make_report(checkpoint, plan, output, shrink=removal.facts if removal else None)
    pending_output.set_size(file.nbytes)
    write(file, sink=pending_output.sink, workers=count_workers(destination.workers))
    if destination.report:
        write_file(destination.report, to_json(report).encode())
    pending_output.commit()
    return report


def _apply_to_folder(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    files: tuple[OutputFile, ...],
    write: Callable[..., None],
    removal: Removal | None,
) -> Report:
    output = Output(
        path=destination.output.resolve().name,
        format="safetensors",
        files=tuple(file.name for file in files),
        tensors=sum(len(file.tensors) for file in files),
        bytes=sum(file.nbytes for file in files),
    )
    report = make_report(checkpoint, plan, output, shrink=removal.facts if removal else None)
    index = index_name(checkpoint) if _needs_index(checkpoint, destination, files) else None
    texts = dict(removal.texts) if removal else {}
    if index:
        texts[index] = encode_index(checkpoint, files)
    beside = {destination.report: to_json(report).encode()} if destination.report else {}
    if destination.report and destination.is_report_inside:
        _refuse_taken(destination.report, {*texts, *output.files, *checkpoint.others})
        texts[destination.report.name] = beside.pop(destination.report)
    names = {*texts, *output.files, FOLDER_REPORT}
    others = tuple(name for name in checkpoint.others if name not in names)
    folder = FolderOutput(destination.output, files, others, texts, index, beside)
    workers = count_workers(destination.workers)
    write_folder(
        folder,
        checkpoint,
        lambda file, sink, stopped: write(
            file, sink=sink, workers=max(workers // len(files), 1), stopped=stopped
        ),
        workers=workers,
        force=destination.force,
        resume=destination.resume,
    )
    return report


def _refuse_taken(report: Path, names: Collection[str]) -> None:
    if report.name in names and report.name != FOLDER_REPORT:
        raise OutputError(f"{report} is another file of the output; choose another --report")


def _needs_index(
    checkpoint: Checkpoint, destination: Destination, files: tuple[OutputFile, ...]
) -> bool:
    """A folder keeps the index it had, and gets one where it is split."""
    return len(files) > 1 or (destination.max_shard_size is None and checkpoint.index is not None)
