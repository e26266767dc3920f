"""Fixtures: the command line run in this process."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from prune_cli.cli.main import main


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


@pytest.fixture(params=["cuda", "lazy"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device with memory of its own. Every build of torch has "lazy", which nobody prunes on."""
    if request.param == "lazy":
        _start_lazy()
        monkeypatch.setattr(
            "prune_cli.write.accelerator.available_devices", lambda: ["cpu", "lazy"]
        )
    elif not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return str(request.param)


@cache
def _start_lazy() -> None:
    from torch._lazy import ts_backend

    ts_backend.init()
