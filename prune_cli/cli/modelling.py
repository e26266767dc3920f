"""The options for the code of a model: what shrink, sweep and inspect take of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from prune_cli.cli import groups


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
