"""Which tensors the output holds, in which files, and what becomes of the bytes of each.

All of it follows from the headers and the plan, so the header of every output file is known
before a weight is read. Names and numbers only.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import PurePosixPath
from typing import Protocol

from prune_cli.checkpoint import Checkpoint, Part, Shard
from prune_cli.checkpoint.layouts import variant_of
from prune_cli.checkpoint.tensors import (
    MASK_SUFFIX,
    ORIG_SUFFIX,
    Parameter,
)
from prune_cli.errors import RequestError
from prune_cli.plan.facts import Plan, PlanItem
from prune_cli.plan.lists import name_after
from prune_cli.plan.shrink import added_metadata, kept_channels
from prune_cli.write.header import encode_header, in_layout_order
from prune_cli.write.segments import New, OutputTensor, Place, Segment

_INDEX = re.compile(r"(?P<weights>.+\.(safetensors|bin))\.index(?P<variant>(\.[^.]+)?)\.json")


class OutputFile(Protocol):
    """One file of the output, whatever its format."""

    @property
    def name(self) -> str:
        """Its path in the output folder, or its name."""

    @property
    def tensors(self) -> int:
        """How many tensors it holds."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""

    @property
    def head(self) -> bytes:
        """Its first bytes, by which a finished one is recognised."""

    @property
    def segments(self) -> Sequence[Segment]:
        """What it is made of, in the order of its bytes."""


@dataclass(frozen=True)
class SafetensorsFile:
    """A file of safetensors: its name, its tensors in the order they lie, and its metadata.

    `folder` is the part that it is of, where there are several: its tensors are called without it.
    """

    name: str
    content: tuple[OutputTensor, ...]
    metadata: Mapping[str, str]
    folder: str = ""

    @cached_property
    def head(self) -> bytes:
        """Its header, length included."""
        infos = (tensor.info for tensor in self.content)
        if self.prefix:
            infos = (info._replace(name=info.name.removeprefix(self.prefix)) for info in infos)
        return encode_header(infos, self.metadata)

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with that is not in the file."""
        return Part(self.folder).prefix

    @property
    def tensors(self) -> int:
        """How many tensors it holds."""
        return len(self.content)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return len(self.head) + self.data_nbytes

    @property
    def data_nbytes(self) -> int:
        """The bytes that its tensors take."""
        return sum(tensor.info.nbytes for tensor in self.content)

    @property
    def segments(self) -> Sequence[Segment]:
        """The header, then each tensor."""
        sizes = [tensor.info.nbytes for tensor in self.content]
        starts = accumulate(sizes, initial=len(self.head))
        return [New(0, self.head), *map(Place, starts, self.content)]


def lay_out(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    max_shard_size: int | None = None,
) -> tuple[SafetensorsFile, ...]:
    """Return the files that `plan` makes of `checkpoint`.

    Args:
        checkpoint: the input.
        plan: what is zeroed, and what is removed.
        max_shard_size: in bytes; without it, there is one file for each shard of the input,
            but for those that held nothing but masks that are baked now.

    Raises:
        RequestError: two tensors or two files of the output would have one name.
    """
    groups = _output_tensors(checkpoint, plan)
    names = [tensor.info.name for _, group in groups for tensor in group]
    _refuse_twice([*names, *(alias for alias, _ in further_names(checkpoint, {*names}))])
    common = _common_metadata(plan)
    if max_shard_size is None:
        _refuse_twice([output_name(shard.name) for shard in checkpoint.shards])
        return tuple(
            _file(
                checkpoint,
                output_name(shard.name),
                group,
                {**shard.metadata, **common},
                shard.folder,
            )
            for shard, group in groups
        )
    shards = _split([tensor for _, group in groups for tensor in group], max_shard_size)
    names = _shard_names(_stem(checkpoint, checkpoint.all_parts[0]), len(shards))
    return _files(checkpoint, dict(zip(names, shards, strict=True)), common)


def lay_out_like(
    checkpoint: Checkpoint,
    plan: Plan,
    shards: Sequence[Shard],
) -> tuple[SafetensorsFile, ...]:
    """lay_out for an output that is there: a file for each of its `shards`, in their order.

    If these are not the files that lay_out gives, the output was split anew, and its tensors are
    expected where they are.
    """
    files = lay_out(checkpoint, plan)
    names = [shard.name for shard in shards]
    found = tuple(file for file in files if file.tensors or file.name in names)
    place = {info.name: shard.name for shard in shards for info in shard.tensors}
    groups = _output_tensors(checkpoint, plan)
    if len(files) == len(names) == 1:
        return files
    if [file.name for file in found] == names and not _is_split_anew(files, groups, place):
        return found
    dealt: dict[str, list[OutputTensor]] = {name: [] for name in names}
    for tensor in chain.from_iterable(group for _, group in groups):
        dealt[place.get(tensor.info.name, names[0])].append(tensor)
    return _files(checkpoint, dealt, _common_metadata(plan))


def output_name(name: str) -> str:
    """Return what the shard `name` is called in the output: a pickled one becomes safetensors.

    Example:
        >>> output_name("pytorch_model-00001-of-00002.bin")
        'model-00001-of-00002.safetensors'
    """
    if name.endswith(".safetensors"):
        return name
    path = PurePosixPath(name)
    return str(path.with_name(path.stem.removeprefix("pytorch_") + ".safetensors"))


def index_name(checkpoint: Checkpoint, part: Part | None = None) -> str:
    """Return what the index of the output is called: as the library looks for it, with its variant.

    Args:
        checkpoint: the input.
        part: of which part of it; by default it is the only one.

    Returns:
        Its path within the output folder: "model.safetensors.index.fp16.json".
    """
    part = part or checkpoint.all_parts[0]
    found = part.index and _INDEX.fullmatch(part.index.name)
    if found:
        return f"{part.folder}{output_name(found['weights'])}.index{found['variant']}.json"
    stem = _stem(checkpoint, part)
    variant = None if part.index else variant_of(f"{stem}.safetensors")
    plain = stem.removesuffix(f".{variant}") if variant else stem
    return f"{part.folder}{plain}.safetensors.index{f'.{variant}' if variant else ''}.json"


def encode_index(
    checkpoint: Checkpoint, files: Iterable[SafetensorsFile], part: Part | None = None
) -> bytes:
    """Return the index of those of `files` that are of `part`, with the right total_size."""
    part = part or checkpoint.all_parts[0]
    files = [file for file in files if file.folder == part.folder]
    weight_map = {
        tensor.info.name.removeprefix(file.prefix): file.name.removeprefix(part.folder)
        for file in files
        for tensor in file.content
    }
    total = sum(file.data_nbytes for file in files)
    metadata = {**(part.index.metadata if part.index else {}), "total_size": total}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


# --- tensors ---------------------------------------------------------------------------------


_Group = tuple[Shard, list[OutputTensor]]


def _output_tensors(checkpoint: Checkpoint, plan: Plan) -> list[_Group]:
    """What becomes of each shard of the input; one of which nothing is left is not among them."""
    items, kept = {item.name: item for item in plan.items}, kept_channels(plan.shrink)
    lists = (plan.shrink.lists if plan.shrink else None) or {}
    groups: list[_Group] = [(shard, []) for shard in checkpoint.shards]
    for parameter in checkpoint.parameters:
        item = items.get(parameter.name)
        make = _baked if plan.options.bake else _masked
        for tensor in make(parameter, item):
            group = groups[parameter.tensor.shard][1]
            name = name_after(lists, tensor.info.name)
            if name is not None:
                group.append(_shrunk(_renamed(tensor, name), kept.get(parameter.name, {})))
    return [(shard, group) for shard, group in groups if group or not shard.tensors]


def _baked(parameter: Parameter, item: PlanItem | None) -> Iterator[OutputTensor]:
    info = parameter.tensor._replace(name=parameter.name)
    zero = (item.dim, item.pruned) if item else (0, ())
    yield OutputTensor(info, parameter.tensor, (), parameter.mask, *zero)


def _masked(parameter: Parameter, item: PlanItem | None) -> Iterator[OutputTensor]:
    tensor, mask = parameter.tensor, parameter.mask
    if item is None and mask is None:
        yield OutputTensor(tensor, tensor)
        return
    yield OutputTensor(tensor._replace(name=parameter.name + ORIG_SUFFIX), tensor)
    new = (mask or tensor)._replace(name=parameter.name + MASK_SUFFIX)
    dead = sorted((*item.already_pruned, *item.pruned)) if item else ()
    yield OutputTensor(new, mask, dim=item.dim if item else 0, zero=tuple(dead))


def _renamed(tensor: OutputTensor, name: str) -> OutputTensor:
    if name == tensor.info.name:
        return tensor
    return replace(tensor, info=tensor.info._replace(name=name))


def _shrunk(tensor: OutputTensor, kept: Mapping[int, tuple[int, ...]]) -> OutputTensor:
    if not kept:
        return tensor
    shape = tuple(len(kept.get(dim, range(size))) for dim, size in enumerate(tensor.info.shape))
    keep = tuple(sorted(kept.items()))
    return replace(tensor, info=tensor.info._replace(shape=shape), keep=keep)


def _refuse_twice(names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise RequestError(
            f"the output would hold {', '.join(twice)} twice; rename what the checkpoint calls so"
        )


# --- files -----------------------------------------------------------------------------------


def _common_metadata(plan: Plan) -> dict[str, str]:
    return {**added_metadata(plan.shrink), "format": "pt"}


def _files(
    checkpoint: Checkpoint, groups: Mapping[str, Iterable[OutputTensor]], common: dict[str, str]
) -> tuple[SafetensorsFile, ...]:
    """Return a file for each of `groups`, each with the metadata of all shards of the input."""
    for shard in checkpoint.shards:
        common = {**shard.metadata, **common}
    return tuple(_file(checkpoint, name, group, common) for name, group in groups.items())


def _file(
    checkpoint: Checkpoint,
    name: str,
    tensors: Iterable[OutputTensor],
    metadata: Mapping[str, str],
    folder: str = "",
) -> SafetensorsFile:
    by_name = {tensor.info.name: tensor for tensor in tensors}
    ordered = in_layout_order(tensor.info for tensor in by_name.values())
    prefix = Part(folder).prefix
    aliases = {
        alias.removeprefix(prefix): name.removeprefix(prefix)
        for alias, name in further_names(checkpoint, by_name)
    }
    kept = {key: text for key, text in metadata.items() if prefix + key not in checkpoint.aliases}
    content = tuple(by_name[info.name] for info in ordered)
    return SafetensorsFile(name, content, {**aliases, **kept}, folder)


def further_names(checkpoint: Checkpoint, held: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the further names of what is `held`, as `safetensors.torch.save_model` records them."""
    for alias, name in checkpoint.parameter_aliases.items():
        for suffix in ("", ORIG_SUFFIX, MASK_SUFFIX):
            if name + suffix in held:
                yield alias + suffix, name + suffix


def _is_split_anew(
    files: Sequence[SafetensorsFile], groups: Sequence[_Group], place: Mapping[str, str]
) -> bool:
    """Whether the tensors lie in as many shards as those of the input, but were cut elsewhere.

    A split keeps the order of the tensors; one that was moved out of order is just misplaced.
    """
    number = {file.name: position for position, file in enumerate(files)}
    there = [(n, tensor.info.name) for n, (_, group) in enumerate(groups) for tensor in group]
    found = [(n, number[place[name]]) for n, name in there if name in place]
    shards = [shard for _, shard in found]
    return shards == sorted(shards) and any(n != shard for n, shard in found)


def _split(tensors: Iterable[OutputTensor], limit: int) -> list[list[OutputTensor]]:
    """`tensors` in their order, a new shard whenever the next would not fit in `limit` bytes."""
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.info.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.info.nbytes
    return shards


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _stem(checkpoint: Checkpoint, part: Part) -> str:
    """Return what precedes the extensions: "model", "model.fp16", or diffusers' own.

    Of shards without an index it is what precedes their numbers.
    """
    names = [shard.name for shard in checkpoint.shards if shard.folder == part.folder]
    found = part.index and _INDEX.fullmatch(part.index.name)
    if found:
        stem = output_name(found["weights"]).removesuffix(".safetensors")
        return stem + found["variant"]
    if part.index:
        name = part.index.name.removesuffix(".index.json")
    else:
        name = names[0].removeprefix(part.folder) if checkpoint.is_folder else "model.safetensors"
    stem = output_name(name).removesuffix(".safetensors")
    return re.sub(r"-\d{5}-of-\d{5}", "", stem)
