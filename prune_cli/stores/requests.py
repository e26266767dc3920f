"""Single requests that write to a store, or ask what is there now: small objects, copies, removals.

See also: `uploads`, large objects.
"""

import contextlib
from collections.abc import Iterator

from prune_cli.errors import OutputError, PruneError
from prune_cli.stores.paths import StorePath
from prune_cli.stores.store import Fact, describe, read_fact
from prune_cli.stores.traffic import note_sent

S3 = ("s3", "s3a")
_LARGEST_COPY = 5 << 30


def find_now(path: StorePath) -> Fact | None:
    """Return what the store has at `path` now, whatever it said before.

    Raises:
        OutputError: it does not answer.
    """
    filesystem = path.store.filesystem
    filesystem.invalidate_cache()
    with writing(path):
        try:
            return read_fact(filesystem.info(path.place))
        except FileNotFoundError:
            return None


def read_now(path: StorePath) -> bytes | None:
    """Return the bytes of a small object as they are now; None if it is not there.

    Raises:
        OutputError: the store does not answer.
    """
    with writing(path):
        try:
            return bytes(path.store.filesystem.cat_file(path.place))
        except FileNotFoundError:
            return None


def put_now(path: StorePath, content: bytes) -> None:
    """Put a small object at `path`, whatever is there.

    Raises:
        OutputError: the store refuses.
    """
    with writing(path):
        path.store.filesystem.pipe_file(path.place, content)
    note_sent(len(content))


def remove_object(path: StorePath) -> None:
    """Remove an object; nothing if it is not there.

    Raises:
        OutputError: the store refuses.
    """
    with writing(path), contextlib.suppress(FileNotFoundError):
        path.store.filesystem.rm_file(path.place)


def copy_object(source: StorePath, target: StorePath) -> bool:
    """Have the store copy a whole object; False if it cannot, and nothing was done.

    Raises:
        OutputError: the copy has another size.
    """
    if not is_same_store(source, target) or (source.scheme in S3 and _is_too_large(source)):
        return False
    version = source.fact.version if source.fact else ""
    unchanged = {"CopySourceIfMatch": f'"{version}"'} if source.scheme in S3 and version else {}
    try:
        target.store.filesystem.cp_file(source.place, target.place, **unchanged)
    except Exception:  # noqa: BLE001 - whatever it is, the bytes can be sent, and then it is told
        return False
    return True


def is_same_store(source: StorePath, target: StorePath) -> bool:
    """Return whether one connection reaches both."""
    return source.store.filesystem is target.store.filesystem


def _is_too_large(source: StorePath) -> bool:
    return source.stat().st_size > _LARGEST_COPY


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn whatever a store raises into an OutputError that names `path`."""
    try:
        yield
    except PruneError:
        raise
    except FileExistsError as error:
        raise OutputError(
            f"{path} is not what this run found or left there: another run wrote to it, or an answer "
            "of the store was lost; look at it, then start again"
        ) from error
    except Exception as error:
        raise OutputError(f"{path} cannot be written: {describe(error)}") from error
