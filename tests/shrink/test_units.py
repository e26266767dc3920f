"""Heads, experts and layers go: the small model computes what the whole one does with them masked."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from prune_cli.errors import AmountError, RequestError, SelectionError
from prune_cli.shrink.load import load_shrunk
from prune_cli.verify.verify import verify_checkpoint
from tests.shrink.units import (
    inputs_of,
    make_model,
    masked_model,
    outputs,
    shrink_folder,
    without_dropout,
)

transformers = pytest.importorskip("transformers")

SCHEMA = json.loads((resources.files("prune_cli.report") / "report.schema.json").read_text())

CASES: dict[tuple[str, ...], dict[str, Any]] = {
    ("llama", "heads=1", "layers=1"): {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
    },
    ("gemma2", "layers=1"): {
        "num_hidden_layers": 2,
        "layer_types": ("full_attention", "sliding_attention"),
    },
    ("phi3", "heads=1"): {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
    ("gpt2", "layers=2"): {"n_layer": 1},
    ("bert", "layers=1"): {"num_hidden_layers": 2},
    ("modernbert", "layers=1"): {
        "num_hidden_layers": 2,
        "layer_types": ("full_attention", "sliding_attention"),
    },
    ("t5", "layers=1", "head-dim=3"): {"num_layers": 2, "num_decoder_layers": 2, "d_kv": 9},
    ("vit", "heads=0.25", "layers=1"): {
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 12,
    },
    ("resnet", "layers=1"): {"depths.0": 2, "depths.1": 2},
    ("mixtral", "experts=0.5", "heads=1", "layers=1"): {
        "num_hidden_layers": 2,
        "num_local_experts": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
    },
    ("qwen3moe", "experts=1"): {"num_local_experts": 5},
    ("gptoss", "experts=1", "heads=1"): {
        "num_local_experts": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
    },
}
"""For each model and its units: what is new in its config."""


def saved(name: str, folder: Path) -> Any:
    """A small model, saved by transformers."""
    model = make_model(name)
    model.save_pretrained(folder)
    return model


def units_of(*texts: str) -> dict[str, Any]:
    """Amounts as the command line has them."""
    from prune_cli.plan.units import parse_units

    return dict(parse_units(texts, None))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_small_model_is_the_masked_one(case: tuple[str, ...], tmp_path: Path) -> None:
    """In evaluation and in training, two at a time, with padding; plain from_pretrained loads it."""
    name, *units = case
    whole = saved(name, tmp_path / "whole")

    done = shrink_folder(tmp_path / "whole", tmp_path / "small", **units_of(*units))

    small, info = type(whole).from_pretrained(tmp_path / "small", output_loading_info=True)
    masked = masked_model(whole, tmp_path / "whole", done.shrink, tmp_path / "masked")
    inputs = inputs_of(whole)
    assert done.shrink.config == CASES[case]
    assert not any(info.values())
    assert sum(p.numel() for p in small.parameters()) == done.shrink.effect.parameters_after
    torch.testing.assert_close(
        outputs(small.eval(), inputs), outputs(masked, inputs), atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(outputs(small, inputs), outputs(whole, inputs), atol=1e-2)
    torch.testing.assert_close(
        outputs(without_dropout(small), inputs),
        outputs(without_dropout(masked), inputs),
        atol=1e-5,
        rtol=1e-5,
    )
    assert verify_checkpoint(tmp_path / "small", source=tmp_path / "whole").is_verified
    jsonschema.validate(json.loads(done.to_json()), SCHEMA)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_no_config_can_say_is_written_for_load_shrunk(name: str, tmp_path: Path) -> None:
    """Heads whose width would follow from their number."""
    whole = saved(name, tmp_path / "whole")

    done = shrink_folder(tmp_path / "whole", tmp_path / "small", heads=1, layers=1, as_code=True)

    small = load_shrunk(type(whole)(whole.config), tmp_path / "small").eval()
    masked = masked_model(whole, tmp_path / "whole", done.shrink, tmp_path / "masked")
    inputs = inputs_of(whole)
    assert {group.unit for group in done.shrink.groups} == {"heads", "layers"}
    assert not done.shrink.config
    torch.testing.assert_close(
        outputs(small, inputs), outputs(masked, inputs), atol=1e-5, rtol=1e-5
    )
    assert verify_checkpoint(tmp_path / "small", source=tmp_path / "whole").is_verified


def test_every_tensor_is_a_slice_of_the_source(tmp_path: Path) -> None:
    """Layers are numbered anew, and nothing else is renamed."""
    saved("llama", tmp_path / "whole")

    done = shrink_folder(tmp_path / "whole", tmp_path / "small", heads=1, layers=1)

    source = load_file(tmp_path / "whole" / "model.safetensors")
    written = load_file(tmp_path / "small" / "model.safetensors")
    [stay] = done.shrink.lists.values()
    for name, tensor in written.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(stay[int(parts[2])])
        before = ".".join(parts)
        expected = source[before]
        for dim, kept in done.shrink.kept.get(before, {}).items():
            expected = expected.index_select(dim, torch.tensor(kept))
        assert torch.equal(tensor, expected), name


def test_generation_needs_no_cache_and_may_have_one(tmp_path: Path) -> None:
    """The tokens are those of the masked model, which has no cache for the layers it passes over."""
    whole = saved("llama", tmp_path / "whole")
    done = shrink_folder(tmp_path / "whole", tmp_path / "small", heads=0.5, layers=1)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    masked = masked_model(whole, tmp_path / "whole", done.shrink, tmp_path / "masked")
    prompt = {"input_ids": torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 8, 9]])}
    prompt["attention_mask"] = (prompt["input_ids"] > 0).long()
    how = {**prompt, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    with_cache = small.generate(**how, use_cache=True)
    without = small.generate(**how, use_cache=False)

    assert torch.equal(with_cache, without)
    assert torch.equal(without, masked.generate(**how, use_cache=False))


@pytest.mark.parametrize("unit", ["layers", "heads", "experts"])
def test_fewer_are_some_of_more(unit: str, tmp_path: Path) -> None:
    """For one seed, what goes for an amount goes for a larger one too."""
    saved("qwen3moe" if unit == "experts" else "vit", tmp_path / "whole")

    few, more = (
        shrink_folder(tmp_path / "whole", tmp_path / str(n), seed=3, **{unit: n}) for n in (1, 2)
    )

    for one, other in zip(few.shrink.groups, more.shrink.groups, strict=True):
        assert (one.root, len(one.removed), len(other.removed)) == (other.root, 1, 2)
        assert {*one.removed} < {*other.removed}


def test_two_kinds_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    """Heads and channels together give what heads, and then channels of the result, give."""
    saved("vit", tmp_path / "whole")

    both = shrink_folder(tmp_path / "whole", tmp_path / "both", heads=1, channels=0.25)
    shrink_folder(tmp_path / "whole", tmp_path / "first", heads=1)
    shrink_folder(tmp_path / "first", tmp_path / "second", channels=0.25)

    one = load_file(tmp_path / "both" / "model.safetensors")
    other = load_file(tmp_path / "second" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "both" / "config.json").read_text() == (
        tmp_path / "second" / "config.json"
    ).read_text()
    assert {group.unit for group in both.shrink.groups} == {"heads", None}
    assert verify_checkpoint(tmp_path / "both", source=tmp_path / "whole").is_verified


def test_a_layer_that_is_excluded_stays(tmp_path: Path) -> None:
    """The draw is among the others."""
    saved("llama", tmp_path / "whole")

    done = shrink_folder(
        tmp_path / "whole", tmp_path / "small", layers=2, exclude=["model.layers.1"]
    )

    [group] = done.shrink.groups
    assert group.removed == (0, 2)
    assert [whole.root for whole in done.shrink.whole] == ["model.layers.1"]
    assert verify_checkpoint(tmp_path / "small", source=tmp_path / "whole").is_verified


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "a norm over all heads": ("olmo2", {"heads": 1}, RequestError, "reduces over the channels"),
    "no width of a head": ("bert", {"heads": 1}, RequestError, "where the config has no head_dim"),
    "a width that scales": ("vit", {"head-dim": 2}, RequestError, "no head-dim can be removed"),
    "all layers": ("llama", {"layers": 3}, AmountError, "would remove all of its 3 layers"),
    "chance that depends on depth": ("beit", {"layers": 1}, RequestError, "drop_prob of layer"),
    "experts that are needed": ("mixtral", {"experts": 3}, RequestError, "remove at most 2"),
    "no experts": ("llama", {"experts": 1}, RequestError, "no number in config.json counts"),
    "a pattern for nothing": ("llama", {"layers": 1, "exclude": ["x"]}, SelectionError, "matches"),
    "half of the attentions": (
        "llama",
        {"heads": 1, "exclude": ["model.layers.0.self_attn"]},
        RequestError,
        "one number for all heads",
    ),
    "half of the routers": (
        "mixtral",
        {"experts": 1, "exclude": ["model.layers.0.mlp"]},
        RequestError,
        "one number for all experts",
    ),
    "nothing": ("llama", {"layers": 0.1}, RequestError, "no layer is removed"),
}
"""For each reason: the model, what is asked, and the error."""


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_go_is_refused(reason: str, tmp_path: Path) -> None:
    """With the reason, before anything is written."""
    name, asked, error, text = REFUSED[reason]
    saved(name, tmp_path / "whole")

    with pytest.raises(error, match=text):
        shrink_folder(tmp_path / "whole", tmp_path / "small", **asked)

    assert not (tmp_path / "small").exists()


def edit_removed(facts: dict[str, Any]) -> None:
    """Say that another layer went."""
    facts["groups"][0]["removed"] = [(facts["groups"][0]["removed"][0] + 1) % 3]


def edit_lists(facts: dict[str, Any]) -> None:
    """Keep an element twice."""
    facts["lists"]["model.layers"] = [0, 0]


def edit_amount(facts: dict[str, Any]) -> None:
    """Say that more was asked for."""
    facts["groups"][0]["amount"] = 2


@pytest.mark.parametrize("edit", [edit_removed, edit_lists, edit_amount])
def test_a_report_that_was_changed_is_found_out(edit: Any, tmp_path: Path) -> None:
    """What went has to follow from the seed, the options and what is left."""
    saved("llama", tmp_path / "whole")
    shrink_folder(tmp_path / "whole", tmp_path / "small", layers=1)
    report = tmp_path / "small" / "prune-report.json"
    facts = json.loads(report.read_text())
    edit(facts["shrink"])
    (tmp_path / "edited.json").write_text(json.dumps(facts))

    found = verify_checkpoint(
        tmp_path / "small", report=tmp_path / "edited.json", source=tmp_path / "whole"
    )

    assert not found.is_verified
