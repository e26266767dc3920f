"""Run the jobs of one unit in threads; the first error, or a signal, ends all of them.

See also: `cluster.engine`, who runs units.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from prune_cli.cluster.engine import StoppedError

Job = Callable[[], None]


def run(jobs: Iterable[Job], workers: int, stopped: threading.Event | None = None) -> None:
    """Run `jobs`, each when a worker is free for it; the first error stops them all.

    Args:
        jobs: what to run; a job can be a `run` too.
        workers: how many threads.
        stopped: shared with the runs inside and outside of this one: an error in any ends all.

    Raises:
        StoppedError: `stopped` was set from outside before all were done.
    """
    queue, lock = iter(jobs), threading.Lock()
    stopped = stopped or threading.Event()

    def work() -> None:
        while True:
            with lock:
                job = next(queue, None)
            if job is None:
                return
            if stopped.is_set():
                raise StoppedError
            job()

    if workers == 1:
        work()
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            _raise_first(wait(futures, return_when=FIRST_EXCEPTION).done)
        except BaseException:  # Ctrl-C reaches the main thread only, which waits here
            stopped.set()
            raise


def _raise_first(futures: Iterable[Future[None]]) -> None:
    """Raise what a job raised; that jobs were stopped only if that is all there is to tell."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error
