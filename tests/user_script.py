"""A user's program: every public function, as mypy and pyright see it when they are strict.

    python -m tests.user_script EMPTY_FOLDER

A test runs it, and the type checker of the project reads it.
"""

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import nn

import prune_cli
from prune_cli import PruneError, Report, SelectionError, prune_checkpoint


class Net(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two numbers for each row."""
        out: torch.Tensor = self.out(torch.relu(self.hidden(x)))
        return out


def main(folder: Path) -> None:
    """Use what there is."""
    model = folder / "model.pt"
    torch.save(Net().state_dict(), model)
    checkpoints(folder, model)
    reports(folder / "pruned.report.json")
    modules(folder / "masked.safetensors")
    smaller(folder, model)


def checkpoints(folder: Path, model: Path) -> None:
    """Prune, prove, look, replay, make permanent, sweep."""
    report = prune_checkpoint(model, folder / "pruned.safetensors", amount=0.25, dim=0)
    assert_type(report, Report)
    assert_type(report.tensors[0].pruned, tuple[int, ...])
    assert_type(report.totals.sparsity, float)
    masked = folder / "masked.safetensors"
    prune_checkpoint(model, masked, amount=0.25, dim=0, bake=False, exclude="out")
    prune_cli.remove_masks(masked, folder / "zeros.safetensors")
    prune_cli.apply_report(report, model, folder / "again.safetensors")
    proof = prune_cli.verify_checkpoint(folder / "again.safetensors", source=model)
    assert proof.disagreements == ()
    found = prune_cli.inspect_checkpoint(model, globs=True)
    assert found.parameters[0].name == "hidden.weight"
    try:
        prune_checkpoint(model, amount=1, modules="hiden", dry_run=True)
    except SelectionError as error:
        assert isinstance(error, PruneError) and "hidden" in str(error)
    results = prune_cli.sweep(model, [0.5], 2, lambda path: float(path.stat().st_size), dim=0)
    assert len(results.records) == 3


def reports(path: Path) -> None:
    """Read one, compare two, make the page."""
    report = prune_cli.read_report(path)
    compared = prune_cli.compare_reports({"one": report, "other": report})
    assert_type(prune_cli.read_reports([path]), dict[str, Report])
    assert_type(prune_cli.render_page({"one": report}), str)
    assert len(compared.runs) == 2


def modules(masked: Path) -> None:
    """Prune a module, load masks onto one, prune a state dict."""
    layer = prune_cli.random_structured(nn.Linear(4, 8), "weight", amount=2, dim=0)
    assert_type(layer, nn.Linear)
    method = prune_cli.RandomStructured(0.5, dim=0, generator=torch.Generator())
    assert_type(method.compute_mask(torch.ones(4, 4), torch.ones(4, 4)), torch.Tensor)
    assert_type(prune_cli.load_masked(Net(), masked), Net)
    state_dict = prune_cli.prune_state_dict(Net().state_dict(), amount=1, dim=0)
    assert_type(state_dict, OrderedDict[str, Any])


def smaller(folder: Path, model: Path) -> None:
    """Shrink a checkpoint and a module; the checkpoint is loaded as a smaller network."""
    small = folder / "small.safetensors"
    prune_cli.shrink_checkpoint(
        model, small, model=f"{__file__}:Net", examples="1x4", amount=0.5, seed=1
    )
    net = prune_cli.load_shrunk(Net(), small)
    assert_type(net, Net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    prune_cli.shrink_module(net, torch.zeros(1, 4), amount=1, optimizer=optimizer)
    assert net(torch.zeros(1, 4)).shape == (1, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
