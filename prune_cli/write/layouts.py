"""The files of an output, whatever its format.

See also: `layout` (safetensors), `in_kind` and `torch_zip` (files of torch).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prune_cli.checkpoint import Checkpoint
from prune_cli.plan.facts import Plan
from prune_cli.write.in_kind import lay_out_in_kind
from prune_cli.write.layout import OutputFile, SafetensorsFile, encode_index, index_name, lay_out
from prune_cli.write.target import Target
from prune_cli.write.torch_zip import lay_out_torch


@dataclass(frozen=True)
class Layout:
    """The files of the output, and its indexes by name: one for each part that has any.

    `unnamed` are files without tensors that no index names, so no reader finds them.
    """

    files: tuple[OutputFile, ...]
    indexes: Mapping[str, bytes] = field(default_factory=dict)
    unnamed: frozenset[str] = frozenset()


def lay_out_target(checkpoint: Checkpoint, plan: Plan, target: Target) -> Layout:
    """Return the files that `plan` makes of `checkpoint` in the format of `target`.

    Raises:
        RequestError: the plan cannot be carried out in that format.
    """
    name = target.output.name if target.output and not target.is_folder else None
    match target.format:
        case "in-kind":
            indexes = _indexes_of_input(checkpoint) if target.is_folder else {}
            return Layout(lay_out_in_kind(checkpoint, plan, name), indexes)
        case "torch":
            return Layout((lay_out_torch(checkpoint, plan, name or ""),))
    files = lay_out(checkpoint, plan, max_shard_size=target.max_shard_size)
    indexes = _encode_indexes(checkpoint, files, target) if target.is_folder else {}
    return Layout(files, indexes, frozenset(_unnamed(files, indexes)))


def _unnamed(files: Sequence[SafetensorsFile], indexes: Collection[str]) -> Iterator[str]:
    folders = {name[: name.rfind("/") + 1] for name in indexes}
    yield from (file.name for file in files if file.folder in folders and not file.tensors)


def _encode_indexes(
    checkpoint: Checkpoint, files: Sequence[SafetensorsFile], target: Target
) -> dict[str, bytes]:
    """A folder keeps the index it had, and gets one where it is split."""
    is_as_before = target.max_shard_size is None
    return {
        index_name(checkpoint, part): encode_index(checkpoint, files, part)
        for part in checkpoint.all_parts
        if sum(file.folder == part.folder for file in files) > 1 or (is_as_before and part.index)
    }


def _indexes_of_input(checkpoint: Checkpoint) -> dict[str, bytes]:
    names = [part.folder + part.index.name for part in checkpoint.all_parts if part.index]
    return {name: (checkpoint.path / name).read_bytes() for name in names}
