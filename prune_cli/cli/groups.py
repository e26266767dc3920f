"""The options that commands share, in groups: each option stands once, a command takes a group.

To add an option, add a field to its group, and every command with that group has it. What an
option means to the core is said here too, by the methods of its group. See also: grouped.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import signals
from prune_cli.cli.color import Color, choose_color
from prune_cli.cli.completion import (
    complete_device,
    complete_format,
    complete_module,
    complete_output_format,
)
from prune_cli.cli.grouped import ENVIRONMENT_PREFIX
from prune_cli.cli.locations import Location, locate, locate_checkpoint
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli import checkpoint
    from prune_cli.amounts import Amount
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.plan.selection import Rule
    from prune_cli.report.formats import Format
    from prune_cli.write.progress import OnTensor
    from prune_cli.write.target import Execution, Target

# The panels of the help.
WHAT = "What is pruned"
HOW = "How"
WHERE = "Where it goes"
LOADING = "Reading the checkpoint"
MODEL = "The model"
SHOWN = "What is shown"
MESSAGES = "Messages"

CheckpointPath = Annotated[
    Location,
    typer.Argument(
        parser=locate_checkpoint,
        metavar="CHECKPOINT",
        help="A file of safetensors or torch.save, a model folder or its index, or - for stdin.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Amounts:
    """How many channels go: one amount for all, or a recipe."""

    amount: Annotated[
        str | None,
        typer.Option(
            "--amount",
            "-a",
            metavar="AMOUNT",
            help="3 channels of each tensor, or 0.25 (25%) of its live ones.",
            rich_help_panel=WHAT,
        ),
    ] = None
    recipe: Annotated[
        Location | None,
        typer.Option(
            "--recipe",
            parser=locate,
            metavar="FILE",
            help="TOML file of \\[\\[rules]]: module, param, amount, dim; the last match wins.",
            rich_help_panel=WHAT,
        ),
    ] = None

    def parsed(self) -> "Amount | None":
        """Return the amount as a number."""
        from prune_cli.amounts import parse_amount

        return None if self.amount is None else parse_amount(self.amount)

    def rules(
        self, modules: tuple[str, ...], params: tuple[str, ...], dim: int
    ) -> "tuple[Rule, ...]":
        """Return the rules of the recipe, what they leave out filled in; none without a recipe."""
        from prune_cli.plan.recipe import read_recipe

        if self.recipe is None:
            return ()
        return read_recipe(
            self.recipe, modules=modules, params=params, amount=self.parsed(), dim=dim
        )


@dataclass(frozen=True)
class Modules:
    """Which modules are meant."""

    modules: Annotated[
        list[str],
        typer.Option(
            "--module",
            "-m",
            metavar="GLOB",
            help="Pattern of dotted module names; * crosses dots. Repeatable, or a,b.",
            autocompletion=complete_module,
            rich_help_panel=WHAT,
        ),
    ] = field(default_factory=lambda: ["*"])
    exclude: Annotated[
        list[str],
        typer.Option(
            "--exclude",
            "-x",
            metavar="GLOB",
            help="Pattern of modules to leave alone. Repeatable, or a,b.",
            autocompletion=complete_module,
            rich_help_panel=WHAT,
        ),
    ] = field(default_factory=list)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of --module."""
        return split_patterns(self.modules)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of --exclude."""
        return split_patterns(self.exclude)


@dataclass(frozen=True)
class Names:
    """What names are without what wraps the model."""

    strip_prefix: Annotated[
        list[str],
        typer.Option(
            "--strip-prefix",
            metavar="PREFIX",
            help="What a wrapper puts before every name (module.); auto finds the usual ones. "
            "The draw does not depend on it. Repeatable.",
            rich_help_panel=WHAT,
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Channels:
    """What the channels of a module are."""

    dim: Annotated[
        int,
        typer.Option(
            "--dim",
            "-d",
            metavar="DIM",
            help="The dim whose indices are channels; 0 is the outputs of a layer.",
            rich_help_panel=WHAT,
        ),
    ] = -1
    params: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            metavar="GLOB",
            help="Pattern of parameter names (an LSTM needs weight_*). Repeatable, or a,b.",
            rich_help_panel=WHAT,
        ),
    ] = field(default_factory=lambda: ["weight"])
    with_bias: Annotated[
        bool,
        typer.Option(
            "--with-bias",
            help="Prune the bias element of each pruned channel too (dim 0).",
            rich_help_panel=WHAT,
        ),
    ] = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of --param."""
        return split_patterns(self.params)


@dataclass(frozen=True)
class Draw:
    """What chance depends on."""

    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            "-s",
            metavar="SEED",
            help="The same seed gives the same bytes.",
            rich_help_panel=HOW,
        ),
    ] = 0


@dataclass(frozen=True)
class Workers:
    """How many threads work."""

    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            help="Threads.",
            show_default="one for each core, at most 8",
            rich_help_panel=HOW,
        ),
    ] = None

    def execution(self, on_tensor: "OnTensor | None" = None) -> "Execution":
        """Return how the output is made."""
        from prune_cli.write.target import Execution

        return Execution("cpu", self.workers, on_tensor, before_commit=signals.finish)


@dataclass(frozen=True)
class Running(Workers):
    """Workers, and where channels are zeroed."""

    device: Annotated[
        str,
        typer.Option(
            "--device",
            "-D",
            metavar="DEVICE",
            help="Where channels are zeroed: cpu, cuda, cuda:1, mps, auto. The bytes are the same.",
            autocompletion=complete_device,
            rich_help_panel=HOW,
        ),
    ] = "cpu"

    def execution(self, on_tensor: "OnTensor | None" = None) -> "Execution":
        """Return how the output is made."""
        return replace(super().execution(on_tensor), device=self.device)


@dataclass(frozen=True)
class Messages:
    """What is said on stderr."""

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Show errors only; on stdout, what --json, --format or - ask for.",
            rich_help_panel=MESSAGES,
        ),
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Say what is read and written, from where, and how long it took.",
            rich_help_panel=MESSAGES,
        ),
    ] = False
    color: Annotated[
        Color,
        typer.Option(
            "--color",
            metavar="WHEN",
            help="auto, always or never; auto obeys NO_COLOR and FORCE_COLOR.",
            callback=choose_color,
            rich_help_panel=MESSAGES,
        ),
    ] = Color.AUTO

    def tell(self, text: str, *, since: float | None = None) -> None:
        """Say `text` unless it is to be quiet, with the seconds `since` a time.perf_counter()."""
        from prune_cli.show.console import escape, say

        if not self.quiet:
            seconds = "" if since is None else f" ({time.perf_counter() - since:.2f} s)"
            say(f"[dim]{escape(text)}{seconds}[/]")


@dataclass(frozen=True)
class Outputs:
    """Where the output and its report go."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            "-n",
            help="Plan and show, and write nothing but a --report.",
            rich_help_panel=HOW,
        ),
    ] = False
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A file, or the folder to put it in (for a folder, a folder), or - for stdout.",
            show_default="NAME.pruned.safetensors beside the input",
            rich_help_panel=WHERE,
        ),
    ] = None
    report: Annotated[
        Location | None,
        typer.Option(
            "--report",
            "-r",
            parser=locate,
            metavar="FILE",
            help="The JSON report, or - for stdout.",
            show_default="beside the output",
            rich_help_panel=WHERE,
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            envvar=f"{ENVIRONMENT_PREFIX}OUTPUT_FORMAT",  # --format of what is shown is another
            help="safetensors, torch (a plain state dict), or in-kind: the input file with zeros in it.",
            autocompletion=complete_output_format,
            show_default="by the name of the output",
            rich_help_panel=WHERE,
        ),
    ] = None
    in_kind: Annotated[
        bool,
        typer.Option(
            "--in-kind",
            help="The same as --format in-kind: a folder keeps its files of torch.",
            rich_help_panel=WHERE,
        ),
    ] = False
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Split the output into a folder of shards of at most this: 5GB, 500MiB.",
            rich_help_panel=WHERE,
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Replace existing files.", rich_help_panel=WHERE),
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an interrupted run that writes a folder.",
            rich_help_panel=WHERE,
        ),
    ] = False
    fsync: Annotated[
        bool,
        typer.Option(
            "--fsync",
            help="Wait for the disk, so that the output survives a power failure.",
            rich_help_panel=WHERE,
        ),
    ] = False

    card: Annotated[
        bool | None,
        typer.Option(
            "--card/--no-card",
            help="Write a model card, README.md, into an output folder: what it was made of, and how.",
            show_default="where the input has one, or one of the two is on the Hugging Face Hub",
            rich_help_panel=WHERE,
        ),
    ] = None

    def target(
        self,
        checkpoint: "Checkpoint",
        *,
        reads: Sequence[Location | None] = (),
        writes: Sequence[Location | None] = (),
        suffix: str = "pruned",
    ) -> "Target":
        """Return where the output goes; `reads` and `writes` are further files of the command."""
        from prune_cli.write.target import find_target

        return find_target(
            checkpoint,
            self.output,
            report=self.report,
            force=self.force,
            resume=self.resume,
            max_shard_size=self.shard_bytes,
            fsync=self.fsync,
            dry_run=self.dry_run,
            format="in-kind" if self.in_kind else self.format,
            suffix=suffix,
            reads=list(filter(None, reads)),
            writes=list(filter(None, writes)),
            card=self.card,
        )

    @property
    def shard_bytes(self) -> int | None:
        """The size of --max-shard-size."""
        from prune_cli.cli.sizes import parse_size

        return None if self.max_shard_size is None else parse_size(self.max_shard_size)


@dataclass(frozen=True)
class Loading:
    """Which parts of a checkpoint are wanted."""

    state_dict_key: Annotated[
        list[str],
        typer.Option(
            "--state-dict-key",
            metavar="KEY",
            help="Where the state dict is nested (model.ema); repeatable, * for every one.",
            show_default="found by structure",
            rich_help_panel=LOADING,
        ),
    ] = field(default_factory=list)
    drop_unwritable: Annotated[
        bool,
        typer.Option(
            "--drop-unwritable",
            help="Leave out tensors that cannot be had from bytes (sparse, quantised, DTensor).",
            rich_help_panel=LOADING,
        ),
    ] = False

    subfolder: Annotated[
        list[str],
        typer.Option(
            "--subfolder",
            metavar="GLOB",
            help="Read the checkpoints in these subfolders as one (unet, vae, * for all); . is the "
            "folder itself. Repeatable, or a,b.",
            rich_help_panel=LOADING,
        ),
    ] = field(default_factory=list)
    copy_all: Annotated[
        bool,
        typer.Option(
            "--copy-all",
            help="Also copy weights of the same model in other formats, unpruned.",
            rich_help_panel=LOADING,
        ),
    ] = False

    def chosen(self) -> "checkpoint.Loading":
        """Return what the core wants to know."""
        from prune_cli import checkpoint

        return checkpoint.Loading(
            state_dict_keys=tuple(self.state_dict_key),
            drop_unwritable=self.drop_unwritable,
            subfolders=split_patterns(self.subfolder),
            copy_all=self.copy_all,
        )


@dataclass(frozen=True)
class Shown:
    """In which form something is shown on stdout."""

    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write all facts as JSON.", rich_help_panel=SHOWN),
    ] = False


@dataclass(frozen=True)
class ShownInRows(Shown):
    """The same for what has rows, which other programs take as a table."""

    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORM",
            help="Write rows to stdout: table, json, csv, markdown or latex.",
            autocompletion=complete_format,
            rich_help_panel=SHOWN,
        ),
    ] = None

    def rendering(self) -> "Format | None":
        """Return the form of --format.

        Raises:
            UsageError: there is no such form, or --json asks for another one.
        """
        from prune_cli.report.formats import Format

        if self.form is None:
            return None
        if self.as_json:
            raise UsageError("--json and --format cannot both go to stdout")
        if self.form not in list(Format):
            raise UsageError(f"there is no format {self.form!r}; there is {', '.join(Format)}")
        return Format(self.form)


def split_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return `patterns` one by one: "a,b" is two; a comma in brackets belongs to its pattern.

    Example:
        >>> split_patterns(["a,b.*", "c"])
        ('a', 'b.*', 'c')
    """
    import re

    return tuple(
        part
        for pattern in patterns
        for part in re.split(r",(?![^\[]*\])", pattern)
        if part or not pattern  # '' is the pattern of the root module
    )
