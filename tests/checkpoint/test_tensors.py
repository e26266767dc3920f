"""The arithmetic of headers: ints and names, and safetensors as the oracle for bytes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from prune_cli.checkpoint.tensors import DTYPES, TensorInfo, nbytes, pair_masks, resolve_dim
from prune_cli.errors import DimError
from prune_cli.write.blocks import blocks
from prune_cli.write.header import encode_header, in_layout_order
from tests import build


def info(name: str, *shape: int, dtype: str = "F32") -> TensorInfo:
    """A tensor of a header."""
    return TensorInfo(name, dtype, shape)


def test_headers_are_those_of_safetensors() -> None:
    """For every dtype at once, with odd names and shapes, each byte of the header is the same."""
    tensors = {dtype: build.random_bits(dtype, 2, 3) for dtype in build.TORCH_DTYPES}
    shapes = {"": (0, 4), '重み/"\\\n\x7f\u2028': (), "a": (1,), "A": (5,), "a.b": (2,)}
    tensors |= {name: build.random_bits("F16", *shape) for name, shape in shapes.items()}
    metadata = {"format": "pt"}

    infos = [
        TensorInfo(name, name, (2, 6) if name == "F4" else (2, 3)) for name in build.TORCH_DTYPES
    ]
    infos += [info(name, *shape, dtype="F16") for name, shape in shapes.items()]
    written = encode_header(in_layout_order(infos), metadata)

    assert save(tensors, metadata).startswith(written)


@build.needs_dtype("F4")  # and with it the safetensors that knows all of them
def test_every_dtype_of_safetensors_is_known() -> None:
    """The reader of safetensors accepts each dtype in the table, and counts its bytes alike."""
    for name in DTYPES:
        shape = (8,)
        content = encode_header([info("w", *shape, dtype=name)], {}) + bytes(nbytes(name, shape))

        assert build.raw_opens(content), name


def test_metadata_is_sorted() -> None:
    """Where safetensors leaves the order to chance, the alphabet decides."""
    header = encode_header([], {"b": "1", "a": "2"})

    assert list(json.loads(header[8:])["__metadata__"]) == ["a", "b"]
    assert len(header) % 8 == 0


@pytest.mark.parametrize(
    ("dim", "wanted"), [(0, 0), (2, 2), (-1, 2), (-3, 0)], ids=lambda dim: str(dim)
)
def test_dims_count_from_both_ends(dim: int, wanted: int) -> None:
    """Negative dims count from the end."""
    assert resolve_dim(dim, (4, 5, 6), "w") == wanted


@pytest.mark.parametrize("dim", [3, -4])
def test_a_dim_out_of_range_is_refused(dim: int) -> None:
    """The error names the tensor, its shape and its dims; it is an IndexError too, as in torch."""
    with pytest.raises(
        DimError, match=r"w has shape \[4, 5, 6\], so its dims are -3 to 2"
    ) as caught:
        resolve_dim(dim, (4, 5, 6), "w")
    assert isinstance(caught.value, IndexError)


def test_masks_are_paired() -> None:
    """An _orig and a _mask of one shape are one parameter; whatever does not fit stays itself."""
    tensors = [
        info("a.weight_orig", 2, 2),
        info("a.weight_mask", 2, 2, dtype="F64"),
        info("b.weight_orig", 2, 2),
        info("b.weight_mask", 3, 2),
        info("c.weight_orig", 2),
        info("d.weight_mask", 2),
        info("e.weight_orig", 2),
        info("e.weight_mask", 2),
        info("e.weight", 2),
    ]

    parameters = pair_masks(tensors)

    assert [(found.name, found.mask and found.mask.name) for found in parameters] == [
        ("a.weight", "a.weight_mask"),
        ("b.weight_orig", None),
        ("b.weight_mask", None),
        ("c.weight_orig", None),
        ("d.weight_mask", None),
        ("e.weight_orig", None),
        ("e.weight_mask", None),
        ("e.weight", None),
    ]
    assert (parameters[0].module, parameters[0].param) == ("a", "weight")


def test_a_tensor_counts_itself() -> None:
    """Elements and bytes follow from the shape and the dtype."""
    assert (info("w", 3, 4).elements, info("w", 3, 4).nbytes) == (12, 48)
    assert (info("w", dtype="BF16").elements, info("w", dtype="BF16").nbytes) == (1, 2)
    assert nbytes("F4", (3, 6)) == 9
    assert not info("w").is_plain
    assert TensorInfo("w", "F32", (2,), 0, 8).is_plain


shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)


@given(shapes, st.data(), st.sampled_from([1, 2, 4, 8]), st.integers(1, 300))
def test_blocks_cover_a_tensor_once(
    shape: tuple[int, ...], data: st.DataObject, itemsize: int, limit: int
) -> None:
    """They follow each other without a gap, none is above the limit, and each knows its channels."""
    dim = data.draw(st.integers(0, len(shape) - 1))
    inner = math.prod(shape[dim + 1 :])

    found = list(blocks(shape, dim, itemsize, limit))

    at = 0
    for block in found:
        assert block.start == at
        at = block.stop
        assert block.stop - block.start <= max(limit, itemsize)
        first = block.start // itemsize
        for element in range(first, block.stop // itemsize):
            assert element // inner % shape[dim] in block.channels
        assert (block.stop - block.start) % (block.rows * len(block.channels) * itemsize) == 0
    assert at == math.prod(shape) * itemsize
