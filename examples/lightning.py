"""A .ckpt as Lightning writes it, pruned in kind: training goes on from it where it was.

    python examples/lightning.py [FOLDER]

The state dict, with the prefix of the attribute that holds the network, is one entry of several;
epoch, optimizer and hyperparameters are kept. Then the same channels are pruned in the plain network
that was exported from it. (When training goes on, zeros become numbers again. To keep them zero,
prune with --keep-masks and load with `prune_cli.load_masked`: fine_tune.py.)
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

PREFIX = "net."


def main() -> None:
    """Train a step, save, prune, and train on."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    last, pruned, plain = folder / "last.ckpt", folder / "pruned.ckpt", folder / "plain.pt"
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters())
    train(net, optimizer)
    torch.save(lightning_checkpoint(net, optimizer), last)
    torch.save(net.state_dict(), plain)

    options = ["--amount", "0.5", "--dim", "0", "--strip-prefix", PREFIX]
    prune_cli("random-structured", last, *options, "--output", pruned)
    prune_cli("random-structured", plain, *options[:4], "--output", folder / "plain.pruned.pt")

    checkpoint = torch.load(pruned)
    state_dict = {
        name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()
    }
    net.load_state_dict(state_dict)
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    steps = int(optimizer.state_dict()["state"][0]["step"])
    print(f"epoch {checkpoint['epoch']}, {steps} step of the optimizer, {zero_rows(net)} zero rows")
    exported = torch.load(folder / "plain.pruned.pt")
    same = all(torch.equal(exported[name], value) for name, value in state_dict.items())
    print("the exported network lost the same channels:", same)
    train(net, optimizer)
    print(f"one step later: {zero_rows(net)} zero rows")


def prune_cli(*arguments: object) -> None:
    """Run prune-cli as a shell would."""
    subprocess.run(["prune-cli", *map(str, arguments), "--quiet"], check=True)


def make_net() -> nn.Sequential:
    """Return a small network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one step."""
    optimizer.zero_grad()
    net(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()


def zero_rows(net: nn.Sequential) -> int:
    """Return how many outputs of the linear layers have no weights but zeros."""
    return sum(int((layer.weight == 0).all(1).sum()) for layer in (net[0], net[2]))


def lightning_checkpoint(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Return what a Trainer saves for a LightningModule whose network is called `net`."""
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {PREFIX + name: value for name, value in net.state_dict().items()},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"width": 16},
    }


if __name__ == "__main__":
    main()
