"""What Ctrl-C, SIGTERM and SIGHUP do: end with 130, at once or after cleaning up.

While nothing is open there is nothing to clean up, and the process ends on the spot: an exception
in the middle of an import may be swallowed, or end in a traceback. In `Orderly()` an exception goes
up to main(), through everything that cleans up; if somebody swallows it, it is raised again. After
`finish()` the output stands, and a signal comes too late.

The first thing that the process imports, so it imports as little as it can: no typing, for one.
"""

import os
import signal
import sys
import weakref

INTERRUPTED = 130
"""The exit code after a signal."""

_AGAIN = 0.05  # seconds, until an exception that was swallowed is raised again


class Interrupted(BaseException):
    """A signal asked us to stop. No Exception: nothing between here and main() may swallow it."""

    def __init__(self) -> None:
        super().__init__()
        _state.raised = weakref.ref(self)


class _State:
    """What the handlers know: which signals they are for, and how far the process is."""

    watched: tuple[signal.Signals, ...] = ()
    is_orderly = False
    came = False
    raised: "weakref.ref[Interrupted] | None" = None


_state = _State()


def listen() -> None:
    """Watch the signals, from here to the end of the process."""
    _state.watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        _state.watched = (signal.SIGINT, signal.SIGTERM)
    for number in _state.watched:
        signal.signal(number, _interrupt)
    sys.unraisablehook = _tell_unless_interrupted


def _tell_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """Print what was raised where nothing can be, such as in a weakref's callback.

    Not what a signal raised there, which is raised again.
    """
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


class Orderly:
    """A context within which a signal raises Interrupted, so that what is open is cleaned up."""

    def __enter__(self) -> None:
        self._before, _state.is_orderly = _state.is_orderly, True

    def __exit__(self, *_: object) -> None:
        _state.is_orderly = self._before


def finish() -> None:
    """Ignore signals from here on: the next step makes the output appear.

    Raises:
        Interrupted: one came already, and somebody swallowed it.
    """
    _ignore()
    if _state.came:
        raise Interrupted


def has_come() -> bool:
    """Return whether a signal asked us to stop; no further exception is raised for it."""
    if _state.came:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _state.came


def _interrupt(*_: object) -> None:
    _ignore()  # a second one must not stop the clean-up after the first
    if not _state.is_orderly:
        _leave()
    _state.came = True
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
    raise Interrupted


def _raise(*_: object) -> None:
    """Raise Interrupted unless one is on its way still: what cleans up must not be disturbed."""
    if _state.raised is None or _state.raised() is None:
        raise Interrupted


def _ignore() -> None:
    for number in _state.watched:
        signal.signal(number, signal.SIG_IGN)


def _leave() -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)
