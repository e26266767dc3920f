"""The numbers that an evaluation gives: found in what it printed, or in a file that it wrote.

In this order: a regular expression, a file, the last line of stdout that is a JSON object, the last
that is a bare number. What gives no finite number is an error, never zero.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prune_cli.errors import UsageError

METRIC = "metric"
"""What a number without a name is called."""

_NUMBER = re.compile(
    r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE
)

_MOST_NAMES = 8  # in a message
_LARGEST_FILE = 16 << 20  # of --metric-file


class MetricError(Exception):
    """An evaluation gave no number that counts; the trial has failed, the sweep has not."""


@dataclass(frozen=True, slots=True)
class MetricSource:
    """Where the metric is found.

    Attributes:
        name: which of several numbers counts.
        regex: one group holds the number, or named groups several; the last match counts.
        file: a path (placeholders allowed), and after a colon the dotted key: "m.json:test.acc".
    """

    name: str | None = None
    regex: str | None = None
    file: str | None = None

    @property
    def path(self) -> str | None:
        """The path in `file`."""
        return self.file and (self.file.rpartition(":")[0] or self.file)

    @property
    def key(self) -> str | None:
        """The dotted key in `file`; None takes all numbers of the file."""
        path, _, key = (self.file or "").rpartition(":")
        return key if path else None


@dataclass(frozen=True, slots=True)
class Measured:
    """The number that counts, and all numbers by name; None where one is not finite."""

    name: str
    metric: float
    metrics: Mapping[str, float | None]


def check_source(source: MetricSource) -> None:
    """Raise UsageError where `source` cannot find a number in whatever is printed."""
    if source.regex is None:
        return
    try:
        pattern = re.compile(source.regex)
    except re.error as error:
        raise UsageError(f"--metric-regex {source.regex!r} is not a pattern: {error}") from None
    names = pattern.groupindex
    if pattern.groups > 1 and len(names) < pattern.groups:
        raise UsageError(
            f"--metric-regex {source.regex!r} has {pattern.groups} groups; name them, "
            "(?P<acc>...), or put (?:...) around what is not the number"
        )
    if names and source.name and source.name not in names:
        raise UsageError(f"--metric {source.name} is not a group of --metric-regex: {[*names]}")


def find_metric(source: MetricSource, out: str, err: str, file: Path | None) -> Measured:
    """Return the numbers of one evaluation.

    Args:
        source: where to look.
        out: what the command printed on stdout.
        err: and on stderr, where a regular expression is looked for that stdout does not have.
        file: the path of `source.file`, its placeholders filled in.

    Raises:
        MetricError: there is no number that counts, or it is not finite.
    """
    if source.regex is not None:
        return choose_metric(source, _by_regex(source, out, err))
    if file is not None:
        return choose_metric(source, _from_file(source, file))
    return choose_metric(source, _from_output(source, out))


def numbers_in(value: object, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a JSON value, by dotted names; those of lists by their index.

    Example:
        >>> dict(numbers_in({"acc": 91, "loss": {"test": 0.3}, "name": "x"}))
        {'acc': 91.0, 'loss.test': 0.3}
    """
    match value:
        case bool():
            pass
        case int() | float():
            yield prefix or METRIC, _as_float(value)
        case dict():
            for key, entry in value.items():
                yield from numbers_in(entry, f"{prefix}.{key}" if prefix else str(key))
        case list():
            for number, entry in enumerate(value):
                yield from numbers_in(entry, f"{prefix}.{number}" if prefix else str(number))


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return math.inf


def choose_metric(source: MetricSource, found: Mapping[str, float]) -> Measured:
    """Return the numbers that were found, and which of them counts.

    That is the one that `source` names, else the only one, else the one called "metric".

    Raises:
        MetricError: it is not there, or not finite.
    """
    name = source.name or (next(iter(found)) if len(found) == 1 else METRIC)
    if name not in found:
        raise MetricError(_why_none(source, found))
    if not math.isfinite(found[name]):
        raise MetricError(f"the metric {name} is {found[name]}")
    finite = {key: value if math.isfinite(value) else None for key, value in found.items()}
    return Measured(name, found[name], finite)


def _why_none(source: MetricSource, found: Mapping[str, float]) -> str:
    names = ", ".join([*found][:_MOST_NAMES]) + (", ..." if len(found) > _MOST_NAMES else "")
    if not found:
        return "the JSON that the evaluation gave has no numbers"
    if source.name:
        return f"there is no metric {source.name}; the evaluation gave {names}"
    return f"the evaluation gave several numbers ({names}); choose one with --metric"


# --- where the numbers stand -----------------------------------------------------------------


def _by_regex(source: MetricSource, out: str, err: str) -> dict[str, float]:
    regex = source.regex or ""
    for text in (out, err):
        last = deque(re.finditer(regex, text), maxlen=1)
        if last:
            return {name: _parse(number) for name, number in _groups(source, last[0])}
    raise MetricError(f"nothing that the evaluation printed matches --metric-regex {regex!r}")


def _groups(source: MetricSource, found: re.Match[str]) -> Iterator[tuple[str, str | None]]:
    if found.re.groupindex:
        yield from found.groupdict().items()
    else:
        yield source.name or METRIC, found[found.re.groups and 1]


def _parse(text: str | None) -> float:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        raise MetricError(f"--metric-regex found {text!r}, which is not a number") from None


def _from_file(source: MetricSource, path: Path) -> dict[str, float]:
    found, key = _read_json(path), source.key
    if key is None:
        return dict(numbers_in(found))
    for part in key.split("."):
        found = _enter(found, part, f"{path.name}:{key}")
    match found:
        case bool():
            pass
        case int() | float():
            return {source.name or key.rpartition(".")[2]: _as_float(found)}
    raise MetricError(f"{path.name}:{key} is not a number: {found!r:.80}")


def _read_json(path: Path) -> object:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise MetricError(f"the metric file {path} is larger than {_LARGEST_FILE:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MetricError(f"the metric file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MetricError(f"the metric file {path} is not JSON: {error}") from None


def _enter(found: object, part: str, where: str) -> object:
    if isinstance(found, dict) and part in found:
        return found[part]
    if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
        return found[int(part)]
    raise MetricError(f"{where}: there is no {part!r}")


def _from_output(source: MetricSource, out: str) -> dict[str, float]:
    lines = [line.strip() for line in out.splitlines()]
    for line in reversed(lines):
        if line.startswith("{") and line.endswith("}"):
            found = _json_object(line)
            if found is not None:
                return dict(numbers_in(found))
    for line in reversed(lines):
        if _NUMBER.fullmatch(line):
            return {source.name or METRIC: float(line)}
    raise MetricError(
        "the evaluation printed no metric: no line of stdout is a JSON object or a bare number"
    )


def _json_object(line: str) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
