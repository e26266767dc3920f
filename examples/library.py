"""The same from Python: on a module while it trains, and on a checkpoint.

    python examples/library.py

`random_structured` is a drop-in for that of torch.nn.utils.prune: change the import. Given the seed
that prune-cli derives for a tensor, it takes the very channels that the command line takes.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from prune_cli import prune_checkpoint, random_structured
from prune_cli.plan.facts import derive_seed


def main() -> None:
    """Prunes a module and a checkpoint of it, and compares."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with tempfile.TemporaryDirectory() as folder:
        saved, pruned = Path(folder, "model.pt"), Path(folder, "pruned.safetensors")
        torch.save(model.state_dict(), saved)
        report = prune_checkpoint(saved, pruned, amount=2, dim=0, seed=7)
        from_checkpoint = load_file(pruned)
    for row in report.tensors:
        print(f"{row.name}: channels {list(row.pruned)} of {row.channels} are zero")

    for name in ("0", "2"):
        seed = derive_seed(7, f"{name}.weight")
        generator = torch.Generator().manual_seed(seed)
        random_structured(model.get_submodule(name), "weight", 2, dim=0, generator=generator)
    print("in the module:", ", ".join(model.state_dict()))

    train_a_little(model)
    print("after training:", int((model[0].weight == 0).all(dim=1).sum()), "channels are zero")

    prune.remove(model[0], "weight")  # torch's own: the zeros become permanent
    zero = (model[0].weight == 0).all(dim=1)
    same = torch.equal(zero, (from_checkpoint["0.weight"] == 0).all(dim=1))
    print("the module and the checkpoint lost the same channels:", same)


def train_a_little(model: nn.Module) -> None:
    """Takes some steps of gradient descent: pruned channels get no gradient, and stay zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    model(torch.randn(1, 8))  # a forward computes the pruned weight anew


if __name__ == "__main__":
    main()
