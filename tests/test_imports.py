"""What is imported when: torch takes a second, so nothing loads it that does not need it."""

import subprocess
import sys
from pathlib import Path

import pytest

import prune_cli
from prune_cli.cli.commands import COMMANDS
from tests import build


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stderr.splitlines()[-1].split())


CALL = "from prune_cli.cli.main import main\nassert main({!r}) == 0"

LIGHT = {
    "import": "import prune_cli\nassert prune_cli.PruneError",
    "help": CALL.format(["--help"]),
    "command-help": CALL.format(["random-structured", "--help"]),
    "completion": "from prune_cli.cli.main import make_app; make_app()",
}


@pytest.mark.parametrize("code", LIGHT.values(), ids=LIGHT)
def test_help_does_not_import_torch(code: str) -> None:
    """Neither `import prune_cli` nor any --help needs torch, numpy, safetensors or jinja2."""
    assert modules_after(code).isdisjoint({"torch", "numpy", "safetensors", "jinja2"})


def test_only_the_command_that_runs_is_imported(tmp_path: Path) -> None:
    """And none to list them."""
    path = build.safetensors(tmp_path / "x", build.tensors())
    commands = {f"prune_cli.cli.{command.home}" for command in COMMANDS.values()}

    listing = modules_after(CALL.format(["--help"]))
    inspecting = modules_after(CALL.format(["inspect", str(path)]))

    assert listing & commands == set()
    assert inspecting & commands == {"prune_cli.cli.inspect"}


def test_the_package_needs_no_console() -> None:
    """Whoever imports `prune_cli` and never shows anything does not load Rich."""
    code = (
        "import prune_cli\nfrom prune_cli import inspect_checkpoint, read_report, compare_reports"
    )

    assert "rich" not in modules_after(code)


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_inspecting_imports_what_headers_need(tmp_path: Path, kind: str) -> None:
    """They are numbers and names: no torch, no NumPy, and no pydantic for the command line."""
    path = build.SAVERS[kind](tmp_path / "x", build.tensors())

    modules = modules_after(CALL.format(["inspect", str(path)]))

    assert modules.isdisjoint({"torch", "numpy", "pydantic", "jinja2"})


def test_showing_a_report_imports_what_text_needs(tmp_path: Path) -> None:
    """It is JSON."""
    path = build.safetensors(tmp_path / "x.safetensors", build.tensors())
    report = tmp_path / "x.json"
    plan = ["random-structured", str(path), "-a", "1", "-n", "-q", "-r", str(report)]
    assert "torch" not in modules_after(CALL.format(plan))

    modules = modules_after(CALL.format(["report", str(report)]))

    assert modules.isdisjoint({"torch", "numpy", "pydantic", "jinja2"})


def test_dask_is_for_schedulers_only(tmp_path: Path) -> None:
    """Pruning a folder, by parts too, and sweeping import nothing of it."""
    source = build.write_folder(tmp_path / "in", build.split(build.tensors(), build.shard_names(2)))
    model = build.safetensors(tmp_path / "x.safetensors", build.tensors())
    prune = ["random-structured", str(source), "-a", "1", "-d", "0", "-q", "-o"]
    runs = (
        [*prune, str(tmp_path / "out")],
        [*prune, str(tmp_path / "parts"), "--part", "1/1"],
        [*prune, str(tmp_path / "parts"), "--finish"],
        ["verify", str(tmp_path / "out"), str(source), "-q"],
        ["sweep", str(model), "-a", "1", "--seeds", "1", "-d", "0", "-e", "echo 1", "-q"],
    )

    modules = modules_after("\n".join(CALL.format(each) for each in runs))

    assert modules.isdisjoint({"dask", "distributed", "tornado"})


@pytest.mark.parametrize("name", prune_cli.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each is found in its home, is listed by dir(), and has a docstring."""
    assert getattr(prune_cli, name).__doc__
    assert name in dir(prune_cli)


def test_other_names_are_not() -> None:
    """A name that is not public is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = prune_cli.nothing


def test_the_package_is_typed_and_has_its_schema() -> None:
    """What a wheel must hold beside the code."""
    home = Path(prune_cli.__file__).parent

    assert (home / "py.typed").exists()
    assert (home / "report" / "report.schema.json").exists()


def test_files_of_this_machine_need_no_library_of_stores_or_clusters(tmp_path: Path) -> None:
    """A whole run imports neither fsspec nor what comes with it."""
    path = build.safetensors(tmp_path / "x.safetensors", build.tensors())
    arguments = ["random-structured", str(path), "-a", "1", "-d", "0", "-o", f"{tmp_path}/out.st"]

    loaded = modules_after(CALL.format(arguments))

    assert loaded.isdisjoint({"fsspec", "asyncio", "distributed", "dask", "aiohttp"})
