"""A sweep by parts: each runs its share of the trials, and the last step sums all of them up.

See also: `stages`, a sweep as a whole.
"""

from pathlib import Path

from prune_cli.cluster.parts import Part
from prune_cli.errors import OutputError, UsageError
from prune_cli.sweep.folder import LOG, check_same, is_sweep, joined, refuse_inside, taken
from prune_cli.sweep.record import Record, append_record
from prune_cli.sweep.request import Request, check_request, from_anywhere, settings_of, work_of
from prune_cli.sweep.run import Runner, Unit, run_units, thread_pool
from prune_cli.sweep.stages import Results, Watch, judged, write_results
from prune_cli.sweep.trial import find_record, forget_locks
from prune_cli.write.parts import forget_parts, note_part, refuse_missing


def run_part(request: Request, part: Part, watch: Watch) -> list[Record]:
    """Run a share of the trials of a sweep, and return their records; nothing is summed up.

    Raises:
        UsageError: the sweep goes on after its trials, with what all of them gave.
        PruneError: as run_sweep.
    """
    _refuse_stages(request)
    refuse_inside(request.maker.source, request.folder)
    grid, _ = check_request(request)
    settings = settings_of(request, grid)
    work = from_anywhere(work_of(request, settings.sha256))
    units = [Unit(work, trial) for trial in part.of(grid.trials)]
    with joined(request.folder, settings), thread_pool(request.jobs, request.gpus) as engine:
        note_part(request.folder, part)
        if watch.on_trials:
            watch.on_trials([unit.trial for unit in units])
        told = (request.fail_fast, watch.on_start, watch.on_end)
        return run_units(units, Runner(engine, None, set(), None, *told))


def finish_parts(request: Request) -> Results:
    """Check that parts have run every trial of a sweep, write its files, and return its results.

    Raises:
        OutputError: trials are missing; the parts that they are of are named.
        PruneError: as run_sweep.
    """
    _refuse_stages(request)
    grid, assertions = check_request(request)
    settings = settings_of(request, grid)
    work = work_of(request, settings.sha256)
    _refuse_none(request.folder)
    check_same(request.folder, settings)
    found = {trial.name: find_record(work, trial) for trial in grid.trials}
    left = {name for name, record in found.items() if record is None}
    refuse_missing(request.folder, [*found], left, "trials")
    records = [record for record in found.values() if record]
    with taken(request.folder, settings, resume=True, force=False) as before:
        known = {record.key for record in before if record.is_done}
        for record in records:
            if record.key not in known:
                append_record(request.folder / LOG, record)
        results = judged(settings, records, assertions)
        write_results(request.folder, results)
        forget_parts(request.folder)
        forget_locks(work)
    return results


def _refuse_stages(request: Request) -> None:
    if request.keep_best is not None or request.lose is not None or request.keep == "best":
        raise UsageError(
            "--keep-best, --lose and keeping the best checkpoints compare all trials, and a part has only its own: "
            "leave them out, or use --scheduler"
        )


def _refuse_none(folder: Path) -> None:
    if not is_sweep(folder):
        raise OutputError(f"{folder} holds no part of a sweep; run --part 1/N to N/N first")
