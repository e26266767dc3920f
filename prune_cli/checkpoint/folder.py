"""Reads a model folder: its shards, its index and its other files; or several such in subfolders.

See also: `layouts`, which files these are; `surroundings`, what else there is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from prune_cli.checkpoint.contents import Checkpoint, Dropped, Index, Part, Shard
from prune_cli.checkpoint.files import open_file
from prune_cli.checkpoint.heads import fetch_heads
from prune_cli.checkpoint.layouts import Layout, find_indexed, find_layout, is_fellow, is_inside
from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.safetensors_file import find_saved_aliases
from prune_cli.checkpoint.surroundings import (
    describe,
    find_outputs,
    find_torch_file,
    is_torch_file,
    list_files,
    list_unpruned,
    other_forms,
    subfolders_with_checkpoints,
)
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.errors import InputError
from prune_cli.stores import Location

_HEADS_AT_ONCE = 64  # headers of shards in a store: each is 100 kB or more

METADATA = ".metadata"
"""The file by which a folder of torch.distributed.checkpoint is known."""


def read_folder(folder: Location, loading: Loading, *, index: str | None = None) -> Checkpoint:
    """Return the Checkpoint that `folder` holds, by the index file of that name if one is given.

    A folder with one file of torch.save, and no other weights, stands for that file.

    Raises:
        InputError: there is none or more than one, a shard is missing, or the index does not
            fit the shards.
    """
    if loading.subfolders and index is None:
        return _read_subfolders(folder, loading)
    names = sorted(entry.name for entry in folder.iterdir())
    layout = find_indexed(folder, names, index) if index else _find(folder, names)
    if is_torch_file(layout.name):
        checkpoint = open_file(folder / layout.name, loading)
        outputs = find_outputs(folder, names)
        note = f"{layout.name} is used, the only checkpoint in {folder}"
        passed_over = f" but outputs of earlier runs: {', '.join(outputs)}" if outputs else ""
        return replace(checkpoint, notes=(note + passed_over, *checkpoint.notes))
    checkpoint = _read_files(folder, layout, loading)
    beside = _look_around(folder, layout, loading)
    unpruned = list_unpruned(beside.others)
    notes = (*_notes(layout, beside), *_copied(unpruned))
    return replace(checkpoint, others=beside.others, notes=checkpoint.notes + notes)


def _find(folder: Location, names: Sequence[str]) -> Layout:
    """The checkpoint in `folder`; what prune-cli wrote is passed over if there is another."""
    ours = {*find_outputs(folder, names)}
    for choices in ([name for name in names if name not in ours], names):
        layout = find_layout(folder, choices)
        if layout:
            return layout
        file = find_torch_file(folder, choices)
        if file:
            return Layout((file,))
    raise InputError(describe(folder, names))


def _read_files(folder: Location, layout: Layout, loading: Loading) -> Checkpoint:
    _refuse_missing(folder, layout)
    opened: list[Checkpoint] = []
    for first in range(0, len(layout.files), _HEADS_AT_ONCE):
        group = layout.files[first : first + _HEADS_AT_ONCE]
        fetch_heads([folder / name for name in group])
        opened += [
            open_file(folder / name, loading, shard=number, name=name)
            for number, name in enumerate(group, first)
        ]
    checkpoint = _join(folder, layout, opened)
    _check_weight_map(checkpoint, layout)
    return checkpoint


def _refuse_missing(folder: Location, layout: Layout) -> None:
    missing = [name for name in layout.files if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder / (layout.index or '')} names {len(missing)} file(s) that are not there: "
            f"{', '.join(missing)}; the download is incomplete"
        )


# --- what is beside it -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Beside:
    """The other files of a folder: those to copy, and those that are left out, and why."""

    others: tuple[str, ...]
    fellows: tuple[str, ...]
    forms: tuple[str, ...]
    outputs: tuple[str, ...]
    links: tuple[str, ...]


def _look_around(folder: Location, layout: Layout, loading: Loading) -> _Beside:
    used = {*layout.files, layout.index}
    rest = [name for name in list_files(folder) if name not in used]
    links = tuple(name for name in rest if not (folder / name).is_file())
    rest = [name for name in rest if name not in links]
    if loading.copy_all:
        return _Beside(tuple(rest), (), (), (), links)
    fellows = tuple(name for name in rest if is_fellow(name, layout.files))
    rest = [name for name in rest if name not in (*layout.stale, *fellows)]
    forms = {*layout.passed_over, *other_forms(rest)}
    outputs = {*find_outputs(folder, rest)} - forms
    return _Beside(
        tuple(name for name in rest if name not in forms | outputs),
        fellows,
        tuple(name for name in rest if name in forms),
        tuple(name for name in rest if name in outputs),
        links,
    )


def _notes(layout: Layout, beside: _Beside) -> Iterator[str]:
    if layout.stale:
        yield f"{', '.join(layout.stale)} names files that are not there, so it is left out"
    if beside.fellows:
        yield f"shards that {layout.index} does not name are left out: {', '.join(beside.fellows)}"
    if beside.forms:
        yield (
            f"{layout.name} is used, and left out are {', '.join(beside.forms)}: the same weights "
            "in another form (--copy-all copies them)"
        )
    if beside.outputs:
        yield f"outputs of earlier runs are left out: {', '.join(beside.outputs)}"
    if beside.links:
        yield f"links that lead to no file are left out: {', '.join(beside.links)}"


def _copied(unpruned: Sequence[str]) -> Iterator[str]:
    if unpruned:
        yield f"no part of the checkpoint, so copied as they are: {', '.join(unpruned)}"


# --- several in one folder -------------------------------------------------------------------


def _read_subfolders(folder: Location, loading: Loading) -> Checkpoint:
    """One Checkpoint of those in subfolders, whose names stand in front of those of tensors."""
    chosen = _choose(folder, loading.subfolders)
    each = replace(loading, subfolders=())
    opened = {name: _read_part(folder / name, each) for name in chosen}
    excluded = {
        _below(name, file)
        for name, part in opened.items()
        for file in list_files(folder / name)
        if file not in part.others
    }
    others = tuple(file for file in list_files(folder) if file not in excluded)
    notes = [f"{name}: {note}" for name, part in opened.items() for note in part.notes]
    joined = _join_parts(folder, opened)
    return replace(joined, others=others, notes=(*notes, *_copied(list_unpruned(others))))


def _choose(folder: Location, patterns: Sequence[str]) -> list[str]:
    """Return the subfolders that match; "." is the folder itself."""
    names = sorted(entry.name for entry in folder.iterdir())
    own = [] if find_layout(folder, names) is None else ["."]
    there = own + subfolders_with_checkpoints(folder)
    spelt_out = [p for p in patterns if is_inside(p) and (folder / p).is_dir()]
    chosen = [name for name in (*there, *spelt_out) if any(fnmatchcase(name, p) for p in patterns)]
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in chosen)]
    if idle:
        listed = f"there is {', '.join(there)}" if there else "there is none"
        raise InputError(
            f"no subfolder of {folder} that holds a checkpoint matches {', '.join(idle)}; {listed}"
        )
    return list(dict.fromkeys(chosen))


def _read_part(folder: Location, loading: Loading) -> Checkpoint:
    """A checkpoint without the note on what is copied, which is for the whole folder to say."""
    names = sorted(entry.name for entry in folder.iterdir())
    layout = _find(folder, names)
    if is_torch_file(layout.name):
        raise InputError(f"{folder / layout.name} is a file by itself; name it instead")
    beside = _look_around(folder, layout, loading)
    checkpoint = _read_files(folder, layout, loading)
    notes = (*checkpoint.notes, *_notes(layout, beside))
    return replace(checkpoint, others=beside.others, notes=notes)


def _below(folder: str, file: str) -> str:
    return file if folder == "." else f"{folder}/{file}"


def _join_parts(folder: Location, opened: Mapping[str, Checkpoint]) -> Checkpoint:
    parts = [Part("" if name == "." else f"{name}/", part.index) for name, part in opened.items()]
    shards: list[Shard] = []
    found = list(zip(parts, opened.values(), strict=True))
    for part, checkpoint in found:
        shards += [
            replace(
                shard,
                name=part.folder + shard.name,
                folder=part.folder,
                tensors=tuple(_moved(info, part, number) for info in shard.tensors),
            )
            for number, shard in enumerate(checkpoint.shards, len(shards))
        ]
    names = Counter(info.name for shard in shards for info in shard.tensors)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InputError(f"{folder} holds {', '.join(twice)} in more than one subfolder")
    return Checkpoint(
        path=folder,
        format=next(iter(opened.values())).format,
        shards=tuple(shards),
        aliases={
            part.prefix + alias: part.prefix + name
            for part, checkpoint in found
            for alias, name in checkpoint.aliases.items()
        },
        overlaps={
            part.prefix + name: part.prefix + other
            for part, checkpoint in found
            for name, other in checkpoint.overlaps.items()
        },
        dropped=tuple(
            Dropped(part.prefix + entry.key, entry.reason)
            for part, checkpoint in found
            for entry in checkpoint.dropped
        ),
        unwritable={
            part.prefix + name: why
            for part, checkpoint in found
            for name, why in checkpoint.unwritable.items()
        },
        is_folder=True,
        parts=tuple(parts),
    )


def _moved(info: TensorInfo, part: Part, shard: int) -> TensorInfo:
    return info._replace(name=part.prefix + info.name, shard=shard)


# --- one checkpoint of several files ---------------------------------------------------------


def _join(folder: Location, layout: Layout, opened: list[Checkpoint]) -> Checkpoint:
    shards = tuple(
        replace(
            part.shards[0],
            tensors=tuple(
                info if info.shard == number else info._replace(shard=number)
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
    for shard in shards:
        aliases |= find_saved_aliases(shard.metadata, counts)
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


def _check_weight_map(checkpoint: Checkpoint, layout: Layout) -> None:
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
            + ". If the index is stale, remove it: the shards are then read as they are"
        )
