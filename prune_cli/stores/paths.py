"""A path in a store, with as much of pathlib's interface as the readers of folders use."""

import io
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

from prune_cli.stores.ranges import StoreBytes
from prune_cli.stores.store import Fact, Store

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://(?P<key>.*)", re.DOTALL)
_LOCAL = ("file", "local")
_READ_AHEAD = 64 << 10


class Status(NamedTuple):
    """What `stat` tells of an object, by the names of os.stat_result."""

    st_size: int
    st_mode: int = stat.S_IFREG


@dataclass(frozen=True, order=True)
class StorePath:
    """An object, or all objects below a key, of one store.

    Paths that come from one another share a Store, and so one listing of it.
    """

    scheme: str
    key: str
    query: str = ""
    """What follows a "?" in a web address: it can hold a signature, so that nothing shows it."""
    store: Store = field(default_factory=lambda: Store(""), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __reduce__(self) -> tuple[object, ...]:
        """Send it to another process with what the store told of this object, and nothing else."""
        return _restore, (self.scheme, self.key, self.query, self.fact)

    def __truediv__(self, inner: "str | PurePosixPath") -> "StorePath":
        parts = [part for part in f"{self.key}/{inner}".split("/") if part != "."]
        return self._with_key("/".join(parts).rstrip("/"))

    def _with_key(self, key: str) -> "StorePath":
        return StorePath(self.scheme, key, self.query, self.store)

    def afresh(self) -> "StorePath":
        """Return the same, of a store that has told nothing yet: what is there now."""
        return StorePath(self.scheme, self.key, self.query, Store(self.scheme))

    # What it is called.

    @property
    def place(self) -> str:
        """What fsspec calls it."""
        return self.store.place(f"{self.key}?{self.query}" if self.query else self.key)

    @property
    def name(self) -> str:
        """The last part of it."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """`name` without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of `name`, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "StorePath":
        """What it is in."""
        return self._with_key(self.key.rpartition("/")[0])

    @property
    def parents(self) -> "tuple[StorePath, ...]":
        """All that it is in, the nearest first."""
        return (self.parent, *self.parent.parents) if "/" in self.key else ()

    def with_name(self, name: str) -> "StorePath":
        """Return another path beside it."""
        return self.parent / name

    def resolve(self) -> "StorePath":
        """Return itself: a store has no links."""
        return self

    absolute = resolve

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False

    # What is there.

    @property
    def fact(self) -> Fact | None:
        """What the store told of the object."""
        return self.store.fact(f"{self.key}?{self.query}" if self.query else self.key)

    def is_file(self) -> bool:
        """Return whether there is an object of that key."""
        return self.fact is not None

    def is_dir(self) -> bool:
        """Return whether there are objects below it."""
        return not self.is_file() and self.store.has_below(self.key)

    def exists(self) -> bool:
        """Return whether there is anything."""
        return self.is_file() or self.is_dir()

    def stat(self) -> Status:
        """Return its size.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return Status(self._known.nbytes)

    @property
    def _known(self) -> Fact:
        fact = self.fact
        if fact is None:
            raise FileNotFoundError(2, "there is no such object", str(self))
        return fact

    def iterdir(self) -> "Iterator[StorePath]":
        """Yield what is directly in it: objects, and what has objects below it."""
        depth = len(self.key) + 1
        keys = [key[:depth] + key[depth:].partition("/")[0] for key in self.store.below(self.key)]
        yield from map(self._with_key, dict.fromkeys(keys))

    def rglob(self, _all: str) -> "Iterator[StorePath]":
        """Yield every object below it."""
        yield from map(self._with_key, self.store.below(self.key))

    # What is in it.

    def content(self, nbytes: int | None = None) -> StoreBytes:
        """Return the object as if it were bytes: all, or the first `nbytes`.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return StoreBytes(self, self._known.nbytes if nbytes is None else nbytes)

    def open(self, _mode: str = "rb") -> io.BufferedReader:
        """Return the object as a stream to be read.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return io.BufferedReader(_Reader(self.content()), _READ_AHEAD)

    def read_bytes(self) -> bytes:
        """Return the whole object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return self.content()[:]

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding, errors)


def _restore(scheme: str, key: str, query: str, fact: Fact | None) -> StorePath:
    store = Store(scheme)
    store.learn(f"{key}?{query}" if query else key, fact)
    return StorePath(scheme, key, query, store)


Location: TypeAlias = Path | StorePath
"""Where a file or a folder is: on this machine, or in a store."""


def locate(text: "str | Location") -> Location:
    """Return the Location that `text` names: a URL is one in a store, but for file://.

    Example:
        >>> locate("s3://models/llama/model.safetensors").name
        'model.safetensors'
    """
    if not isinstance(text, str):
        return text
    found = _URL.match(text)
    if not found:
        return Path(text)
    scheme = found["scheme"].lower()
    if scheme in _LOCAL:
        return Path(found["key"])
    is_web = scheme in ("http", "https")
    key, _, query = found["key"].partition("?") if is_web else (found["key"], "", "")
    return StorePath(scheme, key.strip("/"), query, Store(scheme))


def name_within(path: Location, folder: Location) -> str:
    """Return the way from `folder` to `path`, which is in it: "sub/config.json"."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return path.relative_to(folder).as_posix()
    return str(path)[len(str(folder)) :].lstrip("/")


def is_inside(path: Location, folder: Location) -> bool:
    """Return whether `path` is `folder`, or in it; both without links."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return path.is_relative_to(folder)
    return path == folder or folder in path.parents


class _Reader(io.RawIOBase):
    """An object as a stream, for BufferedReader."""

    def __init__(self, content: StoreBytes) -> None:
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._content)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        some = self._content[self._at : self._at + len(view)]
        view[: len(some)] = some
        self._at += len(some)
        return len(some)
