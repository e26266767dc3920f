"""The bytes on their way: pieces, threads, and memory that does not grow."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prune_cli import prune_checkpoint
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError, OutputError
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import Options
from prune_cli.write.atomic import pending
from prune_cli.write.layout import lay_out
from prune_cli.write.stream import write_output
from tests import build


def anonymous_bytes() -> int:
    """How much memory this process has that the kernel cannot take back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise LookupError("RssAnon")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("saver", ["safetensors", "zip"])
@pytest.mark.parametrize(("dim", "bake"), [(0, True), (1, True), (1, False)])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, saver: str, dim: int, bake: bool
) -> None:
    """While 96 MB flow through, the process never has 24 MB more than before."""
    content = {f"{n}.weight": torch.ones(2048, 4096) for n in range(3)}
    path = build.SAVERS[saver](tmp_path / "x", content)
    del content
    prune_checkpoint(path, dry_run=True, amount=1)
    before = anonymous_bytes()
    seen: list[int] = []

    prune_checkpoint(
        path,
        tmp_path / "out",
        amount=0.5,
        dim=dim,
        bake=bake,
        workers=2,
        on_tensor=lambda *_: seen.append(anonymous_bytes()),
    )

    assert max(seen) - before < 24 << 20


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
def test_any_size_of_piece_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int, piece: int
) -> None:
    """Pieces that cut rows, channels and elements: plain, strided and masked tensors alike."""
    monkeypatch.setattr("prune_cli.write.stream.PIECE_BYTES", max(piece, 8))
    monkeypatch.setattr("prune_cli.write.stream._ROWS_BYTES", max(piece, 8))
    monkeypatch.setattr("prune_cli.write.stream._COPY_BYTES", piece)
    content = {
        "a.weight": torch.randn(5, 6, 7),
        "b.weight": torch.randn(7, 6, 5).permute(2, 1, 0),
        "c.weight": torch.randn(5, 6, 7),
        "rest": torch.randn(100),
    }
    masked = build.masked(content, {"c.weight": 2})
    path = build.torch_zip(tmp_path / "x", masked)

    report = prune_checkpoint(path, tmp_path / "out", amount=0.5, dim=dim, modules=["a", "b"])

    pruned = load_file(tmp_path / "out")
    for name in ("a.weight", "b.weight"):
        wanted = build.stock_pruned(content[name], name, 0.5, dim)
        assert build.same_bits(pruned[name], wanted)
    assert torch.equal(pruned["c.weight"], masked["c.weight_orig"] * masked["c.weight_mask"])
    assert torch.equal(pruned["rest"], content["rest"])
    assert len(report.tensors) == 2


def test_a_shard_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    """A file that vanished between the plan and the writing is named."""
    path = build.safetensors(tmp_path / "x", build.tensors())
    checkpoint = open_checkpoint(path)
    [file] = lay_out(checkpoint, make_plan(checkpoint, Options(1)))
    path.unlink()

    with (
        pytest.raises(InputError, match="x cannot be read: No such file"),
        pending(tmp_path / "out") as output,
    ):
        write_output(file, checkpoint, output.sink)

    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_thread_reaches_the_caller(tmp_path: Path) -> None:
    """What a callback raises in a worker ends the run, and nothing is left of it."""
    path = build.safetensors(tmp_path / "x", build.tensors())

    def fail(_name: str, _nbytes: int) -> None:
        raise OutputError("enough")

    with pytest.raises(OutputError, match="enough"):
        prune_checkpoint(path, tmp_path / "out", amount=1, workers=4, on_tensor=fail)

    assert [found.name for found in tmp_path.iterdir()] == ["x"]
