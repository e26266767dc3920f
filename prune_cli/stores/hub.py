"""Models of the Hugging Face Hub: their names, and which commit of one a path is in.

A revision is looked up once, and everything is read at the commit that it was then. See also:
`hub_files`, their listings and bytes.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from prune_cli.stores.hub_name import DEFAULT, MODEL, REVISION, parse_name
from prune_cli.stores.paths import Location, StorePath, locate
from prune_cli.stores.store import patiently

if TYPE_CHECKING:
    from prune_cli.stores.hub_files import HubFiles

SCHEME = "hf"

_BARE = re.compile(rf"{MODEL}(?:@(?:{REVISION}))?")
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")
_SNAPSHOT = re.compile(
    r"(?:^|/)models--(?P<model>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})(?=/|$)"
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model as it was at one commit.

    Attributes:
        name: of the model: "org/model".
        commit: the id of the commit.
        file: what a path names in it; "" for all of it.
    """

    name: str
    commit: str
    file: str = ""

    @property
    def path(self) -> str:
        """What it is called without its commit."""
        return f"{self.name}/{self.file}" if self.file else self.name


def locate_checkpoint(text: "str | Location") -> Location:
    """Return where a checkpoint is: as `locate`, but "org/model" is a model of the Hub.

    Unless there is such a path here, or the name is that of a file, or the package is not there.
    """
    if not isinstance(text, str) or not _BARE.fullmatch(text) or text.endswith(_FILES):
        return locate(text)
    if Path(text).exists() or not find_spec("huggingface_hub"):
        return locate(text)
    path = locate(f"{SCHEME}://{text}")
    if isinstance(path, StorePath):
        path.store.note = " (there is no such path here)"
    return path


def is_on_hub(path: Location | None) -> TypeGuard[StorePath]:
    """Return whether `path` is on the Hugging Face Hub."""
    return isinstance(path, StorePath) and path.scheme == SCHEME


def is_whole_model(path: StorePath) -> bool:
    """Return whether a path on the Hub is a model, and nothing inside one."""
    return not parse_name(path.key).file


def is_same_branch(one: Location, other: Location) -> bool:
    """Return whether two paths are on the Hub, and in one branch of one model."""
    if not (is_on_hub(one) and is_on_hub(other)):
        return False
    names = (parse_name(one.key), parse_name(other.key))
    return len({(name.model, name.revision or DEFAULT) for name in names}) == 1


def name_of(path: StorePath) -> str:
    """Return what a path on the Hub is called, for a whole model without its revision."""
    name = parse_name(path.key)
    return (name.file or name.model).rpartition("/")[2]


def find_model(path: Location) -> HubModel | None:
    """Return the model of the Hub that `path` is, or is in; None if it is from elsewhere.

    A folder of the Hub's local cache is known by its name.

    Raises:
        InputError: the Hub does not tell which commit it is.
    """
    if isinstance(path, StorePath):
        return _model_at(path) if is_on_hub(path) else None
    text = path.absolute().as_posix()
    found = _SNAPSHOT.search(text)
    if not found:
        return None
    file = text[found.end() :].strip("/")
    return HubModel(found["model"].replace("--", "/", 1), found["commit"], file)


def _model_at(path: StorePath) -> HubModel:
    name = parse_name(path.key)
    snapshot = patiently(lambda: _files_of(path).snapshot(path.place), path)
    return HubModel(name.model, snapshot.commit, name.file)


def _files_of(path: StorePath) -> "HubFiles":
    return cast("HubFiles", path.store.filesystem)
