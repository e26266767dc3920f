"""Opens one file: finds out by its first bytes what it is, and hands it to the reader for that.

A pipe, and stdin ("-"), is copied first to a temporary file that has no name.
"""

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from prune_cli.checkpoint.contents import Checkpoint, Shard
from prune_cli.checkpoint.safetensors_file import read_safetensors
from prune_cli.checkpoint.tensors import MASK_SUFFIX, ORIG_SUFFIX
from prune_cli.errors import InputError, OutputError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number of torch's legacy format; two bytes of pickle protocol precede it."""

_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"GGUF": "a GGUF file; prune the PyTorch checkpoint that it was made from",
    b"\x89HDF": "an HDF5 (Keras) file, not a PyTorch checkpoint",
    b"\x1f\x8b": "gzip-compressed; decompress it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it first",
    b"<": "a web page or XML; look at what was downloaded",
    b"\x80": "a plain pickle, not a file of torch.save; load it and save it with torch.save",
}


@dataclass(frozen=True)
class Loading:
    """How a pickle may be loaded, and where its state dict is.

    Attributes:
        state_dict_key: where the state dict is nested ("model.ema"); None finds it.
        allow_globals: dotted names of what a pickle may use besides torch's own list.
        unsafe: whether to run whatever code the file holds.
    """

    state_dict_key: str | None = None
    allow_globals: Sequence[str] = ()
    unsafe: bool = False


def open_file(
    path: Path, loading: Loading, *, shard: int = 0, name: str | None = None
) -> Checkpoint:
    """The Checkpoint of one shard that the file at `path` is.

    Raises:
        InputError: it cannot be read, is no checkpoint, or is refused.
    """
    file = _on_disk(path, name or path.name)
    with file.path.open("rb") as stream:
        start = stream.read(32)
    if start.startswith(ZIP_MAGIC) or start[2:].startswith(LEGACY_MAGIC):
        return _open_torch(path, file, loading)
    if start[8:9] == b"{":
        return _open_safetensors(path, file, shard)
    raise InputError(f"{path} is {_what(start)}")


def is_index(path: Path) -> bool:
    """Whether `path` is a JSON file with a `weight_map`, by its content.

    The length that a safetensors file begins with can look like "{", but has zero bytes, which
    JSON has not: so no file of weights is read as a whole here.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
        if not start.lstrip().startswith(b"{") or b"\0" in start:
            return False
        stream.seek(0)
        try:
            return "weight_map" in json.load(stream)
        except (ValueError, RecursionError):
            return False


def _open_torch(path: Path, file: Shard, loading: Loading) -> Checkpoint:
    import warnings

    import torch

    from prune_cli.checkpoint.state_dict import to_checkpoint
    from prune_cli.checkpoint.torch_file import load_safely

    with warnings.catch_warnings(action="ignore"):
        storage = torch.frombuffer(file.mapped, dtype=torch.uint8).untyped_storage()
    loaded = load_safely(file.path, storage, allow_globals=loading.allow_globals)
    return to_checkpoint(
        loaded.content,
        file,
        storage,
        path=path,
        format=loaded.format,
        key=loading.state_dict_key,
        in_memory=loading.unsafe,
    )


def _open_safetensors(path: Path, file: Shard, shard: int) -> Checkpoint:
    read = read_safetensors(file, shard=shard)
    names = {info.name for info in read.tensors}
    aliases = {
        alias: name for alias, name in read.metadata.items() if name in names and alias not in names
    }
    tensors = {info.name: info for info in read.tensors}
    for alias, name in list(aliases.items()):
        if _other_half(alias) in names:
            tensors[alias] = replace(tensors[aliases.pop(alias)], name=alias)
    return Checkpoint(
        path, "safetensors", (replace(read, tensors=tuple(tensors.values())),), aliases
    )


def _other_half(name: str) -> str | None:
    """The mask of an `_orig`, or the reverse: if it is stored, it is not an alias's like this."""
    for suffix, other in ((ORIG_SUFFIX, MASK_SUFFIX), (MASK_SUFFIX, ORIG_SUFFIX)):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + other
    return None


def _what(start: bytes) -> str:
    if not start:
        return "empty"
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            return what
    if start.lstrip().startswith(b"{"):
        return "JSON, but not the index of a sharded checkpoint (it has no weight_map)"
    return (
        "not a checkpoint: neither safetensors nor a file of torch.save "
        f"(it starts with {start[:8]!r})"
    )


def _on_disk(path: Path, name: str) -> Shard:
    """The file at `path` as a Shard without tensors yet; a pipe is copied to disk."""
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed, so no checkpoint can come from it")
        return _spool(sys.stdin.buffer, "stdin")
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        with path.open("rb") as pipe:
            return _spool(pipe, name)
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is neither a file nor a folder")
    return Shard(name, path, path.stat().st_size, ())


def _spool(stream: IO[bytes], name: str) -> Shard:
    try:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            nbytes = file.tell()
            owner = _Descriptor(os.dup(file.fileno()))
    except OSError as error:
        raise OutputError(
            f"{name} could not be copied to {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a folder with room"
        ) from error
    return Shard(name, Path(f"/dev/fd/{owner.number}"), nbytes, (), owner=owner)


class _Descriptor:
    """A file descriptor that lives as long as somebody holds this: the Shards of its file do."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
