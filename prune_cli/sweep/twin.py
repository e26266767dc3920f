"""A sweep from Python: the twin of the command."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prune_cli.amounts import Amount, check_amount
from prune_cli.checkpoint import Loading
from prune_cli.plan.facts import Options
from prune_cli.plan.selection import as_globs
from prune_cli.sweep.evaluation import Evaluation, Function
from prune_cli.sweep.grid import Grid, count_seeds
from prune_cli.sweep.maker import RandomMaker
from prune_cli.sweep.metric import MetricSource
from prune_cli.sweep.request import Keep, Request
from prune_cli.sweep.stages import Results, run_sweep


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
        modules=as_globs(modules),
        exclude=as_globs(exclude),
        params=as_globs(params),
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
