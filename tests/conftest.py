"""Fixtures: the command line run in this process."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from prune_cli.cli import main


@dataclass(frozen=True)
class Ran:
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """What it said on stderr, with the line breaks of a narrow terminal undone."""
        return " ".join(self.err.split())


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`main` in this process, with its signal handlers taken back afterwards."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in watched}

    def call(*argv: object) -> Ran:
        code = main([str(argument) for argument in argv])
        return Ran(code, *capfd.readouterr())

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)
