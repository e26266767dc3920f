"""Files whose tensors claim more than there is: refused at once, whatever the format."""

import re
from pathlib import Path

import pytest
import torch

from prune_cli import inspect_checkpoint, prune_checkpoint
from prune_cli.errors import InputError
from tests import build

WITHOUT_ELEMENTS = {
    "one dim": (0, 1 << 31),
    "more than NumPy counts": (0, 1 << 62),
    "in the product only": (0, *(1 << 19,) * 4),
}


@pytest.mark.parametrize("shape", WITHOUT_ELEMENTS.values(), ids=WITHOUT_ELEMENTS)
def test_channels_without_elements_are_limited(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """They cost the file nothing, but their numbers would have to be listed."""
    path = build.raw_safetensors(tmp_path / "m", {"a": build.entry(0, 0, *shape)})

    with pytest.raises(InputError, match=rf"'a' of shape {re.escape(str([*shape]))} claims"):
        inspect_checkpoint(path, zeros=True)


def test_channels_of_many_tensors_are_counted_together(tmp_path: Path) -> None:
    """Each by itself would be small enough."""
    header = {f"l{number}.weight": build.entry(0, 0, 0, 1 << 18) for number in range(5)}
    path = build.raw_safetensors(tmp_path / "m", header)

    with pytest.raises(InputError, match="claims 262,144 channels"):
        inspect_checkpoint(path)


def test_expanded_tensors_are_counted_together(tmp_path: Path) -> None:
    """Thousands of views of one element would be written one after the other."""
    base = torch.ones(8)
    content = {f"l{n}.weight": base.as_strided((8 + n, 100), (0, 0)) for n in range(100)}
    path = build.torch_zip(tmp_path / "m.pt", content)
    assert max(view.nbytes for view in content.values()) < path.stat().st_size * 64

    with pytest.raises(InputError, match=r"'l99.weight' of shape \[107, 100\] claims 42,800 bytes"):
        inspect_checkpoint(path)


def test_a_tensor_without_elements_is_as_good_as_any(tmp_path: Path) -> None:
    """An expert that this rank has none of keeps its shape."""
    content = {"a.weight": torch.empty(0, 4096, 14336), "b.weight": torch.ones(4, 2)}
    path = build.safetensors(tmp_path / "m", content)

    report = prune_checkpoint(path, tmp_path / "out", amount=0.5, dim=0)

    assert [len(row.pruned) for row in report.tensors] == [0, 2]
