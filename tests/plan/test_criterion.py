"""Criteria: scores against stock torch, channel by channel, and what ties and NaN do."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.plan import criterion as module
from prune_cli.plan.allocation import Layer
from prune_cli.plan.choice import Criterion
from prune_cli.plan.criterion import (
    decode,
    has_order,
    rank_together,
    score_channels,
    sum_scores,
)
from tests import build

ORDERED = [name for name in build.TORCH_DTYPES if has_order(name)]
FLOATS = ["F64", "F32", "BF16", "F16"]
SHAPES = [(7, 5), (16, 6, 3, 3), (33, 65), (4, 3, 2), (1, 9), (130, 1), (3, 2100), (1100, 6)]


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The elements of a tensor as unsigned integers."""
    width = tensor.element_size()
    return np.frombuffer(bytes(build.octets(tensor)), f"<u{width}").reshape(tensor.shape)


def normal(*shape: int, dtype: str = "F32", seed: int = 0) -> torch.Tensor:
    """Weights as a trained layer has them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(
        build.TORCH_DTYPES[dtype]
    )


def scores(
    weight: torch.Tensor, dtype: str, dim: int, by: Criterion, live: Sequence[int] | None = None
) -> np.ndarray:
    """The scores of all channels, or of those that are live."""
    chosen = range(weight.shape[dim]) if live is None else live
    return score_channels(bits_of(weight), dtype, dim, by, chosen)


@pytest.mark.parametrize("dtype", ORDERED)
def test_every_element_is_decoded_as_torch_does(dtype: str) -> None:
    """Whatever the bits, NaN and inf included, the number is torch's."""
    if DTYPES[dtype].bits == 8 and dtype != "BOOL":
        tensor = torch.arange(256, dtype=torch.uint8).view(build.TORCH_DTYPES[dtype])
    else:
        tensor = build.random_bits(dtype, 5000)

    found = decode(bits_of(tensor), dtype)

    plain = torch.view_as_real(tensor).flatten() if tensor.is_complex() else tensor
    assert np.array_equal(found, plain.to(torch.float64).numpy(), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("by", "n"), [("l1", 1), ("l2", 2)], ids=["l1", "l2"])
def test_norms_take_the_channels_of_ln_structured(
    dtype: str, shape: tuple[int, ...], by: Criterion, n: int
) -> None:
    """For any number of channels and any dim, the k smallest are those that stock torch prunes."""
    weight = normal(*shape, dtype=dtype)
    for dim in range(len(shape)):
        order = scores(weight, dtype, dim, by).argsort(kind="stable")
        for k in {1, shape[dim] // 2, shape[dim] - 1} - {0}:
            module = build.oracle_module(weight.to(torch.float64))
            prune.ln_structured(module, "weight", k, n, dim)
            kept = module.weight_mask.transpose(0, dim).flatten(1).any(1)
            assert sorted(order[:k]) == (~kept).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", ORDERED)
@pytest.mark.parametrize("by", ["l1", "l2"])
def test_norms_are_those_of_torch(dtype: str, by: Criterion) -> None:
    """Of every dtype, those with NaN or inf included, by torch in float64."""
    weight = build.random_bits(dtype, 12, 7, 9)
    wide = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    for dim in range(3):
        found = scores(weight, dtype, dim, by)

        flat = wide.transpose(0, dim).flatten(1)
        expected = torch.linalg.vector_norm(flat, 1 if by == "l1" else 2, dim=1).numpy()
        assert found.clip(max=1e38) == pytest.approx(expected.clip(max=1e38), nan_ok=True)


@pytest.mark.parametrize("shape", [(9, 5), (12, 6, 3, 3), (150, 70)], ids=str)
@pytest.mark.parametrize("dtype", [*FLOATS, pytest.param("C64", marks=build.needs_dtype("C64"))])
def test_fpgm_sums_up_the_distances_to_the_others(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: str
) -> None:
    """Whatever the size of the blocks, the scores are those that all pairs give."""
    weight = normal(*shape, dtype=dtype)
    wide = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    for dim in range(len(shape)):
        flat = wide.transpose(0, dim).flatten(1)
        expected = (flat[:, None] - flat[None]).abs().square().sum(-1).sqrt().sum(-1).numpy()

        assert scores(weight, dtype, dim, "fpgm") == pytest.approx(expected, rel=1e-6)
        with monkeypatch.context() as small:
            small.setattr(module, "_BLOCK", 16)
            small.setattr(module, "_DISTANCES", 8)
            assert scores(weight, dtype, dim, "fpgm") == pytest.approx(expected, rel=1e-6)


def test_fpgm_tells_channels_that_hardly_differ() -> None:
    """A large common part costs no digits, and equal channels have equal scores."""
    spread = normal(8, 40, dtype="F64")
    weight = 1e6 + spread
    weight[5] = weight[2]

    found = scores(weight, "F64", 0, "fpgm")

    expected = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    assert found == pytest.approx(expected.numpy(), rel=1e-6)
    assert found[5] == found[2]


@pytest.mark.parametrize("by", ["l1", "l2", "fpgm"])
def test_channels_with_nan_are_the_last_to_go(by: Criterion) -> None:
    """NaN counts as more than any number, and the order of the others is as without it."""
    weight = normal(6, 8)
    others = [0, 1, 3, 5]
    expected = [others[n] for n in scores(weight, "F32", 0, by, others).argsort()]
    weight[2, 3], weight[4, 0] = float("nan"), float("nan")

    order = scores(weight, "F32", 0, by).argsort(kind="stable").tolist()

    assert order == [*expected, 2, 4]


@pytest.mark.parametrize("size", [1e200, 1e300])
def test_distances_beyond_number_are_no_warning(size: float) -> None:
    """Squares of what is finite may not be; that is nothing to tell anyone in a traceback's words."""
    found = scores(normal(6, 8, dtype="F64") * size, "F64", 0, "fpgm")

    assert len(found) == 6 and not np.isfinite(found).any()


def test_only_live_channels_have_scores() -> None:
    """What is pruned already neither goes again nor counts for the distances."""
    weight = normal(6, 8)
    live = [0, 2, 3, 5]

    found = scores(weight, "F32", 0, "fpgm", live)

    assert found == pytest.approx(scores(weight[live], "F32", 0, "fpgm"))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("by", ["l1", "l2"])
def test_blocks_and_threads_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, dim: int, by: Criterion
) -> None:
    """The same scores, bit for bit, on one thread or eight; and any block is as good."""
    weight = normal(40, 50, 60, dtype="BF16")
    whole = scores(weight, "BF16", dim, by)
    monkeypatch.setattr(module, "_BLOCK", 1000)

    one = score_channels(bits_of(weight), "BF16", dim, by, range(weight.shape[dim]))
    eight = score_channels(bits_of(weight), "BF16", dim, by, range(weight.shape[dim]), workers=8)

    assert np.array_equal(one, eight)
    assert one == pytest.approx(whole, rel=1e-6)


def test_the_smallest_halves_count() -> None:
    """F16 below its smallest normal number are what they are."""
    weight = torch.arange(-1023, 1025, dtype=torch.int16).abs().view(torch.float16).reshape(8, 256)

    found = scores(weight, "F16", 0, "l1")

    assert found.tolist() == weight.double().abs().sum(1).tolist()


def test_elements_out_of_order_give_the_same_scores() -> None:
    """As a transposed tensor of a torch file lies."""
    bits = bits_of(normal(30, 20))

    found = score_channels(bits.T, "F32", 0, "l1", range(20))

    assert np.array_equal(found, score_channels(bits.T.copy(), "F32", 0, "l1", range(20)))


def test_scores_of_elements_are_summed_up_with_their_signs() -> None:
    """A file may have a score for each element."""
    given = normal(5, 4, 3)

    assert sum_scores(bits_of(given), "F32", 1) == pytest.approx(
        given.sum((0, 2)).numpy(), rel=1e-5
    )


def test_dtypes_without_an_order() -> None:
    """Packed dtypes and powers of two cannot be ranked."""
    assert [name for name in DTYPES if not has_order(name)] == [
        "F4",
        "F6_E2M3",
        "F6_E3M2",
        "F8_E8M0",
    ]


def test_one_ranking_over_all_layers() -> None:
    """The smallest of all go first, equal ones in order; no layer loses more than it can."""
    layers = [
        Layer("a.weight", (4, 2), 0, 4),
        Layer("b.weight", (3, 2), 0, 3, at_least=2),
        Layer("c.weight", (2, 2), 0, 2),
    ]
    values = [np.array([5.0, 1.0, np.nan, 2.0]), np.array([0.0, 0.5, 9.0]), np.array([1.0, 2.0])]

    assert rank_together(values, layers).tolist() == [1, 0, 2, 0, 2, 0, 0]
