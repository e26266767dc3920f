"""The accuracy of digits.pt, pruned, shrunk or as it is: an evaluation for `prune-cli sweep`.

    python examples/evaluate_digits.py CHECKPOINT.safetensors

Prints one line of JSON. The test images are those of digits.py, kept in digits_test.npz. The network of digits.py, written out in NumPy: that starts in a tenth of
the time that torch takes, and a sweep starts it for every trial.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

IMAGES = Path(__file__).with_name("digits_test.npz")


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a 3x3 convolution of `x` with a border of zeros, and ReLU of it."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return np.maximum(y + bias[:, None, None], 0)


def main() -> None:
    """Evaluate the checkpoint named on the command line."""
    net, test = load_file(sys.argv[1]), np.load(IMAGES)
    x = convolve(test["images"].astype(np.float32) / 16, net["conv1.weight"], net["conv1.bias"])
    x = convolve(x, net["conv2.weight"], net["conv2.bias"])
    x = x.reshape(*x.shape[:2], 4, 2, 4, 2).max((3, 5)).reshape(len(x), -1)  # max pooling
    x = np.maximum(x @ net["hidden.weight"].T + net["hidden.bias"], 0)
    found = (x @ net["digit.weight"].T + net["digit.bias"]).argmax(1)
    print(json.dumps({"accuracy": round(100 * float((found == test["digits"]).mean()), 2)}))


if __name__ == "__main__":
    main()
