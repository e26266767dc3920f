"""A column of a progress bar: what came from stores, what went to them, and how fast.

See also: `stores.traffic`, which counts.
"""

import time
from collections import deque

from rich.progress import Task, TransferSpeedColumn
from rich.text import Text

from prune_cli.report.numbers import format_bytes
from prune_cli.stores.traffic import Traffic, traffic

_WINDOW = 5.0
"""Seconds that a rate is taken over."""


class TrafficColumn(TransferSpeedColumn):
    """The speed of the work; of work with stores, bytes and rate of both directions.

    A class, because a rate needs what was there before.
    """

    max_refresh = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._begin = traffic()
        self._seen: deque[tuple[float, Traffic]] = deque([(time.monotonic(), self._begin)])

    def render(self, task: Task) -> Text:
        """Return what the column shows now."""
        now, found = time.monotonic(), traffic()
        if found == self._begin:
            return super().render(task)
        self._seen.append((now, found))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        seconds = max(now - since, 0.001)
        directions = (
            ("↓", found.received - self._begin.received, found.received - before.received),
            ("↑", found.sent - self._begin.sent, found.sent - before.sent),
        )
        shown = [
            f"{arrow} {format_bytes(total)} {format_bytes(int(recent / seconds))}/s"
            for arrow, total, recent in directions
            if total
        ]
        return Text("  ".join(shown), style="progress.data.speed")
