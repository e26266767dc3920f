"""Where no tensor computes there is no torch: the commands run where it cannot even be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import build

BLOCKED = "raise ImportError('torch is not to be had here')\n"


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import torch` raises."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text(BLOCKED)
    path = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path}


def prune(env: dict[str, str], folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run one command there; it must succeed."""
    command = [sys.executable, "-m", "prune_cli", *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


FORMATS = {
    "safetensors": lambda folder: build.safetensors(folder / "m.safetensors", build.tensors()),
    "zip": lambda folder: build.torch_zip(folder / "m.pt", build.tensors()),
    "legacy": lambda folder: build.torch_legacy(folder / "m.pt", build.tensors()),
    "folder": lambda folder: build.write_folder(
        folder / "m", {"model.safetensors": build.tensors()}, index=None
    ),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_every_command_runs_where_torch_cannot_be_imported(
    tmp_path: Path, blocked: dict[str, str], make: object
) -> None:
    """The main job, apply, remove, verify, inspect, report, diff, on files and folders."""
    assert callable(make)
    name = make(tmp_path).name
    out, masked, bare, again = (
        ("o", "k", "b", "a")
        if name == "m"
        else ("o.safetensors", "k.safetensors", "b.safetensors", "a.safetensors")
    )
    report = "o/prune-report.json" if name == "m" else "o.report.json"

    prune(blocked, tmp_path, "random-structured", name, "-a", "0.5", "-d", "0", "-o", out)
    prune(blocked, tmp_path, "random-structured", name, "-a", "1", "--keep-masks", "-o", masked)
    prune(blocked, tmp_path, "structured", name, "-a", "1", "--criterion", "l1", "-n")
    prune(blocked, tmp_path, "remove", masked, "-o", bare)
    prune(blocked, tmp_path, "apply", report, name, "-o", again)
    proved = prune(blocked, tmp_path, "verify", again, "--source", name)
    inspected = prune(blocked, tmp_path, "inspect", name, "--zeros")
    shown = prune(blocked, tmp_path, "report", report, "--json")
    version = prune(blocked, tmp_path, "--version")

    assert "every byte" in proved.stderr
    assert "fc" in inspected.stdout
    assert json.loads(shown.stdout)
    assert "torch" in version.stdout
    held = json.loads((tmp_path / report).read_text())
    assert held["tool"]["torch"] != "none"  # from the package's metadata
    if name != "m":
        assert (tmp_path / out).read_bytes() == (tmp_path / again).read_bytes()


def test_a_device_needs_it_and_says_so(tmp_path: Path, blocked: dict[str, str]) -> None:
    """--device is what torch is there for."""
    path = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    command = [
        sys.executable,
        "-m",
        "prune_cli",
        "random-structured",
        path,
        "-a",
        "1",
        "-D",
        "cuda",
    ]

    done = subprocess.run(command, env=blocked, capture_output=True, text=True, check=False)

    assert done.returncode == 4
    assert "torch" in done.stderr and "Traceback" not in done.stderr
    assert [found.name for found in tmp_path.iterdir() if found.is_file()] == ["m.safetensors"]
