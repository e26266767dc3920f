"""A whole sweep: checked, run, summarised; from Python, `sweep`.

    Request ──► check ──► trials (run) ──► the best, fine-tuned ──► a recipe ──► files

See also: `trial`, what happens to one draw; `run`, who runs them.
"""

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import prune_cli
from prune_cli.amounts import Amount, check_amount
from prune_cli.checkpoint import Loading
from prune_cli.errors import RequestError, UsageError
from prune_cli.plan.facts import Options
from prune_cli.plan.selection import Rule
from prune_cli.report.report import torch_version
from prune_cli.sweep.assertions import Assertion, check_assertion, judge, parse_assertion
from prune_cli.sweep.evaluation import Evaluation, Function, check_evaluation, spell
from prune_cli.sweep.folder import taken
from prune_cli.sweep.grid import Grid, Point, Trial, count_seeds, recipe_point
from prune_cli.sweep.maker import Maker, RandomMaker, digest_source, stamp_source
from prune_cli.sweep.metric import MetricSource
from prune_cli.sweep.record import Record
from prune_cli.sweep.run import OnEnd, OnStart, Runner, Unit, run_units, thread_pool
from prune_cli.sweep.sensitivity import Amounts, candidates, describe_recipe, to_toml
from prune_cli.sweep.settings import Settings
from prune_cli.sweep.summary import Summary, loss, results_of, summarize, to_json
from prune_cli.sweep.tables import to_csv, to_markdown
from prune_cli.sweep.template import Values, fill
from prune_cli.sweep.trial import Work, remove_checkpoints, trial_folder, values_of
from prune_cli.write.atomic import write_file

Keep = Literal["all", "best", "none"]

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Request:
    """What the user wants of a sweep.

    Attributes:
        maker: makes the checkpoints.
        grid: the trials, but for the modules of a sensitivity sweep.
        evaluation: gives a checkpoint its number.
        folder: of the output.
        is_minimized: whether less is better.
        is_shrunk: whether the maker removes channels.
        is_in_kind: whether checkpoints are in the input's own format.
        is_each: whether each module is pruned alone.
        keep_best: how many of the trials go on to the fine-tune; None lets all.
        lose: the loss that a recipe of single modules may have.
        keep: which checkpoints stay: all, the best of each point, none.
        assertions: decide `Summary.is_good`.
        options: of every trial, for the summary.
        resume, force: of the folder.
        jobs: trials at a time; gpus: what each of them sees.
        fail_fast: whether a trial that fails ends the sweep.
    """

    maker: Maker
    grid: Grid
    evaluation: Evaluation
    folder: Path
    is_minimized: bool = False
    is_shrunk: bool = False
    is_in_kind: bool = False
    is_each: bool = False
    keep_best: int | None = None
    lose: float | None = None
    keep: Keep = "none"
    assertions: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    resume: bool = False
    force: bool = False
    jobs: int = 1
    gpus: tuple[str, ...] = ()
    fail_fast: bool = False


@dataclass(frozen=True)
class Watch:
    """Who is told while a sweep runs: of how many trials, of each that starts, of each record."""

    on_trials: Callable[[Sequence[Trial]], None] | None = None
    on_start: OnStart | None = None
    on_end: OnEnd | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A trial and its commands, as a dry run tells them."""

    trial: Trial
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a sweep: a record for each trial, in the order of the grid, and their summary."""

    records: tuple[Record, ...]
    summary: Summary


def sweep(
    path: str | Path,
    amounts: Sequence[Amount],
    seeds: int | Sequence[int],
    evaluate: str | Function,
    *,
    output: str | Path | None = None,
    allocations: Sequence[str] = ("uniform",),
    criteria: Sequence[str] = ("random",),
    dim: int = -1,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    params: str | Sequence[str] = ("weight",),
    bake: bool = True,
    with_bias: bool = False,
    finetune: str | None = None,
    metric: str | None = None,
    minimize: bool = False,
    eval_repeats: int = 1,
    timeout: float | None = None,
    jobs: int = 1,
    resume: bool = False,
    force: bool = False,
    keep: Keep = "none",
    loading: Loading | None = None,
) -> Results:
    """Prune the checkpoint at `path` once for each amount and seed, and evaluate each result.

    Args:
        path: a checkpoint: a file, or a folder in the Hugging Face layout.
        amounts: an int is a number of channels, a float a fraction of the live ones.
        seeds: a list, or how many (0 to N - 1).
        evaluate: a command with placeholders ("python eval.py {model}"), or a function that takes
            the path of a checkpoint and returns the metric, or several by name.
        output: the folder of the results; without one they are only returned.
        allocations: how the amount is spread over layers; each is a point of its own.
        criteria: what chooses the channels; each is a point of its own.
        dim: as in prune_checkpoint; so are modules, exclude, params, bake, with_bias and loading.
        modules: globs of dotted module names.
        exclude: globs of modules to leave alone.
        params: globs of parameter names within a module.
        bake: write the zeros, or masks.
        with_bias: let the bias of a pruned channel go too.
        finetune: a command that trains {model} to {tuned} before a second evaluation.
        metric: the name of the number that counts, where there are several.
        minimize: whether less is better.
        eval_repeats: how often each evaluation runs.
        timeout: seconds for each command.
        jobs: trials at a time, in threads.
        resume: run only what is missing or failed in `output`.
        force: replace the sweep in `output`.
        keep: which checkpoints stay: "all", "best" (of each point) or "none".
        loading: how a pickle may be loaded.

    Returns:
        A record for each trial, the unpruned checkpoint first, and their Summary.

    Raises:
        PruneError: whatever a user can cause. A trial that fails raises nothing: see its record.

    Example:
        >>> results = sweep("model.pt", [0.25, 0.5], seeds=5, evaluate=accuracy_of)
        >>> results.summary.points[1].metric.mean
        0.84
    """
    options = Options(
        amount=None,
        dim=dim,
        modules=_globs(modules),
        exclude=_globs(exclude),
        params=_globs(params),
        bake=bake,
        with_bias=with_bias,
    )
    grid = Grid(
        tuple(map(check_amount, amounts)),
        count_seeds(seeds) if isinstance(seeds, int) else tuple(seeds),
        tuple(allocations),
        tuple(criteria),
    )
    source = MetricSource(metric)
    request = Request(
        RandomMaker(Path(path), options, loading=loading or Loading()),
        grid,
        Evaluation(evaluate, finetune, source, eval_repeats, timeout),
        Path(output or tempfile.mkdtemp(prefix="prune-cli-sweep-")),
        is_minimized=minimize,
        keep=keep,
        resume=resume,
        force=force,
        jobs=jobs,
    )
    try:
        return run_sweep(request)
    finally:
        if output is None:
            shutil.rmtree(request.folder, ignore_errors=True)


def run_sweep(
    request: Request, watch: Watch | None = None, executor: Executor | None = None
) -> Results:
    """Run what is missing of a sweep, write its files, and return its results.

    Args:
        request: what the user wants.
        watch: who is told meanwhile.
        executor: runs the trials; by default threads.

    Raises:
        UsageError: commands, metric or assertions make no sense.
        RequestError: a point does not fit the checkpoint; nothing has run.
        OutputError: the folder cannot be taken or written.
        InputError: the checkpoint cannot be read.
    """
    watch = watch or Watch()
    grid, assertions = check_request(request)
    with taken(
        request.folder,
        settings := _settings(request, grid),
        resume=request.resume,
        force=request.force,
    ) as records:
        work = _work(request, settings.sha256)
        runner = Runner(
            executor or thread_pool(request.jobs, request.gpus),
            request.jobs,
            {record.key for record in records if record.is_done},
            request.fail_fast,
            watch.on_start,
            _on_end(request, work, watch),
        )
        try:
            return _run(request, settings, work, grid, runner, watch, assertions)
        finally:
            if executor is None:
                runner.executor.shutdown(cancel_futures=True)


def plan_sweep(request: Request) -> list[Planned]:
    """Return every trial of a sweep and its commands, and make nothing.

    Raises:
        PruneError: as run_sweep, but for the folder.
    """
    grid, _ = check_request(request)
    work = _work(request, "")
    return [Planned(trial, _commands(request, work, trial)) for trial in grid.trials]


def check_request(request: Request) -> tuple[Grid, list[Assertion]]:
    """Return the whole grid and the assertions of a request that makes sense and fits its source.

    Raises:
        UsageError: it makes no sense.
        RequestError: a point does not fit.
    """
    check_evaluation(request.evaluation, jobs=request.jobs)
    assertions = [parse_assertion(text) for text in request.assertions]
    grid = request.grid
    if request.is_each:
        grid = replace(grid, modules=request.maker.modules())
    if not grid.points:
        raise UsageError("a sweep needs an amount or a target: --amount 0.25,0.5")
    if request.keep_best is not None and not request.evaluation.finetune:
        raise UsageError("--keep-best selects draws for a fine-tune: --finetune")
    if request.lose is not None and not request.is_each:
        raise UsageError("--lose needs a sweep over single modules: --each")
    for assertion in assertions:
        check_assertion(assertion, [trial.point for trial in grid.trials[:1]] + [*grid.points])
    _check_points(request.maker, grid)
    return grid, assertions


# --- steps -----------------------------------------------------------------------------------


def _run(
    request: Request,
    settings: Settings,
    work: Work,
    grid: Grid,
    runner: Runner,
    watch: Watch,
    assertions: Sequence[Assertion],
) -> Results:
    is_search = request.keep_best is not None
    first = replace(work, evaluation=replace(work.evaluation, finetune=None)) if is_search else work
    if watch.on_trials:
        watch.on_trials(grid.trials)
    records = run_units([Unit(first, trial) for trial in grid.trials], runner)
    if not _has_ended(request, records):
        records += _tune_best(request, work, records, runner, watch)
        records += _try_recipes(request, settings, work, records, runner, watch)
    results = _judged(settings, records, assertions)
    write_results(request.folder, results)
    return results


def write_results(folder: Path, results: Results) -> None:
    """Write results.csv, summary.json and summary.md.

    Raises:
        OutputError: they cannot be written.
    """
    texts = {
        "results.csv": to_csv(results.records),
        "summary.json": to_json(results.summary),
        "summary.md": to_markdown(results.summary),
    }
    for name, text in texts.items():
        write_file(folder / name, text.encode("utf-8", "replace"))


def _has_ended(request: Request, records: Iterable[Record]) -> bool:
    return request.fail_fast and any(record.status == "failed" for record in records)


def _judged(
    settings: Settings, records: Sequence[Record], assertions: Sequence[Assertion]
) -> Results:
    summary = summarize(settings, records)
    found = results_of(summary, records)
    verdicts = tuple(judge(assertion, found) for assertion in assertions)
    return Results(tuple(records), replace(summary, assertions=verdicts))


def _tune_best(
    request: Request, work: Work, records: Sequence[Record], runner: Runner, watch: Watch
) -> list[Record]:
    """Fine-tune the draws of a search that were best before it."""
    if request.keep_best is None:
        return []
    best = _ranked(request, records)[: request.keep_best]
    units = [Unit(work, _tuned_trial(record), record) for record in best]
    if watch.on_trials:
        watch.on_trials([unit.trial for unit in units])
    return run_units(units, runner)


def _ranked(request: Request, records: Iterable[Record]) -> list[Record]:
    """The draws that have a metric, best first; of equal ones the smaller seed."""
    drawn = [
        record
        for record in records
        if record.status == "ok" and record.metric is not None and not record.point.is_unpruned
    ]
    sign = 1 if request.is_minimized else -1
    return sorted(drawn, key=lambda record: (sign * (record.metric or 0.0), record.seed))


def _tuned_trial(record: Record) -> Trial:
    return Trial(replace(record.point, tuned=True), record.seed)


def _try_recipes(
    request: Request,
    settings: Settings,
    work: Work,
    records: Sequence[Record],
    runner: Runner,
    watch: Watch,
) -> list[Record]:
    """Try recipes until one keeps the loss, and write that one."""
    if request.lose is None:
        return []
    tried: list[Record] = []
    summary = summarize(settings, records)
    for amounts in candidates(summary, request.lose):
        rules = {module: request.maker.rule(module, each) for module, each in amounts.items()}
        trials = _recipe_trials(settings, rules)
        if watch.on_trials:
            watch.on_trials(trials)
        found = run_units([Unit(work, trial) for trial in trials], runner)
        tried += found
        lost = _recipe_loss(settings, [*records, *found], trials[0].point)
        if lost is not None and lost <= request.lose:
            _write_recipe(request, amounts, rules, lost)
            break
    return tried


def _recipe_trials(settings: Settings, rules: Mapping[str, tuple[Rule, ...]]) -> list[Trial]:
    flat = tuple(rule for group in rules.values() for rule in group)
    point = recipe_point(flat)
    return [Trial(point, seed, flat) for seed in settings.seeds]


def _recipe_loss(settings: Settings, records: Sequence[Record], point: Point) -> float | None:
    summary = summarize(settings, records)
    spread = next(each.metric for each in summary.points if each.point == point)
    return None if spread is None else loss(summary, spread)


def _write_recipe(
    request: Request, amounts: Amounts, rules: Mapping[str, tuple[Rule, ...]], lost: float
) -> None:
    comments = (
        f"Loses {lost:.4g} of at most {request.lose:g}: the mean over the draws of the whole recipe.",
        f"Made by prune-cli sweep --each --lose {request.lose:g}: {describe_recipe(amounts)}",
    )
    text = to_toml(amounts, rules, comments)
    write_file(request.folder / RECIPE, text.encode())


# --- facts -----------------------------------------------------------------------------------


def _settings(request: Request, grid: Grid) -> Settings:
    import numpy as np

    source = request.maker.source
    return Settings(
        input=source.path.name or source.path.resolve().name,
        sha256=digest_source(source),
        amounts=grid.amounts,
        targets=grid.targets,
        seeds=grid.seeds,
        allocations=grid.allocations,
        criteria=grid.criteria,
        evaluate=spell(request.evaluation.evaluate),
        finetune=request.evaluation.finetune,
        metric=request.evaluation.source.name,
        is_minimized=request.is_minimized,
        repeats=request.evaluation.repeats,
        is_shrunk=request.is_shrunk,
        is_each=request.is_each,
        keep_best=request.keep_best,
        lose=request.lose,
        options=request.options,
        assertions=request.assertions,
        versions={
            "prune-cli": prune_cli.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch_version(),
        },
    )


def _work(request: Request, digest: str) -> Work:
    source = request.maker.source
    suffix = source.path.suffix if request.is_in_kind else ".safetensors"
    return Work(
        folder=request.folder.absolute(),
        maker=request.maker,
        evaluation=request.evaluation,
        input_digest=digest,
        input_stamp=stamp_source(source),
        suffix="" if source.is_folder else suffix,
        keeps=request.keep != "none",
    )


def _commands(request: Request, work: Work, trial: Trial) -> tuple[str, ...]:
    values = values_of(work, trial)
    evaluation = request.evaluation
    first = _command(evaluation.evaluate, values)
    if not evaluation.finetune or request.keep_best is not None:
        return (first,)
    tuned = replace(values, model=values.tuned)
    return (first, fill(evaluation.finetune, values), _command(evaluation.evaluate, tuned))


def _command(evaluate: str | Function, values: Values) -> str:
    return fill(evaluate, values) if isinstance(evaluate, str) else spell(evaluate)


def _check_points(maker: Maker, grid: Grid) -> None:
    """Plan the first draw of each point, so that what does not fit is told before anything runs."""
    problems: list[str] = []
    for trial in grid.trials[: len(grid.points) + 1]:
        try:
            maker.prepare(trial)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        raise RequestError("\n".join(dict.fromkeys(problems)))


def _on_end(request: Request, work: Work, watch: Watch) -> OnEnd:
    """What is done with each record: tell of it, and let go of checkpoints that are not the best."""
    best: dict[Point, Record] = {}

    def on_end(record: Record) -> None:
        if request.keep == "best":
            _keep_best(request, work, best, record)
        if watch.on_end:
            watch.on_end(record)

    return on_end


def _keep_best(request: Request, work: Work, best: dict[Point, Record], record: Record) -> None:
    if record.status != "ok":
        return
    rivals = [*filter(None, [best.get(record.point)]), record]
    ranked = _ranked(request, rivals) or rivals
    best[record.point] = ranked[0]
    for other in ranked[1:]:
        remove_checkpoints(trial_folder(work, Trial(other.point, other.seed)))


def _globs(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
