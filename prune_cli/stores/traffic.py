"""How many bytes came from stores and went to them, for whoever shows progress."""

import threading
from typing import NamedTuple

_lock = threading.Lock()


class Traffic(NamedTuple):
    """Bytes since the process began."""

    received: int = 0
    sent: int = 0


class _Counted:
    """The one counter of this process."""

    traffic = Traffic()


def note_received(nbytes: int) -> None:
    """Count bytes that came from a store; from any thread."""
    with _lock:
        _Counted.traffic = Traffic(_Counted.traffic.received + nbytes, _Counted.traffic.sent)


def note_sent(nbytes: int) -> None:
    """Count bytes that went to a store; from any thread."""
    with _lock:
        _Counted.traffic = Traffic(_Counted.traffic.received, _Counted.traffic.sent + nbytes)


def traffic() -> Traffic:
    """Return what was counted so far."""
    return _Counted.traffic
