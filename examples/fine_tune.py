"""Fine-tune a masked checkpoint of digits.pt: the step between `--keep-masks` and `remove`.

python examples/fine_tune.py MASKED.safetensors TUNED.pt
"""

import sys

import torch
from digits import Net, accuracy, fit, split_digits

from prune_cli import load_masked


def main() -> None:
    """Train on for five epochs; the masks keep the pruned channels at zero."""
    torch.set_num_threads(1)  # the network is too small to be shared
    train, test = split_digits()
    net = load_masked(Net(), sys.argv[1])
    print(f"accuracy {accuracy(net, test):.1%} with a quarter of the channels pruned")
    fit(net, train, epochs=5)
    print(f"accuracy {accuracy(net, test):.1%} after five epochs with the masks kept")
    torch.save(net.state_dict(), sys.argv[2])


if __name__ == "__main__":
    main()
