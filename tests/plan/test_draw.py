"""Plans: what is drawn, what counts as pruned, and how long a very large one takes."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from prune_cli.checkpoint import open_checkpoint
from prune_cli.checkpoint.names import natural_key
from prune_cli.errors import ParameterError, SelectionError, UsageError
from prune_cli.plan.biases import bias_name
from prune_cli.plan.draw import channels_to_prune, make_plan
from prune_cli.plan.facts import Options, derive_seed
from prune_cli.torch_channels import live_channels
from tests import build

PRUNABLE = [name for name in build.TORCH_DTYPES if name not in ("F4", "F8_E8M0")]


@pytest.mark.parametrize("dtype", PRUNABLE)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_channels_of_zeros_count_as_pruned(tmp_path: Path, dtype: str, dim: int) -> None:
    """Channels of +0 and -0 are pruned already, those with any other value are live."""
    weight = build.random_bits(dtype, 6, 5, 4)
    bits = torch.frombuffer(bytearray(build.octets(weight)), dtype=torch.uint8)
    elements = bits.view(6, 5, 4, -1).transpose(0, dim)
    elements[1] = 0
    elements[3] = 0
    if weight.is_floating_point() or weight.is_complex():
        elements[3, :, :, weight.real.itemsize - 1] = 0x80 if dtype != "F8_E4M3FNUZ" else 0
    elements[2, 0, 0] = 0
    content = {"w.weight": bits.view(weight.dtype).view(6, 5, 4)}
    checkpoint = open_checkpoint(build.safetensors(tmp_path / "x", content))

    [item] = make_plan(checkpoint, Options(1, dim)).items

    live = set(live_channels(content["w.weight"], dim).tolist())
    assert set(item.already_pruned) == {*range(item.channels)} - live
    assert {1, 3} <= set(item.already_pruned) or dtype == "F8_E5M2FNUZ"
    assert set(item.pruned) <= live


@pytest.mark.parametrize("channels", [3, 256, 257, 5000])
def test_channels_are_those_of_stock_torch(tmp_path: Path, channels: int) -> None:
    """Few or many, drawn by Python's sort or torch's, they are the same."""
    path = build.safetensors(tmp_path / "x", {"a.weight": torch.ones(channels, 2)})

    [item] = make_plan(open_checkpoint(path), Options(0.3, 0, seed=11)).items

    mask = build.stock_mask(torch.ones(channels, 2), "a.weight", 0.3, 0, 11)
    assert list(item.pruned) == (~mask[:, 0]).nonzero().flatten().tolist()
    assert channels_to_prune(item) == item.pruned


def test_seeds_are_a_contract() -> None:
    """They are the first eight bytes of a SHA-256, and no version may change them."""
    assert derive_seed(0, "fc.weight") == 4845879779924941752
    assert derive_seed(-1, "重み") == derive_seed(-1, "重み") != derive_seed(1, "重み")


def test_a_smaller_amount_is_a_subset(tmp_path: Path) -> None:
    """For one seed the channels of less are among those of more."""
    checkpoint = open_checkpoint(build.safetensors(tmp_path / "x", {"w": torch.ones(64, 2)}))

    drawn = [
        set(make_plan(checkpoint, Options(amount, 0, params=("w",))).items[0].pruned)
        for amount in (0, 1, 0.1, 0.5, 1.0)
    ]

    assert all(less <= more for less, more in itertools.pairwise(drawn))


NAMES = {
    "fc.weight": "fc.bias",
    "weight": "bias",
    "rnn.weight_ih_l0_reverse": "rnn.bias_ih_l0_reverse",
    "attn.in_proj_weight": "attn.in_proj_bias",
    "k.kernel": None,
}


@pytest.mark.parametrize(("weight", "bias"), NAMES.items(), ids=NAMES)
def test_biases_are_found_by_name(weight: str, bias: str | None) -> None:
    """Beside every kind of weight; what is not called a weight has no known bias."""
    assert bias_name(weight) == bias


def test_every_misfit_is_named_at_once(tmp_path: Path) -> None:
    """Errors of one class stay of that class, and each has its line."""
    base = torch.randn(6, 4)
    content = {"a.weight": base[:4], "b.weight": base[2:], "c.weight": torch.ones(2, 2)}
    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "x", content))

    with pytest.raises(ParameterError) as caught:
        make_plan(checkpoint, Options(1, 0))

    assert len(str(caught.value).splitlines()) == 2


def test_nothing_to_prune_is_an_error(tmp_path: Path) -> None:
    """Without tensors, or without an amount, there is no plan."""
    empty = open_checkpoint(build.raw_safetensors(tmp_path / "x", {}))
    full = open_checkpoint(build.safetensors(tmp_path / "y", build.tensors()))

    with pytest.raises(SelectionError, match="holds no tensors"):
        make_plan(empty, Options(1))
    with pytest.raises(UsageError, match="--amount"):
        make_plan(full, Options(None))


def test_many_tensors_are_planned(tmp_path: Path) -> None:
    """Ten thousand tensors in an index of two shards are each planned, in the order of names."""
    names = build.shard_names(2)
    for number, name in enumerate(names):
        header = {
            f"experts.{n * 2 + number}.weight": build.entry(n * 16, n * 16 + 16, 4, 4)
            for n in range(5000)
        }
        build.raw_safetensors(tmp_path / name, header, b"\1" * 80_000)
    weight_map = {f"experts.{n}.weight": names[n % 2] for n in range(10_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    plan = make_plan(open_checkpoint(tmp_path), Options(0.25, 0))

    assert [item.name for item in plan.items] == sorted(weight_map, key=natural_key)
    assert {len(item.pruned) for item in plan.items} == {1}
