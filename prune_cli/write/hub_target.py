"""What the Hugging Face Hub has where an output is to go: asked before any work, and once more after.

See also: `hub`, which writes there.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import OutputError
from prune_cli.stores.hub import is_on_hub, is_same_branch
from prune_cli.stores.hub_name import parse_name
from prune_cli.stores.paths import Location, StorePath

if TYPE_CHECKING:
    from prune_cli.stores.hub_commit import HubCommit

_WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth|ckpt|(safetensors|bin)\.index(\..+)?\.json)")


def check_hub(
    output: StorePath,
    checkpoint: Checkpoint,
    beside: Iterable[Location],
    *,
    is_folder: bool,
    force: bool,
) -> None:
    """Refuse a folder of the Hub that is the input or holds weights already, or a file that is there.

    Args:
        output: the folder, or the file.
        checkpoint: the input.
        beside: what else is written; on the Hub, that has to be in the same folder.
        is_folder: which of the two the output is.
        force: whether to replace what is there.

    Raises:
        OutputError: so it is; or the Hub does not say.
    """
    folder = output if is_folder else output.parent
    for path in beside:
        if is_on_hub(path) and path.parent != folder:
            raise OutputError(f"{path} is not in {folder}, where all of the commit goes")
    if is_same_branch(folder, checkpoint.path):
        raise OutputError(f"{output} is in the input; choose another model, or a branch: @BRANCH")
    commit, below = open_commit(folder, create=False)
    if not force:
        refuse_what_is_there(folder, names_in(commit, below), None if is_folder else output.name)


def refuse_what_is_there(folder: Location, names: Sequence[str], file: str | None) -> None:
    """Raise an OutputError if `file` is among the `names` in a folder, or, without one, weights."""
    if file in names:
        raise OutputError(f"{folder / str(file)} exists; --force replaces it")
    weights = find_weights(names)
    if file is None and weights:
        raise OutputError(
            f"{folder} holds {weights[0]} already; --force replaces the checkpoint in it"
        )


def find_weights(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are called like weights, or an index of them."""
    return [name for name in names if _WEIGHTS.fullmatch(name)]


def read_there(folder: Location, name: str) -> str | None:
    """Return a small text of a folder of the Hub; None if it is not there, or it is elsewhere."""
    if not is_on_hub(folder):
        return None
    commit, below = open_commit(folder, create=False)
    content = commit.read(below + name)
    return None if content is None else content.decode("utf-8", "replace")


def open_commit(folder: Location, *, create: bool) -> "tuple[HubCommit, str]":
    """Return a commit to the model of `folder`, and what the names in that begin with."""
    from prune_cli.stores.hub_commit import HubCommit

    assert isinstance(folder, StorePath)
    name = parse_name(folder.key)
    commit = HubCommit(name)
    commit.begin(create=create)
    return commit, f"{name.file}/" if name.file else ""


def names_in(commit: "HubCommit", below: str) -> list[str]:
    """Return the names of what is in a folder before `commit`, seen from there."""
    return [name.removeprefix(below) for name in commit.files if name.startswith(below)]
