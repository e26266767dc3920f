"""The files of models of the Hugging Face Hub: listings, and bytes from the cache or by ranges.

A file system of fsspec, for reading, that holds to one commit of each model. The one that comes
with huggingface_hub looks a branch up again and again, and fetches 5 MB where 100 bytes are asked
for. Who may read what, and where the Hub is, is all up to huggingface_hub: HF_TOKEN, HF_ENDPOINT.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from prune_cli.stores.hub_name import HubName, parse_name

_AT_ONCE = 16
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class NoModelError(PermissionError):
    """There is no such model for whoever asks."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model: its size, and the hash that the Hub knows it by.

    `is_large` is whether it is kept by Git LFS; then the hash is the SHA-256 of its bytes.
    """

    size: int
    hash: str
    is_large: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All files of a model at one commit, by their paths."""

    model: str
    commit: str
    files: Mapping[str, HubFile]


class HubFiles(AbstractFileSystem):  # type: ignore[misc]
    """What `Store` asks of a file system. A class, for it remembers the commit of each model."""

    protocol = "hf"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._api = HfApi()
        self._snapshots: dict[tuple[str, str | None], Snapshot] = {}

    def snapshot(self, place: str) -> Snapshot:
        """Return the model that `place` is in, at the commit that its revision was first."""
        name = parse_name(place)
        key = (name.model, name.revision)
        if key not in self._snapshots:
            try:
                self._snapshots[key] = self._look_up(name)
            except OfflineModeIsEnabled:
                self._snapshots[key] = _find_cached(name)
            except Exception as error:
                raise explain(error, name.revision) from error
        return self._snapshots[key]

    def _look_up(self, name: HubName) -> Snapshot:
        info = self._api.model_info(name.model, revision=name.revision, timeout=_timeout())
        tree = self._api.list_repo_tree(name.model, recursive=True, revision=info.sha)
        files = {entry.path: _file(entry) for entry in tree if isinstance(entry, RepoFile)}
        return Snapshot(name.model, str(info.sha), files)

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """Return what is known of a file, or that it is a folder.

        Raises:
            FileNotFoundError: there is neither.
        """
        inside, files = parse_name(path).file, self.snapshot(path).files
        if inside in files:
            return _facts(path, files[inside])
        if inside and not any(name.startswith(f"{inside}/") for name in files):
            raise FileNotFoundError(2, "the model has no such file", path)
        return {"name": path, "type": "directory", "size": 0}

    def find(self, path: str, *_: object, **__: object) -> dict[str, dict[str, Any]]:
        """Return what is known of every file below `path`."""
        inside, files = parse_name(path).file, self.snapshot(path).files
        root = path.removesuffix(inside).rstrip("/")
        below = f"{inside}/" if inside else ""
        return {
            f"{root}/{name}": _facts(f"{root}/{name}", file)
            for name, file in files.items()
            if name.startswith(below)
        }

    def _open(self, path: str, *_: object, **__: object) -> object:
        """Refuse to: what fsspec has for that would lose what is written without a word."""
        raise NotImplementedError(f"hf://{path} is read by ranges, and written by commits")

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Sequence[int],
        ends: Sequence[int],
        **_: object,
    ) -> list[bytes | Exception]:
        """Return the bytes of each range, or in their place the exception that it came to."""
        if len(paths) == 1:
            return [self._read(paths[0], starts[0], ends[0])]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._read, paths, starts, ends))

    def _read(self, path: str, start: int, end: int) -> bytes | Exception:
        try:
            snapshot, inside = self.snapshot(path), parse_name(path).file
            cached = _cached(snapshot, inside)
            if cached:
                with cached.open("rb") as file:
                    return os.pread(file.fileno(), end - start, start)
            at = {"revision": snapshot.commit, "endpoint": self._api.endpoint}
            url = hf_hub_url(snapshot.model, inside, **at)
            return _fetch(url, start, end)
        except Exception as error:  # noqa: BLE001 - whoever asked for ranges gets it in its place
            return explain(error)


def _file(entry: RepoFile) -> HubFile:
    if entry.lfs is None:
        return HubFile(entry.size, entry.blob_id)
    return HubFile(entry.size, entry.lfs.sha256, is_large=True)


def _facts(name: str, file: HubFile) -> dict[str, Any]:
    return {"name": name, "type": "file", "size": file.size, "sha256": file.hash}


def _timeout() -> float:
    return float(constants.HF_HUB_ETAG_TIMEOUT)


def _fetch(url: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` of what is at `url`; never more than was asked for is taken."""
    wanted = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    request = get_session().stream(
        "GET",
        url,
        headers={**build_hf_headers(), **wanted},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
    )
    with request as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        told = response.headers.get("Content-Range", "bytes 0-")
        if not told.startswith(f"bytes {start}-"):
            raise ConnectionError(f"the server gives another part of the file than byte {start:,}")
        return b"".join(_first(response.iter_raw(), end - start))


def _first(pieces: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:nbytes]
        nbytes -= len(piece)
        if nbytes <= 0:
            break


# --- the local cache -------------------------------------------------------------------------


def _cached(snapshot: Snapshot, inside: str) -> Path | None:
    """Return where the Hub's local cache has a file of that commit, if it has all of it."""
    found = try_to_load_from_cache(snapshot.model, inside, revision=snapshot.commit)
    path = Path(found) if isinstance(found, str) else None
    return path if path and path.stat().st_size == snapshot.files[inside].size else None


def _find_cached(name: HubName) -> Snapshot:
    """Return what the local cache has of a model, where the Hub must not be asked.

    Raises:
        PermissionError: nothing.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.model.replace('/', '--')}"
    revision = name.revision or constants.DEFAULT_REVISION
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    place = folder / "snapshots" / commit
    files = [path for path in place.rglob("*") if path.is_file()] if "/" not in commit else []
    if not files:
        raise PermissionError(
            f"revision {revision} is not in the local cache, and HF_HUB_OFFLINE is set"
        )
    found = {
        path.relative_to(place).as_posix(): HubFile(path.stat().st_size, path.resolve().name)
        for path in files
    }
    return Snapshot(name.model, commit, found)


# --- errors ----------------------------------------------------------------------------------


def explain(error: Exception, revision: str | None = None) -> Exception:
    """Return what `error` of huggingface_hub means, in one line; a refusal is a PermissionError."""
    if isinstance(error, GatedRepoError):
        return PermissionError(f"the model is gated: ask for access on its page, and {_LOG_IN}")
    if isinstance(error, RepositoryNotFoundError):
        return NoModelError(f"the Hub has no such model, or it is private: {_LOG_IN}")
    if isinstance(error, RevisionNotFoundError):
        return PermissionError(f"the model has no revision {revision or 'main'!r}")
    if isinstance(error, DisabledRepoError):
        return PermissionError("the Hub has disabled the model")
    if isinstance(error, EntryNotFoundError):
        return FileNotFoundError(2, "the model has no such file")
    if isinstance(error, HFValidationError):
        return PermissionError(str(error))
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, revision)  # of an upload: it says only which file it was
    return error


def _explain_status(error: HfHubHTTPError) -> Exception:
    status = error.response.status_code
    said = error.server_message or f"the Hub answers with {status}"
    if status in (401, 403):
        return PermissionError(f"the Hub refuses it ({status}): {_LOG_IN}")
    if 400 <= status < 500 and status not in (408, 425, 429):
        return PermissionError(said)
    return ConnectionError(said)
