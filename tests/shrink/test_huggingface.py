"""Folders of transformers: plain from_pretrained loads the result."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune_cli.errors import InputError, RequestError
from prune_cli.plan.config import config_text, edit_config
from prune_cli.plan.selection import Rule
from prune_cli.shrink.huggingface import read_folder
from prune_cli.shrink.plan import plan_shrink
from prune_cli.shrink.request import Request, Source
from prune_cli.shrink.shrink import shrink_checkpoint

transformers = pytest.importorskip("transformers")

TEXT = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "image_size": 64},
        {"embedding_size": 12, "hidden_sizes.0": 24, "hidden_sizes.1": 48},
    ),
    "resnet of basic blocks": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"},
        {"embedding_size": 12, "hidden_sizes.0": 12, "hidden_sizes.1": 24},
    ),
    "vit": (
        "ViTForImageClassification",
        {**TEXT, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
        {"intermediate_size": 48},
    ),
    "bert": (
        "BertForMaskedLM",
        {**TEXT, "intermediate_size": 64},
        {"intermediate_size": 48},
    ),
    "llama": (
        "LlamaForCausalLM",
        {**TEXT, "intermediate_size": 64, "num_key_value_heads": 2},
        {"hidden_size": 36, "intermediate_size": 48},
    ),
    "gemma, which scales by the root of its width": (
        "Gemma2ForCausalLM",
        {**TEXT, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 12},
        {"intermediate_size": 48},
    ),
    "gpt2, whose layers are transposed and whose width is not set": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32},
        {"n_inner": 144},
    ),
    "mobilenet, whose widths are multiples": (
        "MobileNetV1ForImageClassification",
        {"image_size": 32},
        {"depth_multiplier": 0.75},
    ),
    "swin, whose width is a ratio": (
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        {"mlp_ratio": 3.0},
    ),
    "segformer, whose widths are counted by others too": (
        "SegformerForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
        },
        {**{f"mlp_ratios.{n}": 3 for n in range(4)}, "decoder_hidden_size": 24},
    ),
    "dinov2, whose width is a whole ratio": (
        "Dinov2ForImageClassification",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        {"mlp_ratio": 3},
    ),
}
"""For each: the class, its config, and the numbers that a quarter of the channels is in it."""


def save_model(folder: Path, name: str) -> torch.nn.Module:
    """A small model with drawn weights, saved by transformers."""
    cls, numbers, _ = MODELS[name]
    model_class = getattr(transformers, cls)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**numbers)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.dim() < 2 else tensor * 5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_loads_what_was_sliced(name: str, tmp_path: Path) -> None:
    """The edited config describes the shrunk tensors, and all of them are used."""
    save_model(tmp_path / "whole", name)
    state = load_file(tmp_path / "whole" / "model.safetensors")
    source = Source(str(tmp_path / "whole"), is_folder=True)
    options = Request((Rule(("*",), ("weight",), 0.25, 0),))
    shapes = {key: tuple(value.shape) for key, value in state.items()}

    made = plan_shrink(source, options, shapes)

    for key, dims in made.kept.items():
        for dim, kept in dims.items():
            state[key] = state[key].index_select(dim, torch.tensor(kept)).contiguous()
    small = tmp_path / "small"
    small.mkdir()
    save_file(state, small / "model.safetensors", {"format": "pt"})
    raw = json.loads((tmp_path / "whole" / "config.json").read_text())
    (small / "config.json").write_text(config_text(edit_config(raw, made.config)))
    model_class = getattr(transformers, MODELS[name][0])
    loaded, info = model_class.from_pretrained(small, output_loading_info=True)
    roots = [group.root for group in made.groups] + [tensor for tensor, _ in made.groups[0].members]
    assert made.config == MODELS[name][2]
    assert set(roots) <= made.kept.keys()
    assert not any(info.values())
    assert sum(p.numel() for p in loaded.parameters()) == made.effect.parameters_after


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"llama"}))
def test_the_small_model_computes_what_the_masked_one_does(name: str, tmp_path: Path) -> None:
    """Zeros where the channels went, in all that makes and reads them: the same outputs."""
    whole = save_model(tmp_path / "whole", name)

    done = shrink_checkpoint(tmp_path / "whole", tmp_path / "small", amount=0.25)

    assert done.shrink is not None
    small = type(whole).from_pretrained(tmp_path / "small").eval()
    state = load_file(tmp_path / "whole" / "model.safetensors")
    for key, dims in done.shrink.kept.items():
        for dim, kept in dims.items():
            gone = sorted({*range(state[key].shape[dim])} - {*kept})
            state[key].index_fill_(dim, torch.tensor(gone), 0)
    save_file(state, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    masked = type(whole).from_pretrained(tmp_path / "whole").eval()
    images = torch.randn(2, 3, *[MODELS[name][1].get("image_size", 224)] * 2)
    x = images if whole.main_input_name == "pixel_values" else torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(small(x).logits, masked(x).logits, atol=1e-4, rtol=1e-4)


def test_an_mlp_that_lost_channels_is_the_masked_one(tmp_path: Path) -> None:
    """The shrunk Llama gives the outputs of the whole one whose removed channels are masked."""
    whole = save_model(tmp_path / "whole", "llama")
    source = Source(str(tmp_path / "whole"), is_folder=True)
    rules = (Rule(("*.mlp.*",), ("weight",), 0.25, 0),)
    made = plan_shrink(source, Request(rules), None)
    raw = json.loads((tmp_path / "whole" / "config.json").read_text())
    config = whole.config_class.from_dict(edit_config(raw, made.config))
    small = type(whole)(config).eval()
    state = dict(whole.state_dict())
    for key, dims in made.kept.items():
        for dim, kept in dims.items():
            state[key] = state[key].index_select(dim, torch.tensor(kept))
    small.load_state_dict(state)
    with torch.no_grad():
        for group in made.groups:
            layer = group.root.removesuffix("gate_proj.weight")
            whole.get_submodule(layer + "down_proj").weight[:, list(group.removed)] = 0
        text = torch.arange(12)[None]

        assert made.config == {"intermediate_size": 48}
        torch.testing.assert_close(small(text).logits, whole(text).logits)


def test_what_the_config_cannot_say_is_refused(tmp_path: Path) -> None:
    """One layer of two cannot have another intermediate size."""
    save_model(tmp_path / "whole", "bert")
    rules = (Rule(("*.layer.0.intermediate.dense",), ("weight",), 0.25, 0),)

    with pytest.raises(RequestError, match=r"no number in config\.json stands for it alone"):
        plan_shrink(Source(str(tmp_path / "whole"), is_folder=True), Request(rules), None)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    """A config that asks for its own code is refused, and the code untouched."""
    raw = {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "mine.py").write_text("raise SystemExit(7)")

    with pytest.raises((InputError, RequestError)):
        read_folder(tmp_path).build()


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_a_folder_without_a_config_is_refused(text: str | None, tmp_path: Path) -> None:
    """Missing, no JSON, or no object."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    with pytest.raises(InputError, match=r"config\.json"):
        read_folder(tmp_path)


def test_zeros_go_as_far_as_one_number_can_say(tmp_path: Path) -> None:
    """Of 6 silent channels in one layer and 4 in the other, 4 go in both; the output stays."""
    whole = save_model(tmp_path / "whole", "bert")
    with torch.no_grad():
        for layer, channels in zip(whole.bert.encoder.layer, ([1, 2, 3, 5, 8, 13], [0, 4, 6, 9])):
            layer.intermediate.dense.weight[channels] = 0
            layer.intermediate.dense.bias[channels] = 0
    whole.save_pretrained(tmp_path / "whole")

    done = shrink_checkpoint(tmp_path / "whole", tmp_path / "small", from_zeros=True)

    small = type(whole).from_pretrained(tmp_path / "small").eval()
    text = torch.arange(12)[None]
    assert done.shrink is not None
    assert done.shrink.config == {"intermediate_size": 60}
    assert [group.removed for group in done.shrink.groups] == [(1, 2, 3, 5), (0, 4, 6, 9)]
    torch.testing.assert_close(small(text).logits, whole(text).logits)
