"""`prune-cli shrink`: the channels really go."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.choosing import Choosing
from prune_cli.cli.grouped import grouped
from prune_cli.cli.modelling import Model
from prune_cli.cli.spreading import Spreading
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.amounts import Amount


def complete_unit(incomplete: str) -> list[str]:
    """Return the kinds of units that there are."""
    from prune_cli.plan.units import UNITS

    return [kind for kind in UNITS if kind.startswith(incomplete)]


@dataclass(frozen=True)
class Removal:
    """What is removed, and how much of it."""

    unit: Annotated[
        list[str],
        typer.Option(
            "--unit",
            "-u",
            metavar="KIND[=AMOUNT]",
            autocompletion=complete_unit,
            help="What goes: channels, heads, head-dim, experts or layers; with an amount of its own, or "
            "that of --amount. Repeatable.",
            show_default="channels",
            rich_help_panel=groups.WHAT,
        ),
    ] = field(default_factory=list)
    from_zeros: Annotated[
        bool,
        typer.Option(
            "--from-zeros",
            help="Draw nothing: remove what is all zero already, where the output stays the same.",
            rich_help_panel=groups.WHAT,
        ),
    ] = False
    as_code: Annotated[
        bool,
        typer.Option(
            "--as-code",
            help="Leave config.json as it is, which need not be able to say what went: "
            "the output is for load_shrunk.",
            rich_help_panel=groups.WHAT,
        ),
    ] = False

    def units(self, amount: "Amount | None") -> "dict[str, Amount]":
        """Return how much of each kind goes; nothing without --unit."""
        from prune_cli.plan.units import parse_units

        return parse_units(self.unit, amount)


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
    spreading: Spreading,
    outputs: groups.Outputs,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Remove channels for good, in every layer coupled to them: a smaller and faster model.

    Examples:
        prune-cli shrink net.pt --model nets.py:net --example 1x3x32x32 -a 0.25
        prune-cli shrink llama/ --unit heads=25% --unit layers=2
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
        reads = [amounts.recipe, choosing.scores]
        target = outputs.target(opened, suffix="shrunk", reads=reads, writes=[model.export])
        refuse_two_on_stdout(target, shown)
        spread = spreading.chosen(target, messages)
        if (spread.part or spread.finishes) and (model.measure or (spread.part and model.export)):
            raise UsageError(
                "no part can be measured, nor exported before --finish: leave out --measure, and "
                "give --export to --finish"
            )
        from prune_cli.shrink.request import parse_model_arguments
        from prune_cli.shrink.shrink import shrink_checkpoint
        from prune_cli.write.target import Execution

        with (
            progress(opened.nbytes, quiet=messages.quiet) as phases,
            spread.engine(opened, target, messages) as engine,
        ):

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
                units=removal.units(amounts.parsed()),
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
                as_code=removal.as_code,
                time_limit=model.time_limit,
                report=outputs.report,
                dry_run=outputs.dry_run,
                force=outputs.force,
                resume=outputs.resume or spread.continues,
                max_shard_size=outputs.shard_bytes,
                reads=target.reads,
                export=model.export,
                measure=model.measure,
                execution=Execution("cpu", workers.workers, phases, engine=engine, **spread.facts),
                on_stage=tell_stage,
                planner=planner,
            )
    if spread.part:
        spread.tell_part(done, target, messages)
        return
    show_shrunk(done, written=[target.output, target.report, model.export], quiet=messages.quiet)
    write_facts(done, shown)
