"""What verify found: every disagreement, or what was compared and agrees."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prune_cli.report.numbers import format_bytes, format_count
from prune_cli.show.console import escape, say

if TYPE_CHECKING:
    from prune_cli.verify.facts import Disagreement, Verification


_MOST_SHOWN = 1000


def show_verification(verification: "Verification", *, quiet: bool = False) -> None:
    """Show the disagreements, the first of very many; if there is none and not `quiet`, what was compared."""
    for problem in verification.disagreements[:_MOST_SHOWN]:
        say(_describe(problem))
    more = len(verification.disagreements) - _MOST_SHOWN
    if more > 0:
        say(f"and {more:,} more; --json lists all")
    if verification.is_verified and not quiet:
        for line in _what_was_compared(verification):
            say(line)


def _describe(problem: "Disagreement") -> str:
    channel = "" if problem.channel is None else f", channel {problem.channel:,}"
    offset = "" if problem.offset is None else f" (byte {problem.offset:,} of its file)"
    where = f"[bold]{escape(problem.tensor)}[/]{channel}: " if problem.tensor else ""
    return f"{where}{escape(problem.fact)}{offset}"


def _what_was_compared(verification: "Verification") -> Iterator[str]:
    compared = (
        f"{format_count(verification.tensors, 'tensor')}, {format_bytes(verification.nbytes)}"
    )
    scope = "every byte"
    if not verification.with_source:
        scope = "all that can be told without the source; --source compares every byte"
    yield f"[bold green]verified[/] {compared}: {scope}"
