"""The safetensors reader against safetensors' own files, and against headers that lie."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError
from tests import build
from tests.build import entry, raw_safetensors


@pytest.mark.parametrize("dtype", build.TORCH_DTYPES)
def test_every_dtype_is_read_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    """A file of save_file has the dtype, the shape and, mapped, the bytes of its tensor."""
    tensor = build.random_bits(dtype, 3, 4)
    path = build.safetensors(tmp_path / "x", {"w": tensor})

    checkpoint = open_checkpoint(path)

    with safe_open(path, "pt") as oracle:
        assert checkpoint.tensors["w"].dtype == oracle.get_slice("w").get_dtype()
        assert list(checkpoint.tensors["w"].shape) == oracle.get_slice("w").get_shape()
    if dtype != "F4":
        assert build.same_bits(build.tensor(checkpoint, checkpoint.tensors["w"]), tensor)


def test_odd_names_shapes_and_metadata_are_kept(tmp_path: Path) -> None:
    """Unicode, empty and bracketed names, 0-d and zero-size tensors, and metadata all arrive."""
    content = {"": torch.ones(2), "ä.[x].重み": torch.tensor(3.0), "e": torch.empty(0, 4)}
    path = build.safetensors(tmp_path / "x", content, {"author": "π", "format": "pt"})

    checkpoint = open_checkpoint(path)

    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        "": (2,),
        "ä.[x].重み": (),
        "e": (0, 4),
    }
    assert checkpoint.shards[0].metadata == {"author": "π", "format": "pt"}
    assert build.tensor(checkpoint, checkpoint.tensors["ä.[x].重み"]) == 3


def test_aliases_of_save_model_are_understood(tmp_path: Path) -> None:
    """The further names that save_model puts into the metadata are aliases."""
    tensors = {"a.weight": torch.ones(2, 2)}
    path = build.safetensors(tmp_path / "x", tensors, {"b.weight": "a.weight", "format": "pt"})

    checkpoint = open_checkpoint(path)

    assert checkpoint.aliases == {"b.weight": "a.weight"}
    assert checkpoint.names_of == {"a.weight": ("b.weight",)}


def test_metadata_alone_is_a_checkpoint(tmp_path: Path) -> None:
    """A file without tensors can be read: some shards are like that."""
    path = raw_safetensors(tmp_path / "x", {"__metadata__": {"format": "pt"}})

    assert open_checkpoint(path).tensors == {}


LIES = {
    "truncated-header": (b'{"a":', b"", 4000, "header claims 4,000 bytes"),
    "huge-length": (b"{}", b"", 1 << 40, "allows at most"),
    "not-json": (b'{"a":}', b"", -1, "header is not valid"),
    "no-number-of-json": (
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"more":NaN}}',
        b"1",
        -1,
        "NaN is no number of JSON",
    ),
    "not-utf8": (b'{"\xff":1}', b"", -1, "header is not valid"),
    "lone-surrogate": (
        b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        b"1",
        -1,
        "half a character",
    ),
    "too-deep": (b'{"a":' + b"[" * 200_000, b"", -1, "nested too deep"),
    "no-entry": ({"a": 3}, b"", -1, "'a' is not a tensor's"),
    "no-offsets": ({"a": {"dtype": "U8", "shape": [1]}}, b"", -1, "'a' is not a tensor's"),
    "duplicate": (
        (
            b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}'
        ),
        b"1",
        -1,
        "'a' is there twice",
    ),
    "unknown-dtype": ({"a": entry(0, 1, 1, dtype="F128")}, b"1", -1, "unknown dtype 'F128'"),
    "negative": ({"a": entry(0, 4, -4)}, b"1234", -1, "not whole numbers"),
    "fraction": ({"a": {**entry(0, 1), "shape": [1.0]}}, b"1", -1, "not whole numbers"),
    "boolean": ({"a": {**entry(0, 1), "shape": [True]}}, b"1", -1, "not whole numbers"),
    "beyond-64-bits": ({"a": entry(0, 1, 1 << 80)}, b"1", -1, "not whole numbers"),
    "too-many-dims": ({"a": entry(0, 1, *[1 << 62] * 5000)}, b"1", -1, "5,000 dims"),
    "part-of-a-byte": ({"a": entry(0, 2, 3, dtype="F4")}, b"12", -1, "hold 2"),
    "wrong-size": ({"a": entry(0, 3, 4)}, b"123", -1, "offsets 0 to 3 hold 3"),
    "overlap": ({"a": entry(0, 4, 4), "b": entry(2, 6, 4)}, b"123456", -1, "overlaps"),
    "gap": ({"a": entry(0, 2, 2), "b": entry(3, 5, 2)}, b"12345", -1, "leaves a gap"),
    "outside": ({"a": entry(0, 9, 9)}, b"123", -1, "it is truncated"),
    "trailing": ({"a": entry(0, 1, 1)}, b"123", -1, "2 bytes follow"),
    "bad-metadata": ({"__metadata__": {"a": 1}}, b"", -1, "strings to strings"),
}


@pytest.mark.parametrize(("header", "data", "length", "message"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: object, data: bytes, length: int, message: str
) -> None:
    """Each lie is an InputError that says which."""
    path = raw_safetensors(tmp_path / "x", header, data, length=length)

    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """A sparse file of four times this machine's memory can be opened and looked into."""
    total = 4 * next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    text = json.dumps({"w": entry(0, total, total // 4096, 4096)}).encode()
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + total)

    checkpoint = open_checkpoint(path)

    assert build.tensor(checkpoint, checkpoint.tensors["w"])[-1, -1] == 0


def test_metadata_of_null_is_none(tmp_path: Path) -> None:
    """As safetensors' own reader has it."""
    header = {"__metadata__": None, "a": entry(0, 3, 3)}
    path = build.raw_safetensors(tmp_path / "x.safetensors", header, b"123")

    assert load_file(path)["a"].tolist() == [49, 50, 51]
    assert open_checkpoint(path).shards[0].metadata == {}
