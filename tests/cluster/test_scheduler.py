"""Runs on a real scheduler with real workers, some of which are killed."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prune_cli import prune_checkpoint, sweep, verify_checkpoint
from prune_cli.checkpoint import STAGING
from tests import build
from tests.cluster.processes import Cluster, cluster, opened, start, wait_until
from tests.conftest import Run

pytest.importorskip("distributed")

SHARDS = 64
STAGED = f"{STAGING}/files-*/*.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of many small shards."""
    weights = {f"layers.{n}.fc.weight": build.random_bits("F32", 32, 8, seed=n) for n in range(64)}
    shards = {
        name: {f"layers.{n}.fc.weight": weights[f"layers.{n}.fc.weight"]}
        for n, name in enumerate(build.shard_names(SHARDS))
    }
    return build.write_folder(tmp_path / "in", shards)


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process with one thread makes of it."""
    prune_checkpoint(source, tmp_path / "here" / "out", amount=0.25, dim=0, workers=1)
    return contents(tmp_path / "here" / "out")


@pytest.fixture
def slow(tmp_path: Path, source: Path) -> Iterator[Cluster]:
    """A scheduler and two workers that take their time for each shard."""
    with cluster(tmp_path, source=source, seconds=0.05) as made:
        yield made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in the folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def staged(out: Path) -> set[str]:
    """The names of the shards that are finished."""
    return {path.name for path in out.glob(STAGED)}


def begin(source: Path, out: Path, file: Path, *more: object) -> "subprocess.Popen[bytes]":
    """Start a run on a scheduler, and wait until eight shards are finished."""
    out.parent.mkdir(exist_ok=True)
    argv = ("random-structured", source, "-a", "0.25", "-d", "0", "-o", out, "--scheduler", file)
    process = start(*argv, *more)
    wait_until(lambda: len(staged(out)) >= 8 or process.poll() is not None)
    return process


def test_a_killed_worker_costs_no_more_than_its_own_shards(
    source: Path, expected: dict[str, bytes], slow: Cluster, tmp_path: Path
) -> None:
    """Bytes and report are those of one thread; what was finished is not read again."""
    out = tmp_path / "there" / "out"

    process = begin(source, out, slow.file)
    slow.workers[0].kill()
    done = staged(out)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert contents(out) == expected
    assert {opened(tmp_path)[name] for name in done} == {1}
    assert set(opened(tmp_path)) == {*build.shard_names(SHARDS)}


def test_a_killed_driver_is_resumed_on_another_scheduler(
    source: Path, expected: dict[str, bytes], slow: Cluster, tmp_path: Path
) -> None:
    """What was finished on the first is not read again."""
    out = tmp_path / "there" / "out"

    process = begin(source, out, slow.file)
    process.kill()
    process.communicate()
    done = staged(out)
    with cluster(tmp_path, workers=1, source=source, name="another") as another:
        process = begin(source, out, another.file, "--resume")
        _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert 8 <= len(done) < SHARDS
    assert contents(out) == expected
    assert {opened(tmp_path)[name] for name in done} == {1}


def test_a_lost_scheduler_is_told_and_the_run_is_resumed(
    source: Path, expected: dict[str, bytes], slow: Cluster, tmp_path: Path
) -> None:
    """Without any scheduler, too."""
    out = tmp_path / "there" / "out"

    process = begin(source, out, slow.file)
    slow.scheduler.kill()
    _, err = process.communicate(timeout=60)
    again = start("random-structured", source, "-a", "0.25", "-d", "0", "-o", out, "--resume")
    again.communicate(timeout=60)

    assert process.returncode == 4
    assert b"was lost; what is finished is kept" in err
    assert b"Traceback" not in err
    assert again.returncode == 0
    assert contents(out) == expected


def test_an_interrupted_run_leaves_finished_shards_only(
    source: Path, expected: dict[str, bytes], slow: Cluster, tmp_path: Path
) -> None:
    """And --resume goes on; a worker that is still busy disturbs nobody."""
    out = tmp_path / "there" / "out"

    process = begin(source, out, slow.file)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    left = [path for path in out.rglob("*") if path.is_file()]
    again = begin(source, out, slow.file, "--resume")
    again.communicate(timeout=60)

    assert (process.returncode, err.splitlines()[-1][:12]) == (130, b"interrupted:")
    assert {path.suffix for path in left} <= {".safetensors", ""}
    assert contents(out) == expected


def test_a_sweep_goes_on_without_a_worker_that_is_killed(tmp_path: Path) -> None:
    """Each trial has one line, and the summary is that of a sweep in this process."""
    model = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    evaluate = "sleep 0.1; echo $PRUNE_SEED.$(printf %s $PRUNE_AMOUNT | tr -dc 0-9)"
    sweep(model, [0.25, 0.5], 12, evaluate, dim=0, output=tmp_path / "here", jobs=8)
    argv = ("sweep", model, "-a", "0.25,0.5", "--seeds", "12", "-d", "0", "--eval", evaluate)

    with cluster(tmp_path, options=("--resources", "GPU=1")) as made:
        process = start(
            *argv, "-o", tmp_path / "there", "--scheduler", made.file, "--resources", "GPU=1"
        )
        log = tmp_path / "there" / "trials.jsonl"
        wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 5)
        made.workers[0].kill()
        _, err = process.communicate(timeout=90)

    assert process.returncode == 0, err
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({line["trial"] for line in lines}) == len(lines) == 25
    for name in ("summary.json", "summary.md"):
        assert (tmp_path / "there" / name).read_text() == (tmp_path / "here" / name).read_text()


def test_other_commands_and_complaints(source: Path, tmp_path: Path, run: Run) -> None:
    """apply, remove and verify share the workers; what cannot be is told at once."""
    report = tmp_path / "plan.json"
    run("random-structured", source, "-a", "2", "-d", "0", "-n", "-r", report, "-q")
    run("random-structured", source, "-a", "2", "-d", "0", "--keep-masks", "-o", tmp_path / "m")
    with cluster(tmp_path) as made:
        there = ("--scheduler", made.file)

        applied = run("apply", report, source, "-o", tmp_path / "applied", *there)
        removed = run("remove", tmp_path / "m", "-o", tmp_path / "removed", *there)
        shard = tmp_path / "removed" / build.shard_names(SHARDS)[9]
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        verified = run("verify", tmp_path / "applied", source, *there)
        refused = run("verify", tmp_path / "removed", tmp_path / "m", *there)
        file = run("random-structured", shard, "-a", "1", "-d", "0", *there)

    assert "2 workers of" in applied.text
    assert (applied.code, removed.code, verified.code) == (0, 0, 0)
    assert "every byte" in verified.text
    assert refused.code == 5
    assert "layers.9.fc.weight" in refused.text + refused.out
    assert file.code == 0
    assert "one file is one unit: it is written here" in file.text
    assert verify_checkpoint(tmp_path / "applied", source=source).is_verified


@pytest.mark.parametrize(
    ("scheduler", "code", "message"),
    [
        ("nowhere", 2, "neither an address (tcp://host:8786) nor a file"),
        ("tcp://no.such.host.invalid:8786", 4, "no scheduler answers at tcp://no.such.host"),
        ("{}/config.json", 2, "config.json is no scheduler file"),
    ],
)
def test_what_is_no_scheduler_is_told(
    source: Path, tmp_path: Path, run: Run, scheduler: str, code: int, message: str
) -> None:
    """Before anything is written."""
    named = scheduler.format(source)

    ran = run(
        "random-structured",
        source,
        "-a",
        "1",
        "-d",
        "0",
        "-o",
        tmp_path / "o",
        "--scheduler",
        named,
    )

    assert ran.code == code
    assert message in ran.text
    assert not (tmp_path / "o").exists()
