"""Run cases one after the other, and note each that fails, hangs or takes too much memory.

`run_cases` runs in this process: what lasts longer than it may is ended by an alarm. What an alarm
does not end, in the middle of a library, ends the process: `watch_cases` sees that from outside.
"""

import faulthandler
import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.changes import Tokens
from tests.fuzz.exercise import exercise
from tests.fuzz.subjects import Subject, subjects

SECONDS = 10
"""What takes longer hangs."""

MOST_BYTES = 300 << 20
"""How much memory a case may take that was not taken before."""

_BY_COMMAND = 0.03


class TookTooLongError(BaseException):
    """A case hangs. No Exception: nothing may swallow it."""


@dataclass(frozen=True)
class Case:
    """A damaged input: the same kind and number give the same one."""

    kind: str
    number: str

    @property
    def generator(self) -> random.Random:
        """Return what decides all that is random in it."""
        return random.Random(f"{self.kind}:{self.number}")

    def damaged(self, subject: Subject) -> Tokens:
        """Return the damaged tokens of the subject, which is of this kind."""
        generator = self.generator
        return subject.change(subject.tokens(generator), generator)


@dataclass(frozen=True)
class Finding:
    """What went wrong with a case; two of the same `fault` are the same fault, most likely."""

    case: Case
    fault: str
    told: str


@dataclass
class Tally:
    """What came of many cases: how many there were, and of use, of each kind."""

    ran: dict[str, int] = field(default_factory=dict)
    useful: dict[str, int] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, case: Case, result: "bool | Finding") -> None:
        """Count a case."""
        group = group_of(case.kind)
        self.ran[group] = self.ran.get(group, 0) + 1
        if isinstance(result, Finding):
            self.findings.setdefault(result.fault, result)
        elif result:
            self.useful[group] = self.useful.get(group, 0) + 1


def group_of(kind: str) -> str:
    """Return what several subjects of one kind are called together."""
    return kind.rstrip(" 0123456789")


def cases(seed: int) -> Iterator[Case]:
    """Yield cases without end, of one kind after the other."""
    groups: dict[str, list[str]] = {}
    for kind in subjects():
        groups.setdefault(group_of(kind), []).append(kind)
    generator, turn = random.Random(seed), 0
    while True:
        for kinds in groups.values():
            yield Case(generator.choice(kinds), f"{seed}.{turn}")
        turn += 1


def run_case(case: Case) -> bool | Finding:
    """Return whether a case was of use, or what is wrong with it."""
    subject = subjects()[case.kind]
    fault = run_tokens(subject, case.damaged(subject), case.generator)
    return fault if isinstance(fault, bool) else Finding(case, *fault)


def run_tokens(
    subject: Subject, tokens: Tokens, generator: random.Random
) -> bool | tuple[str, str]:
    """Return whether the damaged input was of use, or the fault, short and in full."""
    attempt, by_command = generator.randrange(100), generator.random() < _BY_COMMAND
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = peak_bytes()
    try:
        with time_limit():
            path = subject.write(folder, tokens)
            used = exercise(subject.role, path, attempt=attempt, by_command=by_command)
        if peak_bytes() - before > MOST_BYTES:
            return "memory", f"it took {(peak_bytes() - before) >> 20} MiB"
    except (Exception, TookTooLongError) as error:
        return _short(error), "".join(traceback.format_exception(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return used


def _short(error: BaseException) -> str:
    """Return the kind of an error and where it was raised, in prune-cli if it was."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/prune_cli/" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].name}"
    text = str(error).partition(":")[0] if type(error).__name__ == "FaultError" else ""
    return f"{type(error).__name__} in {place} {text}"[:160]


def peak_bytes() -> int:
    """Return the most memory that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TookTooLongError in what takes too long; end the process where that does not help."""

    def ring(*_: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- in processes of their own ----------------------------------------------------------------


def watch_cases(seed: int, seconds: float) -> Tally:
    """Run cases of `seed` for some seconds, in a process that is started again if it dies."""
    tally, stop = Tally(), time.monotonic() + seconds
    source = cases(seed)
    while time.monotonic() < stop:
        last = _watch(tally, source, stop)
        if last is not None:
            died = Finding(last, f"death {group_of(last.kind)}", "the process ended in the midst")
            tally.findings.setdefault(died.fault, died)
    return tally


def _watch(tally: Tally, source: Iterator[Case], stop: float) -> Case | None:
    """Let one process run cases until `stop`; return that with which it died."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    case: Case | None = None
    try:
        while time.monotonic() < stop:
            case = next(source)
            here.send(case)
            tally.add(case, here.recv())
        here.send(None)
    except (EOFError, OSError):
        return case
    finally:
        process.join(4 * SECONDS)
    return None


def _serve(pipe: Any) -> None:
    """Run each case that comes."""
    limit_memory()
    subjects()
    while (case := pipe.recv()) is not None:
        pipe.send(run_case(case))


def limit_memory() -> None:
    """Let no allocation of terabytes succeed."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 30), resource.RLIM_INFINITY))
