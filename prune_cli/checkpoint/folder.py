"""Reads a model folder in the Hugging Face layout: its shards, its index and its other files.

Index format: https://huggingface.co/docs/transformers/big_models#shard-metadata, a JSON object
with `metadata` and `weight_map` (tensor -> file). Nothing in it can lead outside the folder.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from prune_cli.checkpoint.contents import Checkpoint, Index
from prune_cli.checkpoint.files import open_file
from prune_cli.checkpoint.loading import Loading
from prune_cli.errors import InputError

PICKLED_WEIGHTS = ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_SHARD = "*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].*"
METADATA = ".metadata"
"""The file by which a folder of torch.distributed.checkpoint is known."""
STAGING = ".prune-cli-partial"
"""The folder in an output folder that holds what a run has not finished yet."""


@dataclass(frozen=True)
class _Layout:
    """Which files of a folder make up its checkpoint."""

    index: str | None
    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]
    files: tuple[str, ...]


def read_folder(folder: Path, loading: Loading, *, index: str | None = None) -> Checkpoint:
    """The Checkpoint that `folder` holds, by the index file of that name if one is given.

    Raises:
        InputError: there is none or more than one, a shard is missing, or the index does not
            fit the shards.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    layout = _read_index(folder, index) if index else _find_layout(folder, names)
    _refuse_missing(folder, layout)
    opened = [
        open_file(folder / name, loading, shard=number, name=name)
        for number, name in enumerate(layout.files)
    ]
    checkpoint = _join(folder, layout, opened)
    _check_weight_map(checkpoint, layout)
    left_out = _other_weights(names, layout)
    used = {*layout.files, *left_out, layout.index}
    others = [name for name in _walk(folder) if name not in used]
    links = [name for name in others if not (folder / name).is_file()]
    return replace(
        checkpoint,
        others=tuple(name for name in others if name not in links),
        notes=checkpoint.notes + tuple(_notes(layout, left_out, others, links)),
    )


# --- which files -----------------------------------------------------------------------------


def _find_layout(folder: Path, names: list[str]) -> _Layout:
    for pattern in ("*.safetensors", "*.bin"):
        indexes = [name for name in names if fnmatchcase(name, f"{pattern}.index.json")]
        files = [name for name in names if fnmatchcase(name, pattern)]
        sharded = {file for name in indexes for file in _read_index(folder, name).files}
        if indexes:  # which need not name a shard that holds metadata alone
            sharded |= {name for name in files if fnmatchcase(name, _SHARD)}
        choices = indexes + [name for name in files if name not in sharded and _fits(name)]
        if len(choices) > 1:
            raise InputError(
                f"{folder} holds {len(choices)} checkpoints: {', '.join(choices)}; name the file "
                "that you mean instead of the folder"
            )
        if indexes:
            return _read_index(folder, indexes[0])
        if choices:
            return _Layout(None, {}, {}, (choices[0],))
    raise InputError(
        f"{folder} holds no checkpoint: no *.safetensors, pytorch_model.bin or index of shards"
    )


def _fits(name: str) -> bool:
    """A stray .bin can be anything (training_args.bin, optimizer.bin): only the usual name."""
    return not name.endswith(".bin") or name == "pytorch_model.bin"


def _read_index(folder: Path, name: str) -> _Layout:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    match content:
        case {"weight_map": dict(weight_map)} if all(
            isinstance(file, str) for file in weight_map.values()
        ):
            metadata = content.get("metadata") or {}
        case _:
            raise InputError(f"{path} has no weight_map from tensors to files")
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata is not an object")
    files = tuple(sorted(set(weight_map.values())))
    outside = [file for file in files if not is_inside(file)]
    if outside:
        raise InputError(
            f"{path} names files that are no plain paths inside its folder: {', '.join(outside)}"
        )
    return _Layout(name, weight_map, metadata, files)


def is_inside(file: str) -> bool:
    """Whether `file` is a plain path that leads into a folder, and not out of it."""
    path = PurePosixPath(file)
    plain = path.parts and not path.is_absolute() and ".." not in path.parts
    return bool(plain) and str(path) == file and "\\" not in file and "\0" not in file


def _refuse_missing(folder: Path, layout: _Layout) -> None:
    missing = [name for name in layout.files if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder / (layout.index or '')} names {len(missing)} file(s) that are not there: "
            f"{', '.join(missing)}; the download is incomplete"
        )


def _other_weights(names: list[str], layout: _Layout) -> list[str]:
    """The same model's pickled weights, where safetensors are used: unpruned, so not copied."""
    if any(name.endswith(".bin") for name in layout.files):
        return []
    return [
        name
        for name in names
        if name not in layout.files and any(fnmatchcase(name, glob) for glob in PICKLED_WEIGHTS)
    ]


def _notes(
    layout: _Layout, left_out: Sequence[str], others: Sequence[str], links: Sequence[str]
) -> Iterator[str]:
    if left_out:
        chosen = layout.index or layout.files[0]
        yield f"both kinds are there: {chosen} is used, and left out are {', '.join(left_out)}"
    unpruned = [name for name in others if name.endswith(".safetensors")]
    if unpruned:
        yield f"no part of the checkpoint, so copied as they are: {', '.join(unpruned)}"
    if links:
        yield f"links that lead to no file are left out: {', '.join(links)}"


def _walk(folder: Path) -> list[str]:
    """Every file and link below `folder`, relative to it, but for what an unfinished run left."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if STAGING not in path.relative_to(folder).parts and (path.is_symlink() or path.is_file())
    )


# --- one checkpoint of several files ---------------------------------------------------------


def _join(folder: Path, layout: _Layout, opened: list[Checkpoint]) -> Checkpoint:
    shards = tuple(
        replace(
            part.shards[0],
            tensors=tuple(
                info if info.shard == number else replace(info, shard=number)
                for info in part.shards[0].tensors
            ),
        )
        for number, part in enumerate(opened)
    )
    counts = Counter(info.name for shard in shards for info in shard.tensors)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise InputError(f"{folder} holds {', '.join(twice)} in more than one shard")
    aliases = {alias: name for part in opened for alias, name in part.aliases.items()}
    aliases |= {
        alias: name
        for shard in shards
        for alias, name in shard.metadata.items()
        if name in counts and alias not in counts
    }
    return Checkpoint(
        path=folder,
        format=opened[0].format if opened else "safetensors",
        shards=shards,
        aliases=aliases,
        overlaps={name: other for part in opened for name, other in part.overlaps.items()},
        dropped=tuple(entry for part in opened for entry in part.dropped),
        unwritable={name: why for part in opened for name, why in part.unwritable.items()},
        is_folder=True,
        index=Index(layout.index, layout.metadata) if layout.index else None,
    )


def _check_weight_map(checkpoint: Checkpoint, layout: _Layout) -> None:
    names = [shard.name for shard in checkpoint.shards]
    elsewhere = {*checkpoint.aliases, *checkpoint.unwritable}
    misplaced = []
    for tensor, file in layout.weight_map.items():
        info = checkpoint.tensors.get(checkpoint.aliases.get(tensor, tensor))
        held_by = names[info.shard] if info else None
        if held_by != file and tensor not in elsewhere:
            misplaced.append(f"{tensor} ({file} does not hold it; {held_by or 'no shard'} does)")
    if misplaced:
        raise InputError(
            f"{checkpoint.path / (layout.index or '')} does not fit its shards: "
            + "; ".join(misplaced[:20])
            + ("" if len(misplaced) <= 20 else f"; and {len(misplaced) - 20} more")
        )
