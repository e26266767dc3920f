"""Plain files of torch.save, written without torch."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from prune_cli import open_checkpoint, prune_checkpoint, verify_checkpoint
from prune_cli.errors import RequestError
from tests import build

CONTENT = {
    **{
        f"{name}.weight": build.random_bits(name, 3, 5)
        for name in build.TORCH_DTYPES
        if name != "F4"
    },
    "empty.weight": torch.empty(0, 3),
    "step": torch.tensor(3.0),
    "ä.重み": torch.ones(2, 2),
}
CANNOT_HOLD_ZERO = [name for name in build.TORCH_DTYPES if name == "F8_E8M0"]


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_every_dtype_with_its_zeros(tmp_path: Path, mmap: bool) -> None:
    """As weights only, mapped or not; and the checksums are right."""
    source = build.safetensors(tmp_path / "m.safetensors", CONTENT)
    output = tmp_path / "m.pt"

    report = prune_checkpoint(source, output, amount=1, dim=0, exclude=[*CANNOT_HOLD_ZERO, "empty"])

    loaded = torch.load(output, weights_only=True, mmap=mmap)
    assert zipfile.ZipFile(output).testzip() is None
    assert list(loaded) == [info.name for info in open_checkpoint(source).tensors.values()]
    rows = {item.name: item.pruned for item in report.tensors}
    assert len(rows) == len(CONTENT) - 3 - len(CANNOT_HOLD_ZERO)
    for name, tensor in CONTENT.items():
        raw = tensor.clone().view(-1).view(torch.uint8).view(*tensor.shape, tensor.itemsize)
        if name in rows:
            raw[list(rows[name])] = 0
        assert build.same_bits(loaded[name], raw.view(-1).view(tensor.dtype).view(tensor.shape))


def test_it_is_proved_byte_by_byte(tmp_path: Path) -> None:
    """By writing it again into a comparison."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    output = tmp_path / "m.pt"
    prune_checkpoint(source, output, amount=0.5, dim=0)

    assert verify_checkpoint(output, source=source).disagreements == ()

    content = bytearray(output.read_bytes())
    content[-1] ^= 1  # of the zip directory
    output.write_bytes(content)
    [found] = verify_checkpoint(output, source=source).disagreements
    assert found.offset == len(content) - 1


def test_shared_tensors_stay_shared(tmp_path: Path) -> None:
    """A name that safetensors records as another's is the same storage."""
    tied = torch.ones(4, 4)
    source = build.torch_zip(tmp_path / "m.pt", {"a.weight": tied, "b.weight": tied})
    prune_checkpoint(source, tmp_path / "m.safetensors", amount=1)

    prune_checkpoint(tmp_path / "m.safetensors", tmp_path / "again.pt", amount=1)

    loaded = torch.load(tmp_path / "again.pt", weights_only=True)
    assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()


def test_metadata_is_no_further_name(tmp_path: Path) -> None:
    """Whatever it says: a tensor that is there keeps its own values, and "format" is none."""
    content = {"a.weight": torch.ones(4, 4), "b.weight": torch.zeros(2), "pt": torch.zeros(3)}
    source = build.safetensors(tmp_path / "m", content, {"format": "pt", "a.weight": "b.weight"})

    prune_checkpoint(source, tmp_path / "m.pt", amount=1, dim=0)

    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert loaded.keys() == content.keys()
    assert loaded["a.weight"].sum() == 12


def test_masks_are_tensors_like_any_other(tmp_path: Path) -> None:
    """NAME_orig and NAME_mask, as a pruned module has them."""
    source = build.safetensors(tmp_path / "m.safetensors", {"a.weight": torch.ones(4, 4)})

    prune_checkpoint(source, tmp_path / "m.pt", amount=1, dim=0, bake=False)

    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert set(loaded) == {"a.weight_orig", "a.weight_mask"}
    assert int((loaded["a.weight_mask"] == 0).all(1).sum()) == 1


def test_packed_tensors_are_refused(tmp_path: Path) -> None:
    """Torch packs two of them into a byte, under another shape."""
    entry = {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}
    plain = {"dtype": "I8", "shape": [2, 2], "data_offsets": [8, 12]}
    source = build.raw_safetensors(
        tmp_path / "m.safetensors", {"packed": entry, "a.weight": plain}, bytes(8) + b"1234"
    )

    with pytest.raises(RequestError, match="packed is F4, which torch.save does not write"):
        prune_checkpoint(source, tmp_path / "m.pt", amount=1)


def test_stdout_gets_the_format_that_is_asked_for(tmp_path: Path) -> None:
    """A pipe has no name to tell it by, and takes the checksums in order."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    prune_checkpoint(source, tmp_path / "wanted.pt", amount=1)
    command = ["random-structured", str(source), "-a", "1", "-o", "-", "--format", "torch", "-q"]

    ran = subprocess.run(
        [sys.executable, "-m", "prune_cli", *command], capture_output=True, check=True
    )

    assert ran.stdout == (tmp_path / "wanted.pt").read_bytes()
