"""One command, run through the shell: its own process group, bounded output, no child left.

The processes of a command never outlive it, nor this process, whatever ends this process: a
guardian, one small shell for all commands, kills the groups that are left when its pipe breaks.
See also: `template`, which fills the placeholders in; `metric`, which reads the output.
"""

import atexit
import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Self

from prune_cli.cluster.engine import StoppedError

SKIPPED = 125
"""The exit code of a command that wants its trial left out, as `git bisect run` has it."""

_KEPT = 8 << 20  # bytes of the beginning of an output
_TAIL = 1 << 20  # and of its end, where there is more in between
_CHUNK = 1 << 16
_PATIENCE = 3.0  # seconds between SIGTERM and SIGKILL
_LOOK = 0.05  # seconds between two looks at a process whose pipes say nothing

_GATE = 'read -r _ || exit 1; exec /bin/sh -c "$1" </dev/null'
"""Starts the command when it is told to: what is not registered yet must not run."""

_GUARD = """
groups=" "
while read -r change group; do
    case $change in
    +) groups="$groups$group " ;;
    -) groups="${groups%% "$group" *} ${groups#* "$group" }" ;;
    esac
done
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended.

    Attributes:
        exit: its exit code, -N for signal N, None where it ran out of time.
        seconds: it took.
        out, err: what it printed, as text; of very much the beginning and the end.
    """

    exit: int | None
    seconds: float
    out: str
    err: str


def run_command(
    command: str,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    timeout: float | None = None,
) -> Finished:
    """Run `command` through the shell, in the folder the user stands in, and wait for it.

    Args:
        command: for `sh -c`; its stdin is empty.
        environment: is added to that of this process.
        out: the file that keeps its stdout.
        err: the file that keeps its stderr.
        timeout: seconds after which the whole process group ends, by SIGTERM, then SIGKILL.

    Raises:
        StoppedError: stop_commands was called, or the run is over.
        OSError: the files cannot be written.
    """
    started = time.monotonic()
    with Capture(out) as kept_out, Capture(err) as kept_err, _started(command, environment) as run:
        code = _supervise(run, {run.stdout: kept_out, run.stderr: kept_err}, timeout)
    if _groups.stopped or _thread.ended.is_set():
        raise StoppedError
    seconds = time.monotonic() - started
    return Finished(code, seconds, _text(out), _text(err))


def set_thread_environment(environment: Mapping[str, str]) -> None:
    """Add to the environment of every command that this thread runs from now on."""
    _thread.environment = dict(environment)


@contextlib.contextmanager
def run_in(folder: Path | None, ended: threading.Event) -> Iterator[None]:
    """Have the commands of this thread run in `folder`, and stop when `ended` is set."""
    before = _thread.folder, _thread.ended
    _thread.folder, _thread.ended = folder, ended
    try:
        yield
    finally:
        _thread.folder, _thread.ended = before


def stop_commands() -> None:
    """Kill every command that runs, and let no further one start."""
    _groups.stop()


def allow_commands() -> None:
    """Let commands start again after stop_commands."""
    _groups.stopped = False


def raise_if_stopped() -> None:
    """Raise StoppedError where no command may start in this thread."""
    if _groups.stopped or _thread.ended.is_set():
        raise StoppedError


# --- starting and ending ---------------------------------------------------------------------


@contextlib.contextmanager
def _started(command: str, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, registered before the command itself starts; its group is gone at the end."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", _GATE, "sh", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **_thread.environment, **environment},
        cwd=_thread.folder,
        start_new_session=True,
    )
    try:
        _groups.add(process.pid)
        _open_gate(process)
        yield process
    finally:
        _kill_group(process.pid, signal.SIGKILL)
        process.wait()
        _groups.remove(process.pid)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _open_gate(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin as gate:
            gate.write(b"go\n")


def _kill_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Thread(threading.local):
    """What is particular to the commands of one thread.

    Their `environment` is added to that of this process, such as a GPU; they run in `folder`, or
    where this process does, until `ended` is set.
    """

    environment: Mapping[str, str] = MappingProxyType({})
    folder: Path | None = None
    ended = threading.Event()


_thread = _Thread()


class _Groups:
    """The process groups that run now, and the guardian that outlives this process.

    A class because there is one set for all threads, and it changes.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[bytes] | None = None

    def add(self, group: int) -> None:
        """Register `group`; raise StoppedError where nothing may start."""
        with self._lock:
            if self.stopped:
                raise StoppedError
            self._running.add(group)
            self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """Forget `group`, all of which has ended."""
        with self._lock:
            if group in self._running:
                self._running.remove(group)
                self._tell(f"- {group}\n")

    def stop(self) -> None:
        """Kill all that run."""
        with self._lock:
            self.stopped = True
            for group in self._running:
                _kill_group(group, signal.SIGKILL)

    def dismiss_guardian(self) -> None:
        """Let the guardian end, as it does by itself with this process."""
        with self._lock:
            if self._guardian:
                self._guardian.communicate()
                self._guardian = None

    def _tell(self, line: str) -> None:
        if self._guardian is None or self._guardian.poll() is not None:
            self._guardian = _start_guardian(self._running)
        elif self._guardian.stdin:
            self._guardian.stdin.write(line.encode())


def _start_guardian(running: set[int]) -> "subprocess.Popen[bytes]":
    guardian = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # what kills the group of this process must not kill it
        cwd="/",
    )
    if guardian.stdin:
        guardian.stdin.write("".join(f"+ {group}\n" for group in running).encode())
    return guardian


_groups = _Groups()
atexit.register(_groups.dismiss_guardian)


# --- while it runs ---------------------------------------------------------------------------


def _supervise(
    process: "subprocess.Popen[bytes]",
    captures: "Mapping[IO[bytes] | None, Capture]",
    timeout: float | None,
) -> int | None:
    """Copy the output until the command has ended; its exit code, None out of time."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for pipe, capture in captures.items():
            if pipe:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, capture)
        in_time = _copy(process, selector, deadline)
        if not in_time:
            _end_politely(process, selector)
        _kill_group(process.pid, signal.SIGKILL)  # whatever the command left behind
        _drain(selector)
    return process.returncode if in_time else None


def _copy(
    process: "subprocess.Popen[bytes]",
    selector: selectors.BaseSelector,
    deadline: float | None,
) -> bool:
    """Copy what comes until the process ends; False where the deadline comes first."""
    while process.poll() is None and not _thread.ended.is_set():
        left = _LOOK if deadline is None else min(deadline - time.monotonic(), _LOOK)
        if left <= 0:
            return False
        if selector.get_map():
            _copy_ready(selector, left)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(left)
    return True


def _copy_ready(selector: selectors.BaseSelector, timeout: float) -> bool:
    """Copy a piece of each pipe that has one; whether any had."""
    ready = selector.select(timeout)
    for key, _ in ready:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(key.fd, _CHUNK)
            if piece:
                key.data.write(piece)
            else:
                selector.unregister(key.fileobj)
    return bool(ready)


def _drain(selector: selectors.BaseSelector) -> None:
    """Copy what is still in the pipes; one that a process outside the group holds is left."""
    until = time.monotonic() + _LOOK
    while selector.get_map() and _copy_ready(selector, 0) and time.monotonic() < until:
        pass


def _end_politely(process: "subprocess.Popen[bytes]", selector: selectors.BaseSelector) -> None:
    _kill_group(process.pid, signal.SIGTERM)
    _copy(process, selector, time.monotonic() + _PATIENCE)
    _kill_group(process.pid, signal.SIGKILL)
    process.wait()


class Capture:
    """A file that keeps the beginning and the end of an output, however much there is.

    A class because it holds what may be the end until more comes.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._room = _KEPT
        self._tail = bytearray()
        self._dropped = 0

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        self._file.write(piece[: self._room])
        rest = piece[self._room :]
        self._room -= len(piece) - len(rest)
        self._tail += rest
        surplus = len(self._tail) - _TAIL
        if surplus > _TAIL:
            del self._tail[:surplus]
            self._dropped += surplus

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._dropped:
                self._file.write(b"\n[%d bytes left out]\n" % self._dropped)
            self._file.write(self._tail)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
