"""A whole sweep, stage by stage; what is done already is not done again.

    check ──► every trial of the grid ──► the best, fine-tuned ──► a recipe ──► results

See also: `trial`, what happens to one draw; `run`, who runs them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prune_cli.cluster.engine import Engine
from prune_cli.cluster.runs import RunMark, marked
from prune_cli.sweep.assertions import Assertion, judge
from prune_cli.sweep.folder import LOG, refuse_inside, taken
from prune_cli.sweep.grid import Grid, Point, Trial, recipe_point
from prune_cli.sweep.record import Record
from prune_cli.sweep.request import Request, check_request, from_anywhere, settings_of, work_of
from prune_cli.sweep.run import OnEnd, OnStart, Runner, Unit, run_units, thread_pool
from prune_cli.sweep.sensitivity import candidates, describe_recipe, to_toml
from prune_cli.sweep.settings import Settings
from prune_cli.sweep.summary import Summary, loss, results_of, summarize, to_json
from prune_cli.sweep.tables import to_csv, to_markdown
from prune_cli.sweep.trial import Work, forget_locks, remove_checkpoints, trial_folder
from prune_cli.write.atomic import write_file

RECIPE = "recipe.toml"
"""What the recipe of a sensitivity sweep is called."""

RUN = ".run"
"""What tells workers on other machines that the sweep is on."""


@dataclass(frozen=True)
class Watch:
    """Who is told while a sweep runs: of trials to come, of each that starts, of each record.

    `on_note` is called with a sentence on what is in the folder already.
    """

    on_trials: Callable[[Sequence[Trial]], None] | None = None
    on_start: OnStart | None = None
    on_end: OnEnd | None = None
    on_note: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a sweep: a record for each trial, in the order of the grid, and their summary."""

    records: tuple[Record, ...]
    summary: Summary


def run_sweep(
    request: Request, watch: Watch | None = None, engine: Engine | None = None
) -> Results:
    """Run what is missing of a sweep, write its files, and return its results.

    Args:
        request: what the user wants.
        watch: who is told meanwhile.
        engine: runs the trials; by default threads.

    Raises:
        UsageError: commands, metric or assertions make no sense.
        RequestError: a point does not fit the checkpoint; nothing has run.
        OutputError: the folder cannot be taken or written.
        InputError: the checkpoint cannot be read.
    """
    watch = watch or Watch()
    refuse_inside(request.maker.source, request.folder)
    grid, assertions = check_request(request)
    settings = settings_of(request, grid)
    work = work_of(request, settings.sha256)
    if engine and engine.is_remote:
        work = from_anywhere(work)
    folder = taken(request.folder, settings, resume=request.resume, force=request.force)
    with folder as records:
        _note_others(request, settings, records, watch)
        with running(request, engine) as (runs, mark):
            runner = _runner(request, work, records, watch, runs, mark)
            sweep = _Sweep(request, settings, work, runner, watch)
            results = _run(sweep, grid, assertions)
        write_results(request.folder, results)
        forget_locks(work)
    return results


@contextlib.contextmanager
def running(request: Request, engine: Engine | None) -> Iterator[tuple[Engine, RunMark | None]]:
    """Yield who runs trials: threads that end with the sweep, or who was given."""
    if engine is None:
        with thread_pool(request.jobs, request.gpus) as pool:
            yield pool, None
    elif engine.is_remote:
        with marked(request.folder / RUN) as mark:
            yield engine, mark
    else:
        yield engine, None


def _note_others(
    request: Request, settings: Settings, records: Sequence[Record], watch: Watch
) -> None:
    """Say how many trials in the folder are of another sweep: they are kept and not used."""
    others = sum(record.protocol != settings.protocol for record in records)
    if others and watch.on_note:
        watch.on_note(
            f"{others} trials in {request.folder} are of another input or evaluation: they are not "
            "used, and run again"
        )


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


# --- stages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sweep:
    """What every stage needs."""

    request: Request
    settings: Settings
    work: Work
    runner: Runner
    watch: Watch

    def run(self, units: Sequence[Unit]) -> list[Record]:
        """Run further units, after saying so."""
        if self.watch.on_trials:
            self.watch.on_trials([unit.trial for unit in units])
        return run_units(units, self.runner)


def _run(sweep: _Sweep, grid: Grid, assertions: Sequence[Assertion]) -> Results:
    records = sweep.run([Unit(_first_work(sweep), trial) for trial in grid.trials])
    if not _has_ended(sweep.request, records):
        records += _tune_best(sweep, records)
        records += _try_recipes(sweep, records)
    return judged(sweep.settings, records, assertions)


def _first_work(sweep: _Sweep) -> Work:
    """Return a search evaluates every draw without a fine-tune first."""
    if sweep.request.keep_best is None:
        return sweep.work
    evaluation = replace(sweep.work.evaluation, finetune=None)
    return replace(sweep.work, evaluation=evaluation)


def _has_ended(request: Request, records: Iterable[Record]) -> bool:
    return request.fail_fast and any(record.status == "failed" for record in records)


def judged(
    settings: Settings, records: Sequence[Record], assertions: Sequence[Assertion]
) -> Results:
    """Return the results that `records` are, with their summary and what the assertions say."""
    summary = summarize(settings, records)
    found = results_of(summary, records)
    verdicts = tuple(judge(assertion, found) for assertion in assertions)
    return Results(tuple(records), replace(summary, assertions=verdicts))


def _tune_best(sweep: _Sweep, records: Sequence[Record]) -> list[Record]:
    """Fine-tune the draws of a search that were best before it."""
    if sweep.request.keep_best is None:
        return []
    best = _ranked(sweep.request, records)[: sweep.request.keep_best]
    return sweep.run([Unit(sweep.work, _tuned_trial(record), record) for record in best])


def _ranked(request: Request, records: Iterable[Record]) -> list[Record]:
    """Return the draws that have a metric, best first; of equal ones the smaller seed."""
    drawn = [
        record
        for record in records
        if record.status == "ok" and record.metric is not None and not record.point.is_unpruned
    ]
    sign = 1 if request.is_minimized else -1
    return sorted(drawn, key=lambda record: (sign * (record.metric or 0.0), record.seed))


def _tuned_trial(record: Record) -> Trial:
    return Trial(replace(record.point, tuned=True), record.seed)


# --- a recipe that keeps a loss ---------------------------------------------------------------


def _try_recipes(sweep: _Sweep, records: Sequence[Record]) -> list[Record]:
    """Try recipes until one keeps the loss, and write that one."""
    lose = sweep.request.lose
    tried: list[Record] = []
    if lose is None:
        return tried
    for amounts in candidates(summarize(sweep.settings, records), lose):
        rules = sweep.request.maker.recipe(amounts)
        trials = [Trial(recipe_point(rules), seed, rules) for seed in sweep.settings.seeds]
        tried += sweep.run([Unit(sweep.work, trial) for trial in trials])
        lost = _recipe_loss(sweep.settings, [*records, *tried], trials[0].point)
        if lost is not None and lost <= lose:
            comments = (
                f"Loses {lost:.4g} of at most {lose:g}: the mean over the draws of the whole recipe.",
                f"Made by prune-cli sweep --each --lose {lose:g}: {describe_recipe(amounts)}",
            )
            text = to_toml(rules, comments)
            write_file(sweep.request.folder / RECIPE, text.encode("utf-8", "replace"))
            break
    return tried


def _recipe_loss(settings: Settings, records: Sequence[Record], point: Point) -> float | None:
    summary = summarize(settings, records)
    spread = next(each.metric for each in summary.points if each.point == point)
    return None if spread is None else loss(summary, spread)


# --- who runs the trials, and is told ---------------------------------------------------------


def _runner(
    request: Request,
    work: Work,
    records: Sequence[Record],
    watch: Watch,
    engine: Engine,
    mark: RunMark | None,
) -> Runner:
    return Runner(
        engine,
        request.folder / LOG,
        {record.key for record in records if record.is_done},
        mark,
        request.fail_fast,
        watch.on_start,
        _on_end(request, work, watch),
    )


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
