"""Which rows of tensors in a store are live: taken to be, until their bytes flow.

Whether a channel along dim 0 is pruned already only its own bytes tell, and of a store that would
mean to fetch a weight twice: to plan, and to write. So a plan takes the rows of a weight in a store
as live, all bytes that are read are looked at, and of rows that are not read a few bytes are asked
for. Where a row turns out to be dead, everything is planned again, with all weights looked at first.

See also: `channels.live_channels`, for weights that are at hand.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.stores import StorePath
from prune_cli.stores.ranges import Extent, fetch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SAMPLED_TENSORS = 16
_SAMPLED_BYTES = 64 << 10
_SAMPLED_PART = 256
"""Of the first tensors one byte in this many is read before they are taken as live."""

_PROBE_BYTES = 64


class DeadRowError(Exception):
    """A row that the plan took as live holds nothing but zeros."""


class Liveness:
    """What is known of the rows of one checkpoint in a store. A class, for more is seen with time."""

    def __init__(self) -> None:
        self.looks = False
        """Whether weights are read before they are planned, so that nothing has to be taken so."""
        self.known: dict[tuple[str, int], Sequence[int]] = {}
        """The live channels of what was read, by tensor and dim."""
        self._taken: dict[str, _Rows] = {}

    def take(self, info: TensorInfo, path: StorePath) -> range:
        """Return all rows of `info`, which lies packed in `path`, as live.

        Raises:
            DeadRowError: a sample shows that this checkpoint was pruned before.
        """
        rows = self._taken.setdefault(info.name, _Rows(info))
        if len(self._taken) <= _SAMPLED_TENSORS:
            sampled = min(_SAMPLED_BYTES, info.nbytes // _SAMPLED_PART)
            stop = rows.start + sampled // rows.row_bytes * rows.row_bytes
            if stop > rows.start:
                [content] = fetch(path, [Extent(rows.start, stop)])
                rows.see(rows.start, content)
                if not rows.seen[: sampled // rows.row_bytes].all():
                    raise DeadRowError
        return range(info.shape[0])

    @property
    def is_taken(self) -> bool:
        """Whether rows of any tensor are taken as live that nobody has looked at."""
        return bool(self._taken)

    def watch(self, infos: Iterable[TensorInfo]) -> "Watch | None":
        """Return what looks at the bytes that are read of `infos`; None if nothing was taken."""
        rows = [self._taken[info.name] for info in infos if info.name in self._taken]
        return Watch(rows) if rows else None

    def look(self) -> None:
        """Take nothing from now on."""
        self.looks = True
        self._taken.clear()


class Watch:
    """Looks at bytes of one object as they are read."""

    def __init__(self, rows: "list[_Rows]") -> None:
        self._rows = rows

    def see(self, start: int, content: bytes) -> None:
        """Look at what is at byte `start`."""
        for rows in self._rows:
            if rows.start < start + len(content) and start < rows.stop:
                rows.see(start, content)

    def settle(self, path: StorePath) -> None:
        """Find out about the rows that were not read.

        Raises:
            DeadRowError: one is dead.
        """
        for rows in self._rows:
            for nbytes in (_PROBE_BYTES, rows.row_bytes):
                unseen = rows.unseen(nbytes)
                for extent, some in zip(unseen, fetch(path, unseen), strict=True):
                    rows.see(extent.start, some)
            if not rows.seen.all():
                raise DeadRowError


class _Rows:
    """The rows of a tensor that lies packed in an object, and which were seen to be live."""

    def __init__(self, info: TensorInfo) -> None:
        import numpy as np

        self.start = info.offset or 0
        self.stop = self.start + info.nbytes
        self.row_bytes = info.nbytes // info.shape[0]
        self.seen: npt.NDArray[np.bool_] = np.zeros(info.shape[0], np.bool_)
        dtype = DTYPES[info.dtype]
        self._kind = np.dtype(f"<u{dtype.bits // 8}")
        self._counts = self._kind.type(~dtype.sign % (1 << dtype.bits))

    def unseen(self, nbytes: int) -> list[Extent]:
        """Return where the first `nbytes` are of each row that was not seen to be live."""
        starts = [self.start + row * self.row_bytes for row in (~self.seen).nonzero()[0].tolist()]
        return [Extent(start, start + min(nbytes, self.row_bytes)) for start in starts]

    def see(self, start: int, content: bytes) -> None:
        """Note which rows have a value in the part of them that `content`, from `start`, holds."""
        import numpy as np

        low = max(start, self.start)
        low += (self.start - low) % self._kind.itemsize
        high = min(start + len(content), self.stop)
        high -= (high - self.start) % self._kind.itemsize
        at = low
        while at < high:
            row, inside = divmod(at - self.start, self.row_bytes)
            whole = 0 if inside else (high - at) // self.row_bytes
            stop = at + whole * self.row_bytes if whole else min(high, at + self.row_bytes - inside)
            part = np.frombuffer(
                content, self._kind, (stop - at) // self._kind.itemsize, at - start
            )
            self._note(row, max(whole, 1), part)
            at = stop

    def _note(self, first: int, count: int, bits: "npt.NDArray[np.unsignedinteger]") -> None:
        rows = bits.reshape(count, -1)
        seen = self.seen[first : first + count]
        seen |= rows[:, 0] & self._counts != 0
        dark = (~seen).nonzero()[0]
        if len(dark):
            seen[dark] = (rows[dark] & self._counts).any(axis=1)
