"""A checkpoint on disk becomes a smaller one, streamed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune_cli.errors import RequestError
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.shrink import shrink_checkpoint
from tests.shrink.builders import NETS, build, inputs, plan, prune_live, slice_state


@pytest.mark.parametrize("name", ["Residual", "Concatenated"])
def test_the_streamed_file_is_the_live_model(name: str, tmp_path: Path) -> None:
    """Bit for bit, and load_shrunk gives the same outputs."""
    model, (x,) = build(name), inputs(name)
    torch.save(model.state_dict(), tmp_path / "model.pt")

    done = shrink_checkpoint(
        tmp_path / "model.pt",
        tmp_path / "small.safetensors",
        model=f"{NETS}:{name}",
        examples=["1x3x16x16"],
        amount=0.25,
    )

    live = prune_live(model, (x,), done.plan)
    written = load_file(tmp_path / "small.safetensors")
    assert done.plan == plan(name)
    assert all(torch.equal(written[key], tensor) for key, tensor in live.state_dict().items())
    loaded = load_shrunk(build(name), tmp_path / "small.safetensors")
    torch.testing.assert_close(loaded(x), live(x))


def test_zeros_of_a_checkpoint_go(tmp_path: Path) -> None:
    """What prune-cli or anyone zeroed is found in the file."""
    model = build("Plain")
    with torch.no_grad():
        model.f1.weight[[2, 9]] = model.f1.bias[[2, 9], None] = 0
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    done = shrink_checkpoint(
        tmp_path / "model.safetensors",
        tmp_path / "small.safetensors",
        model=f"{NETS}:Plain",
        examples=["1x3x16x16"],
        from_zeros=True,
    )

    assert {group.root: group.removed for group in done.plan.groups} == {"f1.weight": (2, 9)}
    expected = slice_state(model, done.plan)
    written = load_file(tmp_path / "small.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())


def test_nothing_is_written_for_another_model(tmp_path: Path) -> None:
    """The refusal comes first."""
    save_file(build("Plain").state_dict(), tmp_path / "model.safetensors")

    with pytest.raises(RequestError, match="the checkpoint is not that of the model"):
        shrink_checkpoint(
            tmp_path / "model.safetensors",
            model=f"{NETS}:Residual",
            examples=["1x3x16x16"],
            amount=0.25,
        )

    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
