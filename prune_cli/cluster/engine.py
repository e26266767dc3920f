"""Submits units to a `concurrent.futures.Executor`, and knows nothing else of who runs them.

See also: `scheduler`, the executor that is a cluster.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")

LOOK = 2.0
"""Seconds between two looks at an engine whose units take long."""


class StoppedError(Exception):
    """Remaining work was abandoned after another failure or a signal; that error is the one raised."""


@dataclass(frozen=True)
class Engine:
    """Who runs units.

    Attributes:
        executor: runs them.
        window: returns how many are submitted at a time; asked again while they run, for workers
            come and go.
        is_remote: whether units run elsewhere: they can be pickled, hold no open file, and are left
            behind when the run ends, for they end by themselves (see `runs`).
    """

    executor: Executor
    window: Callable[[], int]
    is_remote: bool = False


@dataclass(frozen=True)
class Call:
    """One unit: a function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@contextlib.contextmanager
def threads(count: int) -> Iterator[Engine]:
    """Yield the engine of one machine: `count` threads of this process."""
    executor = ThreadPoolExecutor(count, "unit")
    try:
        yield Engine(executor, lambda: count)
    finally:
        executor.shutdown(cancel_futures=True)


def run_units(
    units: Iterable[Call],
    engine: Engine,
    on_end: Callable[[Any], None] = lambda _: None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Run `units`, and call `on_end` with what each returns, as it ends; the first error ends all.

    Args:
        units: asked for one by one, as there is room for them.
        engine: runs them.
        on_end: called in this thread.
        stop: called when an error or a signal ends the run, before units that still run here are
            waited for.

    Raises:
        BaseException: whatever a unit raised, or a signal.
    """
    waiting, running = iter(units), set[Future[Any]]()
    try:
        while _submit(waiting, running, engine) or running:
            done, _ = wait(running, LOOK, FIRST_COMPLETED)
            running -= done
            for result in _results(done):
                on_end(result)
    except BaseException as error:
        stop()
        _end(running, engine, error)
        raise


def _submit(waiting: Iterator[Call], running: set["Future[Any]"], engine: Engine) -> bool:
    """Submit units until as many as fit are running; whether any was."""
    submitted, window = False, engine.window()
    while len(running) < window and (call := next(waiting, None)):
        running.add(engine.executor.submit(call.function, *call.arguments))
        submitted = True
    return submitted


def _results(done: Iterable["Future[_T]"]) -> list[_T]:
    """Return what units returned; of several errors, raise one that is not the echo of another."""
    done = list(done)
    for future in sorted(done, key=_is_echo):
        future.result()
    return [future.result() for future in done]


def _end(running: set["Future[Any]"], engine: Engine, error: BaseException) -> None:
    """Let nothing more begin; wait for what runs here, which may have the error to tell."""
    for future in running:
        future.cancel()
    if engine.is_remote:
        return
    left = [future for future in running if not future.cancelled()]
    wait(left)
    if isinstance(error, StoppedError):
        _results(left)


def _is_echo(future: "Future[Any]") -> bool:
    return not future.cancelled() and isinstance(future.exception(), StoppedError)
