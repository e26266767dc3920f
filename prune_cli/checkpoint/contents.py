"""Checkpoint: what is in a checkpoint, whatever its format, as frozen facts.

The formats (`safetensors_file`, `torch_file`, `folder`) make these; nothing here knows them.
"""

import mmap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prune_cli.checkpoint.tensors import DTYPES, ORIG_SUFFIX, Parameter, TensorInfo, pair_masks
from prune_cli.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry of the input that the output cannot hold, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One file of tensors. A class with a cached property, so that it is mapped at most once."""

    name: str
    path: Path
    nbytes: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    owner: object = None
    """An unnamed temporary file to keep open, where `path` leads to one."""

    @cached_property
    def mapped(self) -> memoryview:
        """The whole file, mapped to be read: its pages are the kernel's to take back.

        Not by `UntypedStorage.from_file`: that maps for writing, which the kernel refuses for a
        file larger than the memory of the machine.
        """
        try:
            with self.path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), self.nbytes, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: it is shorter
            raise InputError(
                f"{self.path} cannot be read any more: it changed since it was opened ({error})"
            ) from error

    @cached_property
    def storage(self) -> "torch.UntypedStorage":
        """The same memory, as torch has it."""
        import torch

        with warnings.catch_warnings(action="ignore"):  # it may not be written, and is not
            return torch.frombuffer(self.mapped, dtype=torch.uint8).untyped_storage()


@dataclass(frozen=True, slots=True)
class Index:
    """The index file of a folder: its name and its `metadata`."""

    name: str
    metadata: Mapping[str, object]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read, and nothing else.

    Attributes:
        path: the file or folder as the user named it ("-" for stdin).
        format: "safetensors", "torch", "torch-legacy", "module" or "torchscript".
        shards: its files, in the order of their names.
        aliases: further names of a tensor -> the one it is stored under.
        overlaps: tensors whose memory another tensor shares in part -> that tensor.
        dropped: entries that are no tensors.
        is_folder: whether it is a folder; then `others` are its other files, relative to it.
        index: its index file, if it has one.
        notes: what a user should be told about how it was read.
        live: tensors that are in memory, by name.
    """

    path: Path
    format: str
    shards: tuple[Shard, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    overlaps: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    is_folder: bool = False
    others: tuple[str, ...] = ()
    index: Index | None = None
    notes: tuple[str, ...] = ()
    live: "Mapping[str, torch.Tensor]" = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its name, shard by shard."""
        return {info.name: info for shard in self.shards for info in shard.tensors}

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, with its mask where torch pruned it."""
        return tuple(pair_masks(self.tensors.values()))

    @cached_property
    def parameter_of(self) -> dict[str, Parameter]:
        """Every parameter by its name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def parameter_aliases(self) -> dict[str, str]:
        """`aliases` as modules know them: further names of a parameter -> its name.

        Those of its mask are not among them: they follow from these.
        """
        by_tensor = {parameter.tensor.name: parameter for parameter in self.parameters}
        masks = {parameter.mask.name for parameter in self.parameters if parameter.mask}
        found: dict[str, str] = {}
        for alias, name in self.aliases.items():
            parameter = by_tensor.get(name)
            if parameter and parameter.mask:
                found[alias.removesuffix(ORIG_SUFFIX)] = parameter.name
            elif name not in masks:
                found[alias] = name
        return found

    @cached_property
    def names_of(self) -> dict[str, tuple[str, ...]]:
        """The aliases of each parameter that has any, by the name of its tensor, sorted."""
        names: dict[str, list[str]] = {}
        for alias, name in sorted(self.parameter_aliases.items()):
            names.setdefault(self.parameter_of[name].tensor.name, []).append(alias)
        return {name: tuple(aliases) for name, aliases in names.items()}

    @property
    def nbytes(self) -> int:
        """The size of its files, in bytes."""
        return sum(shard.nbytes for shard in self.shards)

    def tensor(self, info: TensorInfo) -> "torch.Tensor":
        """The tensor itself, of `info.shape`, mapped from its file: nothing is read yet."""
        import torch

        if info.offset is None:
            return self.live[info.name]
        dtype = torch_dtype(info)
        if info.elements == 0:
            return torch.empty(info.shape, dtype=dtype)
        storage = self.shards[info.shard].storage[info.offset : info.offset + _span(info)]
        strides = info.strides or _packed_strides(info.shape)
        return torch.empty(0, dtype=dtype).set_(storage, 0, info.shape, strides)


def torch_dtype(info: TensorInfo) -> "torch.dtype":
    """The torch dtype that one element of `info` has.

    Raises:
        InputError: this torch has no dtype of one element for it.
    """
    import torch

    name = DTYPES[info.dtype].torch
    dtype = getattr(torch, name, None) if name and DTYPES[info.dtype].bits >= 8 else None
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"{info.name} is {info.dtype}, which torch {torch.__version__} cannot take apart"
        )
    return dtype


def _packed_strides(shape: Sequence[int]) -> list[int]:
    """The strides of a tensor of `shape` without gaps, in elements."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 1, 0, -1):
        strides[dim - 1] = strides[dim] * shape[dim]
    return strides


def _span(info: TensorInfo) -> int:
    if info.strides is None:
        return info.nbytes
    last = sum((n - 1) * stride for n, stride in zip(info.shape, info.strides, strict=True))
    return (last + 1) * DTYPES[info.dtype].bits // 8
