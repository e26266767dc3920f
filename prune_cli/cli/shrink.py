"""`prune-cli shrink`: the channels really go."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.choosing import Choosing
from prune_cli.cli.grouped import grouped


@dataclass(frozen=True)
class Removal:
    """What is removed, and how much of it."""

    from_zeros: Annotated[
        bool,
        typer.Option(
            "--from-zeros",
            help="Draw nothing: remove what is all zero already, where the output stays the same.",
            rich_help_panel=groups.WHAT,
        ),
    ] = False


@dataclass(frozen=True)
class ModelCode:
    """The code of the model, and what it is tried with."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="CODE",
            help="The code of the model, pkg.mod:factory or path/file.py:factory; it is run. A "
            "Hugging Face folder needs none.",
            rich_help_panel=groups.MODEL,
        ),
    ] = None
    model_arg: Annotated[
        list[str],
        typer.Option(
            "--model-arg",
            metavar="NAME=VALUE",
            help="For the factory. Repeatable.",
            rich_help_panel=groups.MODEL,
        ),
    ] = field(default_factory=list)
    example: Annotated[
        list[str],
        typer.Option(
            "--example",
            metavar="SHAPE",
            help="An input of the model, [NAME=]SHAPE[:DTYPE], as 1x3x224x224. Repeatable.",
            rich_help_panel=groups.MODEL,
        ),
    ] = field(default_factory=list)
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit",
            metavar="SECONDS",
            min=1,
            help="For planning.",
            rich_help_panel=groups.HOW,
        ),
    ] = 300


@dataclass(frozen=True)
class MeasuredCode(ModelCode):
    """The same, and whether its time is taken."""

    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time the model before and after.", rich_help_panel=groups.HOW
        ),
    ] = False


@dataclass(frozen=True)
class Model(MeasuredCode):
    """The same, and the program that is exported of it."""

    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            help="Write a torch.export program too (small.pt2), which needs no model code.",
            rich_help_panel=groups.WHERE,
        ),
    ] = None


@grouped
def shrink(
    checkpoint: groups.CheckpointPath,
    amounts: groups.Amounts,
    modules: groups.Modules,
    removal: Removal,
    choosing: Choosing,
    model: Model,
    draw: groups.Draw,
    workers: groups.Workers,
    outputs: groups.Outputs,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Remove channels for good, in every layer coupled to them: a smaller and faster model.

    Examples:
        prune-cli shrink net.pt --model nets.py:net --example 1x3x32x32 -a 0.25
        prune-cli shrink llama/ --amount 25% --round-to 64
        prune-cli shrink net.pt --model nets.py:net --example 1x3x32x32 --target flops=50%
        prune-cli shrink net.pruned.safetensors --model nets.py:net --from-zeros
    """
    from prune_cli.cli.opening import open_input
    from prune_cli.cli.pipeline import refuse_two_on_stdout, write_facts
    from prune_cli.show.progress import progress
    from prune_cli.show.shrunk import show_shrunk
    from prune_cli.shrink.child import PlanningChild

    rules = amounts.rules(modules.patterns, ("weight",), 0)
    with signals.Orderly(), PlanningChild() as planner:  # imports torch while this process does
        opened = open_input(checkpoint, loading, messages)
        files = {"reads": [amounts.recipe, choosing.scores], "writes": [model.export]}
        target = outputs.target(opened, suffix="shrunk", **files)
        refuse_two_on_stdout(target, shown)
        from prune_cli.shrink.request import parse_model_arguments
        from prune_cli.shrink.shrink import shrink_checkpoint

        with progress(opened.nbytes, quiet=messages.quiet) as phases:

            def tell_stage(doing: str) -> None:
                phases.begin(doing)
                phases.begin_with_bytes("writing", opened.nbytes)

            done = shrink_checkpoint(
                opened,
                outputs.output,
                model=model.model,
                model_arguments=parse_model_arguments(model.model_arg),
                examples=tuple(model.example),
                amount=amounts.parsed(),
                seed=draw.seed,
                target=choosing.target,
                allocate=choosing.allocate,
                between=choosing.bounds,
                is_global=choosing.is_global,
                criterion=choosing.criterion,
                scores=choosing.scores,
                round_to=choosing.round_to,
                at_least=choosing.at_least,
                modules=modules.patterns,
                exclude=modules.excluded,
                rules=rules,
                from_zeros=removal.from_zeros,
                time_limit=model.time_limit,
                report=outputs.report,
                dry_run=outputs.dry_run,
                force=outputs.force,
                resume=outputs.resume,
                max_shard_size=outputs.shard_bytes,
                workers=workers.workers,
                reads=target.reads,
                export=model.export,
                measure=model.measure,
                on_tensor=phases,
                on_stage=tell_stage,
                planner=planner,
            )
    show_shrunk(done, written=[target.output, target.report, model.export], quiet=messages.quiet)
    write_facts(done, shown)
