"""Commands of all kinds, run as real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from prune_cli.sweep.command import (
    Finished,
    StoppedError,
    allow_commands,
    run_command,
    stop_commands,
)


def run(tmp_path: Path, command: str, timeout: float | None = None, **environment: str) -> Finished:
    """`command`, its output in `tmp_path`."""
    return run_command(command, environment, tmp_path / "out", tmp_path / "err", timeout)


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> bool:
    """Whether the process is gone within a few seconds."""
    until = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def wait_for_pid(path: Path) -> int:
    """The process that wrote its number into the file at `path`."""
    until = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return int(path.read_text())


def test_a_command_is_the_shells_and_its_output_is_kept(tmp_path: Path) -> None:
    """Pipes, variables, both outputs, the exit code."""
    command = "echo $X | tr a-z A-Z; echo oops >&2; exit 3"

    finished = run(tmp_path, command, X="hello")

    assert (finished.exit, finished.out, finished.err) == (3, "HELLO\n", "oops\n")
    assert (tmp_path / "out").read_text() == "HELLO\n"
    assert (tmp_path / "err").read_text() == "oops\n"
    assert 0 < finished.seconds < 5


def test_a_command_stands_where_the_user_stands_with_an_empty_stdin(tmp_path: Path) -> None:
    """It cannot take what is meant for the sweep."""
    assert run(tmp_path, "pwd; cat").out == f"{Path.cwd()}\n"


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    """As the shell does: 127."""
    finished = run(tmp_path, "no-such-command-here")

    assert finished.exit == 127
    assert "not found" in finished.err


def test_a_command_killed_by_a_signal_has_its_number(tmp_path: Path) -> None:
    """Negative, as subprocess has it."""
    assert run(tmp_path, "kill -SEGV $$").exit == -signal.SIGSEGV


def test_a_flood_is_kept_at_both_ends_in_bounded_memory(tmp_path: Path) -> None:
    """100 MB come through; the last line is still there."""
    finished = run(tmp_path, "yes 0123456789abcdef | head -c 100000000; echo; echo 0.5")

    assert finished.exit == 0
    assert finished.out.startswith("0123456789abcdef\n")
    assert finished.out.endswith("\n0.5\n")
    assert "bytes left out]" in finished.out
    assert (tmp_path / "out").stat().st_size < 12_000_000


def test_binary_output_is_text_with_marks(tmp_path: Path) -> None:
    """The file has the bytes as they were."""
    finished = run(tmp_path, r"printf '\377\000\n0.5\n'")

    assert finished.out == "\ufffd\0\n0.5\n"
    assert (tmp_path / "out").read_bytes() == b"\xff\0\n0.5\n"


@pytest.mark.parametrize("command", ["sleep 60", "exec >&- 2>&-; sleep 60", "yes"])
def test_a_command_that_hangs_ends_on_time(tmp_path: Path, command: str) -> None:
    """Silent, with closed outputs, or flooding."""
    finished = run(tmp_path, command, timeout=0.3)

    assert finished.exit is None
    assert 0.3 <= finished.seconds < 2


def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After a while of patience."""
    finished = run(tmp_path, "trap '' TERM; while :; do sleep 0.1; done", timeout=0.2)

    assert finished.exit is None
    assert finished.seconds < 6


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_children_left_behind_are_gone(tmp_path: Path, timeout: float | None) -> None:
    """Also those that hold the output open."""
    wait = "sleep 30" if timeout else "true"

    finished = run(tmp_path, f"sleep 60 & echo $!; {wait}", timeout=timeout)

    assert finished.seconds < 3
    assert wait_for_end(int(finished.out))


def test_a_child_in_a_session_of_its_own_delays_nothing(tmp_path: Path) -> None:
    """Such a child is not the sweep's any more; its output is not waited for."""
    finished = run(tmp_path, "setsid sleep 3 & echo 0.5")

    assert finished.out == "0.5\n"
    assert finished.seconds < 2


def test_stopping_ends_what_runs_and_lets_nothing_start(tmp_path: Path) -> None:
    """From another thread, as Ctrl-C does it."""
    ended: list[str] = []

    def work() -> None:
        try:
            run(tmp_path, f"echo $$ > {tmp_path}/pid; sleep 60")
        except StoppedError:
            ended.append("interrupted")

    thread = threading.Thread(target=work)
    thread.start()
    pid = wait_for_pid(tmp_path / "pid")
    try:
        stop_commands()
        thread.join(5)
        with pytest.raises(StoppedError):
            run(tmp_path, f"touch {tmp_path}/started")
    finally:
        allow_commands()

    assert ended == ["interrupted"]
    assert wait_for_end(pid)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["process", "group"])
def test_nothing_outlives_a_killed_sweep(tmp_path: Path, kill: object) -> None:
    """SIGKILL leaves no time to clean up: the guardian does it."""
    script = textwrap.dedent(f"""
        from pathlib import Path
        from prune_cli.sweep.command import run_command
        folder = Path({str(tmp_path)!r})
        command = "sleep 60 & echo $! > " + str(folder / "child") + "; echo $$ > " + str(
            folder / "pid") + "; wait"
        run_command(command, {{}}, folder / "out", folder / "err")
    """)
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    pids = [wait_for_pid(tmp_path / name) for name in ("child", "pid")]

    kill(process.pid, signal.SIGKILL)  # type: ignore[operator]
    process.wait()

    assert all(map(wait_for_end, pids))


def test_many_commands_at_a_time_leave_no_process(tmp_path: Path) -> None:
    """The guardian knows of those that ended, and forgets them."""
    codes: list[int | None] = []

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        codes.extend(run(folder, f"exit {turn}").exit for turn in range(10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(code for code in codes if code is not None) == sorted([*range(10)] * 8)
