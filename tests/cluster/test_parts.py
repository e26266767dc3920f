"""Parts: shares of a run that know nothing of each other, and the step that puts them together."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli import UsageError, prune_checkpoint
from prune_cli.checkpoint import STAGING
from prune_cli.cluster.parts import Part, find_array_part, parse_part
from tests import build
from tests.cluster.processes import start
from tests.conftest import Run


@pytest.fixture(autouse=True)
def outside_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may run in a job array themselves."""
    for name in [name for name in os.environ if name.startswith("SLURM_ARRAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of seven shards."""
    weights = {f"l{n}.weight": build.random_bits("F32", 8, 4, seed=n) for n in range(7)}
    return build.write_folder(tmp_path / "in", build.split(weights, build.shard_names(7)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in the folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def argv(source: Path, out: Path, *more: str) -> tuple[object, ...]:
    """Return the arguments of a run."""
    out.parent.mkdir(exist_ok=True)
    return ("random-structured", source, "-a", "0.25", "-d", "0", "-o", out, *more)


# --- shares ------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 20))
def test_parts_share_all_units(units: int, count: int) -> None:
    """Each unit is in one part, and no part has two more than another."""
    parts = [Part(number, count).of(range(units)) for number in range(1, count + 1)]

    assert sorted(unit for part in parts for unit in part) == list(range(units))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0", "1/2/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    """And named."""
    with pytest.raises(UsageError, match="is no part; write 2/3"):
        parse_part(text)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        ({}, None),
        ({"ID": "2"}, None),
        ({"ID": "2", "COUNT": "3"}, Part(2, 3)),
        ({"ID": "0", "COUNT": "3", "MIN": "0", "MAX": "2"}, Part(1, 3)),
        ({"ID": "14", "COUNT": "3", "MIN": "10", "MAX": "18", "STEP": "4"}, Part(2, 3)),
    ],
)
def test_a_slurm_job_knows_its_part(array: dict[str, str], part: Part | None) -> None:
    """Whatever its array counts from, and by."""
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}

    assert find_array_part(environment) == part


@pytest.mark.parametrize(
    "array",
    [
        {"ID": "0", "COUNT": "3"},
        {"ID": "4", "COUNT": "3"},
        {"ID": "x", "COUNT": "3"},
        {"ID": "7", "COUNT": "3", "MIN": "1", "STEP": "4"},
    ],
)
def test_an_array_with_gaps_has_no_parts(array: dict[str, str]) -> None:
    """A share that nobody takes would be missing at the end."""
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}

    with pytest.raises(UsageError, match="number the array 1-N, or give --part I/N"):
        find_array_part(environment)


# --- folders -----------------------------------------------------------------------------------


def test_parts_in_any_order_and_one_twice_make_the_output(source: Path, tmp_path: Path) -> None:
    """At the same time, in processes of their own: the bytes are those of one run."""
    prune_checkpoint(source, tmp_path / "here" / "out", amount=0.25, dim=0, workers=1)
    out = tmp_path / "there" / "out"

    processes = [start(*argv(source, out, "--part", f"{n}/3")) for n in (3, 1, 2, 1)]
    said = [process.communicate()[1].decode() for process in processes]
    left = contents(out)
    finish = start(*argv(source, out, "--finish"))
    _, err = finish.communicate()

    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert "part 3/3 is written: 2 of 7 shards" in said[0]
    assert sum(name.endswith(".safetensors") for name in left) == 7
    assert "prune-report.json" not in left
    assert finish.returncode == 0, err
    assert contents(out) == contents(tmp_path / "here" / "out")


def test_a_missing_part_is_named(source: Path, tmp_path: Path, run: Run) -> None:
    """So is one that was killed; no index appears."""
    out = tmp_path / "out"
    run(*argv(source, out, "--part", "1/3"))
    run(*argv(source, out, "--part", "3/3"))
    shard = next((out / STAGING).glob(f"files-*/{build.shard_names(7)[2]}"))
    shard.unlink()

    ran = run(*argv(source, out, "--finish"))

    assert ran.code == 6
    assert "3 of 7 shards are missing" in ran.text
    assert "part 2/3 has not begun; run it with --part 2/3" in ran.text
    assert "part 3/3 has begun and not ended; run it with --part 3/3" in ran.text
    assert "part 1/3" not in ran.text
    assert [path.name for path in out.iterdir()] == [STAGING]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "no part of this run has begun"),
        (("1/2", "1/3"), "the parts 1/2, 1/3 are of several divisions"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    source: Path, tmp_path: Path, run: Run, parts: tuple[str, ...], message: str
) -> None:
    """As long as shards are missing."""
    for part in parts:
        run(*argv(source, tmp_path / "out", "--part", part))

    ran = run(*argv(source, tmp_path / "out", "--finish"))

    assert ran.code == 6
    assert message in ran.text


def test_a_part_of_another_run_is_refused(source: Path, tmp_path: Path, run: Run) -> None:
    """And so is to finish another one."""
    out = tmp_path / "out"
    run(*argv(source, out, "--part", "1/2"))

    part = run(*argv(source, out, "--part", "2/2", "--seed", "7"))
    finish = run(*argv(source, out, "--finish", "--seed", "7"))

    assert (part.code, finish.code) == (6, 6)
    assert "leftovers of another run" in part.text
    assert "leftovers of another run" in finish.text


def test_a_job_of_an_array_does_its_part_and_says_so(
    source: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is no work for several, so it is written as ever."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "7")

    ran = run(*argv(source, tmp_path / "out"))
    file = run(*argv(source / build.shard_names(7)[0], tmp_path / "one.safetensors"))
    whole = run(*argv(source, tmp_path / "whole", "--part", "1/1"))
    finished = run(*argv(source, tmp_path / "whole", "--finish"))

    assert "part 2/7 of SLURM_ARRAY_TASK_ID" in ran.text
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 1
    assert file.code == whole.code == finished.code == 0
    assert (tmp_path / "one.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "1/2", "--finish"), "--part and --finish do not go together"),
        (("--part", "1/2", "--scheduler", "a:1"), "--part and --scheduler do not go together"),
        (("--finish", "--scheduler", "a:1"), "leave out --scheduler"),
    ],
)
def test_options_that_exclude_each_other_are_told(
    source: Path, tmp_path: Path, run: Run, options: tuple[str, ...], message: str
) -> None:
    """Before anything is done."""
    ran = run(*argv(source, tmp_path / "out", *options))

    assert ran.code == 2
    assert message in ran.text


def test_one_file_has_no_parts(source: Path, tmp_path: Path, run: Run) -> None:
    """But it has where it is split."""
    file = source / build.shard_names(7)[0]

    ran = run(*argv(file, tmp_path / "one.safetensors", "--part", "1/2"))
    split = run(*argv(file, tmp_path / "split", "--part", "1/1", "--max-shard-size", "1KB"))

    assert ran.code == 2
    assert "--max-shard-size splits it" in ran.text
    assert split.code == 0


# --- sweeps ------------------------------------------------------------------------------------


def test_a_sweep_by_parts_gives_the_summary_of_one(tmp_path: Path, run: Run) -> None:
    """At the same time, one twice; what is missing before is named."""
    model = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    evaluate = "sleep 0.1; echo $PRUNE_SEED.$(printf %s $PRUNE_AMOUNT | tr -dc 0-9)"
    options = (
        "sweep",
        model,
        "-a",
        "0.25,0.5",
        "--seeds",
        "3",
        "-d",
        "0",
        "--eval",
        evaluate,
        "-q",
    )
    out = ("-o", tmp_path / "parts")
    run(*options, "-o", tmp_path / "whole")

    first = [start(*options, *out, "--part", part) for part in ("2/3", "3/3", "3/3")]
    codes = [process.communicate() and process.returncode for process in first]
    early = run(*options, *out, "--finish")
    last = run(*options, *out, "--part", "1/3")
    finish = run(*options, *out, "--finish")
    again = run(*options, *out, "--resume")

    assert codes == [0, 0, 0]
    assert early.code == 6
    assert "3 of 7 trials are missing" in early.text
    assert "part 1/3 has not begun; run it with --part 1/3" in early.text
    assert last.code == finish.code == again.code == 0
    for name in ("summary.json", "summary.md"):
        parts, whole = (tmp_path / each / name for each in ("parts", "whole"))
        assert parts.read_text() == whole.read_text()
    assert (tmp_path / "parts" / "trials.jsonl").read_bytes().count(b"\n") == 7


def test_a_part_cannot_choose_among_all_trials(tmp_path: Path, run: Run) -> None:
    """It is told so before anything runs, and a part of another sweep is refused."""
    model = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    options = ("sweep", model, "-a", "0.5", "--seeds", "2", "-d", "0", "--eval", "echo 1")
    out = ("-o", tmp_path / "out")

    chosen = run(*options, *out, "--part", "1/2", "--keep", "best")
    none = run(*options, *out, "--finish")
    run(*options, *out, "--part", "1/2")
    other = run(*options[:-1], "echo 2", *out, "--part", "2/2")

    assert (chosen.code, none.code, other.code) == (2, 6, 6)
    assert "compare all trials" in chosen.text
    assert "holds no part of a sweep" in none.text
    assert "holds parts of another sweep" in other.text
