"""Lines of trials.jsonl."""

import json
from pathlib import Path

import pytest

from prune_cli.errors import InputError
from prune_cli.sweep.grid import Point
from prune_cli.sweep.record import Achieved, Record, append_record, latest, mend, read_records

RECORD = Record(
    key="k1",
    trial="a0.25-s3",
    status="ok",
    amount=0.25,
    seed=3,
    allocation="uniform",
    criterion="random",
    metric_name="acc",
    metric=0.5,
    metrics={"acc": 0.5, "loss": None},
    repeats=(0.5,),
    seconds=1.25,
    exit=0,
    achieved=Achieved(amount=0.25, parameters=100, bytes=400),
    versions={"prune-cli": "0.2.0"},
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """A line of plain JSON each."""
    path = tmp_path / "trials.jsonl"
    failed = Record("k2", "a3-s0", "failed", 3, 0, "erk", "l1", reason="exit 1: \u00e4\n")

    append_record(path, RECORD)
    append_record(path, failed)

    assert read_records(path) == [RECORD, failed]
    first = json.loads(path.read_text().splitlines()[0])
    assert first["metrics"] == {"acc": 0.5, "loss": None}
    assert first["achieved"]["parameters"] == 100


def test_a_record_knows_its_point() -> None:
    """The trials of one point are averaged."""
    assert RECORD.point == Point(0.25)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_is_no_record_and_is_mended(tmp_path: Path, cut: int) -> None:
    """After a kill or a full disk."""
    path = tmp_path / "trials.jsonl"
    append_record(path, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])

    assert read_records(path) == [RECORD]
    mend(path)
    append_record(path, RECORD)

    assert path.read_bytes() == whole + whole


def test_the_last_line_of_a_key_counts() -> None:
    """A trial that failed is run again."""
    failed = Record("k1", "a0.25-s3", "failed", 0.25, 3, "uniform", "random")

    assert latest([failed, RECORD]) == {"k1": RECORD}
    assert RECORD.is_done
    assert not failed.is_done


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "{}",
        '{"key": "k", "trial": "t", "status": "good"}',
        '{"key": "k", "trial": "t", "status": "ok"}',
        '{"key": "k", "trial": "t", "status": "ok", "extra": 1}',
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    """By the file and its number."""
    path = tmp_path / "trials.jsonl"
    append_record(path, RECORD)
    path.write_text(path.read_text() + line + "\n")

    with pytest.raises(InputError, match=r"trials.jsonl, line 2 is not a trial"):
        read_records(path)


def test_mending_needs_no_file(tmp_path: Path) -> None:
    """There is none at the start."""
    mend(tmp_path / "trials.jsonl")
