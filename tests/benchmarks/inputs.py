"""The checkpoints that are measured: shapes of a Llama, random bytes, made in seconds.

A file is written from one block of random bfloat16, over and over: no figure depends on the
values, as long as none of them is a channel of zeros.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors by name, all of them bfloat16."""

_ITEMSIZE = 2
_BLOCK_BYTES = 16 << 20
_LARGE = (4096, 11008, 32000)
_TINY = (64, 172, 500)
_LARGE_FROM = 500_000_000
"""From this many bytes on, hidden, intermediate and vocabulary size are those of Llama 2 7B."""


def language_model(nbytes: float) -> Shapes:
    """The shapes of a language model of about `nbytes`: as many layers as come nearest."""
    hidden, inner, words = _LARGE if nbytes >= _LARGE_FROM else _TINY
    shapes = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    layer = dict(_layer("", hidden, inner))
    layers = round((nbytes - total_bytes(shapes)) / total_bytes(layer))
    for number in range(max(layers, 1)):
        shapes |= _layer(f"model.layers.{number}.", hidden, inner)
    return shapes


def _layer(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield f"{prefix}self_attn.{name}.weight", (hidden, hidden)
    yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
    yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
    yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
    yield f"{prefix}input_layernorm.weight", (hidden,)
    yield f"{prefix}post_attention_layernorm.weight", (hidden,)


def many_tensors(count: int) -> Shapes:
    """The shapes of `count` small tensors: what an index of a mixture of experts looks like."""
    return {f"model.layers.{n // 1000}.experts.{n % 1000}.weight": (8, 8) for n in range(count)}


def total_bytes(shapes: Shapes) -> int:
    """The bytes that the tensors take."""
    return sum(_ITEMSIZE * math.prod(shape) for shape in shapes.values())


def write_safetensors(path: Path, shapes: Shapes) -> Path:
    """Writes a file of safetensors, without holding it in memory."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + _ITEMSIZE * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, stop)}
        start = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.writelines(_random_blocks(start))
    return path


def write_pickle(path: Path, safetensors: Path) -> Path:
    """Writes a file of torch.save with the tensors of the file of safetensors."""
    torch.save(load_file(safetensors), path)
    return path


def write_folder(folder: Path, shapes: Shapes, shards: int) -> Path:
    """Writes a model folder in the Hugging Face layout, of `shards` shards of about one size."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_split(shapes, shards), 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total_bytes(shapes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def _split(shapes: Shapes, shards: int) -> Iterable[Shapes]:
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    total, done = total_bytes(shapes), 0
    for name, shape in shapes.items():
        groups[min(done * shards // total, shards - 1)][name] = shape
        done += _ITEMSIZE * math.prod(shape)
    return groups


def _random_blocks(nbytes: int) -> Iterator[memoryview]:
    """`nbytes` in blocks, all the same."""
    generator = torch.Generator().manual_seed(0)
    length = min(_BLOCK_BYTES, nbytes + _ITEMSIZE) // _ITEMSIZE
    values = torch.randn(length, generator=generator).to(torch.bfloat16)
    block = memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
    for start in range(0, nbytes, len(block)):
        yield block[: nbytes - start]
