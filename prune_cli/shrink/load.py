"""Load a shrunk checkpoint back into freshly built model code; torch and safetensors are enough.

The file says itself how to resize the model: one key of its `__metadata__` holds the shapes and the
attributes that changed. See also: plan/shrink.py, whose Resizing that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prune_cli.errors import InputError, RequestError
from prune_cli.plan.lists import Lists
from prune_cli.plan.shrink import METADATA_KEY, Resizing
from prune_cli.shrink.fewer_heads import can_lose_heads, let_lose_heads
from prune_cli.shrink.trace import named_tensors

_Model = TypeVar("_Model", bound=nn.Module)


def load_shrunk(model: _Model, path: str | Path) -> _Model:
    """Resize a freshly built model to a shrunk checkpoint and load it, strictly.

    Args:
        model: What the model's own code builds, before pruning; it is changed in place.
        path: The safetensors file, or the folder of shards, that `prune-cli shrink` wrote.

    Returns:
        The same model.

    Raises:
        InputError: The file cannot be read, or was not shrunk by prune-cli.
        RequestError: The file does not fit the model.

    Example:
        model = prune_cli.load_shrunk(resnet18(), "small.safetensors")
    """
    files = _files(Path(path))
    resizing = _read_resizing(files)
    shorten(model, resizing.lists or {})
    resize(model, resizing)
    _load(model, files)
    return model


def shorten(model: nn.Module, lists: Lists) -> None:
    """Take elements out of lists of modules; those that stay are numbered anew.

    Raises:
        RequestError: The model has no such list, or no such element.
    """
    modules = dict(model.named_modules())
    problems = [
        f"it has no list of modules {path!r} with a number {max(kept, default=0)}"
        for path, kept in lists.items()
        if path not in modules or not {*map(str, kept)} <= modules[path]._modules.keys()
    ]
    if problems:
        raise _misfit(problems)
    for path, kept in lists.items():
        found = modules[path]._modules
        stay = [found[str(number)] for number in kept]
        found.clear()
        found.update({str(number): module for number, module in enumerate(stay)})


def resize(model: nn.Module, resizing: Resizing) -> None:
    """Give the tensors of `model` their new shapes, uninitialised, and its modules their new counts.

    Tied parameters stay tied; dtype, device and requires_grad stay.

    Raises:
        RequestError: The model has no such tensor or attribute.
    """
    _refuse_misfits(model, resizing)
    named = list(named_tensors(model))
    new: dict[int, Tensor] = {}
    for name, old in named:
        if name in resizing.shapes and id(old) not in new:
            new[id(old)] = _empty_like(old, resizing.shapes[name])
    for name, old in named:
        if id(old) in new:  # a checkpoint may have but one name of tied ones
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, new[id(old)])
    for module, values in resizing.attributes.items():
        for attribute, value in values.items():
            setattr(model.get_submodule(module), attribute, value)
    for attention in model.modules():
        if can_lose_heads(attention) and _lost_heads(attention):
            let_lose_heads(attention)


def _lost_heads(attention: Any) -> bool:
    return bool(len(attention.in_proj_weight) != 3 * attention.embed_dim)


def _empty_like(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    empty = torch.empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(empty, requires_grad=old.requires_grad)
    return empty


def _refuse_misfits(model: nn.Module, resizing: Resizing) -> None:
    tensors, modules = dict(named_tensors(model)), dict(model.named_modules())
    problems = [
        f"it has no tensor {name!r}"
        if name not in tensors
        else f"{name!r} has {tensors[name].dim()} dims"
        for name, shape in resizing.shapes.items()
        if name not in tensors or tensors[name].dim() != len(shape)
    ]
    problems += [
        f"{module or 'the model itself'} has no count named {attribute!r}"
        for module, values in resizing.attributes.items()
        for attribute in values
        if not _is_count(getattr(modules.get(module), attribute, None))
    ]
    if problems:
        raise _misfit(problems)


def _misfit(problems: list[str]) -> RequestError:
    return RequestError(
        f"the checkpoint does not fit the model: {'; '.join(problems[:8])}; "
        "build it as it was built for prune-cli shrink"
    )


def _is_count(value: Any) -> bool:
    """Only numbers are overwritten, whatever a file says: never a method or a module."""
    return type(value) is int or (
        isinstance(value, tuple) and all(type(item) is int for item in value)
    )


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no *.safetensors; give what prune-cli shrink wrote")
    return files


def is_shrunk(path: Path) -> bool:
    """Return whether a file or folder says itself what was shrunk."""
    return any(METADATA_KEY in metadata for _, metadata in _open_each(_files(path)))


def _read_resizing(files: list[Path]) -> Resizing:
    for _, metadata in _open_each(files):
        if METADATA_KEY in metadata:
            return Resizing.from_json(metadata[METADATA_KEY])
    raise InputError(
        f"{files[0]} does not say what was shrunk (no {METADATA_KEY!r} in its metadata); "
        "give what prune-cli shrink wrote, or load it as any other checkpoint"
    )


def _open_each(files: list[Path]) -> Iterator[tuple[Any, Mapping[str, str]]]:
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                yield opened, opened.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error


def _load(model: nn.Module, files: list[Path]) -> None:
    """Copy tensor by tensor, so that no second copy of the checkpoint is held."""
    missing = set(model.state_dict())
    unexpected = []
    for opened, _ in _open_each(files):
        for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
            if name not in missing:
                unexpected.append(name)
                continue
            missing -= _place(model, name, opened.get_tensor(name))
    if missing or unexpected:
        raise RequestError(
            "the checkpoint does not fit the model: "
            f"missing {sorted(missing)[:8]}, unexpected {unexpected[:8]}"
        )


def _place(model: nn.Module, name: str, value: Tensor) -> set[str]:
    """Put a value where `name` says and give back all names that it serves: tied ones share it."""
    tensors = model.state_dict(keep_vars=True)
    target = tensors[name]
    if target.shape != value.shape:
        raise RequestError(
            f"{name} is {list(value.shape)} in the checkpoint and {list(target.shape)} in the "
            "model; build the model as it was built for prune-cli shrink"
        )
    names = {other for other, tensor in tensors.items() if tensor is target}
    if not target.is_meta:
        with torch.no_grad():
            target.copy_(value)
        return names
    parameter = isinstance(target, nn.Parameter)
    placed = nn.Parameter(value, target.requires_grad) if parameter else value
    for other in names:
        module, _, leaf = other.rpartition(".")
        setattr(model.get_submodule(module), leaf, placed)
    return names
