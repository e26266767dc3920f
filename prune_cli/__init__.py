"""prune-cli removes channels at random, reproducibly, from any PyTorch checkpoint."""

__version__ = "0.1.0"
