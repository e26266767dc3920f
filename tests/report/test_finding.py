"""From what a user names to reports by name."""

import os
from pathlib import Path

import pytest

from prune_cli.errors import InputError
from prune_cli.report.finding import find_report, read_reports
from tests.report.test_comparison import item, report, write


def test_reports_of_folders_are_named_by_their_folder(tmp_path: Path) -> None:
    """All of them are called prune-report.json, so that name tells nothing."""
    paths = []
    for number in range(3):
        (tmp_path / f"run{number}").mkdir()
        content = report(item("w", (number,)), seed=number)
        paths.append(write(tmp_path / f"run{number}" / "prune-report.json", content))

    found = read_reports(paths)

    assert list(found) == ["run0", "run1", "run2"]
    assert [each.options.seed for each in found.values()] == [0, 1, 2]


def test_reports_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Files of the same name in several folders keep it, with a number."""
    paths = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        paths.append(write(tmp_path / str(number) / "a.report.json", report(item("w", (number,)))))

    assert list(read_reports(paths)) == ["a.report.json", "a.report.json (2)", "a.report.json (3)"]


def test_a_pruned_folder_or_file_stands_for_its_report(tmp_path: Path) -> None:
    """What people name is the output; the report is inside a folder, and beside a file."""
    folder = tmp_path / "small"
    folder.mkdir()
    write(folder / "prune-report.json", report(item("w", (1,)), seed=5))
    file = tmp_path / "model.pruned.safetensors"
    file.write_bytes((8).to_bytes(8, "little") + b"{}      ")
    write(tmp_path / "model.pruned.report.json", report(item("w", (1,)), seed=6))

    found = read_reports([folder, file])

    assert [each.options.seed for each in found.values()] == [5, 6]
    assert list(found) == ["small", "model.pruned.report.json"]


def test_what_has_no_report_says_where_it_would_be(tmp_path: Path) -> None:
    """The error names the folder, and the report that is missing."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(
        InputError, match=r"empty is not a report.*prune-report\.json does not exist"
    ):
        find_report(tmp_path / "empty")


@pytest.mark.parametrize("name", ["plan.txt", "plan"])
def test_a_report_may_be_called_anything(tmp_path: Path, name: str) -> None:
    """What it holds tells that it is one."""
    path = write(tmp_path / name, report(item("w", (1,))))

    assert find_report(path) == path


def test_a_pipe_is_not_read_to_see_what_it_is(tmp_path: Path) -> None:
    """What was read of it to see would be missing afterwards."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    assert find_report(pipe) == pipe


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "config.json"
    path.write_text("{}")

    with pytest.raises(InputError, match=r"config\.json is not a report of prune-cli"):
        read_reports([path])
