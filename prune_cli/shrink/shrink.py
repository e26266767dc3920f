"""Shrink a checkpoint: plan from its headers and the model's code, then go through the one pipeline."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from prune_cli.amounts import Amount, check_amount
from prune_cli.api import carry_out
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.tensors import DTYPES, Parameter
from prune_cli.errors import RequestError, UsageError
from prune_cli.plan import masks
from prune_cli.plan.choice import Choice, make_choice
from prune_cli.plan.facts import SHRUNK, Options, Plan
from prune_cli.plan.scores import open_scores
from prune_cli.plan.selection import Rule, as_globs
from prune_cli.plan.shrink import ShrinkOptions, ShrinkPlan
from prune_cli.plan.units import CHANNELS, check_units
from prune_cli.report.report import Report
from prune_cli.shrink.child import DEFAULT_MEMORY_LIMIT, DEFAULT_TIME_LIMIT, PlanningChild
from prune_cli.shrink.request import OnStage, Request, Score, Source
from prune_cli.shrink.scores import score_sites
from prune_cli.stores import Location, StorePath, locate
from prune_cli.write.paths import STDOUT, is_special
from prune_cli.write.progress import OnTensor
from prune_cli.write.target import Execution, find_target


def shrink_checkpoint(
    path: str | Location | Checkpoint,
    output: str | Location | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    examples: str | Sequence[str] = (),
    amount: Amount | None = None,
    units: Mapping[str, Amount | None] | None = None,
    target: str | None = None,
    allocate: str = "uniform",
    between: tuple[float, float] | None = None,
    is_global: bool = False,
    criterion: str | None = None,
    scores: str | Location | None = None,
    seed: int = 0,
    round_to: int = 1,
    at_least: int = 0,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    rules: Sequence[Rule] = (),
    from_zeros: bool = False,
    as_code: bool = False,
    time_limit: float = DEFAULT_TIME_LIMIT,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    report: str | Location | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    max_shard_size: int | None = None,
    workers: int | None = None,
    reads: Sequence[str | Location] = (),
    card: bool | None = None,
    export: str | Location | None = None,
    measure: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
    on_stage: OnStage | None = None,
    planner: PlanningChild | None = None,
    execution: Execution | None = None,
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
        units: What goes, and how much of it: {"heads": 0.25, "layers": 2}; there are "channels",
            "heads", "head-dim", "experts" and "layers", and None is `amount`. Without, channels.
        target: In place of an amount, what is to remain of the whole model: "params=0.5",
            "flops=1.2G", "bytes=50%", "latency=10ms".
        allocate: How the amount or target is spread over the groups, as plan/allocation.py says.
        between: Bounds of the fraction of each group, for the allocation "random".
        is_global: Rank the channels of all groups together.
        criterion: What ranks channels; the smallest sum over a group's weights goes.
        scores: A score file, for the criterion "scores".
        seed: Of the draws.
        round_to: Leave channels in multiples of this.
        at_least: Leave at least so many in each group; one always stays.
        modules: Globs of module names; a group goes if all layers that make its channels match.
        exclude: Globs of modules whose channels stay.
        rules: A recipe; the last rule that matches wins. Without one, the above are the rule.
        from_zeros: Remove what is all zero and changes nothing, instead of drawing.
        as_code: Leave the config.json of a folder as it is, so that it need not be able to say what
            went; the model's class and `load_shrunk` load the output.
        time_limit: For planning, in seconds.
        memory_limit: For planning, in bytes, beyond what torch itself takes.
        report: Where the JSON report goes; by default beside the output.
        dry_run: Only plan: write nothing but a report that was asked for.
        force: Replace an output that is there.
        resume: Take up a run on a folder that was killed.
        max_shard_size: In bytes; the output is then a folder of shards.
        workers: Threads; the bytes are the same for any number.
        reads: Files that must not be written, such as the recipe that the rules are from.
        card: As in prune_checkpoint.
        export: Where a torch.export program of the small model goes (model.pt2).
        measure: Time the model before and after, and report it; its report is not reproducible.
        loading: How a pickle may be loaded.
        on_tensor: Called with a name and a number of bytes, from any thread.
        on_stage: Called with what the planning is doing.
        planner: A child that was started before, so that its imports are done by now.
        execution: How the output is made, in place of workers and on_tensor.

    Returns:
        What was done; `report.shrink` is the ShrinkPlan.

    Raises:
        PruneError: Whatever a user can cause; its class says what.

    Example:
        shrink_checkpoint(
            "model.pt", "small.safetensors", model="nets:resnet18", examples=["1x3x224x224"], amount=0.25
        )
    """
    choice = make_choice(
        allocate=allocate,
        between=between,
        target=target,
        is_global=is_global,
        criterion=criterion,
        scores=None if scores is None else locate(scores).name,
        at_least=at_least,
    )
    kinds = wanted_units(units, amount)
    _check_what_goes(amount, rules, choice, kinds, from_zeros=from_zeros)
    _check_units(kinds, rules, choice, round_to, from_zeros=from_zeros)
    if dry_run and (export or measure):
        raise UsageError("a dry run writes no model that could be exported or measured")
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, loading)
    checkpoint.liveness.look()  # what a smaller tensor is made of is read in any case
    place = find_target(
        checkpoint,
        output,
        suffix="shrunk",
        report=report,
        force=force,
        resume=resume,
        max_shard_size=max_shard_size,
        dry_run=dry_run,
        reads=[*reads, *_code(model), *([] if scores is None else [scores])],
        writes=[export] if export else (),
        card=card,
    )
    if export and place.output:
        _refuse_unreadable(place.output)
    options = Options(
        amount=None if amount is None else check_amount(amount),
        dim=0,
        seed=seed,
        modules=as_globs(modules),
        exclude=as_globs(exclude),
        rules=tuple(rules),
        choice=choice,
        shrink=ShrinkOptions(
            round_to,
            from_zeros,
            model,
            spell_arguments(model_arguments or {}),
            as_globs(examples),
            as_code or None,
            kinds or None,
        ),
    )
    execution = execution or Execution("cpu", workers, on_tensor)
    source = find_source(checkpoint, model, model_arguments or {}, as_globs(examples))
    decide = partial(
        _decide,
        checkpoint,
        source,
        options,
        scores=scores,
        workers=execution.workers,
        measure=measure,
        time_limit=time_limit,
        memory_limit=memory_limit,
        on_stage=on_stage,
        planner=planner,
    )
    written = carry_out(checkpoint, decide, place, execution)
    if export and isinstance(place.output, Path):
        from prune_cli.shrink.live import export_shrunk

        export_shrunk(source, place.output, locate(export))
    return written


def _refuse_unreadable(output: Location) -> None:
    if isinstance(output, StorePath) or output == STDOUT or is_special(output):
        raise UsageError("--export reads the output back, so that has to be a file on this machine")


def wanted_units(
    units: Mapping[str, Amount | None] | None, amount: Amount | None
) -> dict[str, Amount]:
    """Return how much of each kind of unit goes; nothing where only channels do, by `amount`.

    Raises:
        UsageError: there is no such kind, or it has no amount.
    """
    asked = {kind: amount if own is None else own for kind, own in (units or {}).items()}
    return (
        {} if asked.keys() <= {CHANNELS} and asked.get(CHANNELS) == amount else check_units(asked)
    )


def _check_units(
    units: Mapping[str, Amount],
    rules: Sequence[Rule],
    choice: Choice | None,
    round_to: int,
    *,
    from_zeros: bool,
) -> None:
    if not units:
        return
    ways = {
        "--recipe": bool(rules),
        "--from-zeros": from_zeros,
        "--target, --allocate, --global, --criterion, --scores and --at-least": choice is not None,
        "--round-to": round_to > 1 and CHANNELS not in units,
    }
    odd = [way for way, is_given in ways.items() if is_given]
    if odd:
        raise UsageError(f"{odd[0]}: that is for channels alone; leave it or --unit out")


def _check_what_goes(
    amount: Amount | None,
    rules: Sequence[Rule],
    choice: Choice | None,
    units: Mapping[str, Amount],
    *,
    from_zeros: bool,
) -> None:
    has_target = choice is not None and choice.target is not None
    if from_zeros == (amount is not None or bool(rules) or has_target or bool(units)):
        raise UsageError(
            "say what goes: either an amount, a target or a recipe, or what is zero already"
        )
    if from_zeros and choice:
        raise UsageError("what is zero already is not chosen: leave out how channels are chosen")
    if has_target and (rules or amount is not None):
        given = "the amounts of a recipe" if rules else "--amount"
        raise UsageError(f"--target takes the place of {given}; give one of them")


def _code(model: str | None) -> list[Path]:
    """Return the file that a factory "path/file.py:factory" is in."""
    file = (model or "").rpartition(":")[0]
    return [Path(file)] if file.endswith(".py") else []


def spell_arguments(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of a factory as `--model-arg` has them: what cannot be told is refused."""
    odd = [name for name, value in arguments.items() if not _is_literal(value)]
    if odd:
        raise UsageError(
            f"the model argument {odd[0]!r} is no Python literal, so no report could name it; "
            "build it in the factory"
        )
    return {name: repr(value) for name, value in arguments.items()}


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


class _Planning(TypedDict):
    time_limit: float
    memory_limit: int
    on_stage: OnStage | None
    planner: PlanningChild | None


def _decide(
    checkpoint: Checkpoint,
    source: Source,
    options: Options,
    *,
    scores: str | Location | None,
    workers: int | None,
    measure: bool,
    **planning: Unpack[_Planning],
) -> Plan:
    asked = options.shrink
    assert asked is not None
    units = asked.units or {}
    channels = units.get(CHANNELS, options.amount or 0)
    decided = plan_checkpoint(
        checkpoint,
        source,
        options.rules or (Rule(options.modules, ("weight",), channels, 0),),
        exclude=options.exclude,
        seed=options.seed,
        round_to=asked.round_to,
        from_zeros=asked.from_zeros,
        units=units,
        as_code=bool(asked.as_code),
        choice=options.choice,
        scores=scores,
        workers=workers,
        **planning,
    )
    if measure:
        from prune_cli.shrink.live import measure_effect

        decided = replace(decided, latency=measure_effect(source, decided, is_thorough=True))
    return Plan(SHRUNK, options, (), shrink=decided)


def find_source(
    checkpoint: Checkpoint,
    model: str | None,
    arguments: Mapping[str, Any],
    examples: Sequence[str],
) -> Source:
    """Return where the model of a checkpoint comes from: its factory, or its own folder.

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
    units: Mapping[str, Amount] | None = None,
    as_code: bool = False,
    choice: Choice | None = None,
    scores: str | Location | None = None,
    workers: int | None = None,
    time_limit: float = DEFAULT_TIME_LIMIT,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    on_stage: OnStage | None = None,
    planner: PlanningChild | None = None,
) -> ShrinkPlan:
    """Plan for a checkpoint: its shapes must be the model's, and its zeros count for `from_zeros`.

    Raises:
        PruneError: As `PlanningChild.plan`.
    """
    zeros = dict(_zeros(checkpoint)) if from_zeros else None
    each = item_bytes(checkpoint, choice)
    wanted = Request(
        rules,
        exclude,
        seed,
        round_to,
        zeros,
        choice,
        as_code=as_code,
        item_bytes=each,
        units=units or {},
    )
    score = scorer(checkpoint, choice, scores, workers)
    with planner or PlanningChild() as child:
        plan = child.plan(
            source,
            wanted,
            shapes_of(checkpoint),
            time_limit=time_limit,
            memory_limit=memory_limit,
            on_stage=on_stage,
            score=score,
        )
    _refuse_shared(checkpoint, plan)
    return plan


def _refuse_shared(checkpoint: Checkpoint, plan: ShrinkPlan) -> None:
    """Refuse to number tensors anew that have several names: the others would be wrong then."""
    for pair in checkpoint.parameter_aliases.items():
        if any(plan.name_after(name) != name for name in pair):
            raise RequestError(
                f"{pair[0]} and {pair[1]} share memory, and are numbered anew without the units; "
                "save the checkpoint once with tensors of their own"
            )


def scorer(
    checkpoint: Checkpoint,
    choice: Choice | None,
    scores: str | Location | None,
    workers: int | None,
) -> Score | None:
    """Return what ranks the channels for the planning; None where they are drawn.

    Raises:
        InputError: the score file cannot be read.
    """
    if choice is None or choice.criterion == "random":
        return None
    opened = None if scores is None else open_scores(scores)
    threads = Execution("cpu", workers).threads
    return partial(score_sites, checkpoint, choice.criterion, opened, threads)


def item_bytes(checkpoint: Checkpoint, choice: Choice | None) -> dict[str, float]:
    """Return the bytes of an element of each stored tensor, where a target in bytes needs them."""
    if choice is None or not (choice.target or "").startswith("bytes"):
        return {}
    infos = [parameter.tensor for parameter in checkpoint.parameters]
    names = [parameter.name for parameter in checkpoint.parameters]
    return {
        name: info.nbytes / max(info.elements, 1) for name, info in zip(names, infos, strict=True)
    }


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by each of its names, as planning wants to know it."""
    shapes = {parameter.name: parameter.tensor.shape for parameter in checkpoint.parameters}
    for alias, name in checkpoint.aliases.items():
        shapes[alias] = checkpoint.tensors[name].shape
    return shapes


def _zeros(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[int, tuple[int, ...]]]]:
    """For every tensor, along each of its axes, the channels that are all zero or all masked."""
    for parameter in checkpoint.parameters:
        dims = _zero_channels(checkpoint, parameter)
        if parameter.mask is None or dims:
            for name in (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ())):
                yield name, dims


def _zero_channels(checkpoint: Checkpoint, parameter: Parameter) -> dict[int, tuple[int, ...]]:
    info = parameter.mask or parameter.tensor
    if not math.prod(info.shape) or not DTYPES[info.dtype].holds_zero:
        return {}
    dead = {dim: masks.dead(checkpoint, parameter, dim) for dim in range(len(info.shape))}
    return {dim: channels for dim, channels in dead.items() if channels}
