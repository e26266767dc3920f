"""Opens a checkpoint: a file, recognised by what it holds and never by its name, or a folder.

Only headers are read, and nothing that a file holds is run. Reading order: `contents` (the facts),
`safetensors_file`, `torch_file`, `distributed` (the formats), `files` (which format), `layouts`,
`surroundings` and `folder` (shards, their index, and what is with them). Torch's formats, step by
step: `archive` and `legacy` (where things are), `pickles` and `torch_names` (what they mean),
`state_dict` (which are wanted), `placing` (where their bytes are), `unwritable`, `claims` and
`strided` (what stands against them).
"""

from prune_cli.checkpoint.claims import refuse_claims
from prune_cli.checkpoint.contents import Checkpoint, Dropped, Index, Part, Shard
from prune_cli.checkpoint.files import is_index, open_file
from prune_cli.checkpoint.folder import METADATA, read_folder
from prune_cli.checkpoint.heads import fetch_heads
from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.pairs import separate_odd_pairs
from prune_cli.checkpoint.surroundings import STAGING
from prune_cli.errors import InputError
from prune_cli.stores import Location, locate_checkpoint

__all__ = [
    "STAGING",
    "Checkpoint",
    "Dropped",
    "Index",
    "Loading",
    "Part",
    "Shard",
    "open_checkpoint",
]


def open_checkpoint(path: str | Location, loading: Loading | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`: a file, a folder, its index, or "-" (stdin).

    Args:
        path: where it is: on this machine, or the URL of an object or a folder in a store; or
            "org/model", a model of the Hugging Face Hub.
        loading: which parts of it are wanted.

    Raises:
        InputError: it cannot be read, is no checkpoint, or is refused.

    Example:
        >>> open_checkpoint("model.safetensors").tensors["fc.weight"].shape
        (10, 64)
    """
    path = locate_checkpoint(path)
    try:
        checkpoint = _open(path, loading or Loading())
        refuse_claims(checkpoint)
        return separate_odd_pairs(checkpoint)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Location, loading: Loading) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, loading)
    if path.is_file():
        fetch_heads([path])
    if path.is_file() and is_index(path):
        return read_folder(path.parent, loading, index=path.name)
    return open_file(path, loading)


def _open_folder(path: Location, loading: Loading) -> Checkpoint:
    if not (path / METADATA).is_file():
        return read_folder(path, loading)
    from prune_cli.checkpoint.distributed import read_distributed

    return read_distributed(path, loading)
