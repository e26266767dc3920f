"""Two checkpoints, whoever made them: what differs, held against torch."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest
import torch

from prune_cli.api import prune_checkpoint
from prune_cli.inspection.diff import (
    TensorDifference,
    Values,
    diff_checkpoints,
    difference_to_json,
    list_differences,
)
from prune_cli.report.formats import Format, render_rows
from tests import build


def pair(tmp_path: Path, one: build.Tensors, other: build.Tensors) -> tuple[Path, Path]:
    """Two files, of safetensors and of torch."""
    return (
        build.safetensors(tmp_path / "a.safetensors", one),
        build.torch_zip(tmp_path / "b.pt", other),
    )


def test_the_same_tensors_in_another_format_are_no_difference(tmp_path: Path) -> None:
    """The container does not matter, nor does the order."""
    paths = pair(tmp_path, build.tensors(), dict(reversed(build.tensors().items())))

    found = diff_checkpoints(*paths)

    assert found.is_none
    assert (found.first, found.second, found.same) == ("a.safetensors", "b.pt", 6)


def test_a_pruned_checkpoint_differs_in_its_pruned_channels(tmp_path: Path) -> None:
    """Along the dim that was pruned; the largest difference is the largest weight that went."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    report = prune_checkpoint(source, amount=2, dim=0, seed=3)

    found = diff_checkpoints(source, tmp_path / "m.pruned.safetensors")

    assert [tensor.name for tensor in found.tensors] == ["conv.weight", "fc.weight"]
    for tensor, item in zip(found.tensors, report.tensors, strict=True):
        weight = build.tensors()[item.name].double()
        assert tensor.values == Values(
            elements=weight[list(item.pruned)].count_nonzero().item(),
            dim=0,
            channels=item.pruned,
            of=item.channels,
            largest=weight[list(item.pruned)].abs().max().item(),
        )


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_dim_is_the_one_with_the_fewest_channels(tmp_path: Path, dim: int) -> None:
    """Whatever the dim, all channels of the others differ; over more than one piece too."""
    weight = torch.ones(70, 80, 90)
    other = weight.index_fill(dim, torch.tensor([5, 64]), 2.5)

    found = diff_checkpoints(*pair(tmp_path, {"w": weight}, {"w": other}))

    values = found.tensors[0].values
    assert values is not None
    assert (values.dim, values.channels, values.largest) == (dim, (5, 64), 1.5)
    assert values.elements == (weight != other).sum()


def test_names_shapes_and_dtypes_differ(tmp_path: Path) -> None:
    """What only one has; another shape, whose values say nothing; another dtype, whose do."""
    one = {
        "l.10.w": torch.ones(2, 2),
        "l.2.w": torch.ones(2),
        "a": torch.ones(3),
        "b": torch.ones(4),
    }
    other = {"a": torch.ones(4), "b": torch.ones(4).half(), "z": torch.ones(1)}

    found = diff_checkpoints(*pair(tmp_path, one, other))

    assert (found.only_first, found.only_second) == (("l.2.w", "l.10.w"), ("z",))
    assert found.tensors == (
        TensorDifference("a", ("F32", "F32"), ((3,), (4,)), None),
        TensorDifference("b", ("F32", "F16"), ((4,), (4,)), None),
    )


def test_a_cast_shows_what_it_lost(tmp_path: Path) -> None:
    """Numbers of two dtypes are compared as numbers; a NaN is the same as a NaN."""
    weight = torch.tensor([1.0, math.pi, math.nan])

    found = diff_checkpoints(*pair(tmp_path, {"w": weight}, {"w": weight.bfloat16()}))

    values = found.tensors[0].values
    assert values is not None
    lost = (weight[1].double() - weight[1].bfloat16().double()).abs().item()
    assert (values.channels, values.largest) == ((1,), lost)


def test_what_is_no_finite_number_has_no_largest_difference(tmp_path: Path) -> None:
    """A NaN is as far from a number as can be."""
    one, other = torch.ones(2, 2), torch.tensor([[1.0, math.nan], [1.0, 3.0]])

    found = diff_checkpoints(*pair(tmp_path, {"w": one}, {"w": other}))

    values = found.tensors[0].values
    assert values is not None and (values.elements, values.largest) == (2, None)


@pytest.mark.parametrize("dtype", [d for d in build.TORCH_DTYPES if d != "F4"])
def test_every_dtype_is_compared(tmp_path: Path, dtype: str) -> None:
    """Random bits differ in the one row that was changed, and are themselves the same."""
    weight = build.random_bits(dtype, 6, 5)
    flipped = weight.view(torch.uint8).clone()
    flipped[2] ^= 1
    paths = pair(tmp_path, {"w": weight}, {"w": flipped.view(weight.dtype)})

    found = diff_checkpoints(*paths)

    assert found.tensors[0].values is not None
    assert (found.tensors[0].values.dim, found.tensors[0].values.channels) == (0, (2,))
    assert diff_checkpoints(paths[0], paths[0]).is_none


def test_packed_dtypes_are_compared_by_their_bytes(tmp_path: Path) -> None:
    """Which element a byte belongs to is not told."""
    header = {"w": build.entry(0, 4, 2, 4, dtype="F4")}
    paths = [
        build.raw_safetensors(tmp_path / f"{name}.safetensors", header, data)
        for name, data in (("a", b"\x01\x02\x03\x04"), ("b", b"\x01\x02\x03\x05"))
    ]

    found = diff_checkpoints(*paths)

    assert found.tensors[0].values == Values(1, None, (), 0, None)


def test_zeros_of_two_signs_differ(tmp_path: Path) -> None:
    """Bits are compared, so that a pruned -0 is seen; the numbers are no distance apart."""
    paths = pair(tmp_path, {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, -0.0])})

    values = diff_checkpoints(*paths).tensors[0].values

    assert values == Values(1, 0, (1,), 2, 0.0)


def test_scalars_and_empty_tensors_have_no_channels(tmp_path: Path) -> None:
    """Nor does it matter."""
    one = {"n": torch.tensor(1), "e": torch.ones(0, 3)}
    other = {"n": torch.tensor(3), "e": torch.ones(0, 3)}

    found = diff_checkpoints(*pair(tmp_path, one, other))

    assert [tensor.values for tensor in found.tensors] == [Values(1, None, (), 0, 2.0)]


def test_strided_tensors_are_compared_in_their_order(tmp_path: Path) -> None:
    """A transposed view in a torch file holds the same elements as its copy."""
    weight = torch.randn(5, 7)
    paths = pair(tmp_path, {"w": weight.t().contiguous()}, {"w": weight.t()})

    assert diff_checkpoints(*paths).is_none


def test_a_tied_weight_is_compared_by_each_name(tmp_path: Path) -> None:
    """One file may store it once, and the other twice."""
    weight = torch.ones(2, 2)
    tied = build.torch_zip(tmp_path / "tied.pt", {"a": weight, "b": weight})
    apart = build.torch_zip(tmp_path / "apart.pt", {"a": weight, "b": weight * 2})

    found = diff_checkpoints(tied, apart)

    assert [tensor.name for tensor in found.tensors] == ["b"]
    assert (found.only_first, found.only_second, found.same) == ((), (), 1)


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    """Each tensor that both have is told once."""
    seen: list[tuple[str, int]] = []
    paths = pair(tmp_path, build.tensors(), build.tensors())

    diff_checkpoints(*paths, on_tensor=lambda *call: seen.append(call))

    assert sum(nbytes for _, nbytes in seen) == sum(t.nbytes for t in build.tensors().values())


def test_difference_is_json_and_rows(tmp_path: Path) -> None:
    """For the next program, and for people."""
    paths = pair(tmp_path, {"w": torch.ones(4, 2), "v": torch.ones(1)}, {"w": torch.zeros(4, 2)})

    found = diff_checkpoints(*paths)

    assert json.loads(difference_to_json(found)) == {
        "schema": 1,
        "first": "a.safetensors",
        "second": "b.pt",
        "only_first": ["v"],
        "only_second": [],
        "tensors": [
            {
                "name": "w",
                "dtypes": ["F32", "F32"],
                "shapes": [[4, 2], [4, 2]],
                "values": {
                    "elements": 8,
                    "dim": 0,
                    "channels": [0, 1, 2, 3],
                    "of": 4,
                    "largest": 1.0,
                },
            }
        ],
        "same": 0,
    }
    assert render_rows(list_differences(found), Format.TABLE) == (
        "tensor  difference             dim  channels  elements  max |\u0394|\n"
        "v       only in a.safetensors    -  -                -        -\n"
        "w       values                   0  4/4              8        1\n"
    )


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """Two tensors of 64 MB, of which every element differs, take less than one of them."""
    one, other = torch.ones(1 << 12, 1 << 12), torch.zeros(1 << 12, 1 << 12)
    paths = [
        build.safetensors(tmp_path / f"{name}.safetensors", {"w": weight})
        for name, weight in (("a", one), ("b", other))
    ]

    tracemalloc.start()
    try:
        diff_checkpoints(*paths)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 << 20
