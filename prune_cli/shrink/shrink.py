"""Shrink a checkpoint: plan from its headers and the model's code, then stream it through `apply`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune_cli.amounts import check_amount
from prune_cli.api import apply_plan, report_dry_run
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.errors import UsageError
from prune_cli.module import live_channels
from prune_cli.plan.facts import Options, Plan
from prune_cli.plan.selection import Amount, Rule
from prune_cli.report.report import Report, to_json
from prune_cli.shrink.child import DEFAULT_TIME_LIMIT, PlanningChild
from prune_cli.shrink.live import export_shrunk, measure_effect
from prune_cli.shrink.plan import ShrinkOptions, ShrinkPlan, Source
from prune_cli.shrink.removal import METHOD, make_removal
from prune_cli.write.atomic import write_file
from prune_cli.write.checks import check_can_write
from prune_cli.write.progress import OnTensor
from prune_cli.write.target import check_destination, find_destination, find_report_destination


def shrink_checkpoint(
    path: str | Path | Checkpoint,
    output: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    examples: Sequence[str] = (),
    amount: Amount | None = None,
    seed: int = 0,
    round_to: int = 1,
    modules: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    from_zeros: bool = False,
    time_limit: float = DEFAULT_TIME_LIMIT,
    report: str | Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    workers: int | None = None,
    reads: Sequence[Path] = (),
    export: str | Path | None = None,
    measure: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    planner: PlanningChild | None = None,
) -> Report:
    """Remove channels from the checkpoint at `path`, so that the model gets smaller and faster.

    Args:
        path: The checkpoint: a file, a folder in the Hugging Face layout, or one that is open.
        output: Where the small one goes; by default beside the input.
        model: The factory of the model, "pkg.mod:factory" or "path/file.py:factory"; a folder
            needs none, its config.json says it.
        model_arguments: For the factory.
        examples: The model's inputs, as "1x3x224x224" or "input_ids=1x16:int64".
        amount: Per group: an int is a number of channels, a float a fraction.
        seed: Of the draws.
        round_to: Leave channels in multiples of this.
        modules: Globs of module names; a group goes if all layers that make its channels match.
        exclude: Globs of modules whose channels stay.
        rules: A recipe; the last rule that matches wins. Without one, the above are the rule.
        from_zeros: Remove what is all zero and changes nothing, instead of drawing.
        time_limit: For planning, in seconds.
        report: Where the JSON report goes; by default beside the output.
        dry_run: Only plan: write nothing but a report that was asked for.
        force: Replace an output that is there.
        resume: Take up a run on a folder that was killed.
        max_shard_size: In bytes; the output is then a folder of shards.
        workers: Threads; the bytes are the same for any number.
        reads: Files that must not be written, such as the recipe that the rules are from.
        export: Where a torch.export program of the small model goes (model.pt2).
        measure: Time the model before and after, and report it; its report is not reproducible.
        loading: How a pickle may be loaded.
        on_tensor: Called with a name and a number of bytes, from any thread.
        planner: A child that was started before, so that its imports are done by now.

    Returns:
        What was done; `report.shrink` is the plan, for `ShrinkPlan.from_facts`.

    Raises:
        PruneError: Whatever a user can cause; its class says what.

    Example:
        shrink_checkpoint(
            "model.pt", "small.safetensors", model="nets:resnet18", examples=["1x3x224x224"], amount=0.25
        )
    """
    if from_zeros == (amount is not None or bool(rules)):
        raise UsageError("say what goes: either an amount or a recipe, or what is zero already")
    if dry_run and (export or measure):
        raise UsageError("a dry run writes no model that could be exported or measured")
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, loading)
    destination = find_destination(
        checkpoint,
        output=None if output is None else Path(output),
        report=None if report is None else Path(report),
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        workers=workers,
        reads=reads,
    )
    if dry_run:
        reported = find_report_destination(checkpoint, report=report, force=force, reads=reads)
    else:
        check_destination(checkpoint, destination)
        check_can_write([Path(export)] if export else [], [], force=force)
    source = find_source(checkpoint, model, model_arguments or {}, examples)
    everything = Rule(tuple(modules), ("weight",), 0 if amount is None else check_amount(amount), 0)
    decided = plan_checkpoint(
        checkpoint,
        source,
        tuple(rules) or (everything,),
        exclude=tuple(exclude),
        seed=seed,
        round_to=round_to,
        from_zeros=from_zeros,
        time_limit=time_limit,
        planner=planner,
    )
    removal = make_removal(decided, source.model if source.is_folder else None)
    options = Options(
        amount=amount, seed=seed, modules=tuple(modules), exclude=tuple(exclude), rules=tuple(rules)
    )
    plan = Plan(METHOD, options, ())
    if dry_run:
        return report_dry_run(checkpoint, plan, reported, removal=removal)
    written = apply_plan(checkpoint, plan, destination, removal=removal, on_tensor=on_tensor)
    if export:
        export_shrunk(source, destination.output, Path(export))
    if measure:
        latency = measure_effect(source, checkpoint, destination.output)
        written = replace(written, shrink={**removal.facts, "latency": latency})
        if destination.report:
            write_file(destination.report, to_json(written).encode())
    return written


def find_source(
    checkpoint: Checkpoint,
    model: str | None,
    arguments: Mapping[str, Any],
    examples: Sequence[str],
) -> Source:
    """Where the model of a checkpoint comes from: its factory, or its own folder.

    Raises:
        UsageError: Neither is given.
    """
    if model is not None:
        return Source(model, False, dict(arguments), tuple(examples))
    if not checkpoint.is_folder:
        raise UsageError(
            "a file of weights does not say which model they are of; name its code: "
            "--model pkg.mod:factory, or path/file.py:factory"
        )
    return Source(str(checkpoint.path), True, {}, tuple(examples))


def plan_checkpoint(
    checkpoint: Checkpoint,
    source: Source,
    rules: tuple[Rule, ...],
    *,
    exclude: tuple[str, ...] = (),
    seed: int = 0,
    round_to: int = 1,
    from_zeros: bool = False,
    time_limit: float = DEFAULT_TIME_LIMIT,
    planner: PlanningChild | None = None,
) -> ShrinkPlan:
    """Plan for a checkpoint: its shapes must be the model's, and its zeros count for `from_zeros`.

    Raises:
        PruneError: As `PlanningChild.plan`.
    """
    zeros = dict(_zeros(checkpoint)) if from_zeros else None
    options = ShrinkOptions(rules, exclude, seed, round_to, zeros)
    with planner or PlanningChild() as child:
        return child.plan(source, options, _shapes(checkpoint), time_limit=time_limit)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    shapes = {parameter.name: parameter.tensor.shape for parameter in checkpoint.parameters}
    for alias, name in checkpoint.aliases.items():
        shapes[alias] = checkpoint.tensors[name].shape
    return shapes


def _zeros(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[int, tuple[int, ...]]]]:
    """For every tensor, along each of its axes, the channels that are all zero or all masked."""
    for parameter in checkpoint.parameters:
        dims = _zero_channels(checkpoint, parameter.mask or parameter.tensor)
        if parameter.mask is None or dims:
            for name in (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ())):
                yield name, dims


def _zero_channels(checkpoint: Checkpoint, info: TensorInfo) -> dict[int, tuple[int, ...]]:
    if not math.prod(info.shape) or not DTYPES[info.dtype].holds_zero:
        return {}
    tensor = checkpoint.tensor(info)
    dead = {dim: all_but(live_channels(tensor, dim), size) for dim, size in enumerate(info.shape)}
    return {dim: channels for dim, channels in dead.items() if channels}
