"""`prune-cli sweep`: many draws, each evaluated by the user's own command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.choosing import Choosing
from prune_cli.cli.grouped import ENVIRONMENT_PREFIX, grouped
from prune_cli.cli.locations import Location
from prune_cli.cli.modelling import MeasuredCode
from prune_cli.cli.spreading import SpreadTrials
from prune_cli.errors import SweepError, UsageError

if TYPE_CHECKING:
    from prune_cli.amounts import Amount
    from prune_cli.cluster.parts import Part
    from prune_cli.plan.choice import Choice
    from prune_cli.plan.selection import Rule
    from prune_cli.sweep.evaluation import Evaluation
    from prune_cli.sweep.grid import Grid
    from prune_cli.sweep.maker import Maker
    from prune_cli.sweep.request import Request
    from prune_cli.sweep.series import Series
    from prune_cli.sweep.stages import Results

EVALUATION = "How it is evaluated"
TRIALS = "Which trials"


@dataclass(frozen=True)
class Trials:
    """The grid."""

    amount: Annotated[
        str | None,
        typer.Option(
            "--amount",
            "-a",
            metavar="AMOUNTS",
            help="List of amounts: 0.1,0.25,0.5 or 10%,25% or 1,2,3 (channels).",
            rich_help_panel=TRIALS,
        ),
    ] = None
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds",
            metavar="N|LIST",
            help="How many seeds (0 to N-1), or a list of them: 3,5,8 (7, is a list of one).",
            rich_help_panel=TRIALS,
        ),
    ] = "5"
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help="Random search: this many draws, in place of --seeds.",
            rich_help_panel=TRIALS,
        ),
    ] = None
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Sensitivity: prune one of the matched modules at a time.",
            rich_help_panel=TRIALS,
        ),
    ] = False
    lose: Annotated[
        float | None,
        typer.Option(
            "--lose",
            metavar="LOSS",
            min=0,
            help="With --each: write a recipe.toml that loses at most this much of the metric.",
            rich_help_panel=TRIALS,
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="TOML file of \\[\\[rules]]; the amounts fill what a rule leaves open.",
            rich_help_panel=TRIALS,
        ),
    ] = None

    def amounts(self) -> "tuple[Amount, ...]":
        """Return the list of --amount."""
        from prune_cli.sweep.grid import parse_amounts

        return () if self.amount is None else parse_amounts(self.amount)

    def chosen_seeds(self) -> tuple[int, ...]:
        """Return the seeds of --seeds or --samples."""
        from prune_cli.sweep.grid import count_seeds, parse_seeds

        return parse_seeds(self.seeds) if self.samples is None else count_seeds(self.samples)


@dataclass(frozen=True)
class Choices(Choosing):
    """How channels are chosen: lists of allocations, criteria and targets."""

    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="METRIC=N",
            help="In place of amounts, what is to remain: params=0.5, or a list.",
            rich_help_panel=TRIALS,
        ),
    ] = None
    allocate: Annotated[
        str,
        typer.Option(
            "--allocate",
            metavar="LIST",
            help="Ways to spread the amount over layers: uniform,uniform-keep-ends,er,erk,random.",
            rich_help_panel=TRIALS,
        ),
    ] = "uniform"
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            metavar="LIST",
            help="What ranks channels, of which the smallest go: random,l1,l2,fpgm,scores. Each is "
            "compared with random.",
            show_default="random",
            rich_help_panel=TRIALS,
        ),
    ] = None

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The allocations, criteria and targets of a Grid."""
        from prune_cli.sweep.grid import RANDOM, parse_names

        criteria = self.criterion or ("scores" if self.scores else RANDOM)
        return {
            "allocations": parse_names("allocation", self.allocate),
            "criteria": parse_names("criterion", criteria),
            "targets": parse_names("target", self.target) if self.target else (),
        }

    def common(self) -> "Choice":
        """Return what all trials have in common; what the grid says is not in it."""
        from prune_cli.plan.choice import USUAL, make_choice, parse_between

        common = make_choice(
            is_global=self.is_global, round_to=self.round_to, at_least=self.at_least
        )
        between = None if self.between is None else parse_between(self.between)
        if between and "random" not in self.lists["allocations"]:
            raise UsageError("--between is for --allocate random only")
        return replace(common or USUAL, between=between)


@dataclass(frozen=True)
class Evaluating:
    """The user's commands, and the number that counts."""

    evaluate: Annotated[
        str | None,
        typer.Option(
            "--eval",
            "-e",
            metavar="COMMAND",
            help="Shell command that prints the metric. {model} is the checkpoint, also {report} "
            "{seed} {amount} {allocation} {trial} {dir}; the same as PRUNE_MODEL, ...",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    finetune: Annotated[
        str | None,
        typer.Option(
            "--finetune",
            metavar="COMMAND",
            help="Shell command that trains {model} to {tuned} before a second evaluation.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    keep_best: Annotated[
        int | None,
        typer.Option(
            "--keep-best",
            metavar="K",
            min=1,
            help="Only the best K draws go on to --finetune.",
            show_default="all",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Which of several numbers counts.",
            show_default="the only one",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    metric_regex: Annotated[
        str | None,
        typer.Option(
            "--metric-regex",
            metavar="REGEX",
            help="Its group is the number; the last match counts.",
            show_default="the last line that is a JSON object or a number",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    metric_file: Annotated[
        str | None,
        typer.Option(
            "--metric-file",
            metavar="FILE:KEY",
            help="A JSON file that the command writes, and a dotted key: {dir}/m.json:test.acc",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    minimize: Annotated[
        bool,
        typer.Option("--minimize/--maximize", help="Which is better.", rich_help_panel=EVALUATION),
    ] = False
    eval_repeats: Annotated[
        int,
        typer.Option(
            "--eval-repeats",
            metavar="R",
            min=1,
            help="Evaluate each checkpoint R times: tells the noise of evaluating from that of draws.",
            rich_help_panel=EVALUATION,
        ),
    ] = 1
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.001,
            help="For each command.",
            show_default="none",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    assertions: Annotated[
        list[str],
        typer.Option(
            "--assert",
            metavar="ASSERTION",
            help="Exit 7 unless it holds: mean(acc)@0.25 >= base - 0.5. Repeatable.",
            rich_help_panel=EVALUATION,
        ),
    ] = field(default_factory=list)

    def evaluation(self) -> "Evaluation":
        """Return how a checkpoint gets its number."""
        from prune_cli.sweep.evaluation import Evaluation
        from prune_cli.sweep.metric import MetricSource

        if self.evaluate is None:
            raise UsageError("say how a checkpoint is evaluated: --eval 'python eval.py {model}'")
        source = MetricSource(self.metric, self.metric_regex, self.metric_file)
        return Evaluation(self.evaluate, self.finetune, source, self.eval_repeats, self.timeout)


@dataclass(frozen=True)
class Smaller(MeasuredCode):
    """Trials whose channels are removed."""

    is_shrunk: Annotated[
        bool,
        typer.Option(
            "--shrink",
            help="Remove channels instead of zeroing them: each trial is a smaller model.",
            rich_help_panel=groups.MODEL,
        ),
    ] = False

    def check(self, channels: groups.Channels) -> None:
        """Raise UsageError where options do not go together."""
        if not self.is_shrunk and (self.model or self.example or self.model_arg or self.measure):
            raise UsageError("--model, --model-arg, --example and --measure are for --shrink")
        if self.is_shrunk and channels != groups.Channels():
            raise UsageError(
                "--shrink finds the dims by itself: leave out --dim, --param, --with-bias"
            )


@dataclass(frozen=True)
class Jobs:
    """How trials run."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            help="Trials at a time.",
            show_default="1, or one for each of --gpus",
            rich_help_panel=groups.HOW,
        ),
    ] = None
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="LIST",
            help="GPUs, one for each job: 0,1 sets CUDA_VISIBLE_DEVICES.",
            rich_help_panel=groups.HOW,
        ),
    ] = None
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast", help="End with the first trial that fails.", rich_help_panel=groups.HOW
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            "-n",
            help="Print every trial and its commands, and make no checkpoint.",
            rich_help_panel=groups.HOW,
        ),
    ] = False

    @property
    def devices(self) -> tuple[str, ...]:
        """The GPUs."""
        from prune_cli.sweep.grid import parse_names

        return () if self.gpus is None else parse_names("GPU", self.gpus)

    @property
    def count(self) -> int:
        """How many trials run at a time."""
        return self.jobs or len(self.devices) or 1


@dataclass(frozen=True)
class Folder:
    """Where the results go."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="The folder of the results.",
            show_default="NAME.sweep beside the input",
            rich_help_panel=groups.WHERE,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Run what is missing or failed.", rich_help_panel=groups.WHERE
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option(
            "--force", "-f", help="Replace the sweep in the folder.", rich_help_panel=groups.WHERE
        ),
    ] = False
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="all|best|none",
            help="Which checkpoints stay: best is the best of each point.",
            rich_help_panel=groups.WHERE,
        ),
    ] = "none"
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            envvar=f"{ENVIRONMENT_PREFIX}OUTPUT_FORMAT",
            help="What {model} is: safetensors, in-kind (the format of the input), or torch.",
            rich_help_panel=groups.WHERE,
        ),
    ] = "safetensors"
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the figure of a paper: .pdf, .svg or .png (needs matplotlib).",
            rich_help_panel=groups.WHERE,
        ),
    ] = None
    compare: Annotated[
        list[Path],
        typer.Option(
            "--compare",
            metavar="CSV",
            help="Draw another method beside it: columns amount, metric (and label). Repeatable.",
            rich_help_panel=groups.WHERE,
        ),
    ] = field(default_factory=list)

    def chosen(self, checkpoint: Location) -> Path:
        """Return the folder of the results."""
        if self.output is not None:
            return self.output
        if str(checkpoint) == "-":
            raise UsageError("the input is not a file, so say where the results go: --output")
        if not isinstance(checkpoint, Path):
            raise UsageError("the input is in a store, so say where the results go: --output")
        path = checkpoint.resolve() if checkpoint.is_dir() else checkpoint
        return path.with_name(f"{path.name if path.is_dir() else path.stem}.sweep")

    def check(self) -> None:
        """Raise UsageError where a choice is not one of those that there are."""
        for option, value, known in (
            ("--keep", self.keep, ("all", "best", "none")),
            ("--format", self.form, ("safetensors", "in-kind", "torch")),
        ):
            if value not in known:
                raise UsageError(f"{option} {value!r} is not one of {', '.join(known)}")
        if self.plot:
            from prune_cli.show.figure import check_format
            from prune_cli.write.checks import check_can_write

            check_format(self.plot)
            check_can_write([self.plot], self.compare, force=self.force or self.resume)


@grouped
def sweep(
    checkpoint: groups.CheckpointPath,
    trials: Trials,
    evaluating: Evaluating,
    channels: groups.Channels,
    modules: groups.Modules,
    choices: Choices,
    smaller: Smaller,
    jobs: Jobs,
    running: groups.Running,
    spreading: SpreadTrials,
    folder: Folder,
    shown: groups.Shown,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Prune with many amounts and seeds, evaluate each, and sum up: mean, spread, a figure.

    Examples:
        prune-cli sweep net.pt -a 0.25,0.5 -d 0 --eval 'python eval.py {model}'
        prune-cli sweep net.pt -a 0.5 --each -d 0 --eval './eval.sh {model}' --json
        prune-cli sweep net.pt -a 0.5 --seeds 20 --resume -e './eval.sh {model}'
    """
    from prune_cli.show import trials as show
    from prune_cli.show.console import write_stdout
    from prune_cli.sweep.request import plan_sweep
    from prune_cli.sweep.summary import to_json

    folder.check()
    smaller.check(channels)
    maker: Maker
    if smaller.is_shrunk:
        maker = _shrinker(checkpoint, trials, modules, choices, smaller, running, loading)
    else:
        maker = _maker(checkpoint, trials, channels, modules, choices, running, loading)
    request = _request(checkpoint, maker, _grid(trials, choices), evaluating, jobs, folder, trials)
    request = replace(request, is_shrunk=smaller.is_shrunk)
    others = _read_others(folder, evaluating.metric)
    if jobs.dry_run:
        planned = plan_sweep(request)
        show.show_planned(planned)
        return
    part = spreading.chosen_part(messages, has_units=True)
    with signals.Orderly():
        if part:
            _run_part(request, part, messages)
            return
        results = _run(request, jobs, spreading, messages)
        _write_pictures(request, results, folder.plot, others)
    show.show_summary(results.summary, quiet=messages.quiet)
    show.show_folder(request.folder, results.summary, quiet=messages.quiet)
    if shown.as_json:
        write_stdout(to_json(results.summary))
    _refuse_bad(results, request.folder)


def _run(
    request: "Request", jobs: Jobs, spreading: SpreadTrials, messages: groups.Messages
) -> "Results":
    """Run the sweep where the options say, or put together what its parts gave."""
    from prune_cli.show import trials as show
    from prune_cli.sweep.parts import finish_parts
    from prune_cli.sweep.stages import run_sweep

    if spreading.finish:
        return finish_parts(request)
    if spreading.scheduler is None and not spreading.resources:
        with show.watching(jobs.count, quiet=messages.quiet) as watch:
            return run_sweep(request, watch)
    if jobs.jobs or jobs.gpus:
        raise UsageError(
            "the workers of --scheduler say how many trials run at a time: leave out --jobs and "
            "--gpus (--resources GPU=1 asks for a GPU)"
        )
    with spreading.trial_engine(request, messages) as engine:
        count = engine.window()
        with show.watching(count, quiet=messages.quiet) as watch:
            return run_sweep(replace(request, jobs=count), watch, engine)


def _run_part(request: "Request", part: "Part", messages: groups.Messages) -> None:
    from prune_cli.show import trials as show
    from prune_cli.sweep.parts import run_part

    with show.watching(request.jobs, quiet=messages.quiet) as watch:
        records = run_part(request, part, watch)
    failed = [record for record in records if record.status == "failed"]
    messages.tell(
        f"part {part} has run: {len(records):,} trials, {len(failed):,} of them failed; when every "
        "part has, run the same command with --finish in place of --part"
    )
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(records)} trials failed, the first was {failed[0].trial}: "
            f"{failed[0].reason} (the same --part runs them again)"
        )


def _maker(
    checkpoint: Location,
    trials: Trials,
    channels: groups.Channels,
    modules: groups.Modules,
    choices: Choices,
    running: groups.Running,
    loading: groups.Loading,
) -> "Maker":
    from prune_cli.plan.facts import Options
    from prune_cli.sweep.maker import RandomMaker

    options = Options(
        None,
        channels.dim,
        modules=modules.patterns,
        exclude=modules.excluded,
        params=channels.patterns,
        with_bias=channels.with_bias,
    )
    rules = dict(_rules(trials, channels, modules))
    return RandomMaker(
        checkpoint,
        options,
        rules,
        loading=loading.chosen(),
        choice=choices.common(),
        scores=choices.scores,
        device=running.device,
        workers=running.workers,
    )


def _shrinker(
    checkpoint: Location,
    trials: Trials,
    modules: groups.Modules,
    choices: Choices,
    smaller: Smaller,
    running: groups.Running,
    loading: groups.Loading,
) -> "Maker":
    from prune_cli.shrink.request import parse_model_arguments
    from prune_cli.shrink.trials import ShrinkMaker, make_options

    arguments = parse_model_arguments(smaller.model_arg)
    options = make_options(
        modules=modules.patterns,
        exclude=modules.excluded,
        round_to=choices.round_to,
        model=smaller.model,
        model_arguments=arguments,
        examples=tuple(smaller.example),
    )
    return ShrinkMaker(
        checkpoint,
        options,
        dict(_rules(trials, groups.Channels(), modules)),
        model_arguments=arguments,
        loading=loading.chosen(),
        is_measured=smaller.measure,
        time_limit=smaller.time_limit,
        workers=running.workers,
        choice=replace(choices.common(), round_to=1),
        scores=choices.scores,
    )


def _rules(
    trials: Trials, channels: groups.Channels, modules: groups.Modules
) -> "Iterator[tuple[Amount | None, tuple[Rule, ...]]]":
    """Yield the rules of the recipe for each amount."""
    from prune_cli.plan.recipe import read_recipe

    if trials.recipe is None:
        return
    for amount in trials.amounts():
        rules = read_recipe(
            trials.recipe,
            modules=modules.patterns,
            params=channels.patterns,
            amount=amount,
            dim=channels.dim,
        )
        yield amount, rules


def _request(
    checkpoint: Location,
    maker: "Maker",
    grid: "Grid",
    evaluating: Evaluating,
    jobs: Jobs,
    folder: Folder,
    trials: Trials,
) -> "Request":
    from prune_cli.sweep.request import Request

    return Request(
        maker,
        grid,
        evaluating.evaluation(),
        folder.chosen(checkpoint),
        is_minimized=evaluating.minimize,
        format=folder.form,  # type: ignore[arg-type]  # Folder.check has seen it
        is_each=trials.each,
        keep_best=evaluating.keep_best,
        lose=trials.lose,
        keep=folder.keep,  # type: ignore[arg-type]  # Folder.check has seen it
        assertions=tuple(evaluating.assertions),
        resume=folder.resume,
        force=folder.force,
        jobs=jobs.count,
        gpus=jobs.devices,
        fail_fast=jobs.fail_fast,
    )


def _grid(trials: Trials, choices: Choices) -> "Grid":
    from prune_cli.sweep.grid import Grid

    if trials.amount and choices.target:
        raise UsageError("--target stands in place of --amount; give one of them")
    return Grid(trials.amounts(), trials.chosen_seeds(), **choices.lists)


def _read_others(folder: Folder, metric: str | None) -> "list[Series]":
    from prune_cli.sweep.series import read_series

    return [series for path in folder.compare for series in read_series(path, metric)]


def _write_pictures(
    request: "Request", results: "Results", plot: Path | None, others: "Sequence[Series]"
) -> None:
    from prune_cli.show.figure import Drawn, draw_file
    from prune_cli.show.page.trials import render_sweeps
    from prune_cli.write.atomic import write_file

    drawn = [Drawn(results.summary, results.records)]
    page = render_sweeps(drawn, others)
    write_file(request.folder / "sweep.html", page.encode("utf-8", "replace"))
    if plot:
        write_file(plot, draw_file(drawn, others, plot.suffix.removeprefix(".").lower()))


def _refuse_bad(results: "Results", folder: Path) -> None:
    """Raise SweepError where trials failed or an assertion does not hold."""
    summary = results.summary
    problems = []
    if summary.failed:
        first: Any = next(record for record in results.records if record.status == "failed")
        problems.append(
            f"{summary.failed} of {summary.trials} trials failed, the first was {first.trial}: "
            f"{first.reason} (see {folder / 'trials' / first.trial}; --resume runs them again)"
        )
    problems += [
        f"does not hold: {verdict.text} ({verdict.reason})"
        for verdict in summary.assertions
        if not verdict.holds
    ]
    if problems:
        raise SweepError("\n".join(problems))
