"""Runs the trials of a sweep on an executor, and keeps a line of each as it ends.

Whoever runs them is a `concurrent.futures.Executor` and nothing else; a unit is `run_trial` with its
arguments. See also: `trial`, one unit.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from prune_cli.cluster.engine import LOOK, Engine
from prune_cli.cluster.runs import RunMark
from prune_cli.sweep.command import allow_commands, set_thread_environment, stop_commands
from prune_cli.sweep.grid import Trial
from prune_cli.sweep.record import Record, append_record
from prune_cli.sweep.trial import Work, run_trial

OnStart = Callable[[Trial], None]
OnEnd = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Unit:
    """One call of `run_trial`."""

    work: Work
    trial: Trial
    before: Record | None = None


@dataclass(frozen=True)
class Runner:
    """Who runs units, and who is told.

    Attributes:
        engine: runs them.
        mark: of the run, where units run elsewhere.
        log: where lines are kept; None for a part of a sweep, whose lines `--finish` writes.
        known: the keys of the trials that are done and have their line in trials.jsonl.
        fail_fast: whether a trial that fails ends the sweep.
        on_start: called with each trial that is submitted.
        on_end: called with each record.
    """

    engine: Engine
    log: Path | None
    known: set[str]
    mark: RunMark | None = None
    fail_fast: bool = False
    on_start: OnStart | None = None
    on_end: OnEnd | None = None


def run_units(units: Sequence[Unit], runner: Runner) -> list[Record]:
    """Run `units` and return their records, in their order; with `fail_fast` perhaps fewer.

    Raises:
        OutputError, InputError: as `run_trial`; what is done is kept.
        BaseException: an interruption, after every command has ended.
    """
    ended: dict[int, Record] = {}
    running: dict[Future[Record], int] = {}
    waiting = iter(enumerate(units))
    try:
        while _submit(waiting, running, runner) or running:
            done, _ = wait(running, LOOK, FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                number = running.pop(future)
                ended[number] = _take(future.result(), runner)
            if runner.fail_fast and any(record.status == "failed" for record in ended.values()):
                break
    finally:
        _end(running, ended, runner)
    return [ended[number] for number in sorted(ended)]


def _submit(
    waiting: Iterator[tuple[int, Unit]], running: dict["Future[Record]", int], runner: Runner
) -> bool:
    """Submit units until as many as fit are running; whether any was."""
    submitted, window = False, runner.engine.window()
    while len(running) < window and (entry := next(waiting, None)):
        number, unit = entry
        if runner.on_start:
            runner.on_start(unit.trial)
        arguments = (unit.work, unit.trial, unit.before, runner.mark)
        future = runner.engine.executor.submit(run_trial, *arguments)
        running[future] = number
        submitted = True
    return submitted


def _take(record: Record, runner: Runner) -> Record:
    """Keep the line of a record, once, and tell of it."""
    if runner.log and record.key not in runner.known:
        append_record(runner.log, record)
        runner.known.update([record.key] if record.is_done else [])
    if runner.on_end:
        runner.on_end(record)
    return record


def _end(running: dict["Future[Record]", int], ended: dict[int, Record], runner: Runner) -> None:
    """Stop what still runs, and keep what ended meanwhile."""
    if not running:
        return
    if runner.engine.is_remote:
        for future in running:
            future.cancel()
        return
    stop_commands()
    try:
        for future in running:
            future.cancel()
        wait([future for future in running if not future.cancelled()])
    finally:
        allow_commands()
    for future, number in running.items():
        if not future.cancelled() and future.exception() is None:
            ended[number] = _take(future.result(), runner)


# --- threads ---------------------------------------------------------------------------------


@contextlib.contextmanager
def thread_pool(jobs: int, gpus: Sequence[str] = ()) -> Iterator[Engine]:
    """Yield the engine of one machine; each of its threads has one of `gpus` for itself."""
    slots: SimpleQueue[str] = SimpleQueue()
    for number in range(jobs if gpus else 0):
        slots.put(gpus[number % len(gpus)])
    executor = ThreadPoolExecutor(jobs, "trial", _take_gpu, (slots,))
    try:
        yield Engine(executor, lambda: jobs)
    finally:
        executor.shutdown(cancel_futures=True)


def _take_gpu(slots: "SimpleQueue[str]") -> None:
    if not slots.empty():
        set_thread_environment({"CUDA_VISIBLE_DEVICES": slots.get()})
