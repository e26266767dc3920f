"""Parameters that something else than their module's forward reads: right values, or refused."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as stock

from prune_cli.errors import ParameterError
from prune_cli.module import GivenMask, RandomStructured, random_structured
from tests.strided import live_lines, zero_lines


def encoder_layer() -> nn.TransformerEncoderLayer:
    """Make a layer that takes torch's fast path in evaluation, where it may."""
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def encoder() -> nn.TransformerEncoder:
    """Make an encoder, which turns padded batches into nested tensors on its fast path."""
    return nn.TransformerEncoder(encoder_layer(), 2)


def attention() -> nn.MultiheadAttention:
    """Make an attention that keeps its three projections in one parameter."""
    return nn.MultiheadAttention(8, 2, batch_first=True)


def wide_attention() -> nn.MultiheadAttention:
    """Make an attention that has a parameter for each of its projections."""
    return nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)


def transformer() -> nn.Transformer:
    """Make the whole, with a decoder that attends to the encoder."""
    return nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)


PRUNED = [
    (encoder_layer, "linear1", "weight"),
    (encoder_layer, "linear2", "weight"),
    (encoder_layer, "self_attn", "in_proj_weight"),
    (encoder, "layers.0.linear1", "weight"),
    (encoder, "layers.1.self_attn", "in_proj_weight"),
    (attention, "", "in_proj_weight"),
    (wide_attention, "", "k_proj_weight"),
    (attention, "out_proj", "weight"),
    (wide_attention, "out_proj", "weight"),
    (encoder_layer, "self_attn.out_proj", "weight"),
    (encoder, "layers.1.self_attn.out_proj", "weight"),
    (transformer, "encoder.layers.0.self_attn.out_proj", "weight"),
    (transformer, "decoder.layers.0.multihead_attn.out_proj", "weight"),
    (transformer, "decoder.layers.0.linear2", "weight"),
]


def output(model: nn.Module) -> torch.Tensor:
    """Call the model on a batch, of which the encoder is told that the end is padding."""
    x = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)
    if isinstance(model, nn.TransformerEncoder):
        return model(x, src_key_padding_mask=torch.tensor([[False] * 3, [False, False, True]]))
    if isinstance(model, nn.MultiheadAttention):
        return model(x, x[..., : model.kdim], x[..., : model.vdim])[0]
    return model(x, x) if isinstance(model, nn.Transformer) else model(x)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("make", "path", "name"), PRUNED)
def test_a_transformer_computes_with_the_pruned_weights_of_now(
    make: object, path: str, name: str, training: bool
) -> None:
    """Step after step, outputs and gradients are those of a copy that has the zeros baked."""
    torch.manual_seed(0)
    model = make().train(training)
    random_structured(model.get_submodule(path), name, amount=3, dim=0)
    for _ in range(2):
        with torch.no_grad():
            model.get_submodule(path).get_parameter(f"{name}_orig").add_(0.01)
        baked = copy.deepcopy(model)
        stock.remove(baked.get_submodule(path), name)

        torch.testing.assert_close(output(model), output(baked))
        with torch.no_grad():
            torch.testing.assert_close(output(model), output(baked))
        model.zero_grad()
        output(model).square().sum().backward()
        output(baked).square().sum().backward()

        gradient = model.get_submodule(path).get_parameter(f"{name}_orig").grad
        dense = baked.get_submodule(path).get_parameter(name).grad
        mask = model.get_submodule(path).get_buffer(f"{name}_mask")
        torch.testing.assert_close(gradient, dense * mask)


def pruned_attention() -> nn.MultiheadAttention:
    """Make an attention whose output projection is pruned, twice."""
    torch.manual_seed(0)
    model = attention()
    random_structured(model.out_proj, "weight", amount=2, dim=0)
    random_structured(model.out_proj, "weight", amount=1, dim=1)
    return model


def test_an_output_projection_is_torchs_again_after_remove() -> None:
    """The zeros are permanent, the parameter is the same object, and its class is as it was."""
    model = attention()
    kind, weight = type(model.out_proj), model.out_proj.weight
    random_structured(model.out_proj, "weight", amount=2, dim=0)
    expected = output(model)

    stock.remove(model.out_proj, "weight")

    assert type(model.out_proj) is kind
    assert model.out_proj.weight is weight
    assert len(zero_lines(weight, 0)) == 2
    assert [name for name, _ in model.out_proj.named_parameters()] == ["weight", "bias"]
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_duplicate_of_an_output_projection_follows_its_own_weights(duplicate: Any) -> None:
    """The copy computes with the weights that the copy has."""
    model = pruned_attention()
    twin = duplicate(model)
    assert torch.equal(output(twin), output(model))

    with torch.no_grad():
        twin.out_proj.weight_orig.mul_(2)

    expected = 2 * (output(model) - model.out_proj.bias) + model.out_proj.bias
    torch.testing.assert_close(output(twin), expected)


def test_a_method_of_torch_on_top_of_an_output_projection() -> None:
    """Both have their effect, and remove leaves a parameter."""
    model = pruned_attention()

    stock.l1_unstructured(model.out_proj, "weight", amount=10)
    mask = model.out_proj.weight_mask
    assert torch.equal(model.out_proj.weight == 0, mask == 0)
    expected = output(model)
    stock.remove(model.out_proj, "weight")

    assert isinstance(model.out_proj.weight, nn.Parameter)
    assert torch.equal(output(model), expected)


def test_an_output_projection_that_stock_torch_pruned_is_put_right() -> None:
    """Pruning it again here ends the old values."""
    model = attention()
    stock.random_structured(model.out_proj, "weight", 2, 0)

    random_structured(model.out_proj, "weight", amount=1, dim=0)
    nn.init.zeros_(model.out_proj.weight_orig)

    assert torch.equal(output(model), model.out_proj.bias.expand(2, 3, 8))


def test_the_mask_of_an_output_bias_is_followed_too() -> None:
    """The attention reads the bias as it reads the weight."""
    model, mask = attention(), torch.tensor([1.0, 0] * 4)
    GivenMask.apply(model.out_proj, "bias", mask)

    nn.init.ones_(model.out_proj.bias_orig)

    assert model.out_proj.bias.tolist() == mask.tolist()
    assert isinstance(model.out_proj.weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_takes_an_output_projection() -> None:
    """A compiled attention gives the same output and gradients."""
    model = pruned_attention()
    compiled = torch.compile(model, backend="aot_eager")

    x = torch.linspace(-1, 1, 48).view(2, 3, 8)
    found = compiled(x, x, x)[0]

    found.square().sum().backward()
    torch.testing.assert_close(found, output(model))
    assert zero_lines(model.out_proj.weight_orig.grad, 0) == zero_lines(
        model.out_proj.weight_mask, 0
    )


def test_stock_torch_prunes_it_and_goes_on_with_old_values() -> None:
    """This is why it has a class of its own here."""
    model = attention()
    stock.random_structured(model.out_proj, "weight", amount=2, dim=0)
    before = output(model)

    with torch.no_grad():
        model.out_proj.weight_orig.mul_(2)

    assert torch.equal(output(model), before)


def test_meta_parameters_are_refused_as_to_empty_would_leave_a_mask_of_garbage() -> None:
    """A module without values has to be given them first."""
    with torch.device("meta"):
        linear = nn.Linear(6, 4)

    with pytest.raises(ParameterError, match=r"'weight' of Linear is on the meta device.*to_empty"):
        random_structured(linear, "weight", amount=2, dim=0)

    linear.to_empty(device="cpu")
    random_structured(linear, "weight", amount=2, dim=0)
    assert len(zero_lines(linear.weight_mask, 0)) == 2


@pytest.fixture
def mesh() -> Iterator[object]:
    """A device mesh of this one process."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_a_distributed_parameter_is_refused_by_what_it_is(mesh: object) -> None:
    """A DTensor's elements are spread over processes, each of which would prune its own."""
    from torch.distributed.tensor import distribute_module

    linear = distribute_module(nn.Linear(6, 4), mesh)

    with pytest.raises(ParameterError, match=r"'weight' of Linear is a DTensor.*before"):
        random_structured(linear, "weight", amount=2, dim=0)


# --- Norms that compute the weight --------------------------------------------------------------


def test_a_parametrized_weight_is_answered_with_what_to_prune() -> None:
    """The magnitude of a weight norm: where it is zero, so is the channel."""
    conv = parametrizations.weight_norm(nn.Conv1d(3, 5, 2))

    with pytest.raises(ParameterError, match=r"prune 'original0' of module\.parametrizations\.w"):
        random_structured(conv, "weight", amount=2, dim=0)

    random_structured(conv.parametrizations.weight, "original0", amount=2, dim=0)
    assert live_lines(conv.weight, 0) == live_lines(conv.parametrizations.weight.original0, 0)
    assert len(live_lines(conv.weight, 0)) == 3
    conv(torch.ones(1, 3, 4)).sum().backward()
    assert conv(torch.ones(1, 3, 4)).isfinite().all()


def test_another_parametrization_is_answered_with_its_original() -> None:
    """Its name is the one that torch gives a single original."""
    linear = parametrizations.orthogonal(nn.Linear(4, 4))

    with pytest.raises(ParameterError, match=r"prune 'original' of module\.parametrizations\.w"):
        random_structured(linear, "weight", amount=2, dim=0)


def test_the_direction_of_a_weight_norm_is_refused() -> None:
    """A direction of zero length is NaN."""
    conv = parametrizations.weight_norm(nn.Conv1d(3, 5, 2))

    with pytest.raises(ParameterError, match=r"NaN; prune 'original0'"):
        random_structured(conv.parametrizations.weight, "original1", amount=2, dim=0)


@pytest.fixture
def older() -> nn.Module:
    """A convolution with torch's older weight norm, a hook."""
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv1d(3, 5, 2))


def test_the_direction_of_an_older_weight_norm_is_refused(older: nn.Module) -> None:
    """Both names of the weight that is not a parameter lead to weight_g."""
    for name in ("weight_v", "weight"):
        with pytest.raises(ParameterError, match="prune 'weight_g'"):
            random_structured(older, name, amount=2, dim=0)
    random_structured(older, "weight_g", amount=2, dim=0)
    with pytest.raises(ParameterError, match="NaN"):
        random_structured(older, "weight_v", amount=2, dim=0)


def test_the_magnitude_of_an_older_weight_norm_is_pruned_from_the_first_call(
    older: nn.Module,
) -> None:
    """Our hook runs before the one that reads what it computes, at every step."""
    random_structured(older, "weight_g", amount=2, dim=0)

    for _ in range(2):
        older(torch.ones(1, 3, 4)).sum().backward()

    live = live_lines(older.weight_g_mask, 0)
    assert len(live) == 3
    assert live_lines(older.weight, 0) == live


# --- Pruning again after remove -----------------------------------------------------------------


def test_skipping_zero_channels_goes_on_where_remove_left_off() -> None:
    """A quarter of what is left goes, and what was zero before is masked too."""
    linear = nn.Linear(3, 16)
    random_structured(linear, "weight", amount=8, dim=0)
    stock.remove(linear, "weight")
    dead = zero_lines(linear.weight, 0)

    random_structured(linear, "weight", amount=0.25, dim=0, skip_zero_channels=True)

    masked = zero_lines(linear.weight_mask, 0)
    assert len(masked) == 8 + 2
    assert {*dead} < {*masked}


def test_by_default_zero_channels_are_drawn_as_stock_torch_draws_them() -> None:
    """One seed gives stock's mask, though half of the channels are zero already."""
    linear, other = nn.Linear(3, 16), nn.Linear(3, 16)
    for module, prune in ((linear, random_structured), (other, stock.random_structured)):
        nn.init.zeros_(module.weight[:8])
        torch.manual_seed(3)
        prune(module, "weight", amount=6, dim=0)

    assert torch.equal(linear.weight_mask, other.weight_mask)


def test_skipping_zero_channels_under_a_mask_counts_both() -> None:
    """A channel is left if its mask keeps it and it holds a value."""
    t, mask = torch.ones(10, 2), torch.ones(10, 2)
    t[:3], mask[2:5] = 0, 0

    new = RandomStructured(1.0, dim=0, skip_zero_channels=True).compute_mask(t, mask)
    with pytest.raises(ValueError, match="at most 5 channels"):
        RandomStructured(6, dim=0, skip_zero_channels=True).compute_mask(t, mask)

    assert not new.any()
