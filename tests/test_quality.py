"""Lint, format, types and layers: so that `python -m pytest` is the one command that checks all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "layers": ("lint-imports", "--no-cache"),
}


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_the_code_is_as_it_should_be(command: tuple[str, ...]) -> None:
    """Each tool, with its settings in pyproject.toml, has nothing to say."""
    program, *arguments = command

    done = subprocess.run(
        [BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
