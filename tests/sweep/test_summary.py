"""What trials say together, and how it is written."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from prune_cli.errors import InputError
from prune_cli.sweep.comparison import tell_apart
from prune_cli.sweep.forms import finish, to_csv, to_json, to_latex, to_markdown, to_table
from prune_cli.sweep.grid import UNPRUNED, Point, Trial
from prune_cli.sweep.methods import describe_protocol
from prune_cli.sweep.record import Achieved, Record
from prune_cli.sweep.sensitivity import candidates
from prune_cli.sweep.series import axes_of, read_series, series_of
from prune_cli.sweep.settings import Settings, read_settings
from prune_cli.sweep.settings import to_json as settings_to_json
from prune_cli.sweep.summary import summarize

SETTINGS = Settings(
    input="model.pt",
    sha256="0" * 64,
    protocol="p",
    amounts=(0.25, 0.5),
    seeds=(0, 1, 2, 3),
    evaluate="python eval.py {model}",
    criteria=("random", "l1"),
    allocations=("uniform", "erk"),
    versions={"prune-cli": "0.2.0"},
)


def record(
    amount: float,
    seed: int,
    metric: float | None,
    *,
    criterion: str = "random",
    allocation: str = "uniform",
    before: float | None = None,
    module: str | None = None,
    reason: str | None = None,
) -> Record:
    """A trial that has a metric, or failed."""
    trial = Trial(Point(amount, allocation, criterion, module=module), seed)
    return Record(
        key=trial.name,
        trial=trial.name,
        status="failed" if metric is None else "ok",
        amount=amount,
        seed=seed,
        allocation=allocation,
        criterion=criterion,
        module=module,
        metric_name=None if metric is None else "acc",
        metric=metric,
        metrics={} if metric is None else {"acc": metric},
        before=before,
        seconds=1.5,
        exit=0,
        reason=reason,
        achieved=Achieved(amount=amount, sparsity=amount, parameters=100),
    )


BASE = record(0, 0, 90.0)
RANDOM = [record(0.5, seed, value) for seed, value in enumerate((60.0, 62.0, 61.0, 63.0))]
BETTER = [
    record(0.5, seed, value, criterion="l1") for seed, value in enumerate((65.0, 66.0, 67.0, 68.0))
]
NOISY = [
    record(0.5, seed, value, allocation="erk")
    for seed, value in enumerate((70.0, 55.0, 64.0, 60.0))
]


def test_a_criterion_is_compared_with_random_seed_by_seed() -> None:
    """By the paired difference and its interval."""
    summary = summarize(SETTINGS, [BASE, *RANDOM, *BETTER])

    (found,) = summary.differences
    assert (found.kind, found.verdict, found.spread.mean) == ("criterion", "better", 5.0)
    assert re.fullmatch(r"l1 beats random by 5 ± [\d.]+ at 50%, 4 seeds", found.sentence)


def test_less_can_be_better() -> None:
    """The same numbers, the other way round."""
    summary = summarize(replace(SETTINGS, is_minimized=True), [BASE, *RANDOM, *BETTER])

    assert summary.differences[0].sentence.startswith("l1 is worse than random by 5 ±")


def test_what_cannot_be_told_apart_is_said_so() -> None:
    """An interval that holds 0; the numbers are there."""
    summary = summarize(SETTINGS, [BASE, *RANDOM, *NOISY])

    assert summary.differences[0].verdict == "not told apart"
    assert re.match(
        r"erk and uniform are not told apart \(difference 0.75 ± [\d.]+\) at 50%, 4 seeds",
        summary.differences[0].sentence,
    )


def test_two_seeds_tell_nothing_apart() -> None:
    """However large the difference."""
    summary = summarize(SETTINGS, [BASE, *RANDOM[:2], *BETTER[:2]])

    assert summary.differences[0].verdict == "not told apart"
    assert "fewer than 3 trials" in summary.warnings[0]


def test_amounts_are_compared_seed_by_seed_since_draws_are_nested() -> None:
    """A seed that failed at one of them is in no pair."""
    quarter = [record(0.25, seed, value) for seed, value in enumerate((80.0, 81.0, 82.0))]
    quarter.append(record(0.25, 3, None, reason="exit 1"))

    summary = summarize(SETTINGS, [BASE, *quarter, *RANDOM])

    (found,) = summary.differences
    assert (found.kind, found.spread.n, found.verdict) == ("amount", 3, "worse")
    assert found.spread.mean == pytest.approx((-20 - 19 - 21) / 3)
    assert any("1 of 9 trials failed" in warning for warning in summary.warnings)


def test_one_trial_has_no_spread_and_says_so() -> None:
    """In the table as in the warnings."""
    summary = summarize(SETTINGS, [BASE, RANDOM[0]])

    assert "has no spread" in summary.warnings[0]
    assert "| 50% | 1 | 60 | – | 60 | 60 | – |" in to_markdown(
        [finish("s", SETTINGS, [BASE, RANDOM[0]])]
    )


def test_a_sweep_whose_trials_all_failed_has_a_summary() -> None:
    """Without any number in it."""
    failed = [record(0, 0, None, reason="exit 1"), record(0.5, 0, None, reason="a|b\n\x1b[31m")]

    finished = finish("s", SETTINGS, failed)

    assert finished.summary.base is None
    assert "the unpruned checkpoint failed: exit 1" in finished.summary.warnings[0]
    assert "\x1b" not in to_markdown([finished])
    assert json.loads(to_json([finished]))["failed"] == 2


def test_the_fine_tune_is_told_apart_from_what_came_before() -> None:
    """By ranks, with a warning where a selection was made by the first."""
    tuned = [record(0.5, seed, 80.0 - seed, before=float(seed)) for seed in range(4)]

    summary = summarize(replace(SETTINGS, finetune="train", keep_best=4), [BASE, *tuned])

    assert summary.tuning is not None
    assert summary.tuning.rho == pytest.approx(-1.0)
    assert any("selected by the metric before" in warning for warning in summary.warnings)


def test_csv_has_every_trial_and_metric() -> None:
    """Of several sweeps, the first column says which."""
    one = finish("a", SETTINGS, [BASE, *RANDOM])
    two = finish("b", SETTINGS, [replace(BASE, metrics={"acc": 1.0, "f1": 2.0})])

    rows = [*csv.DictReader(io.StringIO(to_csv([one, two])))]

    assert [row["sweep"] for row in rows] == ["a"] * 5 + ["b"]
    assert (rows[5]["metrics.f1"], rows[0]["metrics.f1"]) == ("2.0", "")
    assert [row["trial"] for row in csv.DictReader(io.StringIO(to_csv([one])))][1] == "a0.5-s0"


def test_latex_is_a_table_that_can_be_typeset() -> None:
    """Every special character is escaped, rows end, columns are as many as the head has."""
    odd = replace(RANDOM[0], metric_name="top_1 & 50%")

    text = to_latex([finish("s", SETTINGS, [replace(BASE, metric_name="top_1 & 50%"), odd])])

    lines = text.splitlines()
    columns = len(lines[0].removeprefix(r"\begin{tabular}{").removesuffix("}"))
    rows = [line for line in lines if line.endswith(r"\\")]
    assert r"top\_1 \& 50\%" in rows[0]
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}


def test_several_sweeps_stand_side_by_side() -> None:
    """With what tells them apart."""
    one = finish("one", SETTINGS, [BASE, *RANDOM])
    two = finish("two", SETTINGS, [BASE, *[replace(each, criterion="random") for each in BETTER]])

    assert to_table([one, two])[0] == ["", "one", "two"]
    assert to_table([one, two])[2][0] == "50%"
    (sentence,) = tell_apart([one, two])
    assert sentence.startswith("two beats one by 5 ±")
    assert "one" in to_markdown([one, two])
    assert {*json.loads(to_json([one, two]))["sweeps"]} == {"one", "two"}


def test_sweeps_of_different_metrics_are_not_compared() -> None:
    """It would be nonsense."""
    other = [replace(each, metric_name="loss") for each in (BASE, *RANDOM)]

    (sentence,) = tell_apart([finish("a", SETTINGS, [BASE, *RANDOM]), finish("b", SETTINGS, other)])

    assert "not compared" in sentence


def test_the_methods_paragraph_has_the_facts_of_the_run() -> None:
    """For a paper."""
    text = describe_protocol(summarize(SETTINGS, [BASE, *RANDOM]))

    for fact in ("model.pt", "25% and 50%", "4 times (seeds 0–3)", "L1 norm", "Evci et al.", "acc"):
        assert fact in text


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    """From sweep.json."""
    (tmp_path / "sweep.json").write_text(settings_to_json(SETTINGS))

    assert read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "x": 2}'])
def test_other_files_are_no_settings(tmp_path: Path, text: str) -> None:
    """Each is refused by its name."""
    (tmp_path / "sweep.json").write_text(text)

    with pytest.raises(InputError, match=r"sweep\.json"):
        read_settings(tmp_path)


def test_recipes_are_proposed_from_bold_to_careful() -> None:
    """None twice, none empty, each within what single modules may lose."""
    losses = {"a": {0.25: 1.0, 0.5: 3.0}, "b": {0.25: 0.1, 0.5: 9.0}, "c": {0.25: 9.0, 0.5: 9.5}}
    records = [BASE] + [
        record(amount, 0, 90.0 - lost, module=module)
        for module, table in losses.items()
        for amount, lost in table.items()
    ]

    found = [dict(each) for each in candidates(summarize(SETTINGS, records), lose=4.0)]

    assert found == [{"a": 0.5, "b": 0.25}, {"a": 0.25, "b": 0.25}, {"b": 0.25}]


def test_series_have_a_dot_for_each_trial_and_a_mean_for_each_point() -> None:
    """Of each allocation and criterion."""
    records = [BASE, *RANDOM, *BETTER]

    random, l1 = series_of(records, "amount")

    assert (random.label, l1.label) == ("random", "l1")
    assert [dot.y for dot in random.dots] == [60.0, 62.0, 61.0, 63.0]
    assert (random.means[0].x, random.means[0].y) == (0.5, 61.5)
    assert axes_of(records) == ("amount",)


def test_another_methods_csv_is_read(tmp_path: Path) -> None:
    """A results.csv of a sweep, or two columns from anywhere."""
    path = tmp_path / "magnitude.csv"
    path.write_text(
        "amount,metric,label\n0,91,\n0.5,70,ours\n0.5,72,ours\n0.5,nan,ours\n0.5,60,theirs\n"
    )

    ours, theirs = read_series(path, None)

    assert (ours.label, ours.means[0].y, len(ours.dots)) == ("magnitude ours", 71.0, 2)
    assert theirs.means[0].interval is None
    (tmp_path / "results.csv").write_text(to_csv([finish("s", SETTINGS, [BASE, *BETTER])]))
    assert read_series(tmp_path / "results.csv", None)[0].label == "results l1"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"amount,x\n1,2\n"])
def test_a_csv_without_the_columns_is_refused(tmp_path: Path, content: bytes) -> None:
    """By its name."""
    path = tmp_path / "x.csv"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"x\.csv"):
        read_series(path, None)


def test_the_unpruned_trial_is_no_point_of_a_series() -> None:
    """It is a rule across the picture."""
    assert series_of([BASE], "amount") == []
    assert UNPRUNED.point.is_unpruned
