"""One commit to a model of the Hugging Face Hub: large files first, unseen; then all of it at once.

What was uploaded belongs to no revision until the commit, so an interrupted run leaves nothing that
anybody sees, and the next run uploads no large file again that is there. See also: `hub_files`,
reading.
"""

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars, logging

from prune_cli.errors import InputError, OutputError
from prune_cli.stores.hub import HubModel
from prune_cli.stores.hub_files import HubFile, HubFiles, NoModelError, Snapshot, explain
from prune_cli.stores.hub_name import DEFAULT, HubName, parse_name
from prune_cli.stores.paths import StorePath
from prune_cli.stores.store import patiently
from prune_cli.stores.traffic import note_sent

_CHANGED = (409, 412)
"""What the Hub answers to a commit whose parent is not the last one any more."""

_COMMIT_ID = re.compile(r"[0-9a-f]{40}")


class ChangedError(OutputError):
    """Another commit came first."""


class HubCommit:
    """A commit that is being put together. A class, because it lasts as long as the run does."""

    def __init__(self, name: HubName) -> None:
        self.model = name.model
        self.branch = name.revision or DEFAULT
        self._api = HfApi()
        self._operations: list[
            CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
        ] = []
        self._hashes: dict[str, str] = {}
        self._parent = ""
        self._was_sent = False
        self.files: Mapping[str, HubFile] = {}
        """What is there before it."""

    def __str__(self) -> str:
        at = "" if self.branch == DEFAULT else f"@{self.branch}"
        return f"hf://{self.model}{at}"

    def begin(self, *, create: bool) -> None:
        """Find out on top of which commit it will be, and what is there.

        Args:
            create: make a model that is not there, private, without files.

        Raises:
            OutputError: there is no such branch, or it may not be written.
        """
        disable_progress_bars()
        if _COMMIT_ID.fullmatch(self.branch):
            raise OutputError(f"{self} is a commit, which stays as it is; name a branch")
        with self._errors():
            found = self._find_or_create() if create else self._find()
        if found:
            self._parent, self.files = found.commit, found.files

    def _find_or_create(self) -> Snapshot | None:
        found = self._find()
        if found is None:
            self._api.create_repo(self.model, private=True, exist_ok=True)
            found = self._look()
        return found

    def _find(self) -> Snapshot | None:
        """Return the last commit; None if there is no such model, and its main branch is meant."""
        try:
            return self._look()
        except InputError as error:
            if isinstance(error.__cause__, NoModelError) and self.branch == DEFAULT:
                return None
            raise

    def _look(self) -> Snapshot:
        branch = self.branch.replace("/", "%2F")
        return patiently(lambda: HubFiles().snapshot(f"{self.model}@{branch}"), self)

    def read(self, path: str) -> bytes | None:
        """Return a small file that is there; None if it is not."""
        if path not in self.files:
            return None
        place = f"{self.model}@{self._parent}/{path}"
        [found] = HubFiles().cat_ranges([place], [0], [self.files[path].size])
        with self._errors():
            if isinstance(found, Exception):
                raise found
        return found

    def add(self, path: str, content: Path | bytes) -> None:
        """Take a file; a large one is uploaded now, and `content` is not needed any more.

        Raises:
            OutputError: it cannot be.
        """
        added = CommitOperationAdd(path, content)
        with self._errors():
            self._api.preupload_lfs_files(
                self.model, [added], revision=self.branch, free_memory=isinstance(content, Path)
            )
        note_sent(added.upload_info.size)
        if added._should_ignore:
            raise OutputError(f"{self}/{path} cannot be written: the model's .gitignore names it")
        if added._is_uploaded:
            self._hashes[path] = added.upload_info.sha256.hex()
        else:  # the Hub takes it for a small one, of which the commit has the bytes
            small = content.read_bytes() if isinstance(content, Path) else content
            added = CommitOperationAdd(path, small)
            self._hashes[path] = _blob_id(small)
        self._operations.append(added)

    def copy(self, path: str, source: HubModel) -> None:
        """Take a file of a model, this one or another, as it is there; the Hub may refuse that."""
        other = None if source.name == self.model else source.name
        kind = "model" if other else None
        self._operations.append(CommitOperationCopy(source.file, path, source.commit, other, kind))

    def forget_copies(self) -> list[str]:
        """Leave out what was to be copied, and return the paths of it."""
        copied = [one for one in self._operations if isinstance(one, CommitOperationCopy)]
        self._operations = [one for one in self._operations if one not in copied]
        return [one.path_in_repo for one in copied]

    def delete(self, path: str) -> None:
        """Have a file go."""
        self._operations.append(CommitOperationDelete(path))

    def commit(self, message: str) -> str:
        """Make the commit, and return its id; all is there from now on.

        Raises:
            ChangedError: somebody else made one before. Nothing was written.
            OutputError: the Hub refuses it. Nothing was written.
        """
        with self._errors():
            return patiently(lambda: self._try(message), self)

    def _try(self, message: str) -> str:
        """Make the commit, unless that was done by an attempt whose answer got lost."""
        done = self._find_own() if self._was_sent else None
        return done or self._send(message)

    def _send(self, message: str) -> str:
        self._was_sent = True
        try:
            made = self._api.create_commit(
                self.model,
                self._operations,
                commit_message=message,
                revision=self.branch,
                parent_commit=self._parent,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in _CHANGED:
                raise self._changed() from error
            raise explain(error) from error
        return str(made.oid)

    def _find_own(self) -> str | None:
        """Return the last commit if it is this one; None if nothing was committed since."""
        found = HubFiles().snapshot(f"{self.model}@{self.branch.replace('/', '%2F')}")
        if found.commit == self._parent:
            return None
        there = {path: file.hash for path, file in found.files.items()}
        if self._hashes.items() <= there.items():
            return found.commit
        raise self._changed()

    def _changed(self) -> ChangedError:
        return ChangedError(
            f"{self} was changed by somebody else while this ran, so that nothing was written; "
            "run it again"
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what huggingface_hub raises into an OutputError, and keep it quiet."""
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        except OutputError:
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, InputError) else None
            known = explain(cause if isinstance(cause, Exception) else error, self.branch)
            reason = " ".join(str(known).split())[:300]
            raise OutputError(f"{self} cannot be written: {reason}") from error
        finally:
            logging.set_verbosity(before)


def is_there(path: StorePath) -> bool:
    """Return whether a file is on the Hub, as the last commit of its branch has it.

    Raises:
        OutputError: the Hub does not tell.
    """
    name = parse_name(path.key)
    commit = HubCommit(name)
    commit.begin(create=False)
    return name.file in commit.files


def write_alone(path: StorePath, content: bytes) -> None:
    """Write a small file in a commit of its own.

    Raises:
        OutputError: it cannot be written.
    """
    name = parse_name(path.key)
    commit = HubCommit(name)
    commit.begin(create=True)
    commit.add(name.file, content)
    commit.commit(f"Write {name.file}, by prune-cli")


def _blob_id(content: bytes) -> str:
    """Return what git calls a file of `content`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
