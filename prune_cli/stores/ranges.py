"""Bytes of objects by exact ranges, many at once; what is short, late or changed is an error.

See also: `store`, which objects there are.
"""

import time
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol, overload

from prune_cli.errors import InputError
from prune_cli.stores.store import ATTEMPTS, FIRST_WAIT, Store, describe, is_final
from prune_cli.stores.traffic import note_received

_LARGEST_REQUEST = 4 << 20
_LEAST_REQUEST = 64 << 10
_AT_ONCE = 16


class Object(Protocol):
    """One object of a store, which `paths.StorePath` is."""

    @property
    def key(self) -> str:
        """What its store knows it by."""

    @property
    def place(self) -> str:
        """What fsspec calls it."""

    @property
    def store(self) -> Store:
        """The connection to its store."""


class Extent(NamedTuple):
    """Bytes `start` to `stop` of an object."""

    start: int
    stop: int


def fetch(path: Object, extents: Sequence[Extent]) -> list[bytes]:
    """Return the bytes of each of `extents`, which are fetched at once.

    Raises:
        InputError: they cannot be had, or are fewer than the object should have.
    """
    return fetch_of([(path, extent) for extent in extents])


def fetch_of(wanted: Sequence[tuple[Object, Extent]]) -> list[bytes]:
    """`fetch` of several objects of one store."""
    cut = [
        (number, path, Extent(start, min(start + _LARGEST_REQUEST, extent.stop)))
        for number, (path, extent) in enumerate(wanted)
        for start in range(extent.start, extent.stop, _LARGEST_REQUEST)
    ]
    pieces = _fetch_patiently([(path, extent) for _, path, extent in cut])
    found: list[list[bytes]] = [[] for _ in wanted]
    for (number, _, _), piece in zip(cut, pieces, strict=True):
        found[number].append(piece)
    return [some[0] if len(some) == 1 else b"".join(some) for some in found]


def _fetch_patiently(wanted: Sequence[tuple[Object, Extent]]) -> list[bytes]:
    """Fetch all; what failed but may succeed is asked for again, ever later."""
    found: dict[int, bytes] = {}
    wait = FIRST_WAIT
    for attempt in range(ATTEMPTS):
        missing = [number for number in range(len(wanted)) if number not in found]
        for number, answer in zip(
            missing, _ask([wanted[number] for number in missing]), strict=True
        ):
            problem = _problem(answer, wanted[number][1])
            if problem is None:
                assert isinstance(answer, bytes)
                found[number] = answer
            elif attempt == ATTEMPTS - 1 or (isinstance(answer, Exception) and is_final(answer)):
                raise InputError(f"{wanted[number][0]} cannot be read: {problem}")
        if len(found) == len(wanted):
            break
        time.sleep(wait)
        wait *= 3
    return [found[number] for number in range(len(wanted))]


def _ask(wanted: Sequence[tuple[Object, Extent]]) -> Iterable[bytes | Exception]:
    """Return what the store gives for each: its bytes, or the exception that it raised."""
    if not wanted:
        return []
    store = wanted[0][0].store
    try:
        answers: list[bytes | Exception] = store.filesystem.cat_ranges(
            [path.place for path, _ in wanted],
            [extent.start for _, extent in wanted],
            [extent.stop for _, extent in wanted],
            batch_size=_AT_ONCE,
            on_error="return",
        )
    except Exception as error:  # noqa: BLE001 - a store raises what its library does
        return [error] * len(wanted)
    note_received(sum(len(answer) for answer in answers if not isinstance(answer, Exception)))
    return answers


def _problem(answer: bytes | Exception, extent: Extent) -> str | None:
    if isinstance(answer, FileNotFoundError):
        return "it is not there any more"
    if isinstance(answer, Exception):
        return describe(answer)
    if len(answer) != extent.stop - extent.start:
        return (
            f"the store gave {len(answer):,} bytes instead of {extent.stop - extent.start:,} from "
            f"byte {extent.start:,}"
        )
    return None


class StoreBytes:
    """An object as if it were bytes; what was read of it is kept, for readers that go to and fro."""

    def __init__(self, path: Object, nbytes: int, start: int = 0) -> None:
        self._path, self._nbytes, self._start = path, nbytes, start
        head = path.store.heads.get(path.key, b"")[start : start + nbytes]
        self._kept = [(0, head)] if head else []

    def part(self, start: int, stop: int) -> "StoreBytes":
        """Return bytes `start` to `stop` as if they were all."""
        return StoreBytes(self._path, stop - start, self._start + start)

    def __len__(self) -> int:
        return self._nbytes

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, int):
            if at >= self._nbytes:
                raise IndexError(at)
            return self._read(at, at + 1)[0]
        start, stop, _ = at.indices(self._nbytes)
        return self._read(start, stop) if stop > start else b""

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where `wanted`, one byte, is first between `start` and `stop`; -1 if it is not."""
        for at in range(start, stop, _LEAST_REQUEST):
            place = self[at : min(at + _LEAST_REQUEST, stop)].find(wanted)
            if place >= 0:
                return at + place
        return -1

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`, which nobody will want again: they are not kept."""
        held = self._holding(start, stop)
        if held is not None:
            return held
        return self._fetch([Extent(start, stop)])[0]

    def ask_ahead(self, extents: Iterable[Extent]) -> None:
        """Read `extents` side by side, for they will be wanted one by one."""
        inside = [Extent(max(one.start, 0), min(one.stop, self._nbytes)) for one in extents]
        wanted = [one for one in inside if self._holding(*one) is None and one.stop > one.start]
        found = self._fetch(wanted)
        self._kept += [(one.start, some) for one, some in zip(wanted, found, strict=True)]
        self._kept.sort(key=itemgetter(0))

    def _read(self, start: int, stop: int) -> bytes:
        held = self._holding(start, stop)
        if held is not None:
            return held
        end = min(max(stop, start + _LEAST_REQUEST), self._nbytes)
        [some] = self._fetch([Extent(start, end)])
        insort(self._kept, (start, some), key=itemgetter(0))
        return some[: stop - start]

    def _fetch(self, extents: Sequence[Extent]) -> list[bytes]:
        moved = [Extent(self._start + start, self._start + stop) for start, stop in extents]
        return fetch(self._path, moved)

    def _holding(self, start: int, stop: int) -> bytes | None:
        """Return bytes `start` to `stop` if one piece that was kept has them all."""
        last = bisect_right(self._kept, start, key=itemgetter(0))
        for at, some in self._kept[max(last - 3, 0) : last]:
            if stop <= at + len(some):
                return some[start - at : stop - at]
        return None
