"""Folders are complete or can be taken up again, whatever ends the process and when."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prune_cli import prune_checkpoint
from prune_cli.checkpoint import STAGING
from prune_cli.errors import InputError, OutputError
from prune_cli.write.workers import StoppedError, run
from tests import build

WEIGHTS = {f"layers.{n}.weight": torch.randn(64, 64) for n in range(8)}
INDEX = "model.safetensors.index.json"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of four shards; some of its other files have the names of our own marks."""
    folder = build.write_folder(tmp_path / "m", build.split(WEIGHTS, build.shard_names(4)))
    for name in ("moving", "fingerprint", "files"):
        (folder / name).write_text(name)
    return folder


def prune(model: Path, out: Path, **options: object) -> None:
    """The job that is killed and taken up again."""
    prune_checkpoint(model, out, **{"amount": 0.5, "dim": 0, "workers": 2, **options})


# --- folders that come about -----------------------------------------------------------------


def test_a_folder_has_the_same_shards_a_new_index_and_the_rest(model: Path, tmp_path: Path) -> None:
    """Shards keep their names, every other file is copied, and nothing else is there."""
    prune(model, tmp_path / "out")

    before, after = contents(model), contents(tmp_path / "out")
    assert after.keys() == before.keys() | {"prune-report.json"}
    for name in ("config.json", "tokenizer/vocab.txt", "moving", "fingerprint", "files"):
        assert after[name] == before[name]
    index = json.loads(after[INDEX])
    assert index["weight_map"] == json.loads(before[INDEX])["weight_map"]
    assert index["metadata"]["total_size"] == 8 * 64 * 64 * 4
    pruned = load_file(tmp_path / "out" / build.shard_names(4)[0])
    wanted = build.stock_pruned(WEIGHTS["layers.0.weight"], "layers.0.weight", 0.5, 0)
    assert build.same_bits(pruned["layers.0.weight"], wanted)


def test_masks_count_in_the_index(model: Path, tmp_path: Path) -> None:
    """With masks kept, the index maps both halves, and total_size counts both."""
    prune(model, tmp_path / "out", bake=False)

    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(index["weight_map"]) == 16
    assert index["metadata"]["total_size"] == 16 * 64 * 64 * 4


def test_pickled_shards_become_safetensors(tmp_path: Path) -> None:
    """A .bin folder gets the names that Hugging Face would give, and no .bin is left."""
    names = build.shard_names(2, "pytorch_model-{:05d}-of-{:05d}.bin")
    model = build.write_folder(
        tmp_path / "m", build.split(WEIGHTS, names), index="pytorch_model.bin.index.json"
    )

    prune(model, tmp_path / "out")

    assert contents(tmp_path / "out").keys() == {
        *build.shard_names(2),
        INDEX,
        "config.json",
        "tokenizer/vocab.txt",
        "prune-report.json",
    }


def test_a_single_file_folder_stays_one(tmp_path: Path) -> None:
    """A folder of one model.safetensors has one afterwards, and no index."""
    model = build.write_folder(tmp_path / "m", {"model.safetensors": WEIGHTS}, index=None)

    prune(model, tmp_path / "out")

    assert "model.safetensors" in contents(tmp_path / "out")
    assert INDEX not in contents(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_bytes_do_not_depend_on_the_workers(model: Path, tmp_path: Path, workers: int) -> None:
    """Any number of threads gives the same files."""
    prune(model, tmp_path / "a" / "out")

    prune(model, tmp_path / "b" / "out", workers=workers)

    assert contents(tmp_path / "b" / "out") == contents(tmp_path / "a" / "out")


def test_the_output_of_a_folder_can_be_pruned_again(model: Path, tmp_path: Path) -> None:
    """The report of the first run is not copied, and its channels count as pruned."""
    prune(model, tmp_path / "out")

    report = prune_checkpoint(tmp_path / "out", tmp_path / "again", amount=0.5, dim=0)

    assert {len(row.already_pruned) for row in report.tensors} == {32}
    assert {len(row.pruned) for row in report.tensors} == {16}


# --- the report ------------------------------------------------------------------------------


def test_the_report_can_lie_elsewhere(model: Path, tmp_path: Path) -> None:
    """With a path of its own the report is there and not in the folder."""
    prune(model, tmp_path / "out", report=tmp_path / "r.json")

    assert json.loads((tmp_path / "r.json").read_text())["output"]["path"] == "out"
    assert "prune-report.json" not in contents(tmp_path / "out")


def test_the_report_can_have_another_name_inside(model: Path, tmp_path: Path) -> None:
    """A path inside the folder that is to come is good, however it is written."""
    prune(model, tmp_path / "out", report=tmp_path / "m" / ".." / "out" / "r.json")

    assert "r.json" in contents(tmp_path / "out")


@pytest.mark.parametrize("name", [INDEX, "config.json", build.shard_names(4)[2]])
def test_the_report_cannot_replace_another_file(model: Path, tmp_path: Path, name: str) -> None:
    """The name of a shard, the index or a copied file is taken."""
    with pytest.raises(OutputError, match="another file of the output"):
        prune(model, tmp_path / "out", report=tmp_path / "out" / name)

    assert not (tmp_path / "out").exists()


# --- what is there already -------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused(model: Path, tmp_path: Path) -> None:
    """Without force nothing in it is touched."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")

    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match="is not empty; force=True replaces"):
            prune(model, tmp_path / "out", **options)

    assert contents(tmp_path / "out") == {"mine": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    """A folder cannot be made where a file is, nor below one."""
    (tmp_path / "out").write_text("mine")

    for path in (tmp_path / "out", tmp_path / "out" / "sub"):
        with pytest.raises(OutputError):
            prune(model, path, force=True)


def test_force_replaces_the_checkpoint_and_nothing_else(model: Path, tmp_path: Path) -> None:
    """The shards, the index and the report of before go; what is not of it stays."""
    out = build.write_folder(tmp_path / "out", build.split(WEIGHTS, build.shard_names(7)))
    (out / "prune-report.json").write_text("old")
    (out / "model.safetensors").write_text("old")
    (out / "adapter.safetensors").write_text("mine")
    (out / "notes.txt").write_text("mine")

    prune(model, out, force=True, report=tmp_path / "r.json")

    found = contents(out)
    assert {name for name in found if name.startswith("model")} == {*build.shard_names(4), INDEX}
    assert found["adapter.safetensors"] == found["notes.txt"] == b"mine"
    assert "prune-report.json" not in found


# --- interrupted -----------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run in the midst, as Ctrl-C does."""


def killer(after: int) -> Callable[[str, int], None]:
    """A callback that ends the run at its call number `after`."""
    calls = iter(range(after))

    def on_tensor(_name: str, _nbytes: int) -> None:
        if next(calls, None) is None:
            raise Killed

    return on_tensor


def test_an_early_interruption_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """Where no shard was finished, no folder stays."""
    with pytest.raises(Killed):
        prune(model, tmp_path / "out", on_tensor=killer(0))

    assert not (tmp_path / "out").exists()


def test_leftovers_are_reported_and_taken_up_only_when_asked(model: Path, tmp_path: Path) -> None:
    """A second run refuses them, --resume finishes them, with the bytes of an undisturbed run."""
    prune(model, tmp_path / "good" / "out")
    out = tmp_path / "out"
    with pytest.raises(Killed):
        prune(model, out, on_tensor=killer(5), workers=1)

    with pytest.raises(OutputError, match=r"a run that did not end \(2 shards are finished\)"):
        prune(model, out)
    heard: list[str] = []
    prune(model, out, resume=True, on_tensor=lambda name, _: heard.append(name))

    assert contents(out) == contents(tmp_path / "good" / "out")
    assert set(heard) == {f"layers.{n}.weight" for n in (2, 3, 6, 7)}


def test_force_starts_over(model: Path, tmp_path: Path) -> None:
    """Leftovers are thrown away, even those of other options."""
    prune(model, tmp_path / "good" / "out")
    with pytest.raises(Killed):
        prune(model, tmp_path / "out", on_tensor=killer(5), workers=1, seed=9)

    prune(model, tmp_path / "out", force=True)

    assert contents(tmp_path / "out") == contents(tmp_path / "good" / "out")


OTHER = {
    "seed": {"seed": 1},
    "amount": {"amount": 0.25},
    "masks": {"bake": False},
    "shard-size": {"max_shard_size": 20_000},
}


@pytest.mark.parametrize("options", OTHER.values(), ids=OTHER)
def test_another_run_is_not_taken_up(
    model: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """With other options the leftovers are refused, and stay."""
    with pytest.raises(Killed):
        prune(model, tmp_path / "out", on_tensor=killer(5), workers=1)
    before = contents(tmp_path / "out")

    with pytest.raises(OutputError, match="leftovers of another run"):
        prune(model, tmp_path / "out", resume=True, **options)

    assert contents(tmp_path / "out") == before


def test_a_changed_input_is_not_taken_up(model: Path, tmp_path: Path) -> None:
    """A shard that was written since then makes another run of it, even with the same header."""
    with pytest.raises(Killed):
        prune(model, tmp_path / "out", on_tensor=killer(5), workers=1)
    touch(model / build.shard_names(4)[1])

    with pytest.raises(OutputError, match="leftovers of another run"):
        prune(model, tmp_path / "out", resume=True)


def touch(path: Path) -> None:
    """Makes a file younger."""
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))


def test_a_complete_run_has_nothing_to_take_up(model: Path, tmp_path: Path) -> None:
    """--resume of what is complete writes nothing, unless the input changed since."""
    prune(model, tmp_path / "out")
    before = contents(tmp_path / "out")
    heard: list[str] = []

    prune(model, tmp_path / "out", resume=True, on_tensor=lambda name, _: heard.append(name))

    assert heard == []
    assert contents(tmp_path / "out") == before
    touch(model / build.shard_names(4)[1])
    with pytest.raises(OutputError, match="is not empty"):
        prune(model, tmp_path / "out", resume=True)


def test_a_shard_that_is_half_written_is_not_trusted(model: Path, tmp_path: Path) -> None:
    """A finished shard that lost its end, or its header, is written again."""
    prune(model, tmp_path / "good" / "out")
    out = tmp_path / "out"
    with pytest.raises(Killed):
        prune(model, out, on_tensor=killer(5), workers=1)
    first, second = sorted((out / STAGING).rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"x" + second.read_bytes()[1:])

    prune(model, out, resume=True)

    assert contents(out) == contents(tmp_path / "good" / "out")


def test_an_unreadable_file_of_the_input_is_named(model: Path, tmp_path: Path) -> None:
    """A file that vanishes before it is copied is the input's fault, not the output's."""

    def vanish(_name: str, _nbytes: int) -> None:
        (model / "config.json").unlink(missing_ok=True)

    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        prune(model, tmp_path / "out", on_tensor=vanish)


# --- killed ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Where processes start that have torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prune_cli.api", "tests.test_staging"])
    warm_up = context.Process(target=time.monotonic)
    warm_up.start()
    warm_up.join()
    yield context


def in_process(model: Path, out: Path, resume: bool) -> None:
    """The job in a process of its own."""
    prune(model, out, resume=resume)


def test_kills_at_random_moments_do_no_harm(
    model: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """Twenty times: SIGKILL at some moment, then --resume, and the bytes are the same.

    At any moment the folder has no index, or a complete checkpoint.
    """
    out = tmp_path / "a" / "out"
    start = time.monotonic()
    first = processes.Process(target=in_process, args=(model, out, False))
    first.start()
    first.join()
    took = time.monotonic() - start
    wanted = contents(out)
    generator = random.Random(0)
    killed = 0

    for number in range(20):
        out = tmp_path / f"b{number}" / "out"
        process = processes.Process(target=in_process, args=(model, out, True))
        process.start()
        time.sleep(generator.uniform(0.1, 1) * took)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if (out / INDEX).exists():
            shards = {name: content for name, content in contents(out).items() if "-of-" in name}
            assert all(
                wanted[name] == content for name, content in shards.items() if "/" not in name
            )
            assert set(build.shard_names(4)) <= shards.keys()
        prune(model, out, resume=True)
        assert contents(out) == wanted

    assert killed


@pytest.mark.parametrize("moved", range(11))
def test_a_kill_while_files_are_moved_does_no_harm(model: Path, tmp_path: Path, moved: int) -> None:
    """After any number of moves the rest is moved, and the index is the last."""
    prune(model, tmp_path / "good" / "out")
    out = tmp_path / "out"
    stop_before_moving(model, out)
    files = next((out / STAGING).glob("files-*"))
    order = [
        *("config.json", "fingerprint", "files", "moving", "tokenizer/vocab.txt"),
        *("prune-report.json", *build.shard_names(4), INDEX),
    ]
    for name in order[:moved]:
        (out / name).parent.mkdir(exist_ok=True)
        (files / name).rename(out / name)

    prune(model, out, resume=True)

    assert contents(out) == contents(tmp_path / "good" / "out")


def stop_before_moving(model: Path, out: Path) -> None:
    """Leaves the folder as a kill does just before the first file is moved."""
    blocker = out / "config.json" / "x"
    blocker.parent.mkdir(parents=True)
    blocker.write_text("")
    with pytest.raises(OutputError):
        prune(model, out, force=True)
    blocker.unlink()
    blocker.parent.rmdir()


def test_a_kill_at_the_very_end_does_no_harm(model: Path, tmp_path: Path) -> None:
    """With all files in place and some marks left, --resume only tidies up."""
    prune(model, tmp_path / "out")
    wanted = contents(tmp_path / "out")
    (tmp_path / "out" / STAGING).mkdir()
    (tmp_path / "out" / STAGING / "moving").write_text("")

    prune(model, tmp_path / "out", resume=True)

    assert contents(tmp_path / "out") == wanted


# --- jobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_every_job_runs_once(workers: int) -> None:
    """However many workers there are."""
    done: list[int] = []

    run([lambda n=n: done.append(n) for n in range(100)], workers)

    assert sorted(done) == list(range(100))


def test_an_error_stops_the_runs_inside() -> None:
    """What a job inside another run raises ends both, and is what the caller gets."""
    stopped = threading.Event()
    begun = threading.Event()
    turns: list[int] = []

    def endless() -> None:
        def turn() -> None:
            begun.set()
            turns.append(1)
            time.sleep(0.001)

        run((turn for _ in iter(int, 1)), 1, stopped)

    def fail() -> None:
        begun.wait()
        raise Killed

    with pytest.raises(Killed):
        run([endless, fail], 2, stopped)
    with pytest.raises(StoppedError):
        run([lambda: None], 1, stopped)
    assert turns
