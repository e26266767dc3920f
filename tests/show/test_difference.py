"""What two checkpoints do not have in common, as people see it."""

from pathlib import Path

import pytest
import torch

from prune_cli.inspection.diff import diff_checkpoints
from prune_cli.show.difference import print_difference
from tests import build


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"w": torch.ones(2), "v": torch.ones(2)}, "2 tensors the same, bit for bit"),
        ({"w": torch.ones(2), "v": torch.zeros(2)}, "1 tensor not the same; 1 tensor the same, bit for bit"),
        ({"w": torch.zeros(2)}, "1 tensor not the same; 1 in one checkpoint only; 0 tensors the same, bit for bit"),
    ],
    ids=["nothing", "values", "names"],
)  # fmt: skip
def test_the_last_line_sums_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], other: build.Tensors, told: str
) -> None:
    """How many are not the same, and how many are."""
    one = build.safetensors(tmp_path / "a", {"w": torch.ones(2), "v": torch.ones(2)})
    two = build.safetensors(tmp_path / "b", other)

    print_difference(diff_checkpoints(one, two))

    assert capfd.readouterr().out.splitlines()[-1] == told


def test_names_cannot_act_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever two files call their tensors."""
    one = build.safetensors(tmp_path / "a", {"w\x1b[2J[red]": torch.ones(2)})
    two = build.safetensors(tmp_path / "b", {"v": torch.ones(2)})

    print_difference(diff_checkpoints(one, two))

    assert "w\\x1b[2J[red]" in capfd.readouterr().out
