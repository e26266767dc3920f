"""Whole sweeps, with evaluations of all kinds, run as real processes."""

import csv
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from prune_cli import prune_checkpoint, sweep
from prune_cli.cluster.engine import Engine
from prune_cli.errors import InputError, OutputError, RequestError, UsageError
from prune_cli.plan.facts import Options
from prune_cli.sweep.evaluation import Evaluation
from prune_cli.sweep.folder import read_sweep, taken
from prune_cli.sweep.grid import Grid, Trial
from prune_cli.sweep.maker import Prepared, RandomMaker
from prune_cli.sweep.metric import MetricSource
from prune_cli.sweep.record import Record, append_record, read_records
from prune_cli.sweep.request import Request, plan_sweep
from prune_cli.sweep.stages import Results, Watch, run_sweep
from tests import build

NOISY = "echo '{\"acc\": '$((90 - PRUNE_SEED * PRUNE_SEED))', \"loss\": 0.5}'"
"""An evaluation that depends on the seed."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint whose conv and fc can be pruned."""
    return build.safetensors(tmp_path / "model.safetensors", build.tensors())


def request(model: Path, evaluate: str, **changes: Any) -> Request:
    """A sweep of two amounts and three seeds into the folder "sweep" beside the model."""
    source = changes.pop("source", MetricSource("acc"))
    evaluation = {
        name: changes.pop(name) for name in ("finetune", "repeats", "timeout") if name in changes
    }
    return replace(
        Request(
            RandomMaker(model, Options(None, dim=0)),
            Grid((0.25, 0.5), (0, 1, 2)),
            Evaluation(evaluate, source=source, **evaluation),
            model.parent / "sweep",
        ),
        **changes,
    )


def statuses(results: Results) -> dict[str, str]:
    """How each trial ended."""
    return {record.trial: record.status for record in results.records}


def without_times(folder: Path) -> tuple[str, list[dict[str, str]], list[dict[str, Any]]]:
    """What must be the same whenever and however often a sweep was interrupted."""
    rows = read_csv(folder / "results.csv")
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for row in [*rows, *lines]:
        del row["seconds"]
    return (folder / "summary.json").read_text(), rows, sorted(lines, key=lambda row: row["trial"])


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def count_zero_rows(path: Path) -> int:
    """An evaluation in Python: rows of conv and fc that are zero."""
    with safe_open(path, "pt") as file:
        tensors = [
            file.get_tensor(name).float().flatten(1) for name in ("conv.weight", "fc.weight")
        ]
    return sum(int((tensor == 0).all(1).sum()) for tensor in tensors)


# --- what a trial is -------------------------------------------------------------------------


def test_each_trial_is_what_the_main_job_writes(model: Path, tmp_path: Path) -> None:
    """To the byte, and so is its report."""
    digests = request(model, f"sha256sum {{model}} >> {tmp_path}/digests; echo 1")

    run_sweep(digests)

    found = [line.split()[0] for line in (tmp_path / "digests").read_text().splitlines()]
    expected = []
    for amount, seed in [(0, 0), *((a, s) for s in range(3) for a in (0.25, 0.5))]:
        output = tmp_path / f"{amount}-{seed}.safetensors"
        prune_checkpoint(model, output, amount=amount, dim=0, seed=seed)
        expected.append(sha256(output.read_bytes()).hexdigest())
        name = f"a{amount}-s{seed}" if amount else "unpruned"
        report = json.loads((digests.folder / "trials" / name / "report.json").read_text())
        own = json.loads((tmp_path / f"{amount}-{seed}.report.json").read_text())
        del report["output"], own["output"]
        assert report == own
    assert found == expected


def test_a_function_evaluates_as_a_command_does(model: Path) -> None:
    """The Python twin needs no output folder."""
    results = sweep(model, [0.5, 2], 2, count_zero_rows, dim=0)

    metrics = {record.trial: record.metric for record in results.records}
    assert metrics == {"unpruned": 0, "a0.5-s0": 8, "a2-s0": 4, "a0.5-s1": 8, "a2-s1": 4}
    assert results.summary.base == 0


def test_a_function_that_raises_fails_its_trial_only(model: Path) -> None:
    """With what it raised."""

    def evaluate(path: Path) -> Mapping[str, float]:
        zeros = count_zero_rows(path)
        if zeros == 4:
            raise ValueError("four")
        return {"zeros": zeros, "other": float("nan")}

    results = sweep(model, [2, 3], 1, evaluate, dim=0, metric="zeros")

    assert statuses(results) == {"unpruned": "ok", "a2-s0": "failed", "a3-s0": "ok"}
    assert results.records[1].reason == "ValueError: four"
    assert results.records[2].metrics == {"zeros": 6, "other": None}


def test_checkpoints_go_when_they_were_evaluated(model: Path) -> None:
    """There are never more than --jobs of them; the outputs of the commands stay."""
    counting = request(model, "ls {dir}/../*/model* | wc -l", source=MetricSource(), jobs=2)

    results = run_sweep(counting)

    assert all(record.metric in {1.0, 2.0} for record in results.records)
    assert not [*counting.folder.rglob("model*")]
    kept = {path.name for path in (counting.folder / "trials" / "a0.5-s1").iterdir()}
    assert kept == {"record.json", "report.json", "eval.stdout", "eval.stderr"}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("none", set()),
        ("all", {"unpruned", *(f"a{a}-s{s}" for a in (0.25, 0.5) for s in range(3))}),
        ("best", {"unpruned", "a0.25-s0", "a0.5-s0"}),
    ],
)
@pytest.mark.parametrize("jobs", [1, 4])
def test_checkpoints_are_kept_as_asked(model: Path, keep: Any, kept: set[str], jobs: int) -> None:
    """The best is the best of its point."""
    keeping = request(model, NOISY, keep=keep, jobs=jobs)

    run_sweep(keeping)

    assert {path.parent.name for path in keeping.folder.rglob("model.safetensors")} == kept


def test_a_dry_run_tells_every_command_and_makes_nothing(model: Path) -> None:
    """Quoted as the shell will have them."""
    planned = plan_sweep(request(model, "eval {model} {seed}", finetune="train {model} {tuned}"))

    assert len(planned) == 7
    folder = model.parent / "sweep" / "trials" / "a0.5-s2"
    assert planned[-1].commands == (
        f"eval {folder}/model.safetensors 2",
        f"train {folder}/model.safetensors {folder}/tuned.safetensors",
        f"eval {folder}/tuned.safetensors 2",
    )
    assert not (model.parent / "sweep").exists()


def test_a_folder_of_shards_is_swept_like_a_file(tmp_path: Path) -> None:
    """{model} is a folder then, with everything that was in it."""
    names = build.shard_names(2)
    folder = build.write_folder(tmp_path / "hub", build.split(build.tensors(), names))
    counting = request(folder, "ls {model} | wc -l", source=MetricSource())

    results = run_sweep(counting)

    assert {record.metric for record in results.records} == {
        5.0
    }  # shards, index, config.json, tokenizer
    assert not [*counting.folder.rglob("*.safetensors")]


# --- evaluations of all kinds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "exit_code", "reason"),
    [
        ("echo oops >&2; exit 3", "failed", 3, "eval failed with exit 3: oops"),
        ("exit 125", "skipped", 125, "asked to skip it"),
        ("true", "failed", 0, "printed no metric"),
        ("echo nan", "failed", 0, "the metric acc is nan"),
        ("kill -9 $$", "failed", -9, "killed by signal 9"),
        ("no-such-program", "failed", 127, "no-such-program: not found"),
        (r"printf '\000\377\n\201'", "failed", 0, "printed no metric"),
        ("sleep 20", "failed", None, r"ran out of time \(0.3 s\)"),
        ("yes", "failed", None, "ran out of time"),
        ("printf '\\033[31mred' >&2; exit 1", "failed", 1, r"exit 1: \[31mred"),
    ],
)
def test_a_trial_that_gives_no_number_is_recorded_and_the_sweep_goes_on(
    model: Path, command: str, status: str, exit_code: int | None, reason: str
) -> None:
    """Its mean is over the others; nothing is taken for zero."""
    evaluate = f"test $PRUNE_TRIAL != a0.5-s1 && {{ {NOISY}; exit; }}; {command}"
    failing = request(model, evaluate, timeout=0.3)

    results = run_sweep(failing)

    assert Counter(statuses(results).values()) == {"ok": 6, status: 1}
    record = next(each for each in results.records if each.trial == "a0.5-s1")
    assert (record.exit, record.metric) == (exit_code, None)
    assert re.search(reason, str(record.reason))
    half = results.summary.points[2]
    assert half.metric is not None
    assert (half.metric.n, half.metric.mean) == (2, 88.0)
    assert results.summary.is_good is (status == "skipped")


def test_the_end_of_stderr_is_recorded_without_what_acts_on_a_terminal(model: Path) -> None:
    """Not all of a long one."""
    failing = request(
        model, "yes error | head -c 100000 >&2; printf '\\033]0;x\\007end' >&2; exit 1"
    )

    record = run_sweep(failing).records[0]

    assert record.stderr is not None
    assert len(record.stderr) <= 2000
    assert record.stderr.endswith("]0;xend")


def test_a_metric_file_that_the_evaluation_did_not_write_does_not_count(
    model: Path, tmp_path: Path
) -> None:
    """Or the last trial's number would be this one's."""
    metrics = tmp_path / "m.json"
    evaluate = f"test $PRUNE_SEED = 2 || echo '{{\"a\": '$PRUNE_SEED'}}' > {metrics}"
    stale = request(model, evaluate, source=MetricSource(file=f"{metrics}:a"))

    results = run_sweep(stale)

    by_seed = {record.seed: record for record in results.records}
    assert (by_seed[1].status, by_seed[1].metric) == ("ok", 1.0)
    assert by_seed[2].status == "failed"
    assert "older than the evaluation" in str(by_seed[2].reason)


def test_a_metric_file_that_trials_share_is_refused_for_several_jobs(model: Path) -> None:
    """{dir} makes it each trial's own."""
    with pytest.raises(UsageError, match="put {dir} or {trial} into its path"):
        run_sweep(request(model, "x", source=MetricSource(file="m.json:a"), jobs=2))

    own = request(
        model,
        "echo '{\"a\": 1}' > {dir}/m.json",
        source=MetricSource(file="{dir}/m.json:a"),
        jobs=2,
    )
    assert run_sweep(own).summary.is_good


def test_repeated_evaluations_tell_their_noise_from_the_draws(model: Path, tmp_path: Path) -> None:
    """The metric is the mean, n is still the number of draws."""
    counter = tmp_path / "count"
    evaluate = f"echo x >> {counter}; echo $(($(wc -l < {counter}) % 2))"
    repeated = request(model, evaluate, repeats=2)

    results = run_sweep(repeated)

    point = results.summary.points[1]
    assert results.records[1].repeats == (1.0, 0.0)
    assert point.metric is not None
    assert (point.metric.n, point.metric.mean) == (3, 0.5)
    assert point.noise is not None
    assert point.noise.evaluation == pytest.approx(statistics.stdev([0, 1]))
    assert point.noise.draw == 0.0
    assert (repeated.folder / "trials" / "a0.5-s0" / "eval-2.stdout").read_text() == "0\n"


def test_fail_fast_ends_with_the_first_failure(model: Path) -> None:
    """What was done before is kept."""
    failing = request(model, f"test $PRUNE_SEED = 1 && exit 1; {NOISY}", fail_fast=True)

    results = run_sweep(failing)

    assert [*statuses(results).values()] == ["ok", "ok", "ok", "failed"]


def test_each_job_has_its_gpu(model: Path) -> None:
    """One that no other job of the moment has."""
    evaluate = "sleep 0.05; echo $CUDA_VISIBLE_DEVICES"
    results = run_sweep(request(model, evaluate, jobs=2, gpus=("3", "5")))

    assert {record.metric for record in results.records} == {3.0, 5.0}


# --- statistics ------------------------------------------------------------------------------


def test_the_summary_can_be_recalculated_from_the_results(model: Path) -> None:
    """By somebody who has only results.csv."""
    run = request(model, NOISY)
    results = run_sweep(run)
    rows = read_csv(run.folder / "results.csv")

    for point in json.loads((run.folder / "summary.json").read_text())["points"]:
        values = [
            float(row["metrics.acc"]) for row in rows if float(row["amount"]) == point["amount"]
        ]
        found = point["metric"]
        assert found["n"] == len(values)
        assert found["mean"] == statistics.fmean(values)
        if len(values) > 1:
            draws = np.random.RandomState(0).randint(len(values), size=(10_000, len(values)))
            means = np.asarray(values)[draws].mean(axis=1)
            assert found["sd"] == pytest.approx(statistics.stdev(values))
            assert found["interval"]["low"] == pytest.approx(np.percentile(means, 2.5))
            assert found["interval"]["high"] == pytest.approx(np.percentile(means, 97.5))
        else:
            assert (found["sd"], found["interval"]) == (None, None)
    assert results.summary.base == 90


def test_achieved_amounts_are_those_of_the_report(model: Path) -> None:
    """What was asked for is not always what can be had."""
    results = run_sweep(request(model, NOISY, grid=Grid((0.25,), (0,))))

    achieved = results.records[1].achieved
    assert achieved.amount == (2 + 2) / 16  # round(0.25 * 6) = 2 and round(0.25 * 10) = 2
    assert achieved.elements_zero == 2 * 27 + 2 * 24
    assert achieved.parameters == sum(tensor.numel() for tensor in build.tensors().values())


# --- again, and interrupted ------------------------------------------------------------------


def test_resuming_runs_what_is_missing_or_failed_and_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    """A skipped trial stays skipped."""
    log = tmp_path / "log"
    evaluate = (
        f"echo $PRUNE_TRIAL >> {log}; test $PRUNE_SEED = 2 && exit 125; "
        f"test $PRUNE_TRIAL = a0.5-s1 && ! test -e {tmp_path}/fixed && exit 1; {NOISY}"
    )
    first = request(model, evaluate)
    run_sweep(first)
    log.unlink()
    (tmp_path / "fixed").touch()

    more = replace(first, resume=True, grid=Grid((0.25, 0.5), (0, 1, 2, 3)))
    results = run_sweep(more)

    assert log.read_text().split() == ["a0.5-s1", "a0.25-s3", "a0.5-s3"]
    assert Counter(statuses(results).values()) == {"ok": 7, "skipped": 2}
    lines = [record.trial for record in read_records(first.folder / "trials.jsonl")]
    assert Counter(lines)["a0.5-s1"] == 2
    assert len(lines) == 7 + 3


@pytest.mark.parametrize("change", ["command", "input", "metric"])
def test_a_change_runs_everything_again(model: Path, change: str) -> None:
    """Because it changes the key."""
    first = request(model, NOISY)
    before = {record.key for record in run_sweep(first).records}

    if change == "input":
        build.safetensors(model, build.tensors(seed=1))
    command = "echo 1" if change == "command" else NOISY
    source = MetricSource("loss" if change == "metric" else "acc")
    again = run_sweep(request(model, command, source=source, resume=True))

    assert before.isdisjoint(record.key for record in again.records)
    assert len(read_records(first.folder / "trials.jsonl")) == 14


def test_the_number_of_jobs_changes_nothing_but_times(model: Path, tmp_path: Path) -> None:
    """Nor does where the trials run: processes need what can be pickled."""
    found = []
    for jobs in (1, 8):
        run = request(model, NOISY, jobs=jobs, folder=tmp_path / f"jobs{jobs}")
        run_sweep(run)
        found.append(without_times(run.folder))
    with ProcessPoolExecutor(2) as executor:
        run = request(model, NOISY, jobs=2, folder=tmp_path / "processes")
        run_sweep(run, engine=Engine(executor, lambda: 2))
        found.append(without_times(run.folder))

    assert found[0] == found[1] == found[2]


def test_a_killed_sweep_is_resumed_to_the_same_summary(model: Path, tmp_path: Path) -> None:
    """SIGKILL at 20 random moments: no trial twice but those that ran, nothing left behind."""
    evaluate = f"echo $PRUNE_TRIAL >> {tmp_path}/log; sleep 0.04; {NOISY}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script = (
        "import sys; from prune_cli import sweep\n"
        f"sweep({str(model)!r}, [0.1, 0.2, 0.3, 0.5], 6, {evaluate!r}, dim=0, metric='acc', "
        "output=sys.argv[1], resume=True)"
    )
    argv = [sys.executable, "-c", script]
    subprocess.run([*argv, str(whole)], check=True)
    (tmp_path / "log").unlink()
    moments = random.Random(0)

    for _ in range(20):
        process = subprocess.Popen([*argv, str(broken)])
        wait_for_sweep(broken, process)
        time.sleep(moments.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*argv, str(broken)], check=True)

    assert without_times(broken) == without_times(whole)
    runs = Counter((tmp_path / "log").read_text().split())
    assert set(runs) == {record.trial for record in read_records(whole / "trials.jsonl")}
    assert sum(runs.values()) - len(runs) <= 20
    assert not [*broken.rglob("model*")]
    assert children_of(broken) == []


def wait_for_sweep(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until the sweep in `folder` runs (its lock is held) or has ended."""
    until = time.monotonic() + 20
    before = (folder / "sweep.json").stat().st_mtime_ns if (folder / "sweep.json").exists() else 0
    while process.poll() is None and time.monotonic() < until:
        found = folder / "sweep.json"
        if found.exists() and found.stat().st_mtime_ns != before:
            return
        time.sleep(0.005)


def children_of(folder: Path) -> list[str]:
    """Processes that have the folder in their environment, a moment later."""
    time.sleep(0.2)
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PRUNE_DIR={folder}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_an_interruption_ends_the_children_and_keeps_what_is_done(
    model: Path, tmp_path: Path
) -> None:
    """Ctrl-C while the fourth trial hangs."""
    script = (
        "import signal, sys; from prune_cli import sweep\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where & began us
        f"sweep({str(model)!r}, [0.25, 0.5], 3, {f'test $PRUNE_SEED = 1 && sleep 60; {NOISY}'!r}, "
        "dim=0, metric='acc', output=sys.argv[1])"
    )
    folder = tmp_path / "sweep"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stderr=-3)
    until = time.monotonic() + 20
    while not (folder / "trials" / "a0.25-s1" / "eval.stdout").exists():
        assert time.monotonic() < until
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)
    process.wait(10)

    assert [record.trial for record in read_records(folder / "trials.jsonl")] == [
        "unpruned",
        "a0.25-s0",
        "a0.5-s0",
    ]
    assert not [*folder.rglob("model*")]
    assert children_of(folder) == []


def test_an_interruption_in_this_process_stops_commands_and_allows_further_ones(
    model: Path, tmp_path: Path
) -> None:
    """What ended is in trials.jsonl; the next sweep runs as ever."""
    evaluate = f"test $PRUNE_SEED = 0 || sleep 60; {NOISY}"
    stopped = request(model, evaluate, grid=Grid((0.5,), (0, 1, 2)), jobs=2)

    ended: list[Record] = []

    def interrupt(record: Record) -> None:
        ended.append(record)
        if len(ended) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(stopped, Watch(on_end=interrupt))

    lines = [record.trial for record in read_records(stopped.folder / "trials.jsonl")]
    assert sorted(lines) == ["a0.5-s0", "unpruned"]
    assert not [*stopped.folder.rglob("model*")]
    assert run_sweep(request(model, NOISY, folder=tmp_path / "next")).summary.is_good


class Picky(RandomMaker):
    """A maker that one seed does not suit."""

    def prepare(self, trial: Trial) -> Prepared:
        """Decide, but for seed 1."""
        if trial.seed == 1:
            raise RequestError("first problem\nsecond problem")
        return super().prepare(trial)


def test_a_draw_that_does_not_fit_is_a_failed_trial(model: Path) -> None:
    """The others go on."""
    picky = request(model, NOISY, maker=Picky(model, Options(None, dim=0)))

    results = run_sweep(picky)

    failed = [record for record in results.records if record.status == "failed"]
    assert [record.trial for record in failed] == ["a0.25-s1", "a0.5-s1"]
    assert failed[0].reason == "first problem (and 1 more)"
    assert failed[0].key != failed[1].key


# --- the folder ------------------------------------------------------------------------------


def test_a_folder_with_a_sweep_is_not_taken_by_mistake(model: Path) -> None:
    """--resume goes on, --force starts over, and says so."""
    first = request(model, NOISY)
    run_sweep(first)

    with pytest.raises(OutputError, match=r"holds a sweep of model.safetensors \(7 trials\)"):
        run_sweep(first)
    run_sweep(replace(first, force=True, grid=Grid((0.5,), (0,))))

    assert len(read_records(first.folder / "trials.jsonl")) == 2
    assert {path.name for path in (first.folder / "trials").iterdir()} == {"unpruned", "a0.5-s0"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_never_touched(model: Path, force: bool) -> None:
    """Not even with --force."""
    folder = model.parent / "sweep"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")

    with pytest.raises(OutputError, match="is not empty and holds no sweep"):
        run_sweep(request(model, NOISY, force=force, resume=force))

    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_two_sweeps_cannot_run_in_one_folder(model: Path) -> None:
    """The second one says so; nothing of the first is lost."""
    first = request(model, NOISY)
    settings, records = (run_sweep(first), read_sweep(first.folder))[1]

    with (
        taken(first.folder, settings, resume=True, force=False),
        pytest.raises(OutputError, match="another sweep runs in"),
    ):
        run_sweep(replace(first, resume=True))

    assert len(records) == 7


def test_an_output_inside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """It would become part of it."""
    folder = build.write_folder(
        tmp_path / "hub", {"model.safetensors": build.tensors()}, index=None
    )

    with pytest.raises(OutputError, match="is the input folder or inside it"):
        run_sweep(request(folder, NOISY, folder=folder / "sweep"))

    assert not (folder / "sweep").exists()


def test_an_output_that_is_a_file_is_refused(model: Path) -> None:
    """A sweep needs a folder."""
    with pytest.raises(OutputError, match="is a file"):
        run_sweep(request(model, NOISY, folder=model))


def test_a_full_disk_is_one_clear_error() -> None:
    """The record that could not be written is not taken for written."""
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left"):
        append_record(Path("/dev/full"), Record("k", "t", "ok", 0, 0, "uniform", "random"))


def test_an_input_that_changes_meanwhile_ends_the_sweep(model: Path) -> None:
    """Its trials would not be comparable; what is done is kept."""
    changing = request(model, f"test $PRUNE_TRIAL = a0.5-s0 && touch {model}; {NOISY}")

    with pytest.raises(InputError, match="changed since the sweep began"):
        run_sweep(changing)

    assert len(read_records(changing.folder / "trials.jsonl")) == 3


# --- requests that make no sense -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": Grid((), (0,))}, "needs an amount"),
        ({"grid": Grid((0,), (0,))}, "needs an amount"),
        ({"keep_best": 2}, "--finetune"),
        ({"lose": 1.0}, "--each"),
        ({"assertions": ("mean(acc)@0.75 > 1",)}, "names no point"),
        ({"assertions": ("mean(acc",)}, "--assert"),
        ({"source": MetricSource(regex="(")}, "not a pattern"),
        ({"finetune": "train {x}"}, "no placeholder {x}"),
        ({"finetune": " "}, "--finetune must not be empty"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_written(
    model: Path, changes: dict[str, Any], message: str
) -> None:
    """With what to do instead."""
    with pytest.raises(UsageError, match=message):
        run_sweep(request(model, NOISY, **changes))

    assert not (model.parent / "sweep").exists()


def test_points_that_do_not_fit_the_checkpoint_are_told_at_once(model: Path) -> None:
    """All of them, before anything is written."""
    with pytest.raises(RequestError) as refused:
        run_sweep(request(model, NOISY, grid=Grid((0.5, 7, 11), (0,))))

    assert "conv.weight: amount=7 is too large" in str(refused.value)
    assert "fc.weight: amount=11 is too large" in str(refused.value)
    assert not (model.parent / "sweep").exists()


# --- the fine-tune, the search, one module at a time -----------------------------------------


def test_a_fine_tune_comes_before_a_second_evaluation(model: Path) -> None:
    """Both metrics are recorded, and how well the first tells the second."""
    evaluate = (
        "case $PRUNE_MODEL in *tuned*) echo $((95 - PRUNE_SEED));; *) echo $PRUNE_SEED;; esac"
    )
    tuning = request(model, evaluate, finetune="cp {model} {tuned}")

    results = run_sweep(tuning)

    record = results.records[-1]
    assert (record.before, record.metric) == (2.0, 93.0)
    assert results.summary.tuning is not None
    assert results.summary.tuning.rho == pytest.approx(-1)
    assert not [*tuning.folder.rglob("*.safetensors")]


def test_a_fine_tune_that_writes_nothing_fails_its_trial(model: Path) -> None:
    """It may have trained in place."""
    results = run_sweep(request(model, NOISY, finetune="true {model}"))

    assert {*statuses(results).values()} == {"failed"}
    assert "without writing {tuned} (tuned.safetensors)" in str(results.records[0].reason)


def test_a_search_fine_tunes_the_best_draws(model: Path, tmp_path: Path) -> None:
    """The quick evaluation of each runs once, the fine-tune for the best only."""
    log = tmp_path / "log"
    evaluate = (
        f"echo {{trial}} >> {log}; "
        "case {model} in *tuned*) echo $((50 + PRUNE_SEED));; *) echo $(((PRUNE_SEED * 3) % 7));; esac"
    )
    search = request(
        model,
        evaluate,
        finetune="cp {model} {tuned}",
        grid=Grid((0.5,), tuple(range(7))),
        keep_best=3,
    )

    results = run_sweep(search)

    tuned = [record for record in results.records if record.tuned]
    assert [(each.seed, each.before, each.metric) for each in tuned] == [
        (2, 6.0, 52.0),
        (4, 5.0, 54.0),
        (6, 4.0, 56.0),
    ]
    assert len(log.read_text().split()) == 8 + 3
    assert results.summary.tuning is not None
    assert results.summary.tuning.rho == pytest.approx(-1)
    assert any("selected by the metric before" in warning for warning in results.summary.warnings)
    again = run_sweep(replace(search, resume=True))
    assert len(log.read_text().split()) == 8 + 3
    assert again.summary == results.summary


def test_one_module_at_a_time_gives_a_recipe_that_keeps_the_loss(
    model: Path, tmp_path: Path
) -> None:
    """Each alone may lose 4 rows, both together lose 8: the recipe is lowered until it fits."""

    def evaluate(path: Path) -> float:
        return 100.0 - count_zero_rows(path)

    each = request(model, "", grid=Grid((1, 2, 3, 4), (0, 1, 2)), is_each=True, lose=4.0)
    each = replace(each, evaluation=Evaluation(evaluate))

    results = run_sweep(each)

    alone = {
        (point.point.module, point.point.amount): point.metric.mean
        for point in results.summary.points
        if point.point.module and point.metric
    }
    assert alone == {(m, a): 100.0 - a for m in ("conv", "fc") for a in (1, 2, 3, 4)}
    recipe = each.folder / "recipe.toml"
    assert "Loses 4 of at most 4" in recipe.read_text()
    from prune_cli.plan.recipe import read_recipe

    rules = read_recipe(recipe, modules=["*"], params=["weight"], amount=None, dim=-1)
    prune_checkpoint(model, tmp_path / "pruned.safetensors", rules=rules)
    assert evaluate(tmp_path / "pruned.safetensors") == 96.0


def test_assertions_decide(model: Path) -> None:
    """With the numbers."""
    held = ("mean(acc)@0.5 >= base - 2", "mean(acc)@0.5 >= base", "max(loss)@0.25 == 0.5")

    results = run_sweep(request(model, NOISY, assertions=held))

    assert [verdict.holds for verdict in results.summary.assertions] == [True, False, True]
    assert not results.summary.is_good
    text = (model.parent / "sweep" / "summary.md").read_text()
    assert "DOES NOT HOLD: `mean(acc)@0.5 >= base` (88.3333 >= 90)" in text


def test_trials_take_little_time_of_their_own(tmp_path: Path) -> None:
    """Two MB, 20 trials, a command that does nothing: half a second each would be a bug."""
    tensors = {f"fc{n}.weight": build.random_bits("F32", 256, 256, seed=n) for n in range(8)}
    model = build.safetensors(tmp_path / "two.safetensors", tensors)
    started = time.monotonic()

    results = run_sweep(request(model, "echo 1", grid=Grid((0.5,), tuple(range(19)))))

    assert len(results.records) == 20
    assert (time.monotonic() - started) / 20 < 0.5
    assert model.stat().st_size > 2_000_000
