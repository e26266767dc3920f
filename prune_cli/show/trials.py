"""A sweep on a console: what runs while it does, and what came of it.

On a terminal a table that lives, in a pipe a line for each trial. See also: `figure`, the pictures.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prune_cli.checkpoint.names import make_printable
from prune_cli.report.numbers import format_count
from prune_cli.show import console
from prune_cli.show.console import escape, say
from prune_cli.sweep import forms
from prune_cli.sweep.comparison import Finished, tell_apart
from prune_cli.sweep.grid import Point, Trial
from prune_cli.sweep.record import Record
from prune_cli.sweep.request import Planned
from prune_cli.sweep.stages import Watch
from prune_cli.sweep.summary import Summary, spell_amount
from prune_cli.sweep.tables import number, to_table

_COLORS = {"ok": "green", "failed": "red", "skipped": "yellow"}
_MOST_ROWS = 30  # of a table that lives: a terminal is not higher
_LONG_NAME = 30


@contextlib.contextmanager
def watching(jobs: int, *, quiet: bool) -> Iterator[Watch]:
    """Show a sweep of `jobs` trials at a time while it runs."""
    state = _State(jobs)
    if quiet:
        yield Watch()
        return
    if not console.stderr.is_terminal:
        yield Watch(state.expect, state.start, lambda record: _print_line(state, record), _note)
        return
    live = Live(
        get_renderable=state.render,
        console=console.stderr,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        yield Watch(state.expect, state.start, state.end, _note)


def _note(text: str) -> None:
    say(f"[bold yellow]note:[/] {escape(text)}")


def show_planned(planned: Iterable[Planned]) -> None:
    """Write every trial and its commands to stdout, for a dry run."""
    lines = [f"{each.trial.name}\t{command}" for each in planned for command in each.commands]
    console.write_stdout("".join(f"{line}\n" for line in lines))


def show_summary(summary: Summary, *, quiet: bool) -> None:
    """Show what came of a sweep, on stderr."""
    if not quiet:
        with contextlib.suppress(BrokenPipeError):
            for line in _summary(summary):
                console.stderr.print(line)


def print_sweeps(sweeps: Sequence[Finished]) -> None:
    """Print what finished sweeps say, on stdout; several beside each other."""
    with console.stdout_page() as page:
        if len(sweeps) == 1:
            parts = _summary(sweeps[0].summary)
        else:
            parts = _compared(sweeps)
        for part in parts:
            page.print(part)


# --- while it runs ---------------------------------------------------------------------------


@dataclass
class _State:
    """How far a sweep is. Not frozen: trials start and end."""

    jobs: int
    expected: list[Trial] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    ended: list[Record] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def expect(self, trials: Sequence[Trial]) -> None:
        """Further trials will run."""
        self.expected += trials

    def start(self, trial: Trial) -> None:
        """One starts."""
        self.running[trial.name] = time.monotonic()

    def end(self, record: Record) -> None:
        """One ended."""
        started = self.running.pop(record.trial, time.monotonic())
        self.spent.append(time.monotonic() - started)
        self.ended.append(record)

    def render(self) -> RenderableType:
        """Return the table as it is now."""
        points = list(dict.fromkeys(trial.point for trial in self.expected))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("", "done", "running", "failed", "mean so far"):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        for point in points[:_MOST_ROWS]:
            table.add_row(*self._row(point))
        more = [Text(f"and {len(points) - _MOST_ROWS} more")] if len(points) > _MOST_ROWS else []
        return Group(Text(self._head()), table, *more)

    def _head(self) -> str:
        left = self._seconds_left()
        failed = sum(record.status == "failed" for record in self.ended)
        parts = [
            f"{len(self.ended)} of {format_count(len(self.expected), 'trial')}",
            f"{len(self.running)} running",
            *([f"{failed} failed"] if failed else []),
            *([] if left is None else [f"about {_spell_time(left)} left"]),
        ]
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """From the trials that took time: those that were done before took none."""
        real = [seconds for seconds in self.spent if seconds > 0.02]
        if not real:
            return None
        left = len(self.expected) - len(self.ended)
        return left * sum(real) / len(real) / min(self.jobs, max(left, 1))

    def _row(self, point: Point) -> list[str]:
        mine = {trial.name for trial in self.expected if trial.point == point}
        ended = [record for record in self.ended if record.trial in mine]
        values = [record.metric for record in ended if record.metric is not None]
        failed = sum(record.status == "failed" for record in ended)
        return [
            _name(point),
            f"{len(ended)}/{len(mine)}",
            str(len(mine & self.running.keys()) or ""),
            f"[red]{failed}[/]" if failed else "",
            number(sum(values) / len(values)) if values else "",
        ]


def _print_line(state: _State, record: Record) -> None:
    state.end(record)
    count = f"{len(state.ended)}/{len(state.expected)}"
    name = escape(record.trial)
    if record.status == "ok":
        found = f"{escape(record.metric_name or 'metric')} {number(record.metric, 6)}"
    else:
        color = _COLORS[record.status]
        found = f"[{color}]{record.status}[/] {escape(record.reason or '')}"
    say(f"{count}  {name}  {found}  ({_spell_time(record.seconds)})")


def _name(point: Point) -> str:
    words = [spell_amount(point)]
    if not point.is_unpruned:
        words += [word for word in (point.allocation, point.criterion, point.module) if word]
    words += ["tuned"] if point.tuned else []
    name = " ".join(words)
    return escape(name if len(name) <= _LONG_NAME else f"{name[: _LONG_NAME - 1]}…")


def _spell_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


# --- when it has run -------------------------------------------------------------------------


def _table(cells: Sequence[Sequence[str]]) -> Table:
    head, *rows = cells
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(head):
        table.add_column(escape(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _compared(sweeps: Sequence[Finished]) -> Iterator[RenderableType]:
    yield _table(forms.to_table(sweeps))
    for sentence in tell_apart(sweeps):
        yield Text(make_printable(sentence))


def _summary(summary: Summary) -> Iterator[RenderableType]:
    yield _table(to_table(summary))
    for difference in summary.differences:
        if difference.kind != "amount":
            yield Text(make_printable(difference.sentence))
    for warning in summary.warnings:
        yield Text.assemble(("note: ", "bold yellow"), make_printable(warning))
    for verdict in summary.assertions:
        word = ("holds: ", "bold green") if verdict.holds else ("does not hold: ", "bold red")
        yield Text.assemble(word, make_printable(f"{verdict.text} ({verdict.reason})"))


def show_folder(folder: Path, summary: Summary, *, quiet: bool) -> None:
    """Show where the results are."""
    if not quiet:
        done = format_count(summary.trials, "trial")
        say(f"[bold]wrote[/] {escape(str(folder))} ({done}; see summary.md and sweep.html)")
