"""The files of an output, whatever its format.

See also: `layout` (safetensors), `in_kind` and `torch_zip` (files of torch).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prune_cli.checkpoint import Checkpoint
from prune_cli.plan.facts import Plan
from prune_cli.write.in_kind import lay_out_in_kind
from prune_cli.write.layout import OutputFile, encode_index, index_name, lay_out
from prune_cli.write.target import Target
from prune_cli.write.torch_zip import lay_out_torch


@dataclass(frozen=True)
class Layout:
    """The files of the output, and its index by name, if it has one."""

    files: tuple[OutputFile, ...]
    index: Mapping[str, bytes] = field(default_factory=dict)


def lay_out_target(checkpoint: Checkpoint, plan: Plan, target: Target) -> Layout:
    """Return the files that `plan` makes of `checkpoint` in the format of `target`.

    Raises:
        RequestError: the plan cannot be carried out in that format.
    """
    name = target.output.name if target.output and not target.is_folder else None
    match target.format:
        case "in-kind":
            index = _index_of_input(checkpoint) if target.is_folder else {}
            return Layout(lay_out_in_kind(checkpoint, plan, name), index)
        case "torch":
            return Layout((lay_out_torch(checkpoint, plan, name or ""),))
    files = lay_out(checkpoint, plan, max_shard_size=target.max_shard_size)
    # A folder keeps the index it had, and gets one where it is split.
    has_index = target.max_shard_size is None and checkpoint.index is not None
    if target.is_folder and (len(files) > 1 or has_index):
        return Layout(files, {index_name(checkpoint): encode_index(checkpoint, files)})
    return Layout(files)


def _index_of_input(checkpoint: Checkpoint) -> dict[str, bytes]:
    if checkpoint.index is None:
        return {}
    return {checkpoint.index.name: (checkpoint.path / checkpoint.index.name).read_bytes()}
