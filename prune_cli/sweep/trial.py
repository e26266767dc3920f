"""One trial from its plan to its record: a unit of work that depends on nothing but its facts.

It finds out itself whether it is done already, so running it twice does no harm. Its folder keeps
the report, the outputs of the commands and the record; the checkpoint goes when it was evaluated.
"""

import contextlib
import fcntl
import json
import pickle
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO

import prune_cli
from prune_cli.cluster.engine import StoppedError
from prune_cli.cluster.runs import RunEnded, RunMark
from prune_cli.errors import InputError, OutputError, RequestError
from prune_cli.report.report import torch_version
from prune_cli.sweep.command import raise_if_stopped, run_in
from prune_cli.sweep.evaluation import Evaluation, Outcome, TrialError, evaluate, fine_tune
from prune_cli.sweep.grid import Trial
from prune_cli.sweep.maker import Made, Maker, stamp_source
from prune_cli.sweep.record import Record, from_line, to_line
from prune_cli.sweep.template import Values
from prune_cli.write.atomic import write_file
from prune_cli.write.formats import Format
from prune_cli.write.target import Target

RECORD = "record.json"
REPORT = "report.json"
MODEL = "model"
TUNED = "tuned"
LOCKS = ".locks"
TRIALS = "trials"
"""The folder of the trials' folders."""

_MOST_OPENED = 2
_LOOK = 0.1  # seconds between two tries to take a lock


@dataclass(frozen=True)
class Work:
    """What every trial of a sweep needs to know; it can be pickled.

    Attributes:
        folder: of the sweep, absolute.
        maker: makes the checkpoints.
        evaluation: gives them their numbers.
        input_digest: of the source.
        input_stamp: of the source, when the sweep began.
        format: of the checkpoints.
        suffix: of the checkpoints' names, "" for folders.
        keeps: whether the checkpoint of a trial that succeeds stays.
        stands_in: the folder that commands run in; None is where this process is.
        locks: the folder of the locks on trials, where others may run the same ones.
    """

    folder: Path
    maker: Maker
    evaluation: Evaluation
    input_digest: str
    input_stamp: tuple[str, ...]
    format: Format
    suffix: str
    keeps: bool
    stands_in: Path | None = None
    locks: Path | None = None


def run_trial(
    work: Work, trial: Trial, before: Record | None = None, mark: RunMark | None = None
) -> Record:
    """Make, evaluate and record one trial, or return its record if it is done already.

    Args:
        work: what all trials have in common.
        trial: which one.
        before: its record from a search without a fine-tune, which is then not evaluated again.
        mark: of the run that it belongs to, where that is on another machine.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
        InputError: the source cannot be read, or changed.
        StoppedError: the sweep ends.
    """
    if mark is None:
        return _run(work, trial, before, threading.Event())
    ended = RunEnded(mark)
    with run_in(work.stands_in, ended):
        return _run(_reopened(work), trial, before, ended)


def find_record(work: Work, trial: Trial) -> Record | None:
    """Return the record of a trial that ran with this input and evaluation; None where none did."""
    found = read_record(trial_folder(work, trial))
    return found if found and found.key == _decide(work, trial).blank.key else None


def forget_locks(work: Work) -> None:
    """Remove the locks on trials, all of which have ended."""
    shutil.rmtree(work.folder / LOCKS, ignore_errors=True)


def trial_folder(work: Work, trial: Trial) -> Path:
    """Return the folder of a trial."""
    return work.folder / TRIALS / trial.name


def model_path(work: Work, trial: Trial) -> Path:
    """Return where the checkpoint of a trial is while it is evaluated."""
    return trial_folder(work, trial) / f"{MODEL}{work.suffix}"


def values_of(work: Work, trial: Trial) -> Values:
    """Return what the placeholders of a trial stand for."""
    folder = trial_folder(work, trial)
    return Values(
        model=str(model_path(work, trial)),
        tuned=str(folder / f"{TUNED}{work.suffix}"),
        report=str(folder / REPORT),
        seed=str(trial.seed),
        amount=trial.point.how_much,
        allocation=trial.point.allocation,
        trial=trial.name,
        dir=str(folder),
    )


def read_record(folder: Path) -> Record | None:
    """Return the record in a trial's folder; None where the trial did not end."""
    try:
        return from_line((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, InputError):
        return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints from a trial's folder."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name.partition(".")[0] in (MODEL, TUNED):
                _remove(path)


# --- one trial -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Decided:
    """A trial that is decided: its record but for the result, and what writes it, or why not."""

    blank: Record
    write: Callable[[Target], Made] | None
    misfit: str = ""


def _decide(work: Work, trial: Trial) -> _Decided:
    common = [work.input_digest, work.evaluation.facts]
    try:
        prepared = work.maker.prepare(trial)
    except RequestError as error:
        key = _digest([trial.name, str(error), *common])
        return _Decided(_blank(work, trial, key), None, _one_line(str(error)))
    return _Decided(_blank(work, trial, _digest([prepared.facts, *common])), prepared.write)


def _run(work: Work, trial: Trial, before: Record | None, ended: threading.Event) -> Record:
    folder, decided = trial_folder(work, trial), _decide(work, trial)
    with _alone(work, trial):
        done = read_record(folder)
        if done and done.key == decided.blank.key and done.is_done:
            return done
        if ended.is_set():
            raise StoppedError
        if decided.write is None:
            return _keep(folder, _failed(decided.blank, TrialError(decided.misfit)))
        _check_source(work)
        with _fresh(folder, work) as target:
            made = decided.write(target)
            blank = replace(decided.blank, achieved=made.achieved)
            return _keep(folder, _measure(work, trial, blank, before))


_opened: dict[bytes, Maker] = {}
"""The makers of the last sweeps that this process worked for, by their facts."""


def _reopened(work: Work) -> Work:
    """Return the same with a maker that opened its source for an earlier trial."""
    facts = pickle.dumps((work.maker, work.input_digest, work.input_stamp))
    if facts not in _opened and len(_opened) >= _MOST_OPENED:
        _opened.pop(next(iter(_opened)), None)
    return replace(work, maker=_opened.setdefault(facts, work.maker))


# --- measuring -------------------------------------------------------------------------------


def _measure(work: Work, trial: Trial, blank: Record, before: Record | None) -> Record:
    values, folder = values_of(work, trial), trial_folder(work, trial)
    try:
        if not work.evaluation.finetune:
            return _succeeded(blank, evaluate(work.evaluation, values, folder))
        return _tune(work, values, folder, blank, before)
    except TrialError as error:
        return _failed(blank, error)


def _tune(work: Work, values: Values, folder: Path, blank: Record, before: Record | None) -> Record:
    seconds = before.seconds if before else 0.0
    metric = before.metric if before else None
    if before is None:
        first = evaluate(work.evaluation, values, folder)
        seconds, metric = first.seconds, first.measured.metric
    seconds += fine_tune(work.evaluation, values, folder)
    tuned = evaluate(work.evaluation, replace(values, model=values.tuned), folder, "eval-tuned")
    record = _succeeded(blank, tuned)
    return replace(record, before=metric, seconds=seconds + tuned.seconds)


def _succeeded(blank: Record, outcome: Outcome) -> Record:
    return replace(
        blank,
        status="ok",
        metric_name=outcome.measured.name,
        metric=outcome.measured.metric,
        metrics=outcome.measured.metrics,
        repeats=outcome.repeats,
        seconds=outcome.seconds,
        exit=0,
    )


def _failed(blank: Record, error: TrialError) -> Record:
    return replace(
        blank,
        status="skipped" if error.is_skipped else "failed",
        reason=str(error),
        exit=error.exit,
        stderr=error.stderr,
        seconds=error.seconds,
    )


def _blank(work: Work, trial: Trial, key: str) -> Record:
    point = trial.point
    return Record(
        key=key,
        trial=trial.name,
        status="failed",
        amount=point.amount,
        seed=trial.seed,
        allocation=point.allocation,
        criterion=point.criterion,
        target=point.target,
        module=point.module,
        recipe=point.recipe,
        tuned=point.tuned,
        versions=_versions(),
        protocol=work.evaluation.protocol(work.input_digest),
    )


def _versions() -> dict[str, str]:
    import numpy as np

    return {
        "prune-cli": prune_cli.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch_version(),
    }


# --- the folder of a trial -------------------------------------------------------------------


@contextlib.contextmanager
def _alone(work: Work, trial: Trial) -> Iterator[None]:
    """Wait for whoever else runs this trial: a job that was started twice, a worker left behind."""
    if work.locks is None:
        yield
        return
    work.locks.mkdir(parents=True, exist_ok=True)
    with (work.locks / trial.name).open("ab") as file:
        while not _take(file):
            raise_if_stopped()
            time.sleep(_LOOK)
        yield


def _take(file: IO[bytes]) -> bool:
    """Take the lock of a file; whether nobody else has it, or the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _fresh(folder: Path, work: Work) -> Iterator[Target]:
    """Yield an empty folder for a trial; its checkpoints do not outlive an error."""
    try:
        _remove(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    is_folder = work.maker.source.is_folder
    path = folder / f"{MODEL}{work.suffix}"
    is_kept = False
    try:
        yield Target(path, folder / REPORT, is_folder=is_folder, format=work.format)
        record = read_record(folder)
        is_kept = work.keeps and record is not None and record.status == "ok"
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        if not is_kept:
            remove_checkpoints(folder)


def _keep(folder: Path, record: Record) -> Record:
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / RECORD, to_line(record).encode("utf-8", "surrogateescape"))
    return record


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_source(work: Work) -> None:
    if stamp_source(work.maker.source) != work.input_stamp:
        raise InputError(
            f"{work.maker.source.path} changed since the sweep began; run it again with --resume"
        )


def _digest(facts: object) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _one_line(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first} (and {rest.count(chr(10)) + 1} more)" if rest else first
