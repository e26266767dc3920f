"""The README and docs/ are true: their commands are run in order, and print what the pages show."""

import contextlib
import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stores.servers import Server, moto

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Fence:
    """A fenced block: its page, language, text, the file it is the content of, and its line."""

    page: Path
    language: str
    text: str
    file: str | None
    line: int


def read_fences(page: Path) -> Iterator[Fence]:
    """Return the fenced blocks of a Markdown page, in order."""
    text = page.read_text()
    pattern = r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$"
    for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Fence(page, found[2], found[3], found[1], line)


def is_run(fence: Fence) -> bool:
    """Whether a block is run; a workflow is, where it runs nothing but prune-cli on model.pt."""
    commands = re.findall(r"run: (.*)", fence.text)
    return bool(fence.file) or (
        fence.language in ("console", "pycon")
        or (fence.language == "yaml" and bool(commands) and "pip" not in fence.text)
    )


FENCES = [fence for page in PAGES for fence in read_fences(page) if is_run(fence)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """One folder for each page, since each block goes on from the one before."""
    return {page: prepare(tmp_path_factory.mktemp(page.stem)) for page in PAGES}


def has_store(page: Path) -> bool:
    """Whether the commands of a page talk to S3."""
    return page.name == "stores.md"


def prepare(folder: Path) -> Path:
    """Put into a folder what the commands find in a clone."""
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
    accuracy = re.compile(r"(?<=^accuracy )[\d.]+(?=%)|(?<=^{\"accuracy\": )[\d.]+", re.MULTILINE)
    for one, other in zip(accuracy.findall(printed), accuracy.findall(shown), strict=False):
        assert abs(float(one) - float(other)) <= 2
    assert accuracy.sub("~", printed) == accuracy.sub("~", shown)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The S3 of the pages that have one, with its bucket."""
    with moto(tmp_path_factory.mktemp("store") / "log.txt") as server:
        yield server


@pytest.mark.parametrize(
    "fence", FENCES, ids=lambda fence: f"{fence.page.relative_to(ROOT)}:{fence.line}"
)
def test_page(
    fence: Fence,
    folders: dict[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """A file is written, a transcript and a Python session come out as they stand there."""
    folder = folders[fence.page]
    if has_store(fence.page):
        for name, value in request.getfixturevalue("store").environment.items():
            monkeypatch.setenv(name, value)
    tools = [tool for tool in ("jq", "make") if re.search(rf"\b{tool}\b", fence.text)]
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing and not fence.file:
        pytest.skip(f"{', '.join(missing)} is not installed")
    if fence.file:
        (folder / fence.file).write_text(fence.text)
    elif fence.language == "console":
        assert_same(run_console(fence.text, folder), fence.text)
    elif fence.language == "yaml":
        commands = re.findall(r"run: (.*)", fence.text)
        assert "error" not in run_console("".join(f"$ {c}\n" for c in commands), folder)
    else:
        monkeypatch.chdir(folder)
        session = doctest.DocTestParser().get_doctest(fence.text, {}, "page", None, fence.line)
        assert doctest.DocTestRunner().run(session).failed == 0


def test_every_command_is_documented() -> None:
    """The README has a row for each command of the command line."""
    from prune_cli.cli.commands import COMMANDS

    documented = set(re.findall(r"^\| \[`([a-z-]+) [A-Z]", README.read_text(), re.MULTILINE))

    assert documented == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture of a page is a file of the repository."""
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_page_of_the_package_index_has_no_relative_links() -> None:
    """What the build makes of the README, by the rules in pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]
    text = README.read_text()
    for rule in settings["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)

    targets = re.findall(r"\]\(([^)]*)\)", text)

    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    assert [target for target in targets if target.endswith(".svg") and "/blob/" in target] == []


def refresh(pages: list[Path]) -> None:
    """Rewrite the transcripts of pages to what the commands print now."""
    for page in pages:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = prepare(Path(name))
            if has_store(page):
                server = stack.enter_context(moto(folder / "moto.log"))
                os.environ.update(server.environment)
            text = page.read_text()
            for fence in filter(is_run, read_fences(page)):
                if fence.file:
                    (folder / fence.file).write_text(fence.text)
                elif fence.language == "console":
                    text = text.replace(fence.text, run_console(fence.text, folder), 1)
            page.write_text(text)


if __name__ == "__main__":
    refresh([Path(name).resolve() for name in sys.argv[1:]] or PAGES)
