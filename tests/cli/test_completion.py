"""What the shell offers after a TAB, and that it never waits long for it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prune_cli.cli.completion import complete_device, complete_module
from tests import build
from tests.conftest import Run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with checkpoints, reports and folders in it."""
    monkeypatch.chdir(tmp_path)
    build.safetensors(tmp_path / "model.safetensors", build.tensors())
    build.torch_zip(tmp_path / "model.pt", build.tensors())
    for name in ("a.report.json", "b.report.json", "config.json", "runs/c.report.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs" / "out").mkdir()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def offered(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is told after `line`."""
    words = f"prune-cli {line}"
    monkeypatch.setenv("_PRUNE_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    ran = run()
    assert (ran.code, ran.err) == (0, "")
    return ran.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("report ", ["a.report.json", "b.report.json", "runs/"]),
        ("report b", ["b.report.json"]),
        ("report runs/", ["runs/c.report.json", "runs/out/"]),
        ("report a.report.json b", ["b.report.json"]),
        ("apply a", ["a.report.json"]),
        ("verify model.safetensors --report a", ["a.report.json"]),
        ("random-structured model.pt --device c", ["cpu"]),
        ("inspect model.pt --format ", ["table", "json", "csv", "markdown", "latex"]),
        ("inspect model.pt --format ma", ["markdown"]),
        ("random-structured model.safetensors -m conv,", ["conv,bn", "conv,conv", "conv,fc"]),
        ("random-structured model.pt -m f", ["fc"]),
        ("report nowhere/", []),
        ("inspect model.pt --sort ", ["name", "size"]),
        ("inspect model.pt --color ", ["auto", "always", "never"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_values_are_offered(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    """Those that make sense in their place; of none at all, the shell offers files."""
    found = offered(run, monkeypatch, line)

    assert found == expected or (expected == ["cpu"] and set(found) >= {"cpu"})


@pytest.mark.parametrize("command", ["inspect", "random-structured", "report"])
def test_commands_are_offered(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """By their beginning."""
    assert offered(run, monkeypatch, command[:3]) == [command]


def test_devices_that_are_not_there_are_not_offered() -> None:
    """As far as it shows without torch: "cuda" only where there is a card."""
    assert {"cpu", "auto"} <= set(complete_device(""))
    assert ("cuda:0" in complete_device("cuda")) == Path("/dev/nvidia0").exists()


@pytest.mark.parametrize("line", ["-m c", "-x conv,f", "--device c"])
def test_a_pickle_is_completed_without_torch(folder: Path, line: str) -> None:
    """A second at each TAB would be a shell that hangs."""
    words = f"prune-cli random-structured model.pt {line}"
    code = (
        "import sys\nfrom prune_cli.cli.main import main\nmain([])\n"
        "print(sorted({'torch', 'rich', 'pydantic'} & {*sys.modules}), file=sys.stderr)"
    )
    environment = {
        **os.environ,
        "_PRUNE_CLI_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }

    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert ran.stdout.split()
    assert ran.stderr == "[]\n"
    assert folder.exists()


def test_a_checkpoint_that_never_ends_is_given_up(folder: Path) -> None:
    """A pipe that nobody writes to: nothing is offered, and soon."""
    context = SimpleNamespace(params={"checkpoint": folder / "pipe"}, args=())
    os.mkfifo(folder / "pipe")
    began = time.monotonic()

    found = complete_module(context, "")  # type: ignore[arg-type]

    assert found == []
    assert time.monotonic() - began < 1.5
