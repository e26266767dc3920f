"""What the shell offers after a TAB: module names, devices, reports."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

_PATIENCE = 0.3  # seconds: with more, a shell seems to hang
_NAMES_OF_REPORTS = ("*.report.json", "prune-report.json")


def complete_module(context: typer.Context, incomplete: str) -> list[str]:
    """Return the module names of the checkpoint on the line; none if they take too long."""
    # An option that still lacks its value ends Typer's parsing, and leaves what it has as args.
    words = filter(None, (context.params.get("checkpoint"), *context.args))
    path = next((word for word in words if Path(word).exists()), None)
    if path is None:
        return []
    *before, last = incomplete.split(",")
    start = "".join(f"{word}," for word in before)
    return [start + name for name in _modules(path) if name.startswith(last)]


def complete_device(incomplete: str) -> list[str]:
    """Return the devices of this machine, as far as they show without torch."""
    cards = sorted(Path("/dev").glob("nvidia[0-9]*"))
    cuda = ["cuda", *(f"cuda:{number}" for number in range(len(cards)))] if cards else []
    mps = ["mps"] if sys.platform == "darwin" else []
    return [name for name in ("cpu", "auto", *cuda, *mps) if name.startswith(incomplete)]


def complete_format(incomplete: str) -> list[str]:
    """Return the forms that --format knows."""
    from prune_cli.report.formats import Format

    return [form for form in Format if form.startswith(incomplete)]


def complete_output_format(incomplete: str) -> list[str]:
    """Return the formats that an output can have."""
    return [name for name in ("safetensors", "torch", "in-kind") if name.startswith(incomplete)]


def complete_order(incomplete: str) -> list[str]:
    """Return the orders that --sort knows."""
    from prune_cli.inspection.listing import Order

    return [order for order in Order if order.startswith(incomplete)]


def complete_report(incomplete: str) -> list[str]:
    """Return the reports in the folder that is being typed, and its folders."""
    start, separator, last = incomplete.rpartition("/")
    folder = Path(start + separator or ".")
    if not folder.is_dir():
        return []
    reports = [path.name for pattern in _NAMES_OF_REPORTS for path in folder.glob(pattern)]
    folders = [f"{path.name}/" for path in folder.iterdir() if path.is_dir()]
    found = [name for name in sorted(reports) + sorted(folders) if name.startswith(last)]
    return [start + separator + name for name in found if last or name[0] != "."]


def _modules(path: str | Path) -> list[str]:
    from prune_cli.checkpoint import open_checkpoint
    from prune_cli.errors import PruneError

    try:
        with _within(_PATIENCE):
            parameters = open_checkpoint(path).parameters
    except (PruneError, TimeoutError):
        return []
    return list(dict.fromkeys(parameter.module for parameter in parameters))


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
