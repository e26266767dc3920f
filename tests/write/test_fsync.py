"""--fsync: files reach the disk before their names do, and the names of shards before the index."""

import os
import stat
from pathlib import Path

import pytest

from prune_cli import prune_checkpoint
from tests import build

INDEX = "model.safetensors.index.json"


def watch_syncs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, set[str]]]:
    """Return what will be synced, a file or a folder, each with the names in `folder` by then."""
    seen: list[tuple[str, set[str]]] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, {path.name for path in folder.glob("*")}))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_a_file_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report first, then the output, each before and after it is named."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    (tmp_path / "out").mkdir()
    seen = watch_syncs(monkeypatch, tmp_path / "out")

    prune_checkpoint(source, tmp_path / "out" / "o.safetensors", amount=1, dim=0, fsync=True)

    report, both = {"o.report.json"}, {"o.report.json", "o.safetensors"}
    assert seen == [("file", set()), ("folder", report), ("file", report), ("folder", both)]


def test_the_index_comes_after_the_shards_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left after a power failure, an index names only what is there."""
    shards = build.shard_names(2)
    source = build.write_folder(tmp_path / "m", build.split(build.tensors(), shards))
    seen = watch_syncs(monkeypatch, tmp_path / "out")

    prune_checkpoint(source, tmp_path / "out", amount=1, dim=0, fsync=True)

    named = [names for kind, names in seen if kind == "folder" and {*shards} <= names]
    assert INDEX not in named[0]
    assert INDEX in named[-1]
    assert INDEX not in {name for kind, names in seen if kind == "file" for name in names}


def test_nothing_waits_for_the_disk_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes time that most runs have no use for."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    seen = watch_syncs(monkeypatch, tmp_path)

    prune_checkpoint(source, tmp_path / "out.safetensors", amount=1, dim=0)

    assert seen == []
