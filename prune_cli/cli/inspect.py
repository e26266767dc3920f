"""`prune-cli inspect`: what is in a checkpoint."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.completion import complete_order
from prune_cli.cli.grouped import grouped
from prune_cli.cli.modelling import ModelCode
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.inspection.facts import Inspection, ModelFacts
    from prune_cli.report.formats import Format, Rows


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
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="ORDER",
            autocompletion=complete_order,
            help="List the tensors by name or by size, the largest first.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="N",
            min=1,
            help="List the first N of them only.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth",
            metavar="N",
            min=1,
            help="List the modules of that depth, with all that is in each.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    show_all: Annotated[
        bool,
        typer.Option(
            "--all",
            "-A",
            help="Show each tensor, however many there are.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = False

    flops: Annotated[
        bool,
        typer.Option(
            "--flops",
            help="Show parameters, FLOPs and coupled groups of the model, by its code.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = False

    @property
    def is_listing(self) -> bool:
        """Whether rows are asked for, instead of a tree."""
        return (self.sort, self.top, self.depth) != (None, None, None)

    def check(self) -> None:
        """Raise a UsageError for what does not go together."""
        if self.dim is not None and not self.zeros:
            raise UsageError("--dim says along which dim zero channels are counted; add --zeros")
        if self.globs and self.is_listing:
            raise UsageError("--globs proposes patterns; --sort, --top and --depth list tensors")
        if self.flops and (self.globs or self.is_listing):
            raise UsageError("--flops shows groups; leave out --globs, --sort, --top and --depth")

    def check_code(self, code: ModelCode) -> None:
        """Raise a UsageError where the model's code is named for nothing."""
        if (code.model or code.model_arg or code.example) and not self.flops:
            raise UsageError("--model, --model-arg and --example are for --flops")

    def rows(self, inspection: "Inspection") -> "Rows":
        """Return the rows that --sort, --top and --depth ask for."""
        from prune_cli.inspection.listing import Order, list_modules, list_parameters

        if self.sort not in (None, *Order):
            raise UsageError(f"--sort is {' or '.join(Order)}, not {self.sort!r}")
        order = Order(self.sort or ("size" if self.top else "name"))
        if self.depth is not None:
            return list_modules(inspection, self.depth, order=order, top=self.top)
        return list_parameters(inspection, order=order, top=self.top)


@grouped
def inspect(
    checkpoint: groups.CheckpointPath,
    modules: groups.Modules,
    view: View,
    code: ModelCode,
    shown: groups.ShownInRows,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Show what is in a checkpoint: modules, parameters, shapes, dtypes, sizes; from its headers.

    Examples:
        prune-cli inspect model.safetensors
        prune-cli inspect llama/ --sort size --top 20
        prune-cli inspect model.pruned.safetensors --zeros --dim 0 -m 'layer4.*'
        prune-cli inspect net.pt --flops --model nets.py:net --example 1x3x224x224
    """
    from prune_cli.cli.opening import open_input
    from prune_cli.inspection.inspect import inspect as look
    from prune_cli.show.progress import progress

    view.check()
    view.check_code(code)
    form = shown.rendering()
    opened = open_input(checkpoint, loading, messages)
    nbytes = opened.nbytes if view.zeros else 0
    showing = progress(nbytes, quiet=messages.quiet, doing="counting", before="reading")
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
    if view.flops:
        found = replace(found, model=_look_at_model(opened, code, quiet=messages.quiet))
    if shown.as_json or form or not messages.quiet:
        _show(found, view, form, as_json=shown.as_json)


def _look_at_model(opened: "Checkpoint", code: ModelCode, *, quiet: bool) -> "ModelFacts":
    from prune_cli.show.progress import progress
    from prune_cli.shrink.look import look_at_model
    from prune_cli.shrink.request import parse_model_arguments

    with signals.Orderly(), progress(0, quiet=quiet) as phases:
        return look_at_model(
            opened,
            model=code.model,
            model_arguments=parse_model_arguments(code.model_arg),
            examples=tuple(code.example),
            time_limit=code.time_limit,
            on_stage=phases.begin,
        )


def _show(found: "Inspection", view: View, form: "Format | None", *, as_json: bool) -> None:
    from prune_cli.inspection.facts import inspection_to_json
    from prune_cli.inspection.listing import list_groups
    from prune_cli.report.formats import Format
    from prune_cli.show.console import write_stdout
    from prune_cli.show.listing import print_rows, total_of
    from prune_cli.show.model import print_model
    from prune_cli.show.tree import print_globs, print_inspection

    if as_json:
        write_stdout(inspection_to_json(found))
    elif found.model and form:
        print_rows(list_groups(found.model), form)
    elif found.model:
        print_model(found.model)
    elif form or view.is_listing:
        rows = view.rows(found)
        print_rows(rows, form or Format.TABLE, footer=total_of(found, len(rows.rows)))
    elif view.globs:
        print_globs(found)
    else:
        print_inspection(found, show_all=view.show_all)
