"""Two runs to one output at once: one wins whole, and the other says so."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from prune_cli import prune_checkpoint, verify_checkpoint
from prune_cli.errors import OutputError
from tests import build


def prune_at_once(
    source: Path, output: Path, **options: object
) -> tuple[list[int], list[OutputError]]:
    """Prune by two seeds, each of which begins to write when both are ready to."""
    barrier = threading.Barrier(2, timeout=20)
    won: list[int] = []
    lost: list[OutputError] = []

    def run(seed: int) -> None:
        meet = once(barrier)
        try:
            prune_checkpoint(
                source, output, amount=1, dim=0, seed=seed, on_tensor=meet, workers=1, **options
            )
            won.append(seed)
        except OutputError as error:
            lost.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, lost


def once(barrier: threading.Barrier) -> Callable[[str, int], None]:
    """Return a callback that waits for the other run when the first tensor is written."""
    waited: list[bool] = []

    def meet(*_: object) -> None:
        if not waited:
            waited.append(True)
            try:
                barrier.wait()
            except threading.BrokenBarrierError:
                return

    return meet


def test_the_second_of_two_files_is_refused(tmp_path: Path) -> None:
    """Both found that there was no output when they began."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())

    won, lost = prune_at_once(source, tmp_path / "out.safetensors")

    assert (len(won), len(lost)) == (1, 1)
    assert "out.safetensors exists; " in str(lost[0])
    assert verify_checkpoint(tmp_path / "out.safetensors", source=source).is_verified


def test_of_two_files_that_replace_one_the_last_is_whole(tmp_path: Path) -> None:
    """With --force; the report is of the same run as the file."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())

    won, _ = prune_at_once(source, tmp_path / "out.safetensors", force=True)

    assert sorted(won) == [1, 2]
    assert verify_checkpoint(tmp_path / "out.safetensors", source=source).is_verified


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_being_written_is_refused(tmp_path: Path, force: bool) -> None:
    """The first to come holds it."""
    content = build.split(build.tensors(), build.shard_names(2))
    source = build.write_folder(tmp_path / "m", content)

    won, lost = prune_at_once(source, tmp_path / "out", force=force)

    assert (len(won), len(lost)) == (1, 1)
    assert "is being written by another run" in str(lost[0])
    assert verify_checkpoint(tmp_path / "out", source=source).is_verified
