"""The engine that is a cluster: the workers of a dask scheduler, behind a concurrent.futures.Executor.

The only file that imports dask, and only when a scheduler is named. What is sent to a worker is
prune-cli's own functions and facts: a worker has to have the same version of it, and to see the
same folders, which is checked before anything is sent.
"""

import contextlib
import json
import logging
import os
import platform
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prune_cli
from prune_cli.cluster.engine import Engine
from prune_cli.errors import OutputError, SchedulerError, UsageError
from prune_cli.stores import Location, StorePath

_PER_THREAD = 2
"""Units that are submitted for each thread of a worker: one runs, and the next is there already.
No more, for all that are assigned to a worker that dies are suspected of having killed it."""

_PATIENCE = 60.0  # seconds without any worker
_KNOCKING = 5.0  # seconds for a scheduler to start
_TIMEOUT = 15.0  # seconds to connect to it
_LOOK = 1.0  # seconds between two counts of the workers
_MOST_NAMED = 5
_HOST_AND_PORT = re.compile(
    r"((?P<scheme>[a-z]+)://)?(?P<host>[\w.-]+|\[[\da-fA-F:.%]+\]):(?P<port>\d+)"
)


@dataclass(frozen=True)
class Needs:
    """What workers have to see.

    Attributes:
        reads: files, and how many bytes each has.
        writes: a folder to write to, which is there.
        folders: others that have to be there.
        begins_in: the folder that they have to be started in, where the user's code counts on it.
    """

    reads: Mapping[Location, int]
    writes: Path | None = None
    folders: tuple[Location, ...] = ()
    begins_in: Path | None = None


@contextlib.contextmanager
def connect(
    scheduler: str,
    needs: Needs,
    resources: Mapping[str, float] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Engine]:
    """Yield the engine of a scheduler, whose workers were all found to see what they need.

    Args:
        scheduler: its address (tcp://host:8786), or the file that it wrote it to.
        needs: what every worker has to see.
        resources: that each unit takes, as the workers declare them: {"GPU": 1}.
        tell: called with a sentence: who works.

    Raises:
        UsageError: distributed is not installed, or this is no scheduler's address or file.
        SchedulerError: it is not there, or was lost meanwhile; or workers cannot do it.
    """
    client = _open(scheduler)
    try:
        addresses = _wait_for_workers(client, scheduler)
        _check_workers(client, needs)
        workers, threads = len(addresses), sum(addresses.values())
        tell(f"{_count(workers, 'worker')} of {scheduler}, {_count(threads, 'thread')}")
        executor = client.get_executor(pure=False, retries=2, **_resources(resources))
        with _translated(scheduler):
            yield Engine(executor, _Window(client, scheduler).count, is_remote=True)
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=2)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _resources(resources: Mapping[str, float] | None) -> dict[str, Any]:
    return {"resources": dict(resources)} if resources else {}


@contextlib.contextmanager
def _translated(scheduler: str) -> Iterator[None]:
    """Turn what dask raises into errors of ours."""
    from distributed import KilledWorker

    try:
        yield
    except CancelledError as error:
        raise _lost(scheduler) from error
    except KilledWorker as error:
        raise SchedulerError(
            f"{error.allowed_failures + 1} workers died one after the other while they had the same "
            "unit; see their logs (is there too little memory?), then --resume"
        ) from error


def _lost(scheduler: str) -> SchedulerError:
    return SchedulerError(
        f"the scheduler {scheduler} was lost; what is finished is kept: start another, and run "
        "the same command with --resume"
    )


# --- connecting --------------------------------------------------------------------------------


def _open(scheduler: str) -> Any:
    """Return a client of the scheduler."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            f"--scheduler needs dask.distributed, which cannot be imported ({error}); "
            "pip install 'prune-cli[cluster]'"
        ) from error
    _silence()
    address = _address(scheduler)
    _knock(scheduler, address)
    try:
        return Client(address, timeout=_TIMEOUT, name="prune-cli", set_as_default=False)
    except Exception as error:  # dask has errors of many kinds for what it cannot talk to
        raise SchedulerError(
            f"what answers at {address} is no scheduler that this can talk to: "
            f"{error or type(error).__name__}"
        ) from error


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, out of its file if that is what is given."""
    path = Path(scheduler)
    if path.is_file():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, LookupError, TypeError):
            raise UsageError(
                f"{scheduler} is no scheduler file, as `dask scheduler --scheduler-file` writes it"
            ) from None
    if _HOST_AND_PORT.fullmatch(scheduler):
        return scheduler
    raise UsageError(
        f"--scheduler {scheduler} is neither an address (tcp://host:8786) nor a file that is there"
    )


def _knock(scheduler: str, address: str) -> None:
    """Connect and hang up, for the reason if that fails, which dask does not tell.

    Raises:
        SchedulerError: nobody answers; one that is just starting is waited for.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if not found or found["scheme"] not in (None, "tcp", "tls"):
        return
    deadline = time.monotonic() + _KNOCKING
    while True:
        try:
            socket.create_connection((found["host"].strip("[]"), int(found["port"])), 3).close()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline:
                place = address if scheduler == address else f"{address}, from {scheduler}"
                raise SchedulerError(
                    f"no scheduler answers at {place}: {getattr(error, 'strerror', None) or error}; "
                    "is it running, and can it be reached from here?"
                ) from error
            time.sleep(0.2)


def _silence() -> None:
    """Let dask tell nothing by itself: what ends a run is told as an error."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _wait_for_workers(client: Any, scheduler: str) -> dict[str, int]:
    """Return the workers and their threads, once there are any."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := client.nthreads()):
        if time.monotonic() > deadline:
            raise SchedulerError(
                f"the scheduler {scheduler} has no workers; start some: dask worker {scheduler}"
            )
        time.sleep(0.2)
    return dict(found)


class _Window:
    """How many units fit, counted no more than once a second; notices that nobody is left."""

    def __init__(self, client: Any, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler
        self._next, self._count = 0.0, 1
        self._alive = time.monotonic()

    def count(self) -> int:
        """Return it.

        Raises:
            SchedulerError: the scheduler was lost, or had no worker for a minute.
        """
        now = time.monotonic()
        if self._client.status != "running":
            raise _lost(self._scheduler)
        if now >= self._next:
            threads = sum(self._client.nthreads().values())
            self._next = now + _LOOK
            self._count = max(_PER_THREAD * threads, 1)
            self._alive = now if threads else self._alive
        if now - self._alive > _PATIENCE:
            raise SchedulerError(
                f"the workers of {self._scheduler} are gone; what is finished is kept: start "
                "others, and run the same command with --resume"
            )
        return self._count


# --- the check ---------------------------------------------------------------------------------


def _check_workers(client: Any, needs: Needs) -> None:
    """Refuse workers that do not see what they need, or are of another version.

    Raises:
        SchedulerError: some are; each is named with its reasons.
        OutputError: this process cannot write itself.
    """
    with _token(needs.writes) as token:
        found = client.run(check_worker, needs, token, _versions(), on_error="return")
    problems = {worker: _problems_of(answer) for worker, answer in sorted(found.items())}
    bad = {worker: facts for worker, facts in problems.items() if facts}
    if bad:
        lines = [f"{len(bad)} of {len(found)} workers cannot do it:"]
        lines += [f"{worker}: {'; '.join(facts)}" for worker, facts in [*bad.items()][:_MOST_NAMED]]
        more = [f"and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []
        raise SchedulerError("\n".join([*lines, *more]))


def _problems_of(answer: object) -> Sequence[str]:
    if isinstance(answer, list):
        return answer
    if "ModuleNotFoundError" in repr(answer) or isinstance(answer, ImportError):
        return [f"prune-cli {prune_cli.__version__} is not installed there ({answer})"]
    return [f"it cannot be asked ({type(answer).__name__}: {answer})"]


@contextlib.contextmanager
def _token(folder: Path | None) -> Iterator[Path | None]:
    """Yield a file that is in `folder` for a moment, by which it is known elsewhere."""
    if folder is None:
        yield None
        return
    token = folder / f".prune-cli-{secrets.token_hex(6)}.tmp"
    try:
        token.touch()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    return {
        "prune-cli": prune_cli.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def check_worker(needs: Needs, token: Path | None, versions: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the process that this runs in, as a worker."""
    here = _versions()
    problems = [
        f"it has {name} {here[name]}, here is {version}"
        for name, version in versions.items()
        if here[name] != version
    ]
    misfits = (_misfit(path, nbytes) for path, nbytes in needs.reads.items())
    problems += list(filter(None, misfits))[:1]
    problems += [f"it does not see {folder}" for folder in needs.folders if not folder.is_dir()]
    if token and not token.exists():
        problems.append(f"its {token.parent} is not the folder that it is here")
    elif token and not os.access(token.parent, os.W_OK | os.X_OK):
        problems.append(f"it may not write to {token.parent}")
    if needs.begins_in and Path.cwd() != needs.begins_in:
        problems.append(f"it was started in {Path.cwd()}; the model's code is in {needs.begins_in}")
    return problems


def _misfit(path: Location, nbytes: int) -> str | None:
    if isinstance(path, StorePath):
        return None if path.store.ask(path.key) == path.fact else f"its {path} is another one"
    try:
        found = path.stat().st_size
    except OSError as error:
        return f"it cannot read {path}: {error.strerror}"
    if not os.access(path, os.R_OK):
        return f"it may not read {path}"
    return None if found == nbytes else f"its {path} has {found:,} bytes, here it has {nbytes:,}"
