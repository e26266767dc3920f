"""A .pt as YOLO's trainers write it: a whole pickled model in half precision, pruned in kind.

    python examples/yolo.py [FOLDER]

The output is called .pt as the input is, so it is the same file with zeros in it: the class of the
model, its names, the epoch and the optimizer are still there. The class is not needed for pruning:
prune-cli reads the tensors out of the pickle, and runs nothing that is in it. Loading is up to you.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn


class Detector(nn.Module):
    """What stands for the network of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {0: "person", 1: "bicycle"}
        self.model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 8, 1)
        )


def main() -> None:
    """Write a checkpoint, prune it from the shell, and look at what came of it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    best, pruned = folder / "best.pt", folder / "best.pruned.pt"
    torch.save(training_checkpoint(), best)

    command = ["prune-cli", "random-structured", best, "--amount", "0.25", "--dim", "0"]
    subprocess.run([*command, "--output", pruned, "--quiet"], check=True)
    subprocess.run(["prune-cli", "verify", pruned, best], check=True)

    before = torch.load(best, weights_only=False)
    after = torch.load(pruned, weights_only=False)
    weight = after["ema"].model[0].weight
    print(f"{int((weight == 0).flatten(1).all(1).sum())} of {len(weight)} filters are zero")
    print(f"a {type(after['ema']).__name__} of {after['ema'].names}, epoch {after['epoch']}")
    one, other = (each["optimizer"]["state"][0]["momentum_buffer"] for each in (before, after))
    print("the optimizer is as it was:", torch.equal(one, other))


def training_checkpoint() -> dict[str, object]:
    """Return what a trainer saves after an epoch: the EMA in half precision, and its own state."""
    torch.manual_seed(0)
    detector = Detector()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    detector.model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return {
        "epoch": 12,
        "model": None,
        "ema": detector.half(),
        "updates": 1200,
        "optimizer": optimizer.state_dict(),
        "train_args": {"imgsz": 640},
    }


if __name__ == "__main__":
    main()
