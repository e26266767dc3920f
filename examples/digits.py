"""The whole arc on a real network: prune with masks, fine-tune, remove the masks, shrink.

    python examples/digits.py [FOLDER] [--amounts 0.25 0.5 0.75] [--seeds 0 1 2]

Trains a small convolutional network on the handwritten digits that ship with scikit-learn, prunes
its checkpoint with `prune-cli ... --keep-masks`, and trains on for a few epochs with the masks
kept. Prints a table of the accuracies, draws FOLDER/digits.png, and makes the first of the
fine-tuned networks physically smaller with `prune-cli remove` and `prune-cli shrink`.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from prune_cli import load_masked, load_shrunk

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot


class Split(NamedTuple):
    """Images of shape (n, 1, 8, 8) from 0 to 1, and the digits on them."""

    images: torch.Tensor
    digits: torch.Tensor


class Outcome(NamedTuple):
    """The accuracy on the test images right after pruning, and after the fine-tune."""

    amount: float
    seed: int
    pruned: float
    tuned: float


class Net(nn.Module):
    """Two convolutions and two linear layers: 38,282 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.digit = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return ten scores for each image."""
        x = functional.relu(self.conv1(images))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
        return self.digit(functional.relu(self.hidden(x)))


def main() -> None:
    """Train, prune, fine-tune, show, shrink."""
    arguments = parse_arguments()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)  # the network is too small to be shared
    torch.manual_seed(0)
    train, test = split_digits()
    net = Net()
    fit(net, train, epochs=20)
    before = accuracy(net, test)
    torch.save(net.state_dict(), folder / "digits.pt")
    outcomes = [
        prune_and_tune(folder, amount, seed, train, test)
        for amount in arguments.amounts
        for seed in arguments.seeds
    ]
    show(before, outcomes)
    draw(before, outcomes, folder / "digits.png")
    print(f"drawn: {folder / 'digits.png'}")
    small = shrink(folder, outcomes[0])
    before, after = count_parameters(net), count_parameters(small)
    print(f"shrunk at {outcomes[0].amount:.0%}, seed {outcomes[0].seed}: {before:,} parameters")
    print(f"became {after:,} ({after / before - 1:.1%}), accuracy {accuracy(small, test):.1%}")


def prune_and_tune(folder: Path, amount: float, seed: int, train: Split, test: Split) -> Outcome:
    """Prune the saved checkpoint from the shell, load it with its masks, and train on."""
    masked = folder / f"masked-{amount}-{seed}.safetensors"
    prune_cli(
        *("random-structured", folder / "digits.pt", "--amount", amount, "--dim", 0),
        *("--seed", seed, "--exclude", "digit", "--with-bias", "--keep-masks"),
        *("--output", masked),
    )
    net = load_masked(Net(), masked)
    pruned = accuracy(net, test)
    fit(net, train, epochs=5)
    torch.save(net.state_dict(), folder / f"tuned-{amount}-{seed}.pt")
    return Outcome(amount, seed, pruned, accuracy(net, test))


def shrink(folder: Path, outcome: Outcome) -> Net:
    """Make the zeros of a fine-tuned network permanent, and remove their channels for good."""
    tuned = folder / f"tuned-{outcome.amount}-{outcome.seed}.pt"
    zeros, small = tuned.with_suffix(".zeros.safetensors"), tuned.with_suffix(".small.safetensors")
    prune_cli("remove", tuned, "--output", zeros)
    prune_cli(
        *("shrink", zeros, "--from-zeros", "--model", f"{__file__}:Net"),
        *("--example", "1x1x8x8", "--output", small),
    )
    return load_shrunk(Net(), small)


def prune_cli(*arguments: object) -> None:
    """Run prune-cli as a shell would."""
    subprocess.run(["prune-cli", *map(str, arguments), "--quiet", "--force"], check=True)


# --- training ----------------------------------------------------------------------------------


def split_digits() -> tuple[Split, Split]:
    """Return 1437 images to train on and 360, every fifth, to test on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def fit(net: Net, data: Split, epochs: int) -> None:
    """Train by Adam on batches of 64 images, in an order that is the same each time."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.digits), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(net(data.images[batch]), data.digits[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: Net, data: Split) -> float:
    """Return the part of the images that the network gets right."""
    return (net(data.images).argmax(dim=1) == data.digits).float().mean().item()


def count_parameters(net: Net) -> int:
    """Return how many numbers the network learns."""
    return sum(parameter.numel() for parameter in net.parameters())


# --- showing -----------------------------------------------------------------------------------


def show(before: float, outcomes: list[Outcome]) -> None:
    """Print the table."""
    print(f"accuracy before pruning: {before:.1%}")
    print("amount  seed  pruned  fine-tuned")
    for outcome in outcomes:
        print(
            f"{outcome.amount:>6.0%}{outcome.seed:>6}{outcome.pruned:>8.1%}{outcome.tuned:>12.1%}"
        )


def draw(before: float, outcomes: list[Outcome], path: Path) -> None:
    """Draw accuracy over the amount: a dot for each seed, a line through their means."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.axhline(before, color="0.6", linestyle="--", label="before pruning")
    amounts = sorted({outcome.amount for outcome in outcomes})
    for field, color, label in (
        ("pruned", "#d1495b", "pruned at random"),
        ("tuned", "#00798c", "and five epochs with the masks kept"),
    ):
        groups = [
            [getattr(outcome, field) for outcome in outcomes if outcome.amount == amount]
            for amount in amounts
        ]
        for amount, group in zip(amounts, groups, strict=True):
            axes.scatter([amount] * len(group), group, color=color, alpha=0.5, s=20)
        means = [sum(group) / len(group) for group in groups]
        axes.plot([0, *amounts], [before, *means], color=color, label=label)
    axes.set(xlabel="channels pruned in each layer", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_xticks([0, *amounts])
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="by default a temporary one")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
