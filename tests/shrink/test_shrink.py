"""A checkpoint on disk becomes a smaller one, streamed."""

from ast import literal_eval
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune_cli.errors import RequestError, UsageError
from prune_cli.report.report import read_report
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

    live = prune_live(model, (x,), done.shrink)
    written = load_file(tmp_path / "small.safetensors")
    assert done.shrink == plan(name)
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

    assert {group.root: group.removed for group in done.shrink.groups} == {"f1.weight": (2, 9)}
    expected = slice_state(model, done.shrink)
    written = load_file(tmp_path / "small.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())


def test_a_folder_needs_no_code(tmp_path: Path) -> None:
    """config.json names the model, and the edited one loads the result."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "whole")

    done = shrink_checkpoint(tmp_path / "whole", tmp_path / "small", amount=16)

    small, info = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "small", output_loading_info=True
    )
    assert done.shrink.config == {"intermediate_size": 48}
    assert small.config.intermediate_size == 48
    assert not any(info.values())


def test_a_file_needs_the_code_of_its_model(tmp_path: Path) -> None:
    """Weights do not say what they are the weights of."""
    save_file(build("Plain").state_dict(), tmp_path / "model.safetensors")

    with pytest.raises(UsageError, match="--model"):
        shrink_checkpoint(tmp_path / "model.safetensors", amount=0.25)


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


def test_the_report_says_what_a_run_can_be_repeated_from(tmp_path: Path) -> None:
    """Everything that decides: the model, its inputs, the dim of the channels, the rounding."""
    save_file(build("Plain").state_dict(), tmp_path / "model.safetensors")
    asked = {"model": f"{NETS}:Plain", "examples": ["1x3x16x16"], "amount": 0.25, "round_to": 4}

    done = shrink_checkpoint(tmp_path / "model.safetensors", tmp_path / "a.safetensors", **asked)

    told = read_report(tmp_path / "a.report.json").options
    assert told == done.options
    assert told.shrink is not None
    again = {
        "amount": told.amount,
        "seed": told.seed,
        "modules": told.modules,
        "exclude": told.exclude,
        "rules": told.rules,
        **asdict(told.shrink),
        "model_arguments": {n: literal_eval(v) for n, v in told.shrink.model_arguments.items()},
    }
    shrink_checkpoint(tmp_path / "model.safetensors", tmp_path / "b.safetensors", **again)
    assert told.dim == 0
    assert told.shrink.round_to == 4
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
