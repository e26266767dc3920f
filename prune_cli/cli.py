"""The command line: each command parses, builds objects, calls the core, and renders.

main() is the only place that catches. What imports torch is imported inside the commands, so that
`--help` and `inspect` start at once.
"""

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import prune_cli
from prune_cli import console
from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.errors import OutputError, PruneError, UsageError, VerificationError
from prune_cli.selection import parse_amount, parse_size, read_recipe

if TYPE_CHECKING:
    from prune_cli.apply import Where
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.plan import Plan

INTERRUPTED = 130
"""The exit code after Ctrl-C, SIGTERM or SIGHUP."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Interrupted(BaseException):
    """A signal asked us to stop. No Exception: nothing between here and main() may swallow it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `argv` is without the program's name."""
    _listen_for_signals()
    try:
        app(args=None if argv is None else list(argv), prog_name="prune-cli")
    except SystemExit as end:
        # 1 is what Typer and Rich end with when nobody reads the help that they print.
        return OutputError.exit_code if end.code == 1 else int(end.code or 0)
    except PruneError as error:
        console.show_error(error)
        return error.exit_code
    except Interrupted:
        console.show_interrupted()
        return INTERRUPTED
    return 0


def _listen_for_signals() -> None:
    def interrupt(*_: object) -> NoReturn:
        for number in watched:  # a second one must not stop the clean-up after the first
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in watched:
        signal.signal(number, interrupt)


# --- options that commands share -------------------------------------------------------------


def _complete_module(context: typer.Context, incomplete: str) -> list[str]:
    """The module names of the checkpoint on the line."""
    path = context.params.get("checkpoint")
    try:
        parameters = open_checkpoint(path).parameters if path else ()
    except PruneError:
        return []
    modules = dict.fromkeys(parameter.module for parameter in parameters)
    return [module for module in modules if module.startswith(incomplete)]


def _print_version(wanted: bool) -> None:
    if wanted:
        import torch

        from prune_cli.apply import available_devices

        devices = ", ".join(available_devices())
        version = prune_cli.__version__
        console.write_stdout(
            f"prune-cli {version} (torch {torch.__version__}; devices: {devices})\n"
        )
        raise typer.Exit


_WHAT, _HOW, _WHERE, _LOADING = "What is pruned", "How", "Where it goes", "Reading pickles"
_MODEL = "The model"
_WHAT_IS_SHOWN = "What is shown"

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
        rich_help_panel=_WHAT,
    ),
]
Dim = Annotated[
    int,
    typer.Option("--dim", "-d", help="The dim whose indices are channels.", rich_help_panel=_WHAT),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        "-m",
        help="Glob of dotted module names; * crosses dots. Repeatable.",
        show_default="*",
        autocompletion=_complete_module,
        rich_help_panel=_WHAT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        "-x",
        help="Glob of modules to leave alone. Repeatable.",
        autocompletion=_complete_module,
        rich_help_panel=_WHAT,
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        help="Glob of parameter names (an LSTM needs 'weight_*'). Repeatable.",
        show_default="weight",
        rich_help_panel=_WHAT,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="TOML file of \\[\\[rules]]: module, param, amount, dim; the last match wins.",
        rich_help_panel=_WHAT,
    ),
]
WithBias = Annotated[
    bool,
    typer.Option(
        "--with-bias",
        help="Prune the bias element of each pruned channel too (dim 0).",
        rich_help_panel=_WHAT,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", "-s", help="The same seed, the same bytes.", rich_help_panel=_HOW)
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        "-D",
        help="Where channels are zeroed: cpu, cuda, cuda:1, mps, auto. The bytes are the same.",
        rich_help_panel=_HOW,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads.",
        show_default="one a core, at most 8",
        rich_help_panel=_HOW,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        help="Plan and show, write nothing (but a --report).",
        rich_help_panel=_HOW,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=_HOW)
]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (a folder for a folder), or - for stdout.",
        show_default="NAME.pruned.safetensors beside the input",
        rich_help_panel=_WHERE,
    ),
]
ReportPath = Annotated[
    Path | None,
    typer.Option(
        "--report",
        "-r",
        help="The JSON report, or - for stdout.",
        show_default="beside the output",
        rich_help_panel=_WHERE,
    ),
]
Bake = Annotated[
    bool,
    typer.Option(
        "--bake/--keep-masks",
        help="Write zeros, or NAME_orig and NAME_mask as torch has them.",
        rich_help_panel=_WHERE,
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        help="Split the output into a folder of shards of at most this: 5GB, 500MiB.",
        rich_help_panel=_WHERE,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace what is there.", rich_help_panel=_WHERE)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Take up a run on a folder that was interrupted.",
        rich_help_panel=_WHERE,
    ),
]
StateDictKey = Annotated[
    str | None,
    typer.Option(
        "--state-dict-key",
        help="Where the state dict is nested (model.ema).",
        show_default="found by structure",
        rich_help_panel=_LOADING,
    ),
]
AllowGlobal = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global",
        help="A global that a pickle may use besides torch's own, as argparse.Namespace. "
        "Repeatable.",
        rich_help_panel=_LOADING,
    ),
]
UnsafeLoad = Annotated[
    bool,
    typer.Option(
        "--unsafe-load",
        help="Load pickled modules and TorchScript, running whatever code they hold.",
        rich_help_panel=_LOADING,
    ),
]
AnyParams = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        help="Glob of parameter names. Repeatable.",
        show_default="*",
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]
Zeros = Annotated[
    bool,
    typer.Option(
        "--zeros",
        "-z",
        help="Count the channels that are all zero; this reads weights.",
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]
ZerosDim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        "-d",
        help="Count them along this dim only.",
        show_default="each",
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]
Globs = Annotated[
    bool,
    typer.Option(
        "--globs",
        "-g",
        help="Propose patterns for --module that group the modules.",
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]
ShowAll = Annotated[
    bool,
    typer.Option(
        "--all",
        "-a",
        help="Show each tensor, however many there are.",
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", "-j", help="Write JSON to stdout.", rich_help_panel=_WHAT_IS_SHOWN),
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
        rich_help_panel=_WHAT_IS_SHOWN,
    ),
]


@app.callback()
def prune(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of prune-cli and torch, and the devices.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Remove channels at random, reproducibly, from any PyTorch checkpoint, from the shell."""


# --- commands --------------------------------------------------------------------------------


@app.command("random-structured", no_args_is_help=True)
def random_structured(
    checkpoint: CheckpointPath,
    amount: Amount = None,
    dim: Dim = -1,
    modules: Modules = None,
    exclude: Exclude = None,
    params: Params = None,
    recipe: Recipe = None,
    with_bias: WithBias = False,
    seed: Seed = 0,
    device: Device = "cpu",
    workers: Workers = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    output: OutputPath = None,
    report: ReportPath = None,
    bake: Bake = True,
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    resume: Resume = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Prune channels at random: write a checkpoint with zeros in them, and a JSON report.

    [bold]Example:[/] prune-cli random-structured model.pt --amount 0.25 --dim 0
    """
    fraction = None if amount is None else parse_amount(amount)
    matched = {"modules": tuple(modules or ("*",)), "params": tuple(params or ("weight",))}
    rules = read_recipe(recipe, **matched, amount=fraction, dim=dim) if recipe else ()
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
    from prune_cli.plan import Options, make_plan

    options = Options(
        fraction,
        dim,
        seed,
        exclude=tuple(exclude or ()),
        bake=bake,
        with_bias=with_bias,
        rules=rules,
        **matched,
    )
    where = _where(report, force, resume, max_shard_size, device, workers)
    _carry_out(opened, lambda: make_plan(opened, options), output, where, dry_run, quiet)


@app.command("apply", no_args_is_help=True)
def apply_command(
    told: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT", help="A report of prune-cli; one of --dry-run, edited, will do."
        ),
    ],
    checkpoint: CheckpointPath,
    device: Device = "cpu",
    workers: Workers = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    output: OutputPath = None,
    report: ReportPath = None,
    bake: Annotated[
        bool | None,
        typer.Option(
            "--bake/--keep-masks",
            help="Write zeros, or NAME_orig and NAME_mask.",
            show_default="as the report has it",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    resume: Resume = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Prune in CHECKPOINT exactly the channels that REPORT names: the fine-tuned or EMA copy.

    [bold]Example:[/] prune-cli apply model.pruned.report.json ema.pt -o ema.pruned.safetensors
    """
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
    from prune_cli.replay import replay
    from prune_cli.report import read_report

    plan = read_report(told).plan
    where = _where(report, force, resume, max_shard_size, device, workers)
    decide = partial(replay, plan, opened, bake=bake)
    _carry_out(opened, decide, output, where, dry_run, quiet)


@app.command("remove", no_args_is_help=True)
def remove_command(
    checkpoint: CheckpointPath,
    workers: Workers = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    output: OutputPath = None,
    report: ReportPath = None,
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    resume: Resume = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Make the masks of a checkpoint permanent: NAME_orig and NAME_mask become NAME.

    [bold]Example:[/] prune-cli remove finetuned.pt -o finetuned.safetensors
    """
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
    from prune_cli.replay import plan_removal

    where = _where(report, force, resume, max_shard_size, "cpu", workers)
    _carry_out(opened, partial(plan_removal, opened), output, where, dry_run, quiet)


def _loading(
    state_dict_key: str | None, allow_global: list[str] | None, unsafe_load: bool
) -> Loading:
    return Loading(state_dict_key, tuple(allow_global or ()), unsafe_load)


def _where(
    report: Path | None,
    force: bool,
    resume: bool,
    max_shard_size: str | None,
    device: str,
    workers: int | None,
) -> "Where":
    return {
        "report": report,
        "force": force,
        "resume": resume,
        "max_shard_size": None if max_shard_size is None else parse_size(max_shard_size),
        "device": device,
        "workers": workers,
    }


def _carry_out(
    checkpoint: "Checkpoint",
    decide: "Callable[[], Plan]",
    output: Path | None,
    where: "Where",
    dry_run: bool,
    quiet: bool,
) -> None:
    """Plans and applies, with a progress bar, and shows what came of it."""
    import torch

    from prune_cli.apply import (
        apply_plan,
        check_destination,
        find_destination,
        find_report_destination,
        report_dry_run,
    )
    from prune_cli.outputs import count_bytes
    from prune_cli.plan import count_emitting_biases

    torch.set_num_threads(1)  # the workers are threads already
    if dry_run:
        plan = decide()
        destination = find_report_destination(**where)
        report = report_dry_run(checkpoint, plan, destination)
        written = [destination.report if destination else None]
    else:
        destination = find_destination(checkpoint, output, **where)
        check_destination(checkpoint, destination)
        plan = decide()
        with console.progress(count_bytes(checkpoint, plan), quiet=quiet) as on_tensor:
            report = apply_plan(checkpoint, plan, destination, on_tensor=on_tensor)
        written = [destination.output, destination.report]
    emitting = count_emitting_biases(checkpoint, plan)
    console.show_report(report, written=written, emitting=emitting, quiet=quiet)


@app.command("verify", no_args_is_help=True)
def verify_command(
    output: Annotated[Path, typer.Argument(help="What prune-cli wrote: a file or a folder.")],
    report: Annotated[
        Path | None,
        typer.Option("--report", "-r", help="Its report.", show_default="found beside it"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help="The checkpoint that was pruned. With it every byte is compared, without it only "
            "what the report names.",
        ),
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Prove what was done: hold a pruned checkpoint against its report and its source.

    Exits with 5 if anything disagrees, and lists it.

    [bold]Example:[/] prune-cli verify model.pruned.safetensors --source model.pt
    """
    import torch

    from prune_cli.apply import count_workers
    from prune_cli.verify import to_json, verify_checkpoint

    torch.set_num_threads(1)
    verification = verify_checkpoint(
        output,
        report=report,
        source=source,
        loading=_loading(state_dict_key, allow_global, unsafe_load),
        workers=count_workers(workers),
    )
    if as_json:
        console.write_stdout(to_json(verification))
    console.show_verification(verification, quiet=quiet)
    if not verification.is_verified:
        raise VerificationError(f"{output}: {len(verification.disagreements)} disagreement(s)")


@app.command("inspect", no_args_is_help=True)
def inspect_command(
    checkpoint: CheckpointPath,
    modules: Modules = None,
    exclude: Exclude = None,
    params: AnyParams = None,
    zeros: Zeros = False,
    dim: ZerosDim = None,
    globs: Globs = False,
    show_all: ShowAll = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Show what is in a checkpoint: modules, parameters, shapes, dtypes, sizes; from its headers.

    [bold]Example:[/] prune-cli inspect model.safetensors --module 'model.layers.*'
    """
    from prune_cli.inspection import inspect, to_json

    if dim is not None and not zeros:
        raise UsageError("--dim says along which dim zero channels are counted; add --zeros")
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
    with console.progress(opened.nbytes if zeros else 0, quiet=quiet) as on_tensor:
        found = inspect(
            opened,
            modules=tuple(modules or ("*",)),
            exclude=tuple(exclude or ()),
            params=tuple(params or ("*",)),
            zeros=zeros,
            dim=dim,
            globs=globs,
            on_tensor=on_tensor,
        )
    if as_json:
        console.write_stdout(to_json(found))
    elif globs:
        console.show_globs(found)
    else:
        console.show_inspection(found, show_all=show_all)


@app.command("report", no_args_is_help=True)
def report_command(
    reports: ReportPaths,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show what a report says; compare several: amounts, seeds, and the channels they share.

    [bold]Example:[/] prune-cli report seed0.report.json seed1.report.json --html page.html
    """
    from prune_cli.comparison import compare_reports, read_reports, to_json
    from prune_cli.page import render_page
    from prune_cli.writer import STDOUT, check_can_write, write_file

    if as_json and html == STDOUT:
        raise UsageError("--json and --html cannot both go to stdout")
    if html:
        check_can_write([html], reports, force=force)
    found = read_reports(reports)
    if html:
        write_file(html, render_page(found).encode(errors="xmlcharrefreplace"))
    if as_json:
        console.write_stdout(to_json(compare_reports(found)))
    elif html != STDOUT and not quiet:
        if len(found) > 1:
            console.show_comparison(compare_reports(found))
        else:
            console.print_report(*found.values())
    if not quiet:
        console.show_written([html])


@app.command("shrink", no_args_is_help=True)
def shrink_command(
    checkpoint: CheckpointPath,
    amount: Amount = None,
    modules: Modules = None,
    exclude: Exclude = None,
    recipe: Recipe = None,
    from_zeros: Annotated[
        bool,
        typer.Option(
            "--from-zeros",
            help="Draw nothing: remove what is all zero already, where the output stays the same.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    round_to: Annotated[
        int,
        typer.Option(
            "--round-to",
            min=1,
            help="Leave channels in multiples of this.",
            rich_help_panel=_WHAT,
        ),
    ] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model's code, pkg.mod:factory or path/file.py:factory; it is run. A Hugging "
            "Face folder needs none.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--model-arg", help="NAME=VALUE for the factory. Repeatable.", rich_help_panel=_MODEL
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            help="An input of the model, [NAME=]SHAPE[:DTYPE], as 1x3x224x224. Repeatable.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write a torch.export program too (small.pt2), which needs no model code.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time the model before and after.", rich_help_panel=_HOW),
    ] = False,
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", min=1, help="For planning, in seconds.", rich_help_panel=_HOW),
    ] = 300,
    seed: Seed = 0,
    workers: Workers = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    output: OutputPath = None,
    report: ReportPath = None,
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    resume: Resume = False,
    state_dict_key: StateDictKey = None,
    allow_global: AllowGlobal = None,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Remove channels for good, in every layer coupled to them: a smaller and faster model.

    [bold]Example:[/] prune-cli shrink model.pt --model nets.py:resnet --example 1x3x224x224 -a 0.25
    """
    fraction = None if amount is None else parse_amount(amount)
    globs = tuple(modules or ("*",))
    rules = (
        read_recipe(recipe, modules=globs, params=("weight",), amount=fraction, dim=0)
        if recipe
        else ()
    )
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
    from prune_cli.apply import find_destination
    from prune_cli.shrink.model import parse_model_arguments
    from prune_cli.shrink.shrink import shrink_checkpoint

    where = _where(report, force, resume, max_shard_size, "cpu", workers)
    with console.progress(opened.nbytes, quiet=quiet) as on_tensor:
        done = shrink_checkpoint(
            opened,
            output,
            model=model,
            model_arguments=parse_model_arguments(model_arg or ()),
            examples=tuple(example or ()),
            amount=fraction,
            seed=seed,
            round_to=round_to,
            modules=globs,
            exclude=tuple(exclude or ()),
            rules=rules,
            from_zeros=from_zeros,
            time_limit=time_limit,
            report=report,
            dry_run=dry_run,
            force=force,
            resume=resume,
            max_shard_size=where["max_shard_size"],
            workers=workers,
            export=export,
            measure=measure,
            on_tensor=on_tensor,
        )
    destination = find_destination(opened, output, **where)
    written = [] if dry_run else [destination.output, destination.report, export]
    console.show_shrunk(done, written=written, quiet=quiet)
