"""The connection to a store, and what it told of its objects: asked once, so that all agree.

See also: `ranges`, the bytes of objects; `paths`, how the rest of the code sees a store.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from prune_cli.errors import InputError, PruneError, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
    "hf": "hf",
    "http": "http",
    "https": "http",
}
"""Scheme -> the extra of prune-cli that brings what fsspec needs for it."""

_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "sha256", "blob_id", "created")
"""What the stores call that which changes with the bytes of an object, the best first."""

ATTEMPTS = 5
FIRST_WAIT = 0.1
"""Seconds before the second attempt; each wait is three times the one before: 4 s in all."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What a store tells of an object: its size, and what changes with its bytes."""

    nbytes: int
    version: str


class Store:
    """One store as one command sees it. A class, for it remembers what it was told.

    A folder is listed once, with all that is below it; whatever is asked of a path in it is
    answered from that.
    """

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.note = ""
        """What an error adds to the name of an object: how it came to be meant."""
        self.heads: dict[str, bytes] = {}
        """The first bytes of objects that were asked for ahead, by their keys."""
        self.copies_ranges: bool | None = None
        """Whether it copies bytes of one object into another; None until that was tried."""
        self._facts: dict[str, Fact | None] = {}
        self._listed: dict[str, list[str]] = {}
        self._lock = threading.RLock()

    @cached_property
    def filesystem(self) -> "AbstractFileSystem":
        """What fsspec makes of the scheme.

        Raises:
            UsageError: fsspec does not know it, or a package is missing for it.
        """
        try:
            return _open(self.scheme)
        except (ImportError, ValueError) as error:
            raise _cannot_open(self.scheme, error) from error

    def place(self, key: str) -> str:
        """Return what fsspec calls the object `key`."""
        return str(self.filesystem._strip_protocol(f"{self.scheme}://{key}"))

    def fact(self, key: str) -> Fact | None:
        """Return what is known of the object `key`; None if there is none, or a folder.

        Raises:
            InputError: the store does not answer.
        """
        with self._lock:
            if key not in self._facts and not self._is_listed(key):
                self._facts[key] = self.ask(key)
            return self._facts.get(key)

    def learn(self, key: str, fact: Fact | None) -> None:
        """Take what another process was told of the object `key`."""
        self._facts[key] = fact

    def ask(self, key: str) -> Fact | None:
        """Ask the store itself what `key` is now."""
        try:
            info = patiently(lambda: self.filesystem.info(self.place(key)), self._shown(key))
        except FileNotFoundError:
            return None
        return read_fact(info)

    def changed_at(self, key: str) -> float:
        """Return when the object `key` was last written, in seconds; infinity if nobody knows.

        Raises:
            FileNotFoundError: it is not there.
            InputError: the store does not answer.
        """
        modified = self.filesystem.modified
        try:
            moment = patiently(lambda: modified(self.place(key)), self._shown(key))
        except InputError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return float("inf")
            raise
        return float(moment.timestamp())

    def _shown(self, key: str) -> str:
        """Return what an error calls an object: what follows "?" may be a signature."""
        is_web = self.scheme in ("http", "https")
        return f"{self.scheme}://{key.partition('?')[0] if is_web else key}{self.note}"

    def has_below(self, key: str) -> bool:
        """Return whether there are objects below `key`; then they are listed, all at once."""
        if self.scheme in ("http", "https"):
            return False  # a web server does not list what it has
        return bool(self.below(key))

    def below(self, key: str) -> list[str]:
        """Return the keys of all objects below `key`, sorted.

        Raises:
            InputError: the store does not answer.
        """
        with self._lock:
            for prefix, keys in self._listed.items():
                if _is_in(key, prefix):
                    return [one for one in keys if _is_in(one, key) and one != key]
            found = dict(self._list(key))
            self._facts |= found
            self._listed[key] = sorted(found)
            return self._listed[key]

    def _list(self, key: str) -> Iterator[tuple[str, Fact]]:
        place = self.place(key).rstrip("/")
        find = self.filesystem.find
        try:
            found = patiently(lambda: find(place, detail=True), f"{self.scheme}://{key}")
        except FileNotFoundError:
            return
        for path, info in found.items():
            inner = path.strip("/").removeprefix(place.strip("/")).strip("/")
            fact = read_fact(info)
            if inner and fact:
                yield f"{key}/{inner}", fact

    def _is_listed(self, key: str) -> bool:
        return any(_is_in(key, prefix) and key != prefix for prefix in self._listed)


def _open(scheme: str) -> "AbstractFileSystem":
    if scheme == "hf":
        from prune_cli.stores.hub_files import HubFiles

        return HubFiles()
    if scheme in ("http", "https"):
        from prune_cli.stores.web_files import WebFiles

        return WebFiles()
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


def _is_in(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}/") or not prefix


def read_fact(info: dict[str, Any]) -> Fact | None:
    """Return what fsspec's `info` tells of an object; None of what is none.

    Raises:
        InputError: it has no size.
    """
    if info.get("type") == "directory":
        return None
    size = info.get("size")
    if size is None:
        raise InputError(
            f"{info.get('name')}: the server does not say how large it is, so it cannot be read in "
            "parts; download it first"
        )
    version = next((_spell(info[key]) for key in _VERSIONS if info.get(key)), "")
    return Fact(int(size), version)


def _spell(version: Any) -> str:
    """Return a version as listings have it: some stores spell it differently elsewhere."""
    return str(version.timestamp() if hasattr(version, "timestamp") else version).strip('"')


def _cannot_open(scheme: str, error: Exception) -> UsageError:
    extra = EXTRAS.get(scheme)
    if extra and isinstance(error, ImportError):
        return UsageError(f"{scheme}:// needs a package more: pip install 'prune-cli[{extra}]'")
    if isinstance(error, ImportError):
        return UsageError(f"{scheme}:// needs a package more: {error}")
    return UsageError(f"{scheme}:// is no store that fsspec knows; known are {', '.join(EXTRAS)}")


# --- errors ----------------------------------------------------------------------------------


def patiently(action: Callable[[], Result], what: object) -> Result:
    """Return what `action` gives; what may go away by itself is tried again, ever later.

    Args:
        action: asks the store.
        what: how an error calls that which is asked for.

    Raises:
        FileNotFoundError: it is not there.
        InputError: the store refuses, or does not answer even the last attempt.
    """
    wait = FIRST_WAIT
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PruneError):
            raise
        except Exception as error:
            if is_final(error) or attempt == ATTEMPTS - 1:
                raise InputError(f"{what} cannot be read: {describe(error)}") from error
        time.sleep(wait)
        wait *= 3
    raise AssertionError


def is_final(error: Exception) -> bool:
    """Return whether to ask again would be of no use."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    refusals = PermissionError | FileNotFoundError | NotImplementedError | TypeError | ValueError
    return isinstance(error, refusals) or (
        type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "FileExpired")
    )


def describe(error: BaseException) -> str:
    """Return why a store refused, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
