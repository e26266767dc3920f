"""Which number an evaluation gives."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.errors import UsageError
from prune_cli.sweep.metric import MetricError, MetricSource, check_source, find_metric

ANY = MetricSource()


@pytest.mark.parametrize(
    ("out", "metric", "metrics"),
    [
        ("0.5\n", 0.5, {"metric": 0.5}),
        ("loading\n0.5\n0.75\ndone\n", 0.75, {"metric": 0.75}),
        ("  -1e-3  \r\n", -0.001, {"metric": -0.001}),
        ('{"acc": 91.5}\n', 91.5, {"acc": 91.5}),
        ('{"acc": 1}\n{"acc": 2}\nbye\n', 2.0, {"acc": 2.0}),
        ('{"acc": 2}\n0.5\n', 2.0, {"acc": 2.0}),
        ('{"a": {"b": [1, true, "x", null]}}\n', 1.0, {"a.b.0": 1.0}),
        ('{"metric": 3, "loss": 4}\n', 3.0, {"metric": 3.0, "loss": 4.0}),
        ("{not json}\n.5\n", 0.5, {"metric": 0.5}),
        ("progress 1\rprogress 2\r0.5", 0.5, {"metric": 0.5}),
    ],
)
def test_the_last_json_object_counts_then_the_last_bare_number(
    out: str, metric: float, metrics: dict[str, float]
) -> None:
    """Whatever else was printed between."""
    found = find_metric(ANY, out, "", None)

    assert (found.metric, found.metrics) == (metric, metrics)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("", "printed no metric"),
        ("accuracy: 0.5\n", "printed no metric"),
        ("91%\n", "printed no metric"),
        ("0.5\nnan\n", "is nan"),
        ("-inf\n", "is -inf"),
        ('{"acc": NaN}\n', "acc is nan"),
        ('{"acc": 1e999}\n', "acc is inf"),
        ('{"a": 1, "b": 2}\n', r"several numbers \(a, b\); choose one with --metric"),
        ('{"name": "x"}\n', "has no numbers"),
        ("\ufffd\ufffd\0\n", "printed no metric"),
    ],
)
def test_what_gives_no_finite_number_says_why(out: str, reason: str) -> None:
    """It is never zero."""
    with pytest.raises(MetricError, match=reason):
        find_metric(ANY, out, "", None)


def test_a_named_metric_counts_and_all_are_kept() -> None:
    """One that is not finite is kept as missing."""
    found = find_metric(MetricSource("acc"), '{"acc": 0.5, "loss": NaN, "n": 10}', "", None)

    assert found.metric == 0.5
    assert found.metrics == {"acc": 0.5, "loss": None, "n": 10.0}


def test_the_name_of_a_metric_that_is_not_there_is_told() -> None:
    """With those that are."""
    with pytest.raises(MetricError, match="no metric acc; the evaluation gave loss"):
        find_metric(MetricSource("acc"), '{"loss": 0.5}', "", None)


def test_a_bare_number_is_called_as_the_user_calls_it() -> None:
    """So that --assert and the tables can name it."""
    assert find_metric(MetricSource("acc"), "0.5", "", None).metrics == {"acc": 0.5}


@pytest.mark.parametrize(
    ("regex", "metrics"),
    [
        (r"acc=([\d.]+)", {"metric": 0.75}),
        (r"(?<=acc=)[\d.]+", {"metric": 0.75}),
        (r"acc=(?P<acc>[\d.]+) loss=(?P<loss>\S+)", {"acc": 0.75, "loss": 2.0}),
    ],
)
def test_the_last_match_of_a_pattern_counts_before_everything_else(
    regex: str, metrics: dict[str, float]
) -> None:
    """Even where there is a JSON object."""
    out = 'acc=0.5 loss=3\nacc=0.75 loss=2\n{"acc": 9}\n'
    name = "acc" if len(metrics) > 1 else None

    assert find_metric(MetricSource(name, regex), out, "", None).metrics == metrics


def test_a_pattern_is_also_looked_for_on_stderr() -> None:
    """Where Python's logging writes."""
    assert find_metric(MetricSource(regex=r"acc (\S+)"), "x", "INFO acc 1,234.5", None).metric == (
        1234.5
    )


@pytest.mark.parametrize(
    ("regex", "reason"), [("acc (.*)", "found 'high', which is not a number"), ("top (1)", "match")]
)
def test_a_pattern_that_finds_no_number_fails(regex: str, reason: str) -> None:
    """Instead of falling back to something else."""
    with pytest.raises(MetricError, match=reason):
        find_metric(MetricSource(regex=regex), "acc high\n0.5", "", None)


@pytest.mark.parametrize("regex", ["(", r"(\d)(\d)", r"(?P<a>\d)(\d)"])
def test_a_pattern_that_cannot_tell_a_number_is_refused_before_anything_runs(regex: str) -> None:
    """One group, or named ones."""
    with pytest.raises(UsageError, match="--metric-regex"):
        check_source(MetricSource(regex=regex))


def test_a_metric_that_is_no_group_of_the_pattern_is_refused() -> None:
    """The groups are known before anything runs."""
    with pytest.raises(UsageError, match="--metric f1 is not a group"):
        check_source(MetricSource("f1", r"(?P<acc>\d+)"))


@pytest.mark.parametrize(
    ("file", "metrics"),
    [
        ("m.json:test.acc", {"acc": 0.5}),
        ("m.json:runs.1", {"1": 8.0}),
        ("m.json", {"test.acc": 0.5, "test.loss": 2.0, "runs.0": 7.0, "runs.1": 8.0}),
    ],
)
def test_a_file_counts_before_what_is_printed(
    tmp_path: Path, file: str, metrics: dict[str, float]
) -> None:
    """A dotted key goes down into objects and lists."""
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"test": {"acc": 0.5, "loss": 2}, "runs": [7, 8]}))
    source = MetricSource("test.acc" if ":" not in file else None, file=file)

    assert find_metric(source, "0.1", "", path).metrics == metrics


@pytest.mark.parametrize(
    ("content", "key", "reason"),
    [
        (b"{", "a", "is not JSON"),
        (b"\xff\xfe", "a", "is not JSON"),
        (b"{}", "a", "there is no 'a'"),
        (b'{"a": true}', "a", "is not a number"),
        (b'{"a": "x"}', "a", "is not a number"),
        (b'{"a": NaN}', "a", "is nan"),
        (b"[" * 100_000, "a", "is not JSON"),
    ],
)
def test_a_file_without_the_number_says_why(
    tmp_path: Path, content: bytes, key: str, reason: str
) -> None:
    """And is not replaced by what was printed."""
    path = tmp_path / "m.json"
    path.write_bytes(content)

    with pytest.raises(MetricError, match=reason):
        find_metric(MetricSource(file=f"m.json:{key}"), "0.5", "", path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The evaluation did not write it."""
    with pytest.raises(MetricError, match="m.json cannot be read: No such file"):
        find_metric(MetricSource(file="m.json"), "0.5", "", tmp_path / "m.json")


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(alphabet="ab {\n", max_size=20))
def test_any_finite_number_on_the_last_line_is_found_exactly(value: float, before: str) -> None:
    """As Python and JSON spell floats."""
    assert find_metric(ANY, f"{before}\n{value!r}\n", "", None).metric == value
    assert find_metric(ANY, before + "\n" + json.dumps({"a": value}), "", None).metric == value
