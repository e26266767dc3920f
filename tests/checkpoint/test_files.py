"""What a file is, found out by its content: never by its name."""

import io
import os
import struct
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prune_cli.checkpoint import open_checkpoint
from prune_cli.checkpoint.files import is_index
from prune_cli.errors import InputError, OutputError
from tests import build


@pytest.mark.parametrize(
    ("saver", "format"),
    [("safetensors", "safetensors"), ("zip", "torch"), ("legacy", "torch-legacy")],
)
def test_the_name_does_not_matter(tmp_path: Path, saver: str, format: str) -> None:
    """Each format is recognised under the extension of another."""
    path = build.SAVERS[saver](tmp_path / "weights.gguf", build.tensors())

    assert open_checkpoint(path).format == format


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_length_of_a_header_is_not_a_pickle(tmp_path: Path, length: int) -> None:
    """Some lengths of safetensors begin with the bytes that a pickle begins with."""
    state = {"a.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "plain", {"padding": ""})
    (spare,) = struct.unpack("<Q", (tmp_path / "plain").read_bytes()[:8])

    save_file(state, tmp_path / "weights", {"padding": "x" * (length - spare)})

    start = (tmp_path / "weights").read_bytes()[:8]
    assert start == struct.pack("<Q", length)
    assert open_checkpoint(tmp_path / "weights").format == "safetensors"


FOREIGN = {
    "empty": (b"", "empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd", "zstd"),
    "html": (b"<!DOCTYPE html>", "a web page"),
    "pickle": (b"\x80\x04}.", "no state dict"),
    "json": (b'{"a": 1}', "no weight_map"),
    "broken-json": (b'{"a": ', "no weight_map"),
    "text": (b"hello, world", "not a checkpoint"),
    "one-byte": (b"\0", "not a checkpoint"),
    "other-zip": (b"PK\x03\x04" + b"\0" * 40, "corrupt or truncated"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """What is no checkpoint is refused with a guess at what it is."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("where", ["missing", "missing/model.pt", "file/model.pt"])
def test_a_missing_file_is_an_input_error(tmp_path: Path, where: str) -> None:
    """The error names the path and the system's reason."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be read: N"):
        open_checkpoint(tmp_path / where)


def test_a_device_is_refused() -> None:
    """A character device is neither a file nor a folder."""
    with pytest.raises(InputError, match="neither a file nor a folder"):
        open_checkpoint("/dev/null")


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """A named pipe, as process substitution makes, holds the same checkpoint as a file."""
    content = build.safetensors(tmp_path / "x", build.tensors()).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()

    checkpoint = open_checkpoint(tmp_path / "pipe")

    writer.join()
    info = checkpoint.tensors["conv.weight"]
    assert build.same_bits(build.tensor(checkpoint, info), build.tensors()["conv.weight"])


@pytest.mark.parametrize("saver", build.SAVERS)
def test_stdin_is_read_like_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saver: str
) -> None:
    """`-` is stdin, whatever the format."""
    path = build.SAVERS[saver](tmp_path / "x", build.tensors())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))

    checkpoint = open_checkpoint("-")

    assert checkpoint.tensors.keys() == build.tensors().keys()
    info = checkpoint.tensors["fc.weight"]
    assert build.same_bits(build.tensor(checkpoint, info), build.tensors()["fc.weight"])


def test_a_closed_stdin_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no stdin (`<&-`), `-` is refused."""
    monkeypatch.setattr(sys, "stdin", None)

    with pytest.raises(InputError, match="stdin is closed"):
        open_checkpoint("-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdin does not fit the temporary folder, the error says how to choose another."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(1 << 21))))
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))

    with pytest.raises(OutputError, match="set TMPDIR"):
        open_checkpoint("-")


def test_a_safetensors_file_that_begins_like_json_is_no_index(tmp_path: Path) -> None:
    """A header of 0x7b20 bytes begins with " {"; it is still not read as a whole."""
    length = int.from_bytes(b" {", "little")
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    path = build.raw_safetensors(tmp_path / "x", header, b"1")

    assert not is_index(path)
    assert open_checkpoint(path).tensors.keys() == {"w"}


def test_a_file_that_was_cut_since_it_was_opened_is_told(tmp_path: Path) -> None:
    """What is being written still, or copied, changes under a reader."""
    checkpoint = open_checkpoint(build.safetensors(tmp_path / "x", build.tensors()))
    os.truncate(tmp_path / "x", 100)

    with pytest.raises(InputError, match="x cannot be read any more: it changed"):
        _ = checkpoint.shards[0].mapped
