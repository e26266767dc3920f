"""The options of a choice: how an amount is spread over layers, and which channels it is then."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups
from prune_cli.cli.locations import Location, locate

if TYPE_CHECKING:
    from prune_cli.plan.choice import Choice


def complete_allocation(incomplete: str) -> list[str]:
    """Return the allocations that there are."""
    from prune_cli.plan.allocation import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_criterion(incomplete: str) -> list[str]:
    """Return the criteria that there are."""
    from prune_cli.plan.choice import CRITERIA

    return [criterion for criterion in CRITERIA if criterion.startswith(incomplete)]


@dataclass(frozen=True)
class Choosing:
    """How channels are chosen."""

    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="METRIC=N",
            help="In place of an amount, what is to remain: params=0.5, params=50%, params=1.2M; for "
            "shrink of the whole model, and also flops=1.2G, bytes=50%, latency=10ms.",
            rich_help_panel=groups.WHAT,
        ),
    ] = None
    allocate: Annotated[
        str,
        typer.Option(
            "--allocate",
            metavar="HOW",
            autocompletion=complete_allocation,
            help="Spread the amount over layers: uniform, uniform-keep-ends, er, erk, random. For "
            "the last three it is the part of all selected elements that goes.",
            rich_help_panel=groups.WHAT,
        ),
    ] = "uniform"
    between: Annotated[
        str | None,
        typer.Option(
            "--between",
            metavar="LOW,HIGH",
            help="Bounds of the fraction of each layer, for --allocate random.",
            show_default="0.1,0.9",
            rich_help_panel=groups.WHAT,
        ),
    ] = None
    is_global: Annotated[
        bool,
        typer.Option(
            "--global",
            help="Rank the channels of all selected layers together.",
            rich_help_panel=groups.WHAT,
        ),
    ] = False
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            metavar="BY",
            autocompletion=complete_criterion,
            help="What ranks channels, of which the smallest go: random, l1, l2, fpgm, scores.",
            show_default="random",
            rich_help_panel=groups.WHAT,
        ),
    ] = None
    scores: Annotated[
        Location | None,
        typer.Option(
            "--scores",
            parser=locate,
            metavar="FILE",
            help="A safetensors file that has, for each weight by name, a score for each element "
            "or each channel.",
            rich_help_panel=groups.WHAT,
        ),
    ] = None
    round_to: Annotated[
        int,
        typer.Option(
            "--round-to",
            metavar="N",
            min=1,
            help="Keep a multiple of this many channels.",
            rich_help_panel=groups.WHAT,
        ),
    ] = 1
    at_least: Annotated[
        int,
        typer.Option(
            "--at-least",
            metavar="N",
            min=0,
            help="Keep at least this many channels in every layer.",
            rich_help_panel=groups.WHAT,
        ),
    ] = 0

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The bounds of each layer's fraction."""
        from prune_cli.plan.choice import parse_between

        return None if self.between is None else parse_between(self.between)

    def chosen(self) -> "Choice | None":
        """Return what the core wants to know."""
        from prune_cli.plan.choice import make_choice

        return make_choice(
            allocate=self.allocate,
            between=self.bounds,
            target=self.target,
            is_global=self.is_global,
            criterion=self.criterion,
            scores=None if self.scores is None else self.scores.name,
            round_to=self.round_to,
            at_least=self.at_least,
        )
