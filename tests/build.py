"""Builds real checkpoints, tiny ones, for tests to read: each function makes one kind of file.

Not here: what is expected of them. The oracles are stock torch and safetensors.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import deserialize
from safetensors.torch import save, save_file
from torch import nn
from torch.nn.utils import prune

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.plan.facts import derive_seed

Tensors = dict[str, torch.Tensor]
Saver = Callable[[Path, Any], Path]

_OF_TORCH: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch)
    for name, dtype in DTYPES.items()
    if dtype.torch and hasattr(torch, dtype.torch)
}


def _is_saved(dtype: torch.dtype) -> bool:
    try:
        save({"a": torch.zeros(16, dtype=torch.uint8).view(dtype)})
    except KeyError:
        return False
    return True


TORCH_DTYPES = {name: dtype for name, dtype in _OF_TORCH.items() if _is_saved(dtype)}
"""Every dtype that both torch and safetensors have, as safetensors spells it.

The oldest versions have fewer than the newest.
"""


def needs_dtype(name: str) -> pytest.MarkDecorator:
    """Skip where the torch or the safetensors that is installed does not have a dtype yet."""
    return pytest.mark.skipif(name not in TORCH_DTYPES, reason=f"{name} is not to be had")


def random_bits(dtype: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor of `dtype` whose bits are random, so NaN and inf too; `shape` is torch's."""
    kind = _OF_TORCH[dtype]
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype == "BOOL" else 256
    bits = torch.randint(top, (*shape, kind.itemsize), dtype=torch.uint8, generator=generator)
    return bits.view(-1).view(kind).view(shape)


def tensor(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """What `checkpoint` holds under `info`, as torch has it."""
    if not info.elements:
        return torch.empty(info.shape, dtype=_OF_TORCH[info.dtype])
    bits = checkpoint.bits(info)
    signed = np.asarray(bits, order="C").view(f"i{bits.itemsize}")
    with warnings.catch_warnings(action="ignore"):  # it may not be written, and is not
        return torch.from_numpy(signed).view(_OF_TORCH[info.dtype])


def tensors(seed: int = 0) -> Tensors:
    """What a small convolutional net would have: 4-D, 2-D and 1-D weights, biases, a counter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "conv.weight": normal(6, 3, 3, 3),
        "conv.bias": normal(6),
        "bn.weight": normal(6),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc.weight": normal(10, 24).to(torch.bfloat16),
        "fc.bias": normal(10).to(torch.bfloat16),
    }


class Net(nn.Module):
    """A module whose parameters are those of `tensors`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(24, 10)


def safetensors(path: Path, content: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A file of safetensors, made by safetensors itself."""
    save_file(content, path, metadata or {"format": "pt"})
    return path


def torch_zip(path: Path, content: object) -> Path:
    """A file of torch.save, in the zip format."""
    torch.save(content, path)
    return path


def torch_legacy(path: Path, content: object) -> Path:
    """A file of torch.save, in the format before the zip one."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


SAVERS: dict[str, Saver] = {"safetensors": safetensors, "zip": torch_zip, "legacy": torch_legacy}
"""How a plain state dict can be put into a file."""


def raw_safetensors(path: Path, header: object, data: bytes = b"", *, length: int = -1) -> Path:
    """A safetensors file with whatever `header` (JSON text or an object), true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length < 0 else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, *shape: int, dtype: str = "U8") -> dict[str, Any]:
    """What a safetensors header says of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def masked(content: Tensors, amounts: Mapping[str, int], dim: int = 0) -> Tensors:
    """`content` as a module's state dict after stock torch pruned the weights in `amounts`."""
    result = dict(content)
    for name, amount in amounts.items():
        module = oracle_module(result.pop(name))
        torch.manual_seed(derive_seed(1, name))
        prune.random_structured(module, "weight", amount, dim)
        result[f"{name}_orig"] = module.weight_orig.detach()
        result[f"{name}_mask"] = module.weight_mask
    return result


def oracle_module(weight: torch.Tensor) -> nn.Module:
    """A module with that weight and nothing else."""
    module = nn.Module()
    grad = weight.is_floating_point() or weight.is_complex()
    module.weight = nn.Parameter(weight.clone(), requires_grad=grad)
    return module


def stock_mask(
    weight: torch.Tensor, name: str, amount: float, dim: int, seed: int = 0
) -> torch.Tensor:
    """The mask that stock torch makes for the seed that prune-cli derives."""
    module = oracle_module(torch.ones(weight.shape))
    torch.manual_seed(derive_seed(seed, name))
    prune.random_structured(module, "weight", amount, dim)
    return module.weight_mask.bool()


def stock_pruned(
    weight: torch.Tensor, name: str, amount: float, dim: int, seed: int = 0
) -> torch.Tensor:
    """`weight` with the channels gone that stock torch takes, as +0."""
    mask = stock_mask(weight, name, amount, dim, seed)
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))


def write_folder(
    folder: Path,
    shards: Mapping[str, Tensors],
    *,
    index: str | None = "model.safetensors.index.json",
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A model folder in the Hugging Face layout, with a config and a subfolder."""
    folder.mkdir(parents=True)
    for name, content in shards.items():
        save = safetensors if name.endswith(".safetensors") else torch_zip
        save(folder / name, content)
    (folder / "config.json").write_text('{"model_type": "tiny"}\n')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    if index:
        weight_map = {key: name for name, content in shards.items() for key in content}
        write_index(folder / index, weight_map, metadata)
    return folder


def write_index(
    path: Path, weight_map: Mapping[str, str], metadata: dict[str, Any] | None = None
) -> Path:
    """An index file."""
    content = {"metadata": metadata or {"total_size": 1}, "weight_map": dict(weight_map)}
    path.write_text(json.dumps(content, indent=2))
    return path


def split(content: Tensors, names: Sequence[str]) -> dict[str, Tensors]:
    """`content` dealt out to the shards `names`, one tensor after the other."""
    return {
        name: {key: content[key] for turn, key in enumerate(content) if turn % len(names) == number}
        for number, name in enumerate(names)
    }


def shard_names(count: int, pattern: str = "model-{:05d}-of-{:05d}.safetensors") -> list[str]:
    """What Hugging Face calls `count` shards."""
    return [pattern.format(number + 1, count) for number in range(count)]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same to the last bit, NaN included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bytes(octets(one)) == bytes(octets(other))


def octets(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, in order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def raw_opens(content: bytes) -> bool:
    """Whether safetensors itself takes these bytes for a file."""
    return len(deserialize(content)) > 0
