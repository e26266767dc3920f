"""The options and arguments that commands share, each defined once.

Only types and their help: what is done with a value is in `cli`.
"""

from pathlib import Path
from typing import Annotated

import typer

from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import PruneError


def _complete_module(context: typer.Context, incomplete: str) -> list[str]:
    """The module names of the checkpoint on the line."""
    # An option that still lacks its value ends Typer's parsing, and leaves what it has as args.
    words = filter(None, (context.params.get("checkpoint"), *context.args))
    path = next((word for word in words if Path(word).exists()), None)
    try:
        parameters = open_checkpoint(path).parameters if path else ()
    except PruneError:
        return []
    modules = dict.fromkeys(parameter.module for parameter in parameters)
    return [module for module in modules if module.startswith(incomplete)]


# The panels of the help.
WHAT_PANEL = "What is pruned"
HOW_PANEL = "How"
WHERE_PANEL = "Where it goes"
LOADING_PANEL = "Reading pickles"
MODEL_PANEL = "The model"
SHOWN_PANEL = "What is shown"

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint: a file of safetensors or torch.save, a model folder or its index, "
        "or - for stdin.",
        show_default=False,
    ),
]
Amount = Annotated[
    str | None,
    typer.Option(
        "--amount",
        "-a",
        help="3 is three channels of each tensor, 0.25 or 25% that part of its live ones.",
        rich_help_panel=WHAT_PANEL,
    ),
]
Dim = Annotated[
    int,
    typer.Option(
        "--dim", "-d", help="The dim whose indices are channels.", rich_help_panel=WHAT_PANEL
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        "-m",
        help="Glob of dotted module names; * crosses dots. Repeatable.",
        show_default="*",
        autocompletion=_complete_module,
        rich_help_panel=WHAT_PANEL,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        "-x",
        help="Glob of modules to leave alone. Repeatable.",
        autocompletion=_complete_module,
        rich_help_panel=WHAT_PANEL,
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        help="Glob of parameter names (an LSTM needs 'weight_*'). Repeatable.",
        show_default="weight",
        rich_help_panel=WHAT_PANEL,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="TOML file of \\[\\[rules]]: module, param, amount, dim; the last match wins.",
        rich_help_panel=WHAT_PANEL,
    ),
]
WithBias = Annotated[
    bool,
    typer.Option(
        "--with-bias",
        help="Prune the bias element of each pruned channel too (dim 0).",
        rich_help_panel=WHAT_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", "-s", help="The same seed, the same bytes.", rich_help_panel=HOW_PANEL),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        "-D",
        help="Where channels are zeroed: cpu, cuda, cuda:1, mps, auto. The bytes are the same.",
        rich_help_panel=HOW_PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads.",
        show_default="one a core, at most 8",
        rich_help_panel=HOW_PANEL,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        help="Plan and show, write nothing (but a --report).",
        rich_help_panel=HOW_PANEL,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=HOW_PANEL)
]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (a folder for a folder), or - for stdout.",
        show_default="NAME.pruned.safetensors beside the input",
        rich_help_panel=WHERE_PANEL,
    ),
]
ReportPath = Annotated[
    Path | None,
    typer.Option(
        "--report",
        "-r",
        help="The JSON report, or - for stdout.",
        show_default="beside the output",
        rich_help_panel=WHERE_PANEL,
    ),
]
Bake = Annotated[
    bool,
    typer.Option(
        "--bake/--keep-masks",
        help="Write zeros, or NAME_orig and NAME_mask as torch has them.",
        rich_help_panel=WHERE_PANEL,
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        help="Split the output into a folder of shards of at most this: 5GB, 500MiB.",
        rich_help_panel=WHERE_PANEL,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace what is there.", rich_help_panel=WHERE_PANEL)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Take up a run on a folder that was interrupted.",
        rich_help_panel=WHERE_PANEL,
    ),
]
StateDictKey = Annotated[
    str | None,
    typer.Option(
        "--state-dict-key",
        help="Where the state dict is nested (model.ema).",
        show_default="found by structure",
        rich_help_panel=LOADING_PANEL,
    ),
]
AllowGlobal = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global",
        help="A global that a pickle may use besides torch's own, as argparse.Namespace. "
        "Repeatable.",
        rich_help_panel=LOADING_PANEL,
    ),
]
UnsafeLoad = Annotated[
    bool,
    typer.Option(
        "--unsafe-load",
        help="Load pickled modules and TorchScript, running whatever code they hold.",
        rich_help_panel=LOADING_PANEL,
    ),
]
AnyParams = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        help="Glob of parameter names. Repeatable.",
        show_default="*",
        rich_help_panel=SHOWN_PANEL,
    ),
]
Zeros = Annotated[
    bool,
    typer.Option(
        "--zeros",
        "-z",
        help="Count the channels that are all zero; this reads weights.",
        rich_help_panel=SHOWN_PANEL,
    ),
]
ZerosDim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        "-d",
        help="Count them along this dim only.",
        show_default="each",
        rich_help_panel=SHOWN_PANEL,
    ),
]
Globs = Annotated[
    bool,
    typer.Option(
        "--globs",
        "-g",
        help="Propose patterns for --module that group the modules.",
        rich_help_panel=SHOWN_PANEL,
    ),
]
ShowAll = Annotated[
    bool,
    typer.Option(
        "--all",
        "-a",
        help="Show each tensor, however many there are.",
        rich_help_panel=SHOWN_PANEL,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", "-j", help="Write JSON to stdout.", rich_help_panel=SHOWN_PANEL),
]


ReportPaths = Annotated[
    list[Path],
    typer.Argument(help="Reports of prune-cli, or - for stdin.", show_default=False),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        help="Write a page with a picture of each tensor's channels, or - for stdout.",
        rich_help_panel=SHOWN_PANEL,
    ),
]
