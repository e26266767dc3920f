"""`prune-cli inspect`: what is in a checkpoint."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.grouped import grouped
from prune_cli.errors import UsageError


@dataclass(frozen=True)
class View:
    """What of a checkpoint is shown."""

    params: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            metavar="GLOB",
            help="Pattern of parameter names. Repeatable, or a,b.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = field(default_factory=lambda: ["*"])
    zeros: Annotated[
        bool,
        typer.Option(
            "--zeros",
            "-z",
            help="Count the channels that are all zero; this reads weights.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = False
    dim: Annotated[
        int | None,
        typer.Option(
            "--dim",
            "-d",
            metavar="DIM",
            help="Count them along this dim only.",
            show_default="each",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    globs: Annotated[
        bool,
        typer.Option(
            "--globs",
            "-g",
            help="Propose patterns for --module that group the modules.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = False
    show_all: Annotated[
        bool,
        typer.Option(
            "--all",
            "-A",
            help="Show each tensor, however many there are.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = False


@grouped
def inspect(
    checkpoint: groups.CheckpointPath,
    modules: groups.Modules,
    view: View,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Show what is in a checkpoint: modules, parameters, shapes, dtypes, sizes; from its headers.

    [bold]Example:[/] prune-cli inspect model.safetensors --module 'model.layers.*'
    """
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.inspection.facts import inspection_to_json
    from prune_cli.inspection.inspect import inspect as look
    from prune_cli.show.console import write_stdout
    from prune_cli.show.progress import progress
    from prune_cli.show.tree import print_globs, print_inspection

    if view.dim is not None and not view.zeros:
        raise UsageError("--dim says along which dim zero channels are counted; add --zeros")
    opened = open_checkpoint(checkpoint, loading.chosen())
    showing = progress(opened.nbytes if view.zeros else 0, quiet=messages.quiet)
    with signals.Orderly(), showing as on_tensor:
        found = look(
            opened,
            modules=modules.patterns,
            exclude=modules.excluded,
            params=groups.split_patterns(view.params),
            zeros=view.zeros,
            dim=view.dim,
            globs=view.globs,
            on_tensor=on_tensor,
        )
    if shown.as_json:
        write_stdout(inspection_to_json(found))
    elif view.globs:
        print_globs(found)
    else:
        print_inspection(found, show_all=view.show_all)
