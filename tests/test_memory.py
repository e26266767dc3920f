"""Models in memory: a state dict is pruned as a file of it is, and masks load into a fresh module."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as stock

from prune_cli import prune_checkpoint
from prune_cli.errors import (
    AmountError,
    InputError,
    ParameterError,
    RequestError,
    SelectionError,
    UsageError,
)
from prune_cli.memory import load_masked, prune_state_dict
from prune_cli.module import random_structured
from prune_cli.plan.selection import Rule
from tests.strided import octets, zero_lines


class Tied(nn.Module):
    """A model with convolutions, a recurrent layer, and an output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Give the next token's logits."""
        x = self.norm(self.conv(self.embed(tokens).mT))
        return self.head(self.rnn(x.mT)[0])


TOKENS = torch.arange(10).view(1, 10)


def assert_same(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """Compare names and bytes."""
    assert {*found} == {*expected}
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(octets(found[name]), octets(tensor)), name


def from_a_file(tmp_path: Path, state: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    """Prune by way of files, and read the tied names back as safetensors' load_model does."""
    torch.save(state, tmp_path / "in.pt")
    prune_checkpoint(tmp_path / "in.pt", tmp_path / "out.safetensors", **options)
    found = load_file(tmp_path / "out.safetensors")
    for alias in {"head.weight", "head.weight_orig", "head.weight_mask"} - found.keys():
        other = alias.replace("head", "embed")
        if other in found:
            found[alias] = found[other]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"amount": 0.5, "dim": 0},
        {"amount": 2},
        {"amount": 0.25, "dim": 0, "with_bias": True},
        {"amount": 0.5, "dim": 0, "bake": False, "seed": 7},
        {"amount": 0.5, "dim": 0, "modules": "rnn", "params": "weight_*"},
        {"amount": 0.5, "dim": 0, "modules": ["conv", "embed"], "exclude": "embed"},
        {"amount": 0.5, "dim": 0, "is_global": True, "criterion": "l1", "exclude": "embed"},
        {"amount": 0.5, "dim": 0, "allocate": "erk", "round_to": 2},
        {"target": "params=0.5", "dim": 0, "at_least": 1},
        {"rules": [Rule("conv", amount=1, dim=1), Rule("head", amount=0.5, dim=0)]},
    ],
    ids=repr,
)
def test_a_state_dict_is_pruned_as_a_file_of_it_is(tmp_path: Path, options: dict[str, Any]) -> None:
    """Names and bytes are those of the file, tied weights included."""
    state = Tied().state_dict()

    pruned = prune_state_dict(state, **options)

    assert_same(pruned, from_a_file(tmp_path, state, **options))


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "masks"])
def test_masks_that_are_there_are_gone_on_from(tmp_path: Path, bake: bool) -> None:
    """Channels are drawn among those that the masks leave, and baked masks select."""
    model = Tied()
    stock.random_structured(model.conv, "weight", 2, 0)
    stock.l1_unstructured(model.rnn, "weight_ih_l0", 0.5)
    nn.init.constant_(model.conv.weight_orig, -torch.inf)
    state = model.state_dict()
    options = {"amount": 0.5, "dim": 0, "modules": "conv", "bake": bake}

    pruned = prune_state_dict(state, **options)

    assert_same(pruned, from_a_file(tmp_path, state, **options))


def test_scores_are_tensors_by_name(tmp_path: Path) -> None:
    """In memory as in a file, the smallest go."""
    state = Tied().state_dict()
    scores = {"conv.weight": torch.tensor([3.0, 1, 5, 0, 4, 2])}
    save_file(scores, tmp_path / "scores.safetensors")
    options = {"amount": 2, "dim": 0, "modules": "conv"}

    pruned = prune_state_dict(state, scores=scores, **options)

    assert zero_lines(pruned["conv.weight"], 0) == [1, 3]
    assert_same(
        pruned, from_a_file(tmp_path, state, scores=tmp_path / "scores.safetensors", **options)
    )


def test_the_state_dict_stays_as_it_was_and_the_rest_is_shared() -> None:
    """Pruned tensors are copies; order, metadata and what is no tensor are kept."""
    model = Tied()
    state = model.state_dict()
    state["note"] = {"epoch": 3}
    before = copy.deepcopy(state)

    pruned = prune_state_dict(state, amount=0.5, dim=0, modules="conv")

    assert list(pruned) == list(state)
    assert torch.equal(state["conv.weight"], before["conv.weight"])
    assert pruned["conv.weight"].data_ptr() != state["conv.weight"].data_ptr()
    assert pruned["rnn.weight_hh_l0"] is state["rnn.weight_hh_l0"]
    assert pruned["note"] == {"epoch": 3}
    assert pruned._metadata == state._metadata
    del pruned["note"]
    assert model.load_state_dict(pruned)
    assert len(zero_lines(model.conv.weight, 0)) == 3


def test_tied_weights_stay_tied() -> None:
    """Both names are one tensor after pruning, too."""
    pruned = prune_state_dict(Tied().state_dict(), amount=0.5, dim=0, modules="head")

    assert pruned["head.weight"] is pruned["embed.weight"]
    assert len(zero_lines(pruned["embed.weight"], 0)) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fnuz, torch.complex64])
def test_any_dtype_of_safetensors_is_pruned(dtype: torch.dtype) -> None:
    """The zeros are zero bytes."""
    state = {"fc.weight": torch.ones(8, 4).to(dtype), "gates": torch.ones(2, 2).cdouble()}

    pruned = prune_state_dict(state, amount=3, dim=0)

    assert len(zero_lines(pruned["fc.weight"], 0)) == 3
    assert pruned["gates"] is state["gates"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 0.5, "modules": "layr"}, SelectionError, "no module matches 'layr'"),
        ({"amount": 99}, AmountError, "at most"),
        ({}, UsageError, "no amount"),
    ],
)
def test_what_does_not_fit_a_state_dict_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """By the words that are used for files."""
    with pytest.raises(error, match=message):
        prune_state_dict(Tied().state_dict(), **options)


def test_a_module_is_no_state_dict() -> None:
    """What to give is said."""
    with pytest.raises(UsageError, match=r"a Tied is not a state dict; give net\.state_dict\(\)"):
        prune_state_dict(Tied(), amount=0.5)


def test_a_mistyped_keyword_is_a_type_error() -> None:
    """It is not swallowed."""
    with pytest.raises(TypeError, match="sed"):
        prune_state_dict(Tied().state_dict(), amount=0.5, sed=4)


def test_tensors_without_elements_are_refused_by_name() -> None:
    """On the meta device there is nothing to prune."""
    with torch.device("meta"):
        state = nn.Linear(4, 8).state_dict()

    with pytest.raises(ParameterError, match="weight is on the meta device"):
        prune_state_dict(state, amount=0.5)


def test_views_that_share_elements_are_refused() -> None:
    """Pruning the one would change the other."""
    whole = torch.ones(8, 4)

    with pytest.raises(ParameterError, match="shares part of its memory"):
        prune_state_dict({"a.weight": whole[:5], "b.weight": whole[3:]}, amount=1)


# --- Masks onto a module ------------------------------------------------------------------------


@pytest.fixture
def pruned() -> Tied:
    """A model that was pruned and trained a little under its masks."""
    torch.manual_seed(0)
    model = Tied().eval()
    random_structured(model.conv, "weight", amount=2, dim=0)
    random_structured(model.rnn, "weight_ih_l0", amount=0.25, dim=0)
    stock.random_unstructured(model.rnn, "bias_ih_l0", amount=0.5)
    for _ in range(2):
        train(model)
    return model


def train(model: nn.Module) -> None:
    """Take a step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TOKENS).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["state dict", "torch", "safetensors"])
def test_masks_load_into_a_fresh_module(kind: str, pruned: Tied, tmp_path: Path) -> None:
    """It computes at once what the pruned one does, and trains under the same masks."""
    source: Any = pruned.state_dict()
    if kind != "state dict":
        torch.save(source, tmp_path / "in.pt")
        source = str(tmp_path / "in.pt")
    if kind == "safetensors":
        prune_checkpoint(source, tmp_path / "x.safetensors", amount=0, modules="conv", bake=False)
        source = tmp_path / "x.safetensors"
    fresh = Tied().eval()

    loaded = load_masked(fresh, source)

    assert loaded is fresh
    assert_same(fresh.state_dict(), pruned.state_dict())
    assert torch.equal(fresh.conv.weight == 0, fresh.conv.weight_mask == 0)
    assert torch.equal(fresh(TOKENS), pruned(TOKENS))
    fresh.zero_grad()
    pruned.zero_grad()
    train(fresh)
    train(pruned)
    assert torch.equal(fresh.conv.weight_orig, pruned.conv.weight_orig)


def test_a_loaded_mask_is_one_of_torch(pruned: Tied) -> None:
    """It is removed, copied and pruned again as any other."""
    fresh = load_masked(Tied(), pruned.state_dict())
    twin = copy.deepcopy(fresh)

    random_structured(fresh.conv, "weight", amount=2, dim=0)
    stock.l1_unstructured(fresh.rnn, "weight_ih_l0", amount=5)
    stock.remove(twin.conv, "weight")

    assert len(zero_lines(fresh.conv.weight_mask, 0)) == 4
    assert len(zero_lines(twin.conv.weight, 0)) == 2
    assert stock.is_pruned(twin)
    assert not twin.conv._forward_pre_hooks


def test_a_module_that_is_pruned_already_takes_the_values(pruned: Tied) -> None:
    """Its hooks stay, and its pruned weights are computed anew."""
    other = Tied()
    random_structured(other.conv, "weight", amount=5, dim=0)

    load_masked(other, pruned.state_dict())

    assert len(other.conv._forward_pre_hooks) == 1
    pruned(TOKENS)
    assert torch.equal(other.conv.weight, pruned.conv.weight)


def test_a_checkpoint_that_does_not_fit_leaves_the_module_as_it_was(pruned: Tied) -> None:
    """What is missing, unknown or of another shape is named, all at once."""
    state = pruned.state_dict()
    state["conv.bias"] = torch.ones(7)
    state["extra"] = state.pop("norm.weight")
    fresh = Tied()
    before = copy.deepcopy(fresh.state_dict())

    with pytest.raises(
        RequestError,
        match=r"does not fit Tied: the checkpoint lacks norm\.weight; the model has no extra; "
        r"of another shape is conv\.bias \(\[7\], and in the model \[6\]\)",
    ):
        load_masked(fresh, state)

    assert_same(fresh.state_dict(), before)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_mask_that_is_none_is_refused(value: float, pruned: Tied) -> None:
    """Soft masks are not masks; the module is as it was."""
    state = pruned.state_dict()
    state["conv.weight_mask"][0] = value
    fresh = Tied()

    with pytest.raises(ParameterError, match=r"conv\.weight: .* other values than 0 and 1"):
        load_masked(fresh, state)

    assert not stock.is_pruned(fresh)


def test_masks_of_an_attention_load_and_are_followed() -> None:
    """Though it reads its output projection without calling it."""
    model, x = nn.MultiheadAttention(8, 2), torch.linspace(-1, 1, 48).view(3, 2, 8)
    random_structured(model.out_proj, "weight", amount=2, dim=0)
    random_structured(model, "in_proj_weight", amount=0.5, dim=0)

    fresh = load_masked(nn.MultiheadAttention(8, 2), model.state_dict())

    assert torch.equal(fresh(x, x, x)[0], model(x, x, x)[0])


def test_a_model_without_values_is_refused() -> None:
    """Each parameter that is masked is named."""
    state = random_structured(nn.Linear(4, 3), "weight", amount=1, dim=0).state_dict()

    with pytest.raises(ParameterError, match="^weight: .* on the meta device"):
        load_masked(nn.Linear(4, 3, device="meta"), state)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    """As of every function that reads one."""
    with pytest.raises(InputError, match="none.pt"):
        load_masked(Tied(), tmp_path / "none.pt")
