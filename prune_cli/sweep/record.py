"""What came of a trial, and the file that keeps it: a line of JSON for each, appended.

The last line of a trial counts: a trial that failed and was run again has two. A line that was cut
short, by a kill or a full disk, is no line.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from prune_cli.amounts import Amount
from prune_cli.errors import InputError, OutputError
from prune_cli.sweep.grid import Point

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Achieved:
    """What the draw made of the checkpoint; None where it is not known.

    Attributes:
        amount: the part of the selected channels that is pruned, those pruned before included.
        parameters: elements of all parameters of the written checkpoint, zeros included.
        elements_zero: how many of them are in pruned channels.
        sparsity: their part of the elements of the selected tensors.
        bytes: of the written checkpoint.
        flops: multiply-adds of one example.
        latency: seconds of one example.
    """

    amount: float | None = None
    parameters: int | None = None
    elements_zero: int | None = None
    sparsity: float | None = None
    bytes: int | None = None
    flops: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One trial and what came of it: a line of trials.jsonl.

    Attributes:
        key: sha256 of the plan, the input and the commands.
        protocol: digest of the input and the evaluation, the same for all trials of a sweep.
        trial: its name, and its folder's.
        status: ok, failed, or skipped (exit 125).
        amount: 0 for the unpruned checkpoint; None where a target or a recipe says how much.
        seed: of the draw; 0 for the unpruned checkpoint.
        allocation, criterion, target, module, recipe, tuned: of the trial's point.
        metric_name: which of the metrics counts.
        metric: the number that counts; the mean, where the evaluation was repeated.
        metrics: all numbers, each the mean as well; None where one is not finite.
        repeats: the metric of each repeated evaluation.
        before: the metric before the fine-tune.
        seconds: of the commands together.
        exit: of the last command; -N for signal N; None out of time, or where none ran.
        reason: why it failed or was skipped, in one line.
        stderr: the end of what the last command printed there.
        achieved: what the draw made of the checkpoint.
        versions: of prune-cli, Python, NumPy, torch.
    """

    key: str
    trial: str
    status: Status
    amount: Amount | None
    seed: int
    allocation: str
    criterion: str
    target: str | None = None
    module: str | None = None
    recipe: str | None = None
    tuned: bool = False
    metric_name: str | None = None
    metric: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    repeats: tuple[float, ...] = ()
    before: float | None = None
    seconds: float = 0.0
    exit: int | None = None
    reason: str | None = None
    stderr: str | None = None
    achieved: Achieved = Achieved()
    versions: Mapping[str, str] = field(default_factory=dict)
    protocol: str | None = None

    @property
    def point(self) -> Point:
        """The point that the trial is of."""
        return Point(
            self.amount,
            self.allocation,
            self.criterion,
            self.target,
            self.module,
            self.recipe,
            self.tuned,
        )

    @property
    def is_done(self) -> bool:
        """Whether it need not run again: a skipped trial need not, a failed one must."""
        return self.status != "failed"


def to_line(record: Record) -> str:
    """Return the record as one line of JSON, its newline included."""
    return json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n"


def from_line(line: str) -> Record:
    """Return the record that to_line wrote.

    Raises:
        InputError: the line is not one.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from None
    return _build(found)


def append_record(path: Path, record: Record) -> None:
    """Append a line to the file at `path`, in one write.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            line = to_line(record).encode("utf-8", "surrogateescape")
            if file.write(line) != len(line):
                raise OutputError(f"{path} cannot be written: the disk is full")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def read_records(path: Path) -> list[Record]:
    """The records in the file at `path`, in its order; a last line that was cut short is no record.

    Raises:
        InputError: the file cannot be read, or another line is not a record.
    """
    return [*_read_lines(path)]


def latest(records: Sequence[Record]) -> dict[str, Record]:
    """Return the last record of each key."""
    return {record.key: record for record in records}


def mend(path: Path) -> None:
    """Cut off a last line that was not finished, so that the next one starts on its own."""
    try:
        with path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _read_lines(path: Path) -> Iterator[Record]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from error
    lines = content.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield from_line(line)
        except InputError as error:
            raise InputError(f"{path}, line {number} is not a trial of a sweep: {error}") from None


def _build(found: object) -> Record:
    known = {entry.name for entry in fields(Record)}
    if not isinstance(found, dict) or not {"key", "trial", "status"} <= found.keys():
        raise InputError("it lacks key, trial or status")
    unknown = sorted(found.keys() - known)
    if unknown:
        raise InputError(f"it has the unknown {', '.join(unknown)}")
    if found["status"] not in get_args(Status):
        raise InputError(f"its status is {found['status']!r}")
    try:
        repeats = tuple(found.get("repeats", ()))
        achieved = Achieved(**found.get("achieved", {}))
        return Record(**{**found, "repeats": repeats, "achieved": achieved})
    except TypeError as error:
        raise InputError(str(error)) from None
