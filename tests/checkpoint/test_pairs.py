"""NAME_orig and NAME_mask: a pruned parameter by shape and values, or two tensors and a note."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prune_cli import apply_report, prune_checkpoint, remove_masks
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import SelectionError
from tests import build

ODD = {
    "half": torch.full((2, 3), 0.5),
    "nearly-one": torch.full((2, 3), 1 + 1e-12, dtype=torch.float64),
    "nan": torch.full((2, 3), float("nan")),
    "two": torch.full((2, 3), 2, dtype=torch.int64),
    "minus-one": torch.full((2, 3), -1.0),
    "strided": torch.full((3, 2), 0.5).t(),
    "shape": torch.ones(3),
}
if "C64" in build.TORCH_DTYPES:
    ODD["imaginary"] = torch.full((2, 3), 1 + 1j, dtype=torch.complex64)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("does", ["remove", "prune", "apply"])
def test_a_pair_that_is_no_pruned_parameter_stays_as_it_is(
    tmp_path: Path, odd: torch.Tensor, does: str
) -> None:
    """Whatever is done to the rest, both tensors keep their bytes, and a note names them."""
    content = {
        **build.masked({"b.weight": torch.randn(2, 3)}, {"b.weight": 1}),
        "a.weight_orig": torch.randn(2, 3),
        "a.weight_mask": odd.contiguous(),
    }
    source, out = build.safetensors(tmp_path / "m", content), tmp_path / "out.safetensors"

    if does == "remove":
        report = remove_masks(source, out)
    elif does == "prune":
        report = prune_checkpoint(source, out, amount=0, modules="b")
    else:
        told = prune_checkpoint(source, dry_run=True, amount=0, modules="b")
        report = apply_report(told, source, out)

    written = load_file(out)
    assert written.keys() == {"a.weight_orig", "a.weight_mask", "b.weight"}
    for name in ("a.weight_orig", "a.weight_mask"):
        assert build.same_bits(written[name], content[name])
    assert any("a.weight_orig is left as it is" in note for note in report.notes)


def test_the_last_value_counts_as_much_as_the_first(tmp_path: Path) -> None:
    """A mask is read to its end."""
    mask = torch.ones(3000, 200)
    mask[-1, -1] = 2
    content = {"w_orig": torch.randn(3000, 200), "w_mask": mask}

    checkpoint = open_checkpoint(build.safetensors(tmp_path / "m", content))

    assert {parameter.name for parameter in checkpoint.parameters} == {"w_orig", "w_mask"}


def test_where_the_plain_name_is_taken_nothing_is_paired(tmp_path: Path) -> None:
    """The mask would have nowhere to go, and the note says so."""
    content = {"a_orig": torch.ones(2), "a_mask": torch.ones(2), "a": torch.ones(2)}

    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "m.pt", content))

    assert checkpoint.notes == (
        "a_orig is left as it is, for it is not a pruned a: a is there as well",
    )


def test_odd_pairs_alone_are_nothing_to_remove(tmp_path: Path) -> None:
    """That is an error, and nothing is written."""
    content = {"a.weight_orig": torch.ones(2, 2), "a.weight_mask": torch.full((2, 2), 0.5)}
    path = build.safetensors(tmp_path / "x", content)

    with pytest.raises(SelectionError, match="of 0 and 1 alone; there is nothing to remove"):
        remove_masks(path, tmp_path / "out")

    assert [file.name for file in tmp_path.iterdir()] == ["x"]
