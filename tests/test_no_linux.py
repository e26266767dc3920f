"""What only Linux has, or only some file systems, is never needed: the same bytes without it."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import build
from tests.conftest import Run

COMMANDS = {
    "file": ("random-structured", "m.safetensors", "-o", "out.safetensors"),
    "in-kind": ("random-structured", "m.pt", "-o", "out.pt"),
    "masks": ("random-structured", "m.safetensors", "--keep-masks", "-o", "out.safetensors"),
    "folder": ("random-structured", "folder", "--workers", "2", "-o", "out"),
    "remove": ("remove", "masked.safetensors", "-o", "out.safetensors"),
    "fsync": ("random-structured", "folder", "--fsync", "-o", "out"),
    "sweep": ("sweep", "m.safetensors", "--seeds", "2", "--eval", "echo $PRUNE_SEED", "-o", "out"),
}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with one checkpoint of each kind."""
    content = build.tensors()
    build.safetensors(tmp_path / "m.safetensors", content)
    build.torch_zip(tmp_path / "m.pt", {"state_dict": content, "epoch": 3})
    build.safetensors(tmp_path / "masked.safetensors", build.masked(content, {"fc.weight": 4}))
    build.write_folder(tmp_path / "folder", build.split(content, build.shard_names(2)))
    return tmp_path


def take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the system what macOS has, and the file system what NFS without its lock daemon has."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("O_TMPFILE", "copy_file_range", "posix_fadvise", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)  # the standard library's own
    monkeypatch.setattr(fcntl, "flock", no_locks)


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return the outputs in a folder by their names; what is said of times is not one."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("out") and path.is_file() and path.name not in TIMED:
            yield name, path.read_bytes()


TIMED = {"trials.jsonl", "record.json", "results.csv", "sweep.html"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_output_is_the_same(
    inputs: Path, command: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the speed depends on what the system has."""
    amount = () if command[0] == "remove" else ("-a", "0.5", "-d", "0")
    monkeypatch.chdir(inputs)
    assert run(*command, *amount).code == 0
    expected = dict(written(inputs))
    take_away(monkeypatch)

    again = run(*command, *amount, "--force")

    assert again.code == 0, again.err
    assert dict(written(inputs)) == expected
    assert len(expected) > 1
    assert not list(inputs.rglob("*.tmp"))
