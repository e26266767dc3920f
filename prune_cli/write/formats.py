"""Which format an output has, by its name or as asked for: before any work."""

from typing import Literal, TypeAlias

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import UsageError
from prune_cli.stores import Location
from prune_cli.write.paths import STDOUT

Format: TypeAlias = Literal["safetensors", "in-kind", "torch"]
"""safetensors; the input's own files with zeros in them; or a plain state dict of torch.save."""

FORMATS: tuple[Format, ...] = ("safetensors", "in-kind", "torch")

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".jit", ".ts", ".tar")
WEIGHT_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)
"""What the name of a file of weights ends in; its report is called without it."""

_FOREIGN_SUFFIXES = (
    ".onnx", ".h5", ".hdf5", ".keras", ".gguf", ".ggml", ".npz", ".npy", ".tflite", ".pb",
    ".msgpack", ".pt2", ".zip", ".gz",
)  # fmt: skip
_PLAIN = (".pkl", ".pickle", ".jit", ".ts")
"""Suffixes that no file of torch.save goes by."""


def choose_format(
    checkpoint: Checkpoint, output: Location | None, asked: str | None, *, is_folder: bool
) -> Format:
    """Return the format of an output.

    Args:
        checkpoint: the input.
        output: where it goes; None for a default, which is safetensors.
        asked: what the user asks for; None leaves it to the name.
        is_folder: whether the output is a folder.

    Raises:
        UsageError: there is no such format for this input, or the name says another.
    """
    if asked not in (None, *FORMATS):
        raise UsageError(f"there is no format {asked!r}; there is {', '.join(FORMATS)}")
    named = None if is_folder else _named(checkpoint, output)
    chosen = next((one for one in FORMATS if one == asked), named or "safetensors")
    if named and asked and named != asked and output != STDOUT:
        raise UsageError(f"{output} is the name of another format than {asked}; choose another")
    if chosen == "in-kind" and checkpoint.format == "safetensors":
        raise UsageError(
            "only files of torch can be written in kind; a file of safetensors is one already"
        )
    if chosen == "torch" and is_folder:
        raise UsageError(
            "a folder is written as safetensors or in kind, not as files of torch.save"
        )
    return chosen


def is_of_torch(checkpoint: Checkpoint) -> bool:
    """Return whether the input is a file of torch, or a folder of such files.

    What torch.distributed.checkpoint wrote is no such folder: its files are pieces of one state dict.
    """
    return checkpoint.format not in ("safetensors", "dcp")


def _named(checkpoint: Checkpoint, output: Location | None) -> Format | None:
    """Return what the name of a file says of its format; None where it says nothing."""
    suffix = output.suffix.lower() if output else ""
    if suffix in _FOREIGN_SUFFIXES:
        raise UsageError(f"{output}: {suffix} is no format that can be written; use .safetensors")
    if suffix == ".safetensors":
        return "safetensors"
    if suffix not in _TORCH_SUFFIXES:
        return None
    if is_of_torch(checkpoint):
        return "in-kind"
    if suffix in _PLAIN:
        raise UsageError(f"{output}: a {suffix} file is made only of one; use .pt or .safetensors")
    return "torch"
