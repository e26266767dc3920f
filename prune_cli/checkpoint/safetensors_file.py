"""Reads the header of a safetensors file, and trusts none of it.

Format: https://huggingface.co/docs/safetensors/index#format. Without torch, so that `inspect`
is instant; the checks are those of safetensors' own reader, with messages that name the tensor.
"""

import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from prune_cli.checkpoint.contents import Shard
from prune_cli.checkpoint.tensors import (
    DTYPES,
    HEADER_LENGTH_BYTES,
    MAX_DIMS,
    MAX_HEADER_BYTES,
    TensorInfo,
    nbytes,
)
from prune_cli.errors import InputError
from prune_cli.jsontext import parse
from prune_cli.stores import Location


def read_safetensors(file: Shard, *, shard: int = 0) -> Shard:
    """`file` with the tensors and the metadata that its header names.

    `shard` is its index in the Checkpoint.

    Raises:
        InputError: the header is truncated, is not JSON, or lies.
    """
    path, size = file.path, file.nbytes
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        data_start = HEADER_LENGTH_BYTES + length
        if length > MAX_HEADER_BYTES:
            raise InputError(
                f"{path}: its header claims {length:,} bytes; safetensors allows at most "
                f"{MAX_HEADER_BYTES:,}, so the file is corrupt or not safetensors"
            )
        if data_start > size:
            raise InputError(
                f"{path}: its header claims {length:,} bytes, but the file has only {size:,}: "
                "it is truncated; copy or download it again"
            )
        header = _parse(path, stream.read(length))
    metadata = _metadata(path, header.pop("__metadata__", {}))
    tensors = tuple(_tensor(path, key, entry, shard, data_start) for key, entry in header.items())
    _check_layout(path, tensors, data_start, size)
    return replace(file, tensors=tensors, metadata=metadata)


def _parse(path: Location, text: bytes) -> dict[str, object]:
    try:
        header = parse(text.decode("utf-8"), _unique, _refuse_constant)
    except RecursionError:
        raise InputError(f"{path}: its header is nested too deep to be safetensors") from None
    except ValueError as error:
        raise InputError(f"{path}: its header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is not a JSON object")
    return header


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def find_saved_aliases(metadata: Mapping[str, str], names: Container[str]) -> dict[str, str]:
    """Return the aliases that `safetensors.torch.save_model` recorded in `metadata`.

    It writes {dropped name: kept name}, and keeps the first in alphabetical order; savers built
    on it prefer another name, of a parameter that is called alike in its module. "format" is what
    every file of theirs has.

    Args:
        metadata: of a file.
        names: of the tensors there are.

    Example:
        >>> find_saved_aliases({"format": "pt", "head.weight": "emb.weight"}, {"emb.weight", "pt"})
        {'head.weight': 'emb.weight'}
    """
    return {
        alias: name
        for alias, name in metadata.items()
        if name in names and alias not in names and alias != "format"
        if alias > name or alias.rpartition(".")[2] == name.rpartition(".")[2]
    }


def _metadata(path: Location, found: object) -> Mapping[str, str]:
    if found is None:  # as safetensors' own reader has it
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{path}: its __metadata__ is not a map of strings to strings")
    return found


def _tensor(path: Location, name: str, entry: Any, shard: int, data_start: int) -> TensorInfo:
    try:  # by hand, as there can be 100,000 of them: a match statement takes ten times as long
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or type(shape) is not list:
            raise TypeError
    except (LookupError, TypeError, ValueError):
        raise InputError(f"{path}: the header's entry for {name!r} is not a tensor's") from None
    if dtype not in DTYPES:
        raise InputError(
            f"{path}: {name!r} has the unknown dtype {dtype!r}; known are {', '.join(DTYPES)}"
        )
    for number in (*shape, start, stop):
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise InputError(
                f"{path}: {name!r} has a shape or offsets that are not whole numbers >= 0"
            )
    if len(shape) > MAX_DIMS:
        raise InputError(f"{path}: {name!r} has {len(shape):,} dims, more than {MAX_DIMS}")
    if 8 * (stop - start) != math.prod(shape) * DTYPES[dtype].bits:
        raise InputError(
            f"{path}: {name!r} is {dtype} {shape}, {nbytes(dtype, shape):,} bytes, but its "
            f"offsets {start:,} to {stop:,} hold {stop - start:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), shard, data_start + start)


def _check_layout(path: Location, tensors: tuple[TensorInfo, ...], start: int, size: int) -> None:
    """Tensors follow each other from the end of the header to the end of the file."""
    at = start
    extents = sorted((info.offset or 0, info.nbytes, info.name) for info in tensors)
    for offset, length, name in extents:
        if offset != at:
            fact = "overlaps the tensor before it" if offset < at else "leaves a gap"
            raise InputError(f"{path}: {name!r} {fact}, at byte {offset:,}")
        at += length
    if at > size:
        raise InputError(
            f"{path}: its tensors end at byte {at:,}, but the file has only {size:,}: "
            "it is truncated; copy or download it again"
        )
    if at < size:
        raise InputError(f"{path}: {size - at:,} bytes follow its last tensor; it is corrupt")
