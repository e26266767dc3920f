"""What is done with the checkpoint of a trial: the user's commands or function, and their numbers.

See also: `command`, which runs one command; `metric`, which finds the numbers.
"""

import inspect
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from prune_cli.errors import UsageError
from prune_cli.sweep.command import SKIPPED, Finished, run_command
from prune_cli.sweep.metric import (
    METRIC,
    Measured,
    MetricError,
    MetricSource,
    check_source,
    choose_metric,
    find_metric,
)
from prune_cli.sweep.template import (
    Values,
    check_templates,
    environment_of,
    fill,
    fill_path,
    placeholders_in,
)

Function = Callable[[Path], float | Mapping[str, float]]
"""An evaluation in Python: takes the checkpoint's path, returns the metric, or several by name."""

_TAIL = 2000  # characters of stderr in a record
_PER_TRIAL = {"dir", "trial", "model", "tuned", "report"}
"""Placeholders that no two trials share."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a checkpoint gets its number.

    Attributes:
        evaluate: a command template, or a function.
        finetune: a command template that trains {model} to {tuned} before a second evaluation.
        source: where the number is found in what a command gives.
        repeats: how often each evaluation runs; the metric is the mean.
        timeout: seconds for each command.
    """

    evaluate: str | Function
    finetune: str | None = None
    source: MetricSource = field(default_factory=MetricSource)
    repeats: int = 1
    timeout: float | None = None

    def protocol(self, input_digest: str) -> str:
        """Return what all trials of one sweep share: the input and how it is evaluated."""
        facts = [input_digest, {**self.facts, "finetune": None}]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def facts(self) -> dict[str, object]:
        """What the numbers depend on; part of a trial's key."""
        return {
            "evaluate": spell(self.evaluate),
            "finetune": self.finetune,
            "metric": [self.source.name, self.source.regex, self.source.file],
            "repeats": self.repeats,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the commands of a trial gave.

    Attributes:
        measured: the numbers, each the mean over the repetitions.
        repeats: the metric of each repetition.
        seconds: of all commands.
    """

    measured: Measured
    repeats: tuple[float, ...]
    seconds: float


class TrialError(Exception):
    """A trial came to nothing; the sweep goes on.

    `exit` and `stderr` are the last command's; `is_skipped`: it asked to be left out.
    """

    def __init__(
        self,
        reason: str,
        finished: Finished | None = None,
        *,
        seconds: float = 0.0,
        is_skipped: bool = False,
    ) -> None:
        super().__init__(reason)
        self.exit = finished.exit if finished else None
        self.stderr = tail(finished.err) if finished else None
        self.seconds = seconds
        self.is_skipped = is_skipped


def check_evaluation(evaluation: Evaluation, *, jobs: int) -> None:
    """Raise UsageError where commands have unknown placeholders or cannot give a metric."""
    templates = {
        option: template
        for option, template in (
            ("--eval", evaluation.evaluate),
            ("--finetune", evaluation.finetune),
            ("--metric-file", evaluation.source.path),
        )
        if isinstance(template, str)
    }
    check_templates(templates)
    blank = [option for option, template in templates.items() if not template.strip()]
    if blank:
        raise UsageError(f"{' and '.join(blank)} must not be empty")
    check_source(evaluation.source)
    path = evaluation.source.path
    if path and jobs > 1 and not _PER_TRIAL.intersection(placeholders_in(path)):
        raise UsageError(
            f"with --jobs {jobs} several trials would write --metric-file {path} at the same "
            "time; put {dir} or {trial} into its path"
        )


def evaluate(evaluation: Evaluation, values: Values, folder: Path, name: str = "eval") -> Outcome:
    """Evaluate the checkpoint `values.model`, as often as asked for.

    Args:
        evaluation: how.
        values: of the placeholders.
        folder: of the trial; keeps the outputs as NAME.stdout and NAME.stderr.
        name: see there.

    Raises:
        TrialError: it failed, gave no number, or asked to be left out.
        StoppedError: the sweep ends.
    """
    measured: list[Measured] = []
    seconds = 0.0
    for number in range(1, evaluation.repeats + 1):
        label = name if evaluation.repeats == 1 else f"{name}-{number}"
        found, took = _evaluate_once(evaluation, values, folder / label, seconds)
        measured.append(found)
        seconds += took
    return Outcome(_average(measured), tuple(each.metric for each in measured), seconds)


def fine_tune(evaluation: Evaluation, values: Values, folder: Path) -> float:
    """Run the fine-tune and return its seconds.

    Raises:
        TrialError: it failed, or wrote no {tuned}.
        StoppedError: the sweep ends.
    """
    finished = _run(evaluation, evaluation.finetune or "", values, folder / "finetune", 0.0)
    if not Path(values.tuned).exists():
        reason = f"--finetune ended without writing {{tuned}} ({Path(values.tuned).name})"
        raise TrialError(reason, finished, seconds=finished.seconds)
    return finished.seconds


def spell(evaluation: str | Function) -> str:
    """Return a command as it is, a function as its name and source."""
    if isinstance(evaluation, str):
        return evaluation
    name = f"{evaluation.__module__}.{getattr(evaluation, '__qualname__', type(evaluation))}"
    try:
        return f"{name}\n{inspect.getsource(evaluation)}"
    except (OSError, TypeError):  # written at the prompt, or an object that can be called
        return name


def tail(text: str) -> str | None:
    """Return the end of what a command printed, without what would act on a terminal."""
    kept = "".join(sign for sign in text[-_TAIL:] if sign.isprintable() or sign == "\n")
    return kept.strip() or None


# --- one evaluation --------------------------------------------------------------------------


def _evaluate_once(
    evaluation: Evaluation, values: Values, label: Path, before: float
) -> tuple[Measured, float]:
    if not isinstance(evaluation.evaluate, str):
        return _call(evaluation.evaluate, evaluation.source, values), 0.0
    path = evaluation.source.path
    file = Path(fill_path(path, values)) if path else None
    stamp = _stamp(file)
    finished = _run(evaluation, evaluation.evaluate, values, label, before)
    seconds = before + finished.seconds
    if file and file.exists() and _stamp(file) == stamp:
        reason = f"the metric file {file} is older than the evaluation, which did not write it"
        raise TrialError(reason, finished, seconds=seconds)
    try:
        return find_metric(evaluation.source, finished.out, finished.err, file), finished.seconds
    except MetricError as error:
        raise TrialError(str(error), finished, seconds=seconds) from None


def _average(measured: Sequence[Measured]) -> Measured:
    """Return the mean of each number; None where a repetition did not have it."""
    metrics = {
        name: statistics.fmean(value for value in found if value is not None)
        if None not in found
        else None
        for name in measured[-1].metrics
        for found in [[each.metrics.get(name) for each in measured]]
    }
    return Measured(measured[-1].name, statistics.fmean(each.metric for each in measured), metrics)


def _call(function: Function, source: MetricSource, values: Values) -> Measured:
    try:
        found = function(Path(values.model))
        numbers = found if isinstance(found, Mapping) else {source.name or METRIC: found}
        return choose_metric(source, {name: float(value) for name, value in numbers.items()})
    except MetricError as error:
        raise TrialError(str(error)) from None
    except Exception as error:
        raise TrialError(f"{type(error).__name__}: {error}") from error


def _run(
    evaluation: Evaluation, template: str, values: Values, label: Path, before: float
) -> Finished:
    finished = run_command(
        fill(template, values),
        environment_of(values),
        label.with_name(f"{label.name}.stdout"),
        label.with_name(f"{label.name}.stderr"),
        evaluation.timeout,
    )
    if finished.exit != 0:
        seconds = before + finished.seconds
        is_skipped = finished.exit == SKIPPED
        reason = _why_failed(finished, label.name, evaluation.timeout)
        raise TrialError(reason, finished, seconds=seconds, is_skipped=is_skipped)
    return finished


def _why_failed(finished: Finished, name: str, timeout: float | None) -> str:
    last = (tail(finished.err) or "").rpartition("\n")[2].strip()[:200]
    said = f": {last}" if last else ""
    match finished.exit:
        case None:
            return f"{name} ran out of time ({timeout:g} s)"
        case code if code == SKIPPED:
            return f"{name} asked to skip it (exit {SKIPPED}){said}"
        case code if code < 0:
            return f"{name} was killed by signal {-code}{said}"
        case code:
            return f"{name} failed with exit {code}{said}"


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else None
