"""Where the output goes, and that it is begun before torch is there."""

import os
from pathlib import Path

import pytest
import torch

from prune_cli import open_checkpoint, prune_checkpoint
from prune_cli.api import apply_plan
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import Options
from prune_cli.write.target import begin_output, find_destination, report_path
from tests import build
from tests.conftest import Run
from tests.test_imports import CALL, modules_after


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two weights and a bias, of 2 MB."""
    tensors = {"a.weight": torch.randn(500, 500), "a.bias": torch.randn(500)}
    return build.safetensors(tmp_path / "m.safetensors", {**tensors, "b.weight": torch.ones(9, 9)})


@pytest.mark.parametrize(
    ("output", "is_folder", "wanted"),
    [
        ("a/m.pruned.safetensors", False, "a/m.pruned.report.json"),
        ("a/m", False, "a/m.report.json"),
        ("a/m", True, "a/m/prune-report.json"),
    ],
)
def test_reports_have_a_usual_place(output: str, is_folder: bool, wanted: str) -> None:
    """Beside a file, inside a folder."""
    assert report_path(Path(output), is_folder=is_folder) == Path(wanted)


@pytest.mark.parametrize(
    "refused",
    [
        ["random-structured", "m.safetensors", "-a", "1", "-o", "m.safetensors"],
        ["random-structured", "m.safetensors", "-a", "1", "-o", "no/out"],
        ["random-structured", "m.safetensors", "-a", "1", "-n", "-r", "m.safetensors"],
        ["remove", "m.safetensors", "-o", "."],
    ],
    ids=" ".join,
)
def test_a_wrong_destination_is_told_before_torch_is_imported(
    model: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    """Nobody waits for a second to hear it."""
    monkeypatch.chdir(model.parent)

    assert "torch" not in modules_after(CALL.replace("== 0", "== 6").format(refused))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("bake", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_begun_output_has_the_same_bytes(
    model: Path, tmp_path: Path, dim: int, bake: bool, workers: int
) -> None:
    """What it was filled with does not show: neither in zeros nor in masks nor after the end."""
    checkpoint = open_checkpoint(model)
    plan = make_plan(checkpoint, Options(0.5, dim, bake=bake))
    prune_checkpoint(model, tmp_path / "wanted", amount=0.5, dim=dim, bake=bake)
    destination = find_destination(checkpoint, tmp_path / "out", workers=workers)

    with begin_output(checkpoint, destination) as begun:
        assert begun
        apply_plan(checkpoint, plan, destination, begun=begun)

    assert (tmp_path / "out").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_a_begun_output_has_no_name_before_its_end(model: Path, tmp_path: Path) -> None:
    """An error between leaves the folder as it was."""
    checkpoint = open_checkpoint(model)
    (tmp_path / "out").write_text("old")
    destination = find_destination(checkpoint, tmp_path / "out", force=True, workers=2)

    with pytest.raises(RuntimeError), begin_output(checkpoint, destination):
        raise RuntimeError

    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "out"}
    assert (tmp_path / "out").read_text() == "old"


def test_only_a_file_is_begun_and_only_before_torch_is_imported(
    model: Path, tmp_path: Path
) -> None:
    """A pipe would make us wait, a folder is many files, and a pickle needed torch to be opened."""
    os.mkfifo(tmp_path / "pipe")
    pickle = build.torch_zip(tmp_path / "m.pt", build.tensors())
    folder = build.write_folder(tmp_path / "f", {"model.safetensors": build.tensors()})
    cases = [
        (model, "-", None),
        (model, tmp_path / "pipe", None),
        (model, "/dev/null", None),
        (model, tmp_path / "out", 1000),
        (pickle, tmp_path / "out", None),
        (folder, tmp_path / "out", None),
    ]

    for path, output, limit in cases:
        checkpoint = open_checkpoint(path)
        destination = find_destination(checkpoint, output, max_shard_size=limit)
        with begin_output(checkpoint, destination) as begun:
            assert begun is None


def test_an_output_is_begun_by_the_command(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more than one worker there is a core for it."""
    filled: list[Path] = []
    monkeypatch.setattr(
        "prune_cli.write.atomic.PendingFile.fill", lambda _, source: filled.append(source)
    )

    assert run("random-structured", model, "-a", "1", "--workers", "1").code == 0
    assert filled == []
    assert run("random-structured", model, "-a", "1", "--workers", "2", "-f").code == 0
    assert filled == [model]
