"""Rows of parameters and modules: sorted, cut, with the part that each has of all."""

from pathlib import Path

import pytest
import torch

from prune_cli.inspection.inspect import inspect_checkpoint
from prune_cli.inspection.listing import Order, list_modules, list_parameters
from prune_cli.report.formats import Format, render_rows
from tests import build


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four weights in two modules, and a vector."""
    content = {
        "body.10.w": torch.ones(4, 4),
        "body.2.w": torch.ones(8, 4),
        "body.2.b": torch.zeros(8),
        "head.w": torch.ones(4, 2).half(),
        "scale": torch.ones(()),
    }
    return build.safetensors(tmp_path / "m.safetensors", content)


def test_parameters_are_in_the_order_of_their_numbers(path: Path) -> None:
    """Each has its shape, dims, number of parameters, part of all and bytes."""
    rows = list_parameters(inspect_checkpoint(path))

    assert render_rows(rows, Format.TABLE) == (
        "name       shape   dtype  dims  parameters   part   size\n"
        "body.2.b   8       F32    -              8  12.3%   32 B\n"
        "body.2.w   8x4     F32    0-1           32  49.2%  128 B\n"
        "body.10.w  4x4     F32    0-1           16  24.6%   64 B\n"
        "head.w     4x2     F16    0-1            8  12.3%   16 B\n"
        "scale      scalar  F32    -              1   1.5%    4 B\n"
    )


def test_the_largest_come_first(path: Path) -> None:
    """By bytes, of equals by name; `top` cuts, and parts stay those of all."""
    rows = list_parameters(inspect_checkpoint(path), order=Order.SIZE, top=2)

    assert [row[0] for row in rows.rows] == ["body.2.w", "body.10.w"]
    assert rows.rows[0][5] == pytest.approx(32 / 65)


@pytest.mark.parametrize(
    ("depth", "names"),
    [(1, ["body", "head", "scale"]), (2, ["body.2", "body.10", "head", "scale"])],
)
def test_modules_of_a_depth_hold_what_is_below(path: Path, depth: int, names: list[str]) -> None:
    """A parameter that lies higher stands for its own module; the sums are the whole."""
    rows = list_modules(inspect_checkpoint(path), depth)

    assert [row[0] for row in rows.rows] == names
    assert sum(row[2] for row in rows.rows) == 65
    assert sum(row[3] for row in rows.rows) == pytest.approx(1)


def test_zero_channels_have_a_column_if_they_were_counted(path: Path) -> None:
    """The dims that have some, "none", or "-" where nothing was counted."""
    rows = list_parameters(inspect_checkpoint(path, zeros=True))

    assert [row[-1] for row in rows.rows] == ["dim 0: 8/8", "none", "none", "none", "none"]
