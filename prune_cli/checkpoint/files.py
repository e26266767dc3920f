"""Opens one file: finds out by its first bytes what it is, and hands it to the reader for that.

A pipe, and stdin ("-"), is copied first to a temporary file that has no name.
"""

import json
import re
import stat
import sys
from dataclasses import replace

from prune_cli.checkpoint.archive import ZIP_MAGIC
from prune_cli.checkpoint.contents import Checkpoint, Shard
from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.safetensors_file import find_saved_aliases, read_safetensors
from prune_cli.checkpoint.spool import spool_stream
from prune_cli.checkpoint.tensors import MASK_SUFFIX, ORIG_SUFFIX
from prune_cli.errors import InputError
from prune_cli.stores import Location, StorePath

_PICKLE = re.compile(rb"\x80[\x02-\x05]|[}\]]q|\([dl]p?\d*\n|c(collections|copy_reg|__builtin__)\n")
"""How a pickle begins, and nothing else that people have: a protocol, or an empty container."""

_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"GGUF": "a GGUF file; prune the PyTorch checkpoint that it was made from",
    b"\x89HDF": "an HDF5 (Keras) file, not a PyTorch checkpoint",
    b"\x1f\x8b": "gzip-compressed; decompress it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it first",
    b"<": "a web page or XML; look at what was downloaded",
}


def open_file(
    path: Location, loading: Loading, *, shard: int = 0, name: str | None = None
) -> Checkpoint:
    """Return the Checkpoint of one shard that the file at `path` is.

    Raises:
        InputError: it cannot be read, is no checkpoint, or is refused.
    """
    file = _on_disk(path, name or path.name)
    with file.path.open("rb") as stream:
        start = stream.read(32)
    if _is_safetensors(start):
        return _open_safetensors(path, file, shard)
    if is_torch(start):
        from prune_cli.checkpoint.torch_file import open_torch

        return open_torch(path, file, loading)
    if start[8:9] == b"{":  # its reader tells what is wrong with the length
        return _open_safetensors(path, file, shard)
    raise InputError(f"{path} is {_what(start)}")


def _is_safetensors(start: bytes) -> bool:
    r"""Whether it begins with a length below 4 GiB and a JSON object of that length.

    The length can begin like a pickle (0x380 is b"\x80\x03"), but no pickle goes on like this.
    """
    return start[4:9] == b"\0\0\0\0{"


def is_torch(start: bytes) -> bool:
    """Return whether a file that begins like this is one of torch.save, or a plain pickle."""
    return start.startswith(ZIP_MAGIC) or bool(_PICKLE.match(start))


def is_index(path: Location) -> bool:
    """Return whether `path` is a JSON file with a `weight_map`, by its content.

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


def _open_safetensors(path: Location, file: Shard, shard: int) -> Checkpoint:
    read = read_safetensors(file, shard=shard)
    names = {info.name for info in read.tensors}
    aliases = find_saved_aliases(read.metadata, names)
    tensors = {info.name: info for info in read.tensors}
    for alias, name in list(aliases.items()):
        if _other_half(alias) in names:
            tensors[alias] = tensors[aliases.pop(alias)]._replace(name=alias)
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


def _on_disk(path: Location, name: str) -> Shard:
    """Return the file at `path` as a Shard without tensors yet; a pipe is copied to disk."""
    if isinstance(path, StorePath):
        return Shard(name, path, path.stat().st_size, ())
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed, so no checkpoint can come from it")
        return spool_stream(sys.stdin.buffer, "stdin")
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        with path.open("rb") as pipe:
            return spool_stream(pipe, name)
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is neither a file nor a folder")
    return Shard(name, path, path.stat().st_size, ())
