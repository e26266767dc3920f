"""`prune-cli --version`, with torch and without."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import prune_cli
from tests.conftest import Run


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_names_torch_and_the_devices(run: Run, option: str) -> None:
    """Each on one line."""
    ran = run(option)

    assert (ran.code, ran.err) == (0, "")
    start = f"prune-cli {prune_cli.__version__} (torch {version('torch')}; devices: cpu"
    assert ran.out.startswith(start)


def test_a_torch_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    """Its version comes from the metadata of the package, and the reason is there."""
    (tmp_path / "torch.py").write_text("raise ImportError('no libcudart.so.12')")
    path = os.pathsep.join([str(tmp_path), str(Path(prune_cli.__file__).parents[1])])

    ran = subprocess.run(
        [sys.executable, "-m", "prune_cli", "-V"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    told = f"(torch {version('torch')}, which cannot be imported: no libcudart.so.12; devices: cpu)"
    assert told in ran.stdout
