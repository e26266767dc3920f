"""Finds the state dict in what a torch file held, by its structure, and says where its tensors are.

Not here: how the file was unpickled (`torch_file`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from prune_cli.checkpoint.contents import Checkpoint, Dropped, Shard
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo, pair_masks
from prune_cli.errors import InputError

_DTYPE_NAMES = {
    getattr(torch, dtype.torch): name
    for name, dtype in DTYPES.items()
    if dtype.torch and hasattr(torch, dtype.torch)
}

_LARGEST_BLOW_UP = 64
"""Expanded tensors take less room in a torch file than packed. Beyond this factor it is a trap."""

_DEEPEST = 32
"""How many mappings down a state dict is looked for. Real ones are one or two; a trap is endless."""


@dataclass(frozen=True)
class _Found:
    """A state dict: its path from the top, and its entries."""

    path: tuple[str, ...]
    entries: Mapping[object, object]

    @property
    def key(self) -> str:
        return ".".join(self.path)


class Place(NamedTuple):
    """Where a tensor lies: the address of its first byte, the end of its last, and its layout."""

    start: int
    stop: int
    layout: tuple[object, ...]


def to_checkpoint(
    content: object,
    file: Shard,
    storage: torch.UntypedStorage,
    *,
    path: Path,
    format: str,
    key: str | None,
    in_memory: bool,
) -> Checkpoint:
    """The Checkpoint of one shard that the unpickled `content` of `file` is.

    Args:
        content: what the file held.
        file: the file; its tensors are filled in here.
        path: what the user calls it.
        format: of the file.
        key: where in `content` the state dict is ("a.b"); None finds it.
        in_memory: whether the tensors are in memory instead of in the mapped file.

    Raises:
        InputError: there is no state dict, or more than one, or it holds tensors that
            safetensors cannot.
    """
    if isinstance(content, list | tuple) and any(_entries(part) is not None for part in content):
        content = {str(number): part for number, part in enumerate(content)}
    found = _find(path, content, key)
    tensors = _tensors(found.entries)
    _refuse_unwritable(path, tensors, in_memory=in_memory)
    infos = {name: _info(file, storage, name, tensor) for name, tensor in tensors.items()}
    _refuse_blow_up(path, file.nbytes, infos.values())
    places = {name: _place(tensor) for name, tensor in tensors.items()}
    aliases = _aliases(infos.values(), places)
    stored = {name: info for name, info in infos.items() if name not in aliases}
    return Checkpoint(
        path=path,
        format=format,
        shards=(replace(file, tensors=tuple(stored.values())),),
        aliases=aliases,
        overlaps=find_overlaps({name: places[name] for name in stored}),
        dropped=tuple(_dropped(content, found)),
    )


# --- finding it ------------------------------------------------------------------------------


def _find(path: Path, content: object, key: str | None) -> _Found:
    if key is not None:
        return _pick(path, content, key)
    candidates = _candidates(content, _is_mostly_weights) or _candidates(content, _has_tensors)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise InputError(f"{path} holds no state dict: it is {_describe(content)}")
    listed = "; ".join(f"{found.key!r} ({_describe(found.entries)})" for found in candidates)
    raise InputError(
        f"{path} holds {len(candidates)} state dicts; pick one with --state-dict-key: {listed}"
    )


def _pick(path: Path, content: object, key: str) -> _Found:
    found = next(_at(content, key, ()), None)
    if found is not None and _has_tensors(found.entries):
        return found
    known = [repr(found.key) for found in _candidates(content, _has_tensors)]
    raise InputError(
        f"{path} has no state dict at {key!r}; there is {', '.join(known) or 'none at all'}"
    )


def _at(content: object, key: str, path: tuple[str, ...]) -> Iterator[_Found]:
    """Where `key` leads; a key in the file can itself hold dots."""
    entries = _entries(content)
    if entries is None:
        return
    if not key:
        yield _Found(path, entries)
    for name in entries:
        if isinstance(name, str) and f"{key}.".startswith(f"{name}."):
            yield from _at(entries[name], key[len(name) + 1 :], (*path, name))


def _candidates(content: object, fits: Callable[[Mapping[object, object]], bool]) -> list[_Found]:
    """The outermost mappings that fit; an optimizer's state is not looked into."""
    found: list[_Found] = []
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()
    for path, value in waiting:  # grows while it is walked: breadth first
        entries = _entries(value)
        if entries is None or id(value) in seen:
            continue
        seen.add(id(value))
        if fits(entries):
            found.append(_Found(path, entries))
            continue
        waiting += [
            ((*path, name), inner)
            for name, inner in entries.items()
            if isinstance(name, str) and not name.lower().startswith("optim")
            if len(path) < _DEEPEST
        ]
    return found


def _entries(value: object) -> Mapping[object, object] | None:
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    return value if isinstance(value, Mapping) else None


def _is_mostly_weights(entries: Mapping[object, object]) -> bool:
    tensors = _tensors(entries)
    return 2 * len(tensors) > len(entries) and any(value.ndim >= 2 for value in tensors.values())


def _has_tensors(entries: Mapping[object, object]) -> bool:
    return bool(_tensors(entries))


def _tensors(entries: Mapping[object, object]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in entries.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


# --- what is left out ------------------------------------------------------------------------


def _dropped(content: object, found: _Found) -> Iterator[Dropped]:
    """Whatever the state dict does not hold as a named tensor, on the way down to it too."""
    for depth in range(len(found.path)):
        for name, value in (_entries(content) or {}).items():
            if name != found.path[depth]:
                key = ".".join((*found.path[:depth], str(name)))
                yield Dropped(key, f"outside the state dict {found.key!r}: {_describe(value)}")
        content = (_entries(content) or {})[found.path[depth]]
    for name, value in found.entries.items():
        if name not in _tensors({name: value}):
            reason = "not a tensor" if isinstance(name, str) else "its key is not a string"
            yield Dropped(".".join((*found.path, str(name))), f"{reason}: {_describe(value)}")


def _describe(value: object) -> str:
    match value:
        case torch.Tensor():
            return f"a tensor of shape {list(value.shape)}"
        case Mapping():
            tensors = sum(isinstance(inner, torch.Tensor) for inner in value.values())
            return f"{type(value).__name__} of {len(value)} entries, {tensors} of them tensors"
        case list() | tuple() | set():
            return f"{type(value).__name__} of {len(value)}"
        case str() if len(value) > 40:
            return f"str of {len(value)} characters"
        case None | bool() | int() | float() | str():
            return f"{type(value).__name__} {value!r}"
        case _:
            return type(value).__name__


# --- where the tensors are -------------------------------------------------------------------


def _aliases(infos: Iterable[TensorInfo], places: Mapping[str, Place]) -> dict[str, str]:
    """find_aliases, but of a pruned parameter NAME_orig and NAME_mask are aliases both or neither.

    Two modules may share the one and not the other, and then are not the same when baked.
    """
    pairs = {pair.tensor.name: pair.mask.name for pair in pair_masks(infos) if pair.mask}
    halves = {*pairs, *pairs.values()}
    aliases = find_aliases({name: place for name, place in places.items() if name not in halves})
    both = {
        orig: places[orig]._replace(layout=(places[orig].layout, places[mask]))
        for orig, mask in pairs.items()
    }
    for alias, name in find_aliases(both).items():
        aliases |= {alias: name, pairs[alias]: pairs[name]}
    return aliases


def find_aliases(places: Mapping[str, Place]) -> dict[str, str]:
    """Names for the same memory in the same layout -> the first of them, which is stored.

    The first in alphabetical order, as `safetensors.torch.save_model` has it.
    """
    first: dict[Place, str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(places):
        place = places[name]
        if place.start == place.stop:
            continue
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def find_overlaps(places: Mapping[str, Place]) -> dict[str, str]:
    """Each name whose memory reaches into that of another one -> such another one."""
    overlaps: dict[str, str] = {}
    distinct = {place: name for name, place in places.items()}
    reaching, stop = "", -1
    for place, name in sorted(distinct.items(), key=lambda item: item[0][:2]):
        if place.start < min(stop, place.stop):
            overlaps[name] = reaching
            overlaps.setdefault(reaching, name)
        if place.stop > stop:
            reaching, stop = name, place.stop
    return overlaps


def _place(tensor: torch.Tensor) -> Place:
    start = tensor.data_ptr() if tensor.numel() else 0
    spread = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    stop = start + (spread + 1) * tensor.dtype.itemsize if tensor.numel() else start
    flags = (tensor.is_conj(), tensor.is_neg())
    return Place(start, stop, (tensor.dtype, tuple(tensor.shape), tensor.stride(), *flags))


def _info(
    file: Shard, storage: torch.UntypedStorage, name: str, tensor: torch.Tensor
) -> TensorInfo:
    shape = _stored_shape(tensor)
    dtype = _DTYPE_NAMES[tensor.dtype]
    offset = tensor.data_ptr() - storage.data_ptr() if tensor.numel() else 0
    strides = None if tensor.is_contiguous() else tensor.stride()
    flip = (DTYPES[dtype].sign & 1 << 63 if tensor.is_conj() else 0) ^ (
        DTYPES[dtype].sign if tensor.is_neg() else 0
    )
    return TensorInfo(name, dtype, shape, 0, offset, strides, flip)


def _stored_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape that safetensors records: float4 is packed in pairs, and counted one by one."""
    if not _is_packed(tensor):
        return tuple(tensor.shape)
    return (*tensor.shape[:-1], tensor.shape[-1] * 2)


def _is_packed(tensor: torch.Tensor) -> bool:
    return DTYPES[_DTYPE_NAMES[tensor.dtype]].bits < tensor.dtype.itemsize * 8


# --- what is refused -------------------------------------------------------------------------


def _refuse_unwritable(path: Path, tensors: Mapping[str, torch.Tensor], *, in_memory: bool) -> None:
    problems = [
        f"{name!r} {problem}"
        for name, tensor in tensors.items()
        if (problem := _why_unnameable(name) or _why_unwritable(tensor, in_memory=in_memory))
    ]
    if problems:
        raise InputError(
            f"{path} holds {len(problems)} tensor(s) that safetensors cannot: "
            + "; ".join(problems)
            + ". Save them dense, unquantised and under other names, or leave them out"
        )


def _why_unnameable(name: str) -> str | None:
    if name == "__metadata__":
        return "has a name that safetensors reserves"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is no text"
    return None


def _why_unwritable(tensor: torch.Tensor, *, in_memory: bool) -> str | None:
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype})"
    if tensor.device.type == "meta":
        return "is on the meta device: it has no data"
    if tensor.dtype not in _DTYPE_NAMES:
        return f"has the dtype {tensor.dtype}"
    if _is_packed(tensor) and (in_memory or not tensor.is_contiguous() or not tensor.ndim):
        return f"packs several {tensor.dtype} into a byte, and does not lie in the file as it is"
    return None


def _refuse_blow_up(path: Path, size: int, infos: Iterable[TensorInfo]) -> None:
    for info in infos:
        if info.strides is not None and info.nbytes > _LARGEST_BLOW_UP * size:
            raise InputError(
                f"{path}: {info.name!r} of shape {list(info.shape)} claims {info.nbytes:,} bytes "
                f"in a file of {size:,}; it is corrupt, or expanded beyond use"
            )
