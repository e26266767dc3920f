"""Write to a model of the Hugging Face Hub: large files one by one, then one commit, or nothing.

Each file of weights is made in a temporary file without a name, for the Hub wants to know its hash
before it gets its bytes. See also: `hub_target`, what is there before;
`stores.hub_commit`, the commit itself.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.surroundings import FOLDER_REPORT
from prune_cli.errors import InputError, OutputError
from prune_cli.stores.hub import find_model, is_on_hub
from prune_cli.write.atomic import write_file
from prune_cli.write.folder import INDEX, SHARD_NUMBER, FolderOutput
from prune_cli.write.hub_target import (
    find_weights,
    names_in,
    open_commit,
    refuse_what_is_there,
)
from prune_cli.write.layout import OutputFile
from prune_cli.write.originals import find_original
from prune_cli.write.paths import output_errors
from prune_cli.write.shards import WriteShard
from prune_cli.write.sinks import FileSink

if TYPE_CHECKING:
    from prune_cli.stores.hub_commit import HubCommit

_DESCRIPTORS = Path("/proc/self/fd")


def write_hub(
    output: FolderOutput,
    checkpoint: Checkpoint,
    write_shard: WriteShard,
    *,
    message: str,
    replaces: bool,
    force: bool,
    resume: bool,
    before_commit: Callable[[], None] = lambda: None,
) -> None:
    """Write `output` in one commit on top of what its branch has now.

    Args:
        output: what to write; its folder is on the Hub.
        checkpoint: the input, from which other files are copied.
        write_shard: writes one shard.
        message: of the commit.
        replaces: whether what is left of another checkpoint in the folder goes.
        force: whether to replace what is there.
        resume: whether what is there may be of this run; then there is nothing to do.
        before_commit: called when all was uploaded.

    Raises:
        OutputError: it cannot be written, or somebody else was faster.
    """
    commit, below = open_commit(output.folder, create=True)
    upload = _Upload(commit, below, output, checkpoint, write_shard)
    if not (force or resume):  # somebody may have been faster than our plan
        file = None if replaces else output.shards[0].name
        refuse_what_is_there(output.folder, upload.there, file)
    is_done = resume and _is_done(upload)
    if not is_done:
        upload.add_all(replaces=replaces)
    before_commit()
    for path, content in output.beside.items():
        write_file(path, content, fsync=output.fsync)
    if not is_done:
        upload.commit_all(message)


def _is_done(upload: "_Upload") -> bool:
    """Return whether the checkpoint that is there, if there is any, is of this run.

    Raises:
        OutputError: it is not.
    """
    if not find_weights(upload.there):
        return False
    report = upload.output.texts.get(FOLDER_REPORT)
    if report is None or report != upload.commit.read(upload.below + FOLDER_REPORT):
        raise OutputError(
            f"{upload.output.folder} holds the output of another run: the options, the input or "
            "the version of prune-cli were not the same; --force without --resume replaces it"
        )
    return True


@dataclass(frozen=True)
class _Upload:
    """An output that is being put into a commit, below a folder of it."""

    commit: "HubCommit"
    below: str
    output: FolderOutput
    checkpoint: Checkpoint
    write_shard: WriteShard

    @property
    def there(self) -> list[str]:
        """The names of what is in the folder before it."""
        return names_in(self.commit, self.below)

    def add_all(self, *, replaces: bool) -> None:
        """Take everything, the small texts first: by them the Hub tells who may write."""
        for name, content in self.output.texts.items():
            self.commit.add(self.below + name, content)
        for name in self.output.others:
            self.add_other(name)
        for shard in self.output.shards:
            self.add_shard(shard)
        for name in _replaced(self) if replaces else ():
            self.commit.delete(self.below + name)

    def add_other(self, name: str) -> None:
        """Take a file of the input as it is."""
        source = self.checkpoint.path / name
        try:
            reader = source.open("rb")
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
        with reader, _spool() as spool:
            shutil.copyfileobj(reader, spool.file)
            spool.file.flush()
            self.commit.add(self.below + name, spool.path)

    def add_shard(self, shard: OutputFile) -> None:
        """Take a file of weights: one that the Hub can copy, or the bytes."""
        source = find_original(shard, self.checkpoint)
        model = find_model(source) if is_on_hub(source) else None
        if model:
            self.commit.copy(self.below + shard.name, model)
        else:
            self.add_bytes(shard)

    def add_bytes(self, shard: OutputFile) -> None:
        """Take a file of weights by its bytes."""
        with _spool() as spool:
            self.write_shard(shard, spool.sink(shard.nbytes), threading.Event())
            self.commit.add(self.below + shard.name, spool.path)

    def commit_all(self, message: str) -> None:
        """Make the commit; if the Hub refuses to copy files, with their bytes instead."""
        from prune_cli.stores.hub_commit import ChangedError

        try:
            self.commit.commit(message)
        except ChangedError:
            raise
        except OutputError:
            copied = self.commit.forget_copies()
            if not copied:
                raise
            for shard in self.output.shards:
                if self.below + shard.name in copied:
                    self.add_bytes(shard)
            self.commit.commit(message)


def _replaced(upload: _Upload) -> Iterator[str]:
    """Yield what has to go of the checkpoint that was in the folder, and its report."""
    names = upload.output.names
    single = {SHARD_NUMBER.sub("", name) for name in names}
    folders = {name.rpartition("/")[0] for name in names}
    for name in upload.there:
        if name in names or name.rpartition("/")[0] not in folders:
            continue
        is_part = INDEX.search(name) or SHARD_NUMBER.search(name)
        if is_part or name in (*single, FOLDER_REPORT):
            yield name


# --- temporary files -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spool:
    """A temporary file, and a path that leads to it for as long as it is open."""

    file: IO[bytes]
    path: Path

    def sink(self, nbytes: int) -> FileSink:
        """Return what takes its bytes, of which there will be `nbytes`."""
        folder = Path(tempfile.gettempdir())
        with output_errors(folder):
            os.ftruncate(self.file.fileno(), nbytes)
        return FileSink(folder, self.file.fileno())


@contextlib.contextmanager
def _spool() -> Iterator[_Spool]:
    """Yield a temporary file, without a name where the system has such: then nothing is left."""
    with contextlib.ExitStack() as closing:
        with output_errors(Path(tempfile.gettempdir())):
            if not _DESCRIPTORS.exists():
                named = closing.enter_context(tempfile.NamedTemporaryFile(prefix="prune-cli-"))
                spool = _Spool(named.file, Path(named.name))
            else:
                file = closing.enter_context(tempfile.TemporaryFile(prefix="prune-cli-"))
                spool = _Spool(file, _DESCRIPTORS / str(file.fileno()))
        yield spool
