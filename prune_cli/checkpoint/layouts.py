"""Which files of a folder make up its checkpoint: by their names and their index, as libraries look.

Names are those of transformers, diffusers, sentence-transformers and PEFT, with a variant or
without one: `model.safetensors`, `model.fp16-00001-of-00002.safetensors` under
`model.safetensors.index.fp16.json`, `adapter_model.bin`.

Index format: https://huggingface.co/docs/transformers/big_models#shard-metadata, a JSON object
with `metadata` and `weight_map` (tensor -> file). Nothing in it can lead outside the folder.

See also: `folder`, which reads them; `surroundings`, what else there is.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from prune_cli.errors import InputError
from prune_cli.jsontext import parse
from prune_cli.stores import Location

_WEIGHTS = (
    re.compile(r".+\.safetensors"),
    re.compile(r"((diffusion_)?pytorch_model|adapter_model)([.-].+)?\.bin"),
)
"""Files of weights, the kind that is preferred first. A stray .bin can be anything."""

_INDEX = re.compile(r"(?P<stem>.+)\.(safetensors|bin)\.index(\.(?P<variant>[^.]+))?\.json")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<variant>\.[^.]+)?\.\w+")
_FOREIGN = re.compile(r"consolidated([.-].+)?\.safetensors(\.index\.json)?")
"""The same weights under the names of Mistral's own library."""


@dataclass(frozen=True)
class Layout:
    """Which files of a folder make up its checkpoint.

    Attributes:
        files: of tensors.
        index: the name of the index, if there is one.
        weight_map: of the index: tensor -> file.
        metadata: of the index.
        passed_over: files of weights of the same model in another form, and their indexes.
        stale: indexes of files that are not there.
    """

    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a user would name it by."""
        return self.index or self.files[0]


def find_layout(folder: Location, names: Sequence[str]) -> Layout | None:
    """Return the one checkpoint among the files `names` of `folder`; None if there is none.

    Raises:
        InputError: there are several, shards are missing, or an index is corrupt.
    """
    for kind in _WEIGHTS:
        found = _prefer(list(_layouts(folder, names, kind)))
        if len(found) > 1:
            raise InputError(
                f"{folder} holds {len(found)} checkpoints: "
                f"{', '.join(layout.name for layout in found)}; name the file that you mean "
                "instead of the folder"
            )
        if found:
            return found[0]
    return None


def find_indexed(folder: Location, names: Sequence[str], index: str) -> Layout:
    """Return the checkpoint of the index file `index`, and pass over other variants of it.

    Raises:
        InputError: an index is corrupt.
    """
    layout = read_index(folder, index)
    others = [
        other
        for kind in _WEIGHTS
        for other in _layouts(folder, names, kind)
        if other.index != index and _base(other.name) == _base(index)
        if not {*other.files} & {*layout.files}
    ]
    return _over(layout, others)


def read_index(folder: Location, name: str) -> Layout:
    """Return what the index file `name` of `folder` names.

    Raises:
        InputError: it is not JSON, no index, or names files outside of the folder.
    """
    path = folder / name
    try:
        content = parse(path.read_text(encoding="utf-8"))
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
    return Layout(files, name, weight_map, metadata)


def is_fellow(name: str, files: Iterable[str]) -> bool:
    """Return whether `name` is a shard of the same set as one of `files`, by their names.

    Example:
        >>> is_fellow("model-00001-of-00003.safetensors", ["model-00002-of-00003.safetensors"])
        True
    """
    return bool(_SHARD.fullmatch(name)) and _set_of(name) in map(_set_of, files)


def _set_of(shard: str) -> str:
    return re.sub(r"-\d{5}(?=-of-)", "", shard)


def is_inside(file: str) -> bool:
    """Return whether `file` is a plain path that leads into a folder, and not out of it."""
    path = PurePosixPath(file)
    plain = path.parts and not path.is_absolute() and ".." not in path.parts
    return bool(plain) and str(path) == file and "\\" not in file and "\0" not in file


def variant_of(name: str) -> str | None:
    """Return the variant that a file or index of weights is of; None if it is of none.

    Example:
        >>> variant_of("model.fp16-00001-of-00002.safetensors"), variant_of("model.safetensors")
        ('fp16', None)
    """
    index, shard = _INDEX.fullmatch(name), _SHARD.fullmatch(name)
    if index:
        return index["variant"] or _variant_in(index["stem"])
    if shard:
        return (shard["variant"] or "").removeprefix(".") or _variant_in(shard["stem"])
    return _variant_in(name.rpartition(".")[0])


def _variant_in(stem: str) -> str | None:
    """Return the last part of "model.fp16"; a stem that is not one of the usual ones has none."""
    usual = re.fullmatch(r"((?:diffusion_)?(?:pytorch_)?model|adapter_model)\.([^.]+)", stem)
    return usual[2] if usual else None


# --- every checkpoint of one kind ------------------------------------------------------------


def _layouts(folder: Location, names: Sequence[str], kind: re.Pattern[str]) -> Iterator[Layout]:
    """Yield those with an index, shards without one, and single files."""
    files = [name for name in names if kind.fullmatch(name)]
    indexes = [
        read_index(folder, name)
        for name in names
        if _INDEX.fullmatch(name) and kind.fullmatch(re.sub(r"\.index(\..+)?\.json$", "", name))
    ]
    live = [index for index in indexes if any((folder / file).is_file() for file in index.files)]
    stale = tuple(str(index.index) for index in indexes if index not in live)
    named = {file for index in live for file in index.files}
    loose = [name for name in files if name not in named]
    if not files and indexes:
        yield from indexes  # all that they name is missing, which is said
        return
    yield from live
    singles = [name for name in loose if not _SHARD.fullmatch(name)]
    shards = [name for name in loose if _SHARD.fullmatch(name)]
    # An index need not name a shard that holds metadata alone.
    groups = [] if live else list(_groups(folder, shards))
    for group in (*groups, *((name,) for name in singles)):
        yield Layout(tuple(group), stale=stale)


def _groups(folder: Location, shards: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Shards without an index, those of one checkpoint together."""
    groups: dict[str, list[str]] = {}
    for name in shards:
        groups.setdefault(_set_of(name), []).append(name)
    for group in groups.values():
        match = _SHARD.fullmatch(group[0])
        count = int(match["count"]) if match else 0
        expected = [
            re.sub(r"-\d{5}(?=-of-)", f"-{number:05d}", group[0])
            for number in range(1, min(count, 1 + 10 * len(group)) + 1)
        ]
        missing = [name for name in expected if name not in group]
        if missing:
            raise InputError(
                f"{folder} has {len(group)} of {count} shards, and no index: "
                f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''} "
                f"{'is' if len(missing) == 1 else 'are'} missing; the download is incomplete"
            )
        yield tuple(group)


# --- the one that is meant -------------------------------------------------------------------


def _prefer(found: list[Layout]) -> list[Layout]:
    """Of several checkpoints the one that loads by default, if the rest are forms of the same."""
    kept = [layout for layout in found if not _FOREIGN.fullmatch(layout.name)] or found
    plain = {_base(layout.name) for layout in kept if variant_of(layout.name) is None}
    kept = [
        layout
        for layout in kept
        if variant_of(layout.name) is None or _base(layout.name) not in plain
    ]
    others = [layout for layout in found if layout not in kept]
    return [_over(layout, others) for layout in kept]


def _over(layout: Layout, others: Iterable[Layout]) -> Layout:
    names = [name for other in others for name in (*other.files, other.index) if name]
    return replace(layout, passed_over=tuple(names))


def _base(name: str) -> str:
    """Return what all variants of one checkpoint are called: "model"."""
    match = _INDEX.fullmatch(name) or _SHARD.fullmatch(name)
    stem = match["stem"] if match else name.rpartition(".")[0]
    variant = _variant_in(stem)
    return (stem.removesuffix(f".{variant}") if variant else stem).removeprefix("pytorch_")
