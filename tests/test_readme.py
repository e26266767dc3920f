"""The README is true: its commands are run in their order, and print what it says they print."""

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text, the file it is the content of, and its line."""

    language: str
    text: str
    file: str | None
    line: int


def read_fences(text: str) -> Iterator[Fence]:
    """The fenced blocks of a Markdown text, in order."""
    pattern = r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$"
    for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Fence(found[2], found[3], found[1], line)


RUN = ("console", "pycon", "yaml")
FENCES = [fence for fence in read_fences(README.read_text()) if fence.file or fence.language in RUN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole README, since each block goes on from the one before."""
    return prepare(tmp_path_factory.mktemp("readme"))


def prepare(folder: Path) -> Path:
    """Put into a folder what the README's commands find in a clone."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def run_console(text: str, folder: Path) -> str:
    """A transcript: each command of `text`, and what it printed when run in `folder`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"COLUMNS": "80", "PATH": path}
    transcript = ""
    for command in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        ran = subprocess.run(
            ["bash", "-c", command],
            check=False,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = [line.rstrip() for line in ran.stdout.splitlines()]
        transcript += "\n".join([f"$ {command}", *lines]) + "\n"
    return transcript


def assert_same(printed: str, shown: str) -> None:
    """Compare what was printed with what is shown; accuracies after training may differ by 2."""
    accuracy = r"(?<=^accuracy )[\d.]+(?=%)|(?<=^{\"accuracy\": )[\d.]+"
    for one, other in zip(
        *(re.findall(accuracy, text, re.MULTILINE) for text in (printed, shown)), strict=True
    ):
        assert abs(float(one) - float(other)) <= 2
    assert re.sub(accuracy, "~", printed, flags=re.MULTILINE) == re.sub(
        accuracy, "~", shown, flags=re.MULTILINE
    )


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: f"line {fence.line}")
def test_readme(fence: Fence, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is written, a transcript and a Python session come out as they stand there."""
    tools = [tool for tool in ("jq", "make") if re.search(rf"\b{tool}\b", fence.text)]
    missing = [tool for tool in tools if not shutil.which(tool)]
    if "prune-cli shrink" in fence.text and not importlib.util.find_spec("torch_pruning"):
        missing.append("torch-pruning")
    if missing and not fence.file:
        pytest.skip(f"{', '.join(missing)} is not installed")
    if fence.file:
        (folder / fence.file).write_text(fence.text)
    elif fence.language == "console":
        assert_same(run_console(fence.text, folder), fence.text)
    elif fence.language == "yaml":
        commands = re.findall(r"run: (.*)", fence.text)
        assert commands
        assert "error" not in run_console("".join(f"$ {c}\n" for c in commands), folder)
    else:
        monkeypatch.chdir(folder)
        session = doctest.DocTestParser().get_doctest(fence.text, {}, "README", None, fence.line)
        assert doctest.DocTestRunner().run(session).failed == 0


def test_every_command_is_documented() -> None:
    """The README has a row for each command of the command line."""
    from prune_cli.cli.commands import COMMANDS

    documented = set(re.findall(r"^\| \[`([a-z-]+) [A-Z]", README.read_text(), re.MULTILINE))

    assert documented == set(COMMANDS)


def refresh() -> None:
    """Rewrites the transcripts of the README to what the commands print now."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        text = README.read_text()
        for fence in FENCES:
            if fence.file:
                Path(name, fence.file).write_text(fence.text)
            elif fence.language == "console":
                text = text.replace(fence.text, run_console(fence.text, Path(name)), 1)
        README.write_text(text)


if __name__ == "__main__":
    refresh()
