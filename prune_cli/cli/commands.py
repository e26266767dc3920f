"""The command line: each command parses, builds objects, calls the core, and renders.

main() is the only place that catches. What imports torch is imported inside the commands, so that
`--help` and `inspect` start at once.
"""

import errno
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import prune_cli
from prune_cli.amounts import parse_amount
from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.cli import options
from prune_cli.cli.sizes import parse_size
from prune_cli.errors import OutputError, PruneError, UsageError, VerificationError
from prune_cli.plan.recipe import read_recipe
from prune_cli.show import console

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.plan.facts import Plan

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
    except OSError as error:  # Typer and Rich print help, and this is what a full stdout gives
        if error.errno != errno.ENOSPC:
            raise
        place = error.filename or "stdout"
        console.show_error(OutputError(f"{place} cannot be written: {error.strerror}"))
        return OutputError.exit_code
    return 0


def _listen_for_signals() -> None:
    def interrupt(*_: object) -> NoReturn:
        for number in watched:  # a second one must not stop the clean-up after the first
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in watched:
        signal.signal(number, interrupt)


def _print_version(wanted: bool) -> None:
    if wanted:
        import torch

        from prune_cli.write.accelerator import available_devices

        devices = ", ".join(available_devices())
        version = prune_cli.__version__
        console.write_stdout(
            f"prune-cli {version} (torch {torch.__version__}; devices: {devices})\n"
        )
        raise typer.Exit


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
    checkpoint: options.CheckpointPath,
    amount: options.Amount = None,
    dim: options.Dim = -1,
    modules: options.Modules = None,
    exclude: options.Exclude = None,
    params: options.Params = None,
    recipe: options.Recipe = None,
    with_bias: options.WithBias = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    output: options.OutputPath = None,
    report: options.ReportPath = None,
    bake: options.Bake = True,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    resume: options.Resume = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
) -> None:
    """Prune channels at random: write a checkpoint with zeros in them, and a JSON report.

    [bold]Example:[/] prune-cli random-structured model.pt --amount 0.25 --dim 0
    """
    fraction = None if amount is None else parse_amount(amount)
    matched = {"modules": tuple(modules or ("*",)), "params": tuple(params or ("weight",))}
    rules = read_recipe(recipe, **matched, amount=fraction, dim=dim) if recipe else ()
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))

    def decide() -> "Plan":
        from prune_cli.plan.draw import make_plan
        from prune_cli.plan.facts import Options

        asked = Options(
            fraction,
            dim,
            seed,
            exclude=tuple(exclude or ()),
            bake=bake,
            with_bias=with_bias,
            rules=rules,
            **matched,
        )
        return make_plan(opened, asked)

    where = _where(report, force, resume, max_shard_size, dry_run, [recipe])
    _carry_out(opened, decide, output, where, device, workers, quiet)


@app.command("apply", no_args_is_help=True)
def apply_command(
    told: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT", help="A report of prune-cli; one of --dry-run, edited, will do."
        ),
    ],
    checkpoint: options.CheckpointPath,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    output: options.OutputPath = None,
    report: options.ReportPath = None,
    bake: Annotated[
        bool | None,
        typer.Option(
            "--bake/--keep-masks",
            help="Write zeros, or NAME_orig and NAME_mask.",
            show_default="as the report has it",
            rich_help_panel=options.WHERE_PANEL,
        ),
    ] = None,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    resume: options.Resume = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
) -> None:
    """Prune in CHECKPOINT exactly the channels that REPORT names: the fine-tuned or EMA copy.

    [bold]Example:[/] prune-cli apply model.pruned.report.json ema.pt -o ema.pruned.safetensors
    """
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))

    def decide() -> "Plan":
        from prune_cli.plan.replay import replay
        from prune_cli.report.report import read_report

        return replay(read_report(told).plan, opened, bake=bake)

    where = _where(report, force, resume, max_shard_size, dry_run, [told])
    _carry_out(opened, decide, output, where, device, workers, quiet)


@app.command("remove", no_args_is_help=True)
def remove_command(
    checkpoint: options.CheckpointPath,
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    output: options.OutputPath = None,
    report: options.ReportPath = None,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    resume: options.Resume = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
) -> None:
    """Make the masks of a checkpoint permanent: NAME_orig and NAME_mask become NAME.

    [bold]Example:[/] prune-cli remove finetuned.pt -o finetuned.safetensors
    """
    opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))

    def decide() -> "Plan":
        from prune_cli.plan.replay import plan_removal

        return plan_removal(opened)

    where = _where(report, force, resume, max_shard_size, dry_run)
    _carry_out(opened, decide, output, where, "cpu", workers, quiet)


def _loading(
    state_dict_key: str | None, allow_global: list[str] | None, unsafe_load: bool
) -> Loading:
    return Loading(state_dict_key, tuple(allow_global or ()), unsafe_load)


def _where(
    report: Path | None,
    force: bool,
    resume: bool,
    max_shard_size: str | None,
    dry_run: bool,
    reads: Sequence[Path | None] = (),
) -> dict[str, Any]:
    return {
        "report": report,
        "force": force,
        "resume": resume,
        "max_shard_size": None if max_shard_size is None else parse_size(max_shard_size),
        "dry_run": dry_run,
        "reads": [path for path in reads if path],
    }


def _carry_out(
    checkpoint: "Checkpoint",
    decide: "Callable[[], Plan]",
    output: Path | None,
    where: dict[str, Any],
    device: str,
    workers: int | None,
    quiet: bool,
) -> None:
    """Plans and applies, with a progress bar, and shows what came of it."""
    from prune_cli.api import carry_out
    from prune_cli.plan.biases import count_emitting_biases
    from prune_cli.write.target import Execution, find_target

    target = find_target(checkpoint, output, **where)
    with console.progress(checkpoint.nbytes, quiet=quiet) as on_tensor:
        report = carry_out(checkpoint, decide, target, Execution(device, workers, on_tensor))
    emitting = count_emitting_biases(checkpoint, report.plan)
    written = [target.output, target.report]
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
    workers: options.Workers = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
) -> None:
    """Prove what was done: hold a pruned checkpoint against its report and its source.

    Exits with 5 if anything disagrees, and lists it.

    [bold]Example:[/] prune-cli verify model.pruned.safetensors --source model.pt
    """
    from prune_cli.verify.verify import to_json, verify_checkpoint
    from prune_cli.write.target import Execution

    nbytes = _nbytes(output) if source else 0
    with console.progress(nbytes, quiet=quiet, doing="comparing") as on_tensor:
        verification = verify_checkpoint(
            output,
            report=report,
            source=source,
            loading=_loading(state_dict_key, allow_global, unsafe_load),
            workers=Execution(workers=workers).threads,
            on_tensor=on_tensor,
        )
    if as_json:
        console.write_stdout(to_json(verification))
    console.show_verification(verification, quiet=quiet)
    if not verification.is_verified:
        raise VerificationError(f"{output}: {len(verification.disagreements)} disagreement(s)")


def _nbytes(output: Path) -> int:
    """The bytes of the weights at `output`, as far as that shows from outside."""
    files = output.glob("*.safetensors") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())


@app.command("inspect", no_args_is_help=True)
def inspect_command(
    checkpoint: options.CheckpointPath,
    modules: options.Modules = None,
    exclude: options.Exclude = None,
    params: options.AnyParams = None,
    zeros: options.Zeros = False,
    dim: options.ZerosDim = None,
    globs: options.Globs = False,
    show_all: options.ShowAll = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
) -> None:
    """Show what is in a checkpoint: modules, parameters, shapes, dtypes, sizes; from its headers.

    [bold]Example:[/] prune-cli inspect model.safetensors --module 'model.layers.*'
    """
    from prune_cli.inspection.inspection import inspect, to_json

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
    reports: options.ReportPaths,
    as_json: options.AsJson = False,
    html: options.Html = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a report says; compare several: amounts, seeds, and the channels they share.

    [bold]Example:[/] prune-cli report seed0.report.json seed1.report.json --html page.html
    """
    from prune_cli.report.comparison import compare_reports, read_reports, to_json
    from prune_cli.show.page import render_page
    from prune_cli.shrink.groups import show_groups_as_tensors
    from prune_cli.write.atomic import write_file
    from prune_cli.write.checks import check_can_write
    from prune_cli.write.paths import STDOUT

    if as_json and html == STDOUT:
        raise UsageError("--json and --html cannot both go to stdout")
    if html:
        check_can_write([html], reports, force=force)
    found = read_reports(reports)
    rows = {name: show_groups_as_tensors(report) for name, report in found.items()}
    if html:
        write_file(html, render_page(found).encode())
    if as_json:
        console.write_stdout(to_json(compare_reports(rows)))
    elif html != STDOUT and not quiet:
        if len(found) > 1:
            console.show_comparison(compare_reports(rows))
        else:
            console.print_report(*found.values())
    if not quiet:
        console.show_written([html])


@app.command("shrink", no_args_is_help=True)
def shrink_command(
    checkpoint: options.CheckpointPath,
    amount: options.Amount = None,
    modules: options.Modules = None,
    exclude: options.Exclude = None,
    recipe: options.Recipe = None,
    from_zeros: Annotated[
        bool,
        typer.Option(
            "--from-zeros",
            help="Draw nothing: remove what is all zero already, where the output stays the same.",
            rich_help_panel=options.WHAT_PANEL,
        ),
    ] = False,
    round_to: Annotated[
        int,
        typer.Option(
            "--round-to",
            min=1,
            help="Leave channels in multiples of this.",
            rich_help_panel=options.WHAT_PANEL,
        ),
    ] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model's code, pkg.mod:factory or path/file.py:factory; it is run. A Hugging "
            "Face folder needs none.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--model-arg",
            help="NAME=VALUE for the factory. Repeatable.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            help="An input of the model, [NAME=]SHAPE[:DTYPE], as 1x3x224x224. Repeatable.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write a torch.export program too (small.pt2), which needs no model code.",
            rich_help_panel=options.WHERE_PANEL,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time the model before and after.", rich_help_panel=options.HOW_PANEL
        ),
    ] = False,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit",
            min=1,
            help="For planning, in seconds.",
            rich_help_panel=options.HOW_PANEL,
        ),
    ] = 300,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    output: options.OutputPath = None,
    report: options.ReportPath = None,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    resume: options.Resume = False,
    state_dict_key: options.StateDictKey = None,
    allow_global: options.AllowGlobal = None,
    unsafe_load: options.UnsafeLoad = False,
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
    from prune_cli.shrink.child import PlanningChild

    with PlanningChild() as planner:  # which imports torch while this process does
        opened = open_checkpoint(checkpoint, _loading(state_dict_key, allow_global, unsafe_load))
        from prune_cli.shrink.model import parse_model_arguments
        from prune_cli.shrink.shrink import shrink_checkpoint

        where = _where(report, force, resume, max_shard_size, "cpu", workers, [recipe])
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
                reads=where["reads"],
                export=export,
                measure=measure,
                on_tensor=on_tensor,
                planner=planner,
            )
    destination = find_destination(opened, output, **where)
    written = [] if dry_run else [destination.output, destination.report, export]
    console.show_shrunk(done, written=written, quiet=quiet)
