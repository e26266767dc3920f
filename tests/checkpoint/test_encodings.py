"""What is no weight by itself: told by names, and held against what the libraries compute."""

import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prune_cli import prune_checkpoint, verify_checkpoint
from prune_cli.checkpoint.encodings import Role, find_encodings
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.errors import ParameterError
from tests import build

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def parameters(shapes: Shapes) -> dict[str, Parameter]:
    """Parameters of those dtypes and shapes."""
    infos = (TensorInfo(name, dtype, shape) for name, (dtype, shape) in shapes.items())
    return {info.name: Parameter(info.name, info) for info in infos}


PACKED: dict[str, tuple[Shapes, str, str | None]] = {
    "gptq": (
        {
            "l.qweight": ("I32", (4, 16)),
            "l.qzeros": ("I32", (2, 2)),
            "l.scales": ("F16", (2, 16)),
            "l.g_idx": ("I32", (32,)),
        },
        "l.qweight",
        "l.scales",
    ),
    "awq": (
        {
            "l.qweight": ("I32", (32, 2)),
            "l.qzeros": ("I32", (2, 2)),
            "l.scales": ("F16", (2, 16)),
        },
        "l.qweight",
        "l.scales",
    ),
    "fp-quant": (
        {"l.qweight": ("U8", (16, 16)), "l.scales": ("U8", (16, 1))},
        "l.qweight",
        None,
    ),
    "compressed-tensors": (
        {"l.weight_packed": ("I32", (16, 4)), "l.weight_scale": ("F32", (16, 1))},
        "l.weight_packed",
        "l.weight_scale",
    ),
    "zero-point": (
        {
            "l.weight": ("I8", (16, 8)),
            "l.weight_scale": ("F32", (16, 1)),
            "l.weight_zero_point": ("I8", (16, 1)),
        },
        "l.weight",
        "l.weight_scale",
    ),
    "hqq": (
        {"l.W_q": ("U8", (8, 64)), "l.scale": ("F16", (16, 1)), "l.zero": ("F16", (16, 1))},
        "l.W_q",
        None,
    ),
    "bitsandbytes": (
        {"l.weight": ("U8", (64, 1)), "l.weight.absmax": ("F32", (2,))},
        "l.weight",
        None,
    ),
    "torchao": (
        {
            "l._weight_qdata": ("I8", (8, 8)),
            "l._weight_scale": ("F32", (8, 1)),
            "l._weight_zero_point": ("F32", (8, 1)),
        },
        "l._weight_qdata",
        "l._weight_scale",
    ),
    "torchao-groups-first": (
        {
            "l._weight_qdata": ("I8", (8, 16)),
            "l._weight_scale": ("BF16", (4, 8)),
            "l._weight_zero_point": ("BF16", (4, 8)),
        },
        "l._weight_qdata",
        "l._weight_scale",
    ),
    "torchao-either": (
        {
            "l._weight_qdata": ("I8", (8, 16)),
            "l._weight_scale": ("BF16", (8, 8)),
            "l._weight_zero_point": ("BF16", (8, 8)),
        },
        "l._weight_qdata",
        None,
    ),
    "torchao-tiles": (
        {
            "l._weight_qdata": ("I32", (1, 4, 32, 4)),
            "l._weight_scale_and_zero": ("BF16", (4, 8, 2)),
        },
        "l._weight_qdata",
        None,
    ),
    "scale-of-the-whole": (
        {
            "l.weight": ("I8", (16, 8)),
            "l.weight_scale": ("F32", (1, 1)),
            "l.weight_zero_point": ("I8", (1, 1)),
        },
        "l.weight",
        None,
    ),
    "quanto": (
        {"l.weight._data": ("U8", (8, 8)), "l.weight._shift": ("F32", (8, 1))},
        "l.weight._data",
        None,
    ),
    "aqlm": (
        {
            "l.codes": ("I8", (8, 2, 2)),
            "l.codebooks": ("F16", (2, 256, 1, 8)),
            "l.scales": ("F16", (8, 1, 1, 1)),
        },
        "l.codes",
        "l.scales",
    ),
    "bitnet": (
        {"l.weight": ("U8", (4, 16)), "l.weight_scale": ("BF16", (1,))},
        "l.weight",
        None,
    ),
    "mlx": (
        {"l.weight": ("U32", (16, 2)), "l.scales": ("F16", (16, 1)), "l.biases": ("F16", (16, 1))},
        "l.weight",
        None,
    ),
    "weight-norm": (
        {"l.weight_g": ("F32", (8, 1, 1)), "l.weight_v": ("F32", (8, 4, 3))},
        "l.weight_v",
        "l.weight_g",
    ),
    "weight-norm-of-a-number": (
        {"l.weight_g": ("F32", ()), "l.weight_v": ("F32", (8, 4, 3))},
        "l.weight_v",
        None,
    ),
}


@pytest.mark.parametrize(("shapes", "codes", "instead"), PACKED.values(), ids=PACKED)
def test_zero_bytes_that_are_no_zero_weights_are_known(
    shapes: Shapes, codes: str, instead: str | None
) -> None:
    """The codes hold no zero; a scale with a zero for each output is what to prune."""
    found = find_encodings(parameters(shapes))

    assert not found[codes].holds_zero
    assert found[codes].instead == instead


ZERO: dict[str, tuple[Shapes, str, str]] = {
    "fp8": ({"w.weight": ("F8_E4M3", (8, 8)), "w.scale": ("F32", (2, 1))}, "w.weight", "w.scale"),
    "deepseek": (
        {"w.weight": ("F8_E4M3", (8, 8)), "w.weight_scale_inv": ("F32", (1, 1))},
        "w.weight",
        "w.weight_scale_inv",
    ),
    "nvfp4": (
        {"w.weight": ("U8", (8, 8)), "w.weight_scale": ("F8_E4M3", (8, 1))},
        "w.weight",
        "w.weight_scale",
    ),
    "nvfp4-packed": (
        {"w.weight_packed": ("U8", (8, 8)), "w.weight_scale": ("F8_E4M3", (8, 1))},
        "w.weight_packed",
        "w.weight_scale",
    ),
    "int8": ({"w.weight": ("I8", (8, 8)), "w.SCB": ("F32", (8,))}, "w.weight", "w.SCB"),
    "mxfp4": (
        {"e.down_blocks": ("U8", (2, 8, 4, 16)), "e.down_scales": ("U8", (2, 8, 4))},
        "e.down_blocks",
        "e.down_scales",
    ),
}


@pytest.mark.parametrize(("shapes", "weight", "scale"), ZERO.values(), ids=ZERO)
def test_scales_of_numbers_with_a_zero_are_scales(shapes: Shapes, weight: str, scale: str) -> None:
    """What they belong to can be pruned as it is."""
    found = find_encodings(parameters(shapes))

    assert weight not in found
    assert (found[scale].role, found[scale].weight) == (Role.SCALE, weight)


PLAIN: dict[str, Shapes] = {
    "two-parameters": {"n.weight": ("F32", (8, 8)), "n.scale": ("F32", (8, 8))},
    "other-shapes": {"k_g": ("F32", (3, 3)), "k_v": ("F32", (8, 4))},
    "spectral-norm": {"l.weight_orig": ("F32", (8, 4)), "l.weight_v": ("F32", (4,))},
    "in-a-word": {"misqweight": ("I32", (4, 4)), "misscales": ("F32", (4, 4))},
}


@pytest.mark.parametrize("shapes", PLAIN.values(), ids=PLAIN)
def test_what_only_sounds_like_it_is_a_weight(shapes: Shapes) -> None:
    """Dtypes and shapes have to fit as well."""
    assert find_encodings(parameters(shapes)) == {}


def test_many_names_take_a_moment() -> None:
    """A hundred thousand, most of packed weights: half a second, and hours if it were quadratic."""
    shapes: Shapes = {}
    for layer in range(25_000):
        shapes |= {
            f"layers.{layer}.qweight": ("I32", (4, 16)),
            f"layers.{layer}.qzeros": ("I32", (2, 2)),
            f"layers.{layer}.scales": ("F16", (2, 16)),
            f"layers.{layer}.norm.weight": ("F16", (16,)),
        }
    start = time.process_time()

    assert len(find_encodings(parameters(shapes))) == 75_000
    assert time.process_time() - start < 30


# --- what the libraries make of it -----------------------------------------------------------


def gptq_weight(state: build.Tensors) -> torch.Tensor:
    """What AutoGPTQ computes with: inputs by outputs, eight 4-bit numbers in an int32."""
    shifts = torch.arange(0, 32, 4)
    numbers = (state["l.qweight"].unsqueeze(1) >> shifts.view(1, -1, 1)) & 15
    zeros = ((state["l.qzeros"].unsqueeze(2) >> shifts.view(1, 1, -1)) & 15).flatten(1) + 1
    group = state["l.g_idx"].long()
    return state["l.scales"][group] * (numbers.flatten(0, 1) - zeros[group])


def gptq(path: Path) -> Path:
    """A layer of 32 inputs and 16 outputs, in two groups, and a bias."""
    whole = (-(2**31), 2**31 - 1)
    content = {
        "l.qweight": torch.randint(*whole, (4, 16), dtype=torch.int32),
        "l.qzeros": torch.randint(*whole, (2, 2), dtype=torch.int32),
        "l.scales": torch.rand(2, 16).half() + 1,
        "l.g_idx": torch.arange(32, dtype=torch.int32) // 16,
        "l.bias": torch.randn(16).half(),
    }
    return build.safetensors(path, content)


def test_pruning_the_scales_of_gptq_zeroes_outputs(tmp_path: Path) -> None:
    """Exactly those that are named, and with --with-bias their biases too."""
    source, out = gptq(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"

    report = prune_checkpoint(
        source, out, amount=0.5, dim=1, params="scales", with_bias=True, modules="l"
    )

    pruned = {item.name: list(item.pruned) for item in report.tensors}
    dead = (gptq_weight(load_file(out)) == 0).all(dim=0)
    assert pruned["l.scales"] == dead.nonzero().flatten().tolist()
    assert pruned["l.bias"] == pruned["l.scales"]
    assert verify_checkpoint(out, source=source).is_verified


def test_pruning_the_codes_is_refused_with_what_to_prune(tmp_path: Path) -> None:
    """Whatever the pattern, and nothing is written."""
    source = gptq(tmp_path / "in.safetensors")

    for params in ("qweight", "*"):
        with pytest.raises(ParameterError, match="prune l.scales, .*params='scales' dim=1"):
            prune_checkpoint(source, amount=0.5, dim=0, params=params)

    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def normed(kind: str) -> nn.Conv1d:
    """A convolution under torch's weight norm, old or new."""
    with warnings.catch_warnings(action="ignore"):
        norm = nn.utils.weight_norm if kind == "old" else nn.utils.parametrizations.weight_norm
        return norm(nn.Conv1d(4, 8, 3))


NORMS = {"old": ("weight_v", "weight_g"), "new": ("original1", "original0")}


@pytest.mark.parametrize(("kind", "params"), NORMS.items(), ids=NORMS)
def test_the_magnitude_of_a_weight_norm_is_pruned_in_place_of_its_direction(
    tmp_path: Path, kind: str, params: tuple[str, str]
) -> None:
    """The module computes zeros in the pruned channels, and the others as before."""
    direction, magnitude = params
    module = normed(kind)
    source = build.torch_zip(tmp_path / "m.pt", module.state_dict())
    out = tmp_path / "out.safetensors"

    with pytest.raises(ParameterError, match=f"params='{magnitude}' dim=0"):
        prune_checkpoint(source, out, amount=0.5, dim=0, params=direction)
    report = prune_checkpoint(source, out, amount=0.5, dim=0, params=magnitude, with_bias=True)

    inputs = torch.randn(2, 4, 9)
    expected = module(inputs)
    expected[:, list(report.tensors[0].pruned)] = 0
    module.load_state_dict(load_file(out))
    assert torch.equal(module(inputs), expected)
    assert len(report.tensors[0].pruned) == 4
    assert verify_checkpoint(out, source=source).is_verified


def test_a_wildcard_prunes_the_magnitude_and_skips_the_direction(tmp_path: Path) -> None:
    """The reason stands in the report."""
    source = build.torch_zip(tmp_path / "m.pt", normed("old").state_dict())

    report = prune_checkpoint(source, dry_run=True, amount=0.5, dim=0, params="*")

    assert [item.name for item in report.tensors] == ["weight_g"]
    reasons = {skip.name: skip.reason for skip in report.skipped}
    assert reasons["weight_v"] == "the direction of a weight norm: prune weight_g"


def test_verify_knows_zeros_that_are_no_zero_weights(tmp_path: Path) -> None:
    """A report of an older version that prunes a direction is not verified, with or without source."""
    source = build.torch_zip(tmp_path / "m.pt", normed("old").state_dict())
    out = tmp_path / "out.safetensors"
    prune_checkpoint(source, out, amount=0.5, dim=0, params="weight_g")
    state = load_file(out)
    report = tmp_path / "out.report.json"
    renamed = report.read_text().replace("weight_g", "weight_v").replace("[8, 1, 1]", "[8, 4, 3]")
    report.write_text(renamed)
    build.safetensors(out, state)

    found = verify_checkpoint(out)

    facts = [problem.fact for problem in found.disagreements if problem.tensor == "weight_v"]
    assert any("a channel of zeros becomes NaN" in fact for fact in facts)
