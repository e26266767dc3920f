"""What the user wants of a sweep, checked before anything runs.

See also: `stages`, which carries it out.
"""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import prune_cli
from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import RequestError, UsageError
from prune_cli.report.report import torch_version
from prune_cli.sweep.assertions import Assertion, check_assertion, parse_assertion
from prune_cli.sweep.evaluation import Evaluation, Function, check_evaluation, spell
from prune_cli.sweep.grid import RANDOM, UNPRUNED, Grid, Point, Trial
from prune_cli.sweep.maker import Maker, digest_source, stamp_source
from prune_cli.sweep.settings import Settings
from prune_cli.sweep.template import Values, fill
from prune_cli.sweep.trial import LOCKS, Work, values_of
from prune_cli.write.formats import Format, choose_format, is_of_torch

Keep = Literal["all", "best", "none"]


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
        format: of the checkpoints: safetensors, in-kind or torch.
        is_each: whether each module is pruned alone.
        keep_best: how many of the trials go on to the fine-tune; None lets all.
        lose: the loss that a recipe of single modules may have.
        keep: which checkpoints stay: all, the best of each point, none.
        assertions: decide `Summary.is_good`.
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
    format: Format = "safetensors"
    is_each: bool = False
    keep_best: int | None = None
    lose: float | None = None
    keep: Keep = "none"
    assertions: tuple[str, ...] = ()
    resume: bool = False
    force: bool = False
    jobs: int = 1
    gpus: tuple[str, ...] = ()
    fail_fast: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """A trial and its commands, as a dry run tells them."""

    trial: Trial
    commands: tuple[str, ...]


def plan_sweep(request: Request) -> list[Planned]:
    """Return every trial of a sweep and its commands, and make nothing.

    Raises:
        PruneError: as run_sweep, but for the folder.
    """
    grid, _ = check_request(request)
    work = work_of(request, "")
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


def settings_of(request: Request, grid: Grid) -> Settings:
    """Return what the folder of the sweep keeps of the request; reads the whole checkpoint once."""
    import numpy as np

    source = request.maker.source
    digest = digest_source(source)
    return Settings(
        input=source.path.name or source.path.resolve().name,
        sha256=digest,
        protocol=request.evaluation.protocol(digest),
        amounts=grid.amounts,
        targets=grid.targets,
        seeds=grid.seeds,
        allocations=grid.allocations,
        criteria=grid.criteria,
        modules=grid.modules,
        evaluate=spell(request.evaluation.evaluate),
        finetune=request.evaluation.finetune,
        metric=request.evaluation.source.name,
        is_minimized=request.is_minimized,
        repeats=request.evaluation.repeats,
        is_shrunk=request.is_shrunk,
        is_each=request.is_each,
        keep_best=request.keep_best,
        lose=request.lose,
        options=request.maker.facts,
        assertions=request.assertions,
        versions={
            "prune-cli": prune_cli.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch_version(),
        },
    )


def work_of(request: Request, digest: str) -> Work:
    """Return what every trial needs to know; `digest` is that of the source."""
    source = request.maker.source
    kind = _format(request)
    return Work(
        folder=request.folder.absolute(),
        maker=request.maker,
        evaluation=request.evaluation,
        input_digest=digest,
        input_stamp=stamp_source(source),
        format=kind,
        suffix=_suffix(source, kind),
        keeps=request.keep != "none",
    )


def from_anywhere(work: Work) -> Work:
    """Return the same for workers that stand elsewhere: no path in it starts from this folder."""
    maker = work.maker.from_anywhere()
    return replace(work, maker=maker, stands_in=Path.cwd(), locks=work.folder / LOCKS)


def _format(request: Request) -> Format:
    """In kind, a file of safetensors is one of safetensors."""
    source = request.maker.source
    is_kind = request.format == "in-kind" and not is_of_torch(source)
    asked = "safetensors" if is_kind else request.format
    return choose_format(source, None, asked, is_folder=source.is_folder)


def _suffix(source: Checkpoint, kind: Format) -> str:
    if source.is_folder:
        return ""
    suffixes = {"safetensors": ".safetensors", "torch": ".pt"}
    return suffixes.get(kind) or source.path.suffix or ".pt"


# --- checks ----------------------------------------------------------------------------------


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
    """Plan first draws, so that what does not fit is told before anything runs.

    Those of every point that chance chooses; other criteria read all weights, so one amount of
    theirs must do where chance is tried too.
    """
    problems: list[str] = []
    for trial in (UNPRUNED, *(Trial(point, grid.seeds[0]) for point in _to_check(grid))):
        try:
            maker.prepare(trial)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        raise RequestError("\n".join(dict.fromkeys(problems)))


def _to_check(grid: Grid) -> list[Point]:
    if RANDOM not in grid.criteria:
        return list(grid.points)
    first = {(point.allocation, point.criterion): point for point in reversed(grid.points)}
    return [point for point in grid.points if point.criterion == RANDOM or point in first.values()]
