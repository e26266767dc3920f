"""Where the output goes, and what is refused before any work."""

from pathlib import Path

import pytest
import torch

from prune_cli.write.target import report_path
from tests import build
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
        ["remove", "m.safetensors", "-o", "m.safetensors/x"],
    ],
    ids=" ".join,
)
def test_a_wrong_destination_is_told_before_torch_is_imported(
    model: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    """Nobody waits for a second to hear it."""
    monkeypatch.chdir(model.parent)

    assert "torch" not in modules_after(CALL.replace("== 0", "== 6").format(refused))
