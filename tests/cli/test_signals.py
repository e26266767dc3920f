"""Ctrl-C and SIGTERM at any moment: exit 130 and nothing left, or the whole output and exit 0."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import build

COMMAND = (sys.executable, "-m", "prune_cli", "random-structured", "-a", "1", "-d", "0")
KINDS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How a run ended that got a signal after `delay` seconds."""

    delay: float
    code: int
    said: str
    left: frozenset[str]

    @property
    def is_well(self) -> bool:
        """Whether nothing is left, or, where the signal came too late, all is there."""
        if "Traceback" in self.said:
            return False
        is_whole = self.left >= {"model.pruned.safetensors", "model.pruned.report.json"}
        return self.code == 130 and not self.left or self.code == 0 and is_whole


def start(folder: Path, options: Sequence[str]) -> "subprocess.Popen[str]":
    """A run that listens by now; before that, the process is not ours but Python's."""
    folder.mkdir()
    model = build.safetensors(folder / "model.safetensors", build.tensors())
    process = subprocess.Popen([*COMMAND, *options, model], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not listens(process.pid):
        time.sleep(0.001)
    return process


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, which Python itself has not."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def duration(folder: Path, options: Sequence[str]) -> float:
    """How long a run takes, from when it listens."""
    process = start(folder, options)
    began = time.monotonic()
    process.communicate()
    return time.monotonic() - began


def interrupt(folder: Path, options: Sequence[str], delay: float) -> Ended:
    """Send a signal after `delay` seconds."""
    process = start(folder, options)
    time.sleep(delay)
    process.send_signal(KINDS[int(delay * 1e6) % 2])
    said = process.communicate()[1]
    left = {path.name for path in folder.iterdir()} - {"model.safetensors"}
    return Ended(delay, process.returncode, said, frozenset(left))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether the process listens")
@pytest.mark.parametrize(
    ("count", "options"), [(94, ()), (6, ("-D", "auto"))], ids=["without torch", "with torch"]
)
def test_a_signal_at_any_moment_ends_it_and_leaves_nothing(
    tmp_path: Path, count: int, options: Sequence[str]
) -> None:
    """100 moments at random, from the first import to the end of the process."""
    longest = max(duration(tmp_path / f"whole{number}", options) for number in range(2))
    moments = random.Random(0)
    delays = [moments.uniform(0, longest) for _ in range(count)]

    with ThreadPoolExecutor(2) as pool:
        folders = [tmp_path / str(number) for number in range(count)]
        ended = list(pool.map(interrupt, folders, [options] * count, delays))

    assert [each for each in ended if not each.is_well] == []
    assert sum(each.code == 130 for each in ended) > count / 3


# --- what happens inside ---------------------------------------------------------------------

SWALLOWED = """
    try:
        ready()
    except BaseException:
        pass
    wait()
"""
TURNED_INTO_ANOTHER = """
    try:
        ready()
    except BaseException as error:
        raise ImportError("of a module that was being imported") from error
"""
CLEANED_UP = """
    try:
        ready()
    finally:
        time.sleep(0.3)
        print("cleaned up")
"""
IN_A_CALLBACK = """
    class Thing:
        pass
    thing = Thing()
    import weakref
    kept = weakref.ref(thing, lambda _: ready())
    del thing
    wait()
"""
TOO_LATE_FOR_IT = """
    try:
        ready()
    except BaseException:
        signals._state.raised = lambda: True  # as if it were kept somewhere
    signals.finish()
    print("committed")
"""
FRAME = """
import sys, time
from prune_cli.cli import signals

def wait():
    time.sleep(20)

def ready():
    print("ready", flush=True)
    wait()

def work():
{body}

signals.listen()
try:
    with signals.Orderly():
        work()
except (Exception, signals.Interrupted) as error:
    print(type(error).__name__, signals.has_come())
    sys.exit(signals.INTERRUPTED)
"""


@pytest.mark.parametrize(
    ("body", "printed"),
    [
        pytest.param(SWALLOWED, "Interrupted True", id="swallowed"),
        pytest.param(IN_A_CALLBACK, "Interrupted True", id="raised in a callback of a weakref"),
        pytest.param(TURNED_INTO_ANOTHER, "ImportError True", id="turned into another error"),
        pytest.param(CLEANED_UP, "cleaned up\nInterrupted True", id="cleaned up"),
        pytest.param(TOO_LATE_FOR_IT, "Interrupted True", id="kept, and found before the commit"),
    ],
)
def test_nobody_can_swallow_a_signal(body: str, printed: str) -> None:
    """It is raised again, unless it is on its way: what cleans up is not disturbed."""
    command = [sys.executable, "-c", FRAME.format(body=body)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the second of an impatient user
        said = process.stdout.read()

    assert (process.returncode, said) == (130, printed + "\n")


def test_nohup_is_respected(tmp_path: Path) -> None:
    """A hangup that is ignored when the process starts stays ignored."""
    model = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from prune_cli.cli import signals; signals.listen()\n"
        "signal.raise_signal(signal.SIGHUP)\n"
        "from prune_cli.cli.main import main\n"
        f"raise SystemExit(main(['inspect', {str(model)!r}]))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, b"")
