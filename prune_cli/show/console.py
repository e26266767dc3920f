"""The two consoles: messages on stderr, and on stdout what was asked for.

Rich takes care of NO_COLOR, of narrow terminals, and of there being no terminal at all.
See also: tables.py for tables, progress.py for bars that move.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from rich import markup
from rich.console import Console

from prune_cli.checkpoint.names import make_printable
from prune_cli.errors import OutputError, PruneError
from prune_cli.report.numbers import format_bytes, format_count
from prune_cli.stores import Location, StorePath
from prune_cli.write.atomic import write_file
from prune_cli.write.paths import STDOUT

UNLIMITED = 1 << 16
"""The columns of a console whose text must not wrap."""

_MOST_PROBLEMS, _LONGEST_PROBLEM = 100, 2000
"""Of an error: lines after the first, and characters of a line."""


_C = TypeVar("_C", bound=Console)


class _Messages(Console):
    """The console on stderr. A class, to go on without messages when nobody reads them."""

    def on_broken_pipe(self) -> None:
        """Go quiet, where Rich would end the process."""
        self.quiet = True

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as Rich does; where messages cannot be written, the work goes on without them."""
        try:
            super().print(*objects, **how)
        except OSError:
            self.quiet = True


def _width(stream: TextIO | None) -> int | None:
    """Return None to have Rich find a terminal's width; a file or a pipe wraps nothing."""
    is_known = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
    return None if is_known else UNLIMITED


def _make(kind: type[_C], stream: TextIO | None, **how: Any) -> _C:
    """Return a console; FORCE_COLOR, as --color always sets it, makes no terminal of a pipe."""
    if os.environ.get("FORCE_COLOR") and not (stream is not None and stream.isatty()):
        how |= {"force_terminal": False, "color_system": "256"}
    return kind(highlight=False, width=_width(stream), **how)


stderr = _make(_Messages, sys.stderr, stderr=True)
"""Where messages go."""


@contextlib.contextmanager
def stdout_page() -> Iterator[Console]:
    """Collect what is printed, and write it to stdout in one piece.

    Raises:
        SystemExit: as write_stdout.
        OutputError: as write_stdout.
    """
    console = _make(Console, sys.stdout)
    with console.capture() as captured:
        yield console
    _write(captured.get())


def write_stdout(text: str) -> None:
    """Write data for the next program in the pipe; one that stops reading ends this one silently.

    On a terminal what does not print is escaped: data can hold names out of files.

    Raises:
        SystemExit: nobody reads on.
        OutputError: stdout is full.
    """
    is_shown = sys.stdout is not None and sys.stdout.isatty()
    _write("\n".join(map(make_printable, text.split("\n"))) if is_shown else text)


def _write(text: str) -> None:
    """Write to stdout as it is.

    Raises:
        SystemExit: nobody reads on.
        OutputError: stdout is full.
    """
    try:
        write_file(STDOUT, text.encode("utf-8", "surrogateescape"))
    except OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise SystemExit(OutputError.exit_code) from None
        raise


def escape(text: str) -> str:
    """Return `text` so that it prints as it is: markup has no effect, control characters neither."""
    return markup.escape(make_printable(text))


def say(text: str, console: Console = stderr) -> None:
    """Print a line of markup; only a terminal wraps it."""
    console.print(text, soft_wrap=not console.is_terminal)


def show_error(error: PruneError) -> None:
    """Show the message of `error`, a problem on each line: the first ones, as far as anyone reads."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    say(f"[bold red]error:[/] {escape(_shorten(first))}")
    for line in rest[:_MOST_PROBLEMS]:
        say(f"       {escape(_shorten(line))}")
    if len(rest) > _MOST_PROBLEMS:
        say(f"       and {len(rest) - _MOST_PROBLEMS:,} more")


def _shorten(line: str) -> str:
    return line if len(line) <= _LONGEST_PROBLEM else f"{line[:_LONGEST_PROBLEM]} ..."


def show_tips(tips: Iterable[str]) -> None:
    """Show what may help, a line each."""
    for tip in tips:
        say(f"[bold]tip:[/] {escape(tip)}")


def show_interrupted() -> None:
    """Show that a signal ended the run, and what is left of it."""
    say(
        "[bold red]interrupted:[/] partial output removed; finished parts are kept "
        "(continue with --resume)"
    )


def show_written(paths: Iterable[Location | None]) -> None:
    """Show where each file or folder is, and its size."""
    for named in paths:
        path = named.afresh() if isinstance(named, StorePath) else named
        if path and (path.is_file() or path.is_dir()):
            say(f"[bold]wrote[/] {escape(str(path))} ({_size(path)})")


def _size(path: Location) -> str:
    if path.is_dir():
        return format_count(sum(1 for _ in path.iterdir()), "file")
    return format_bytes(path.stat().st_size)
