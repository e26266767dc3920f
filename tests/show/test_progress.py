"""What a terminal shows while work takes long."""

import io
import time

import pytest
from rich.console import Console

from prune_cli.show.progress import progress
from prune_cli.stores.traffic import note_received, note_sent


def terminal(width: int = 80) -> Console:
    """A terminal whose screen is a string."""
    return Console(file=io.StringIO(), force_terminal=True, width=width)


def screen(console: Console) -> str:
    """All that was ever on it."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wait_for(console: Console, text: str, seconds: float = 2.0) -> float:
    """How long it takes until `text` is on the screen."""
    start = time.perf_counter()
    while text not in screen(console):
        if time.perf_counter() - start > seconds:
            pytest.fail(f"{text!r} is not on the screen: {screen(console)!r}")
        time.sleep(0.005)
    return time.perf_counter() - start


def test_the_phase_is_soon_on_the_screen() -> None:
    """Planning has no bytes to count, and may take minutes."""
    console = terminal()

    with progress(10**9, quiet=False, console=console):
        wait_for(console, "planning")


def test_bytes_begin_the_next_phase() -> None:
    """As soon as something is written, there is a bar of it; what came before is counted."""
    console = terminal()

    with progress(10**9, quiet=False, console=console) as on_tensor:
        on_tensor("w", 250_000_000)
        wait_for(console, "writing")
        on_tensor("w", 250_000_000)
        wait_for(console, "0.5/1.0 GB")

    assert "planning" not in screen(console)


def test_a_phase_can_be_named() -> None:
    """Whatever takes long between planning and writing."""
    console = terminal()

    with progress(0, quiet=False, doing="comparing", console=console) as phases:
        wait_for(console, "planning")
        phases.begin("hashing")
        wait_for(console, "hashing")
        phases.begin("comparing", 100)
        wait_for(console, "comparing")


def test_of_stores_both_directions_are_shown() -> None:
    """Bytes and rate of what came and of what went, since the work began."""
    console = terminal(120)
    note_received(10**9)

    with progress(10**9, quiet=False, console=console) as on_tensor:
        on_tensor("w", 250_000_000)
        wait_for(console, "writing")
        note_received(300_000_000)
        note_sent(200_000_000)
        wait_for(console, "↓ 300.0 MB")
        wait_for(console, "↑ 200.0 MB")

    assert "B/s" in screen(console)


def test_quick_work_shows_nothing() -> None:
    """Nobody wants a bar that flashes."""
    console = terminal()

    with progress(10**9, quiet=False, console=console) as on_tensor:
        on_tensor("w", 10)

    assert screen(console) == ""


@pytest.mark.parametrize("quiet", [True, False], ids=["quiet", "no terminal"])
def test_nothing_is_shown_to_nobody(*, quiet: bool) -> None:
    """With --quiet, or where stderr is a file."""
    console = Console(file=io.StringIO(), force_terminal=quiet, width=80)

    with progress(10**9, quiet=quiet, console=console) as on_tensor:
        time.sleep(0.3)
        on_tensor("w", 10)

    assert screen(console) == ""


def test_an_error_leaves_a_clean_screen() -> None:
    """What was shown goes, and the cursor comes back."""
    console = terminal()

    with pytest.raises(KeyboardInterrupt), progress(0, quiet=False, console=console):
        wait_for(console, "planning")
        raise KeyboardInterrupt

    assert screen(console).rfind("\x1b[?25h") > screen(console).rfind("\x1b[?25l")


@pytest.mark.parametrize("width", [40, 60])
def test_the_bar_fits_a_narrow_terminal(width: int) -> None:
    """The bar yields first."""
    console = terminal(width)

    with progress(10**9, quiet=False, console=console) as on_tensor:
        on_tensor("w", 10**8)
        wait_for(console, "writing")
        wait_for(console, "0.1/1.0 GB")
