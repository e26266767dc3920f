"""Outputs in kind: the input's own file, byte for byte, but for zeros and checksums."""

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune_cli import Loading, open_checkpoint, prune_checkpoint, remove_masks, verify_checkpoint
from prune_cli.errors import RequestError, UsageError
from prune_cli.report.report import Report
from tests import build

Make = Callable[[Path], Path]


def lightning(folder: Path) -> Path:
    """What Lightning leaves: weights, an optimizer, hyper-parameters."""
    net = build.Net()
    optimizer = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 0.1, "names": ("a", "b")},
    }
    return build.torch_zip(folder / "m.ckpt", content)


def scripted(folder: Path) -> Path:
    """A TorchScript archive; torch says that it is of the past."""
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(nn.Sequential(nn.Linear(24, 10))).save(folder / "m.jit")
    return folder / "m.jit"


def pickled_arrays(folder: Path) -> Path:
    """What detectron2 leaves: arrays of NumPy in a plain pickle."""
    content = {"model": {"fc.weight": np.arange(1, 241, dtype="f4").reshape(10, 24)}}
    (folder / "m.pkl").write_bytes(pickle.dumps(content, 4))
    return folder / "m.pkl"


FILES: dict[str, Make] = {
    "zip": lambda folder: build.torch_zip(folder / "m.pt", build.tensors()),
    "legacy": lambda folder: build.torch_legacy(folder / "m.pth", build.tensors()),
    "lightning": lightning,
    "module": lambda folder: build.torch_zip(folder / "m.pt", build.Net()),
    "torchscript": scripted,
    "numpy": pickled_arrays,
}


def prune(source: Path, **options: Any) -> tuple[Path, Report]:
    """Prune `source` in kind, half of the rows of each matrix."""
    output = source.with_name(f"out{source.suffix}")
    return output, prune_checkpoint(source, output, amount=0.5, dim=0, **options)


def load(path: Path) -> Any:
    """What the file holds, read by what wrote it."""
    if path.suffix == ".jit":
        with warnings.catch_warnings(action="ignore"):
            return torch.jit.load(path)
    if path.suffix == ".pkl":
        return pickle.loads(path.read_bytes())
    return torch.load(path, weights_only=False)


def weights(content: Any) -> dict[str, torch.Tensor]:
    """The state dict in what a file held."""
    if hasattr(content, "state_dict"):
        return dict(content.state_dict())
    found = content.get("state_dict", content.get("model", content))
    return {name: torch.as_tensor(value) for name, value in found.items()}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_what_loads_the_input_loads_the_output_with_the_zeros(tmp_path: Path, make: Make) -> None:
    """The channels of the report are zero, and every other value is the source's."""
    source = make(tmp_path)

    output, report = prune(source)

    before, after = weights(load(source)), weights(load(output))
    assert before.keys() == after.keys()
    rows = {item.name: item for item in report.tensors}
    assert rows
    for name, tensor in before.items():
        wanted = tensor.clone()
        if name in rows:
            wanted[list(rows[name].pruned)] = 0
        assert build.same_bits(after[name], wanted)


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_it_is_proved_with_and_without_the_source(tmp_path: Path, make: Make) -> None:
    """Every byte; and a changed one outside of the tensors is found."""
    source = make(tmp_path)
    output, _ = prune(source)

    assert verify_checkpoint(output, source=source).disagreements == ()
    assert verify_checkpoint(output).disagreements == ()

    content = bytearray(output.read_bytes())
    last = max(info.offset or 0 for info in open_checkpoint(output).tensors.values())
    content[last] ^= 32
    output.write_bytes(content)
    [found] = verify_checkpoint(output, source=source).disagreements
    assert found.offset == last


@pytest.mark.parametrize("make", [FILES["zip"], lightning, scripted])
def test_checksums_are_right(tmp_path: Path, make: Make) -> None:
    """Those of what changed too, in the directory and beside the member."""
    output, _ = prune(make(tmp_path))

    assert zipfile.ZipFile(output).testzip() is None


def test_all_else_is_byte_for_byte_the_source(tmp_path: Path) -> None:
    """But for the pruned storages and their checksums, no byte changes; nothing is dropped."""
    source = lightning(tmp_path)

    output, report = prune(source, modules="fc")

    before, after = source.read_bytes(), output.read_bytes()
    differing = sum(one != two for one, two in zip(before, after, strict=True))
    assert 0 < differing <= 24 * 5 * 4 + 8
    assert report.dropped == ()
    again = load(output)
    assert (again["epoch"], again["hyper_parameters"]) == (3, {"lr": 0.1, "names": ("a", "b")})
    assert torch.equal(
        again["optimizer_states"][0]["state"][0]["exp_avg"],
        load(source)["optimizer_states"][0]["state"][0]["exp_avg"],
    )


def test_views_that_share_no_element_are_zeroed_apart(tmp_path: Path) -> None:
    """Columns of one matrix, a transposed matrix, and the gap between them stays."""
    whole = torch.arange(1.0, 97.0).view(8, 12)
    first, second = whole[:, :5], whole[:, 6:]
    source = build.torch_zip(
        tmp_path / "m.pt", {"a.weight": first, "b.weight": second, "t.weight": torch.ones(6, 4).t()}
    )

    output, report = prune(source)

    after = load(output)
    for item in report.tensors:
        wanted = load(source)[item.name].clone()
        wanted[list(item.pruned)] = 0
        assert torch.equal(after[item.name], wanted)
    assert torch.equal(after["a.weight"].as_strided((8,), (12,), 5), whole[:, 5])


def test_names_of_one_tensor_are_zeroed_together(tmp_path: Path) -> None:
    """As they are in a file of safetensors."""
    tied = torch.ones(6, 4)
    source = build.torch_zip(tmp_path / "m.pt", {"a.weight": tied, "b.weight": tied})

    output, report = prune(source)

    after = load(output)
    assert [item.name for item in report.tensors] == ["a.weight"]
    assert after["a.weight"].data_ptr() == after["b.weight"].data_ptr()
    assert int((after["b.weight"] == 0).all(1).sum()) == 3


SHARED = {
    "state dict": lambda net: {"model": net.state_dict(), "ema": net.state_dict()},
    "list": lambda net: {"model": net.state_dict(), "kept": [net.fc.weight.detach()[2:]]},
    "tensor": lambda net: {"model": net.state_dict(), "last": net.fc.weight.detach().t()},
}


@pytest.mark.parametrize("content", SHARED.values(), ids=SHARED)
def test_a_neighbour_is_never_changed(
    tmp_path: Path, content: Callable[[build.Net], dict[str, Any]]
) -> None:
    """Whatever else in the file has the same memory is named, and nothing is written."""
    source = build.torch_zip(tmp_path / "m.pt", content(build.Net()))

    with pytest.raises(RequestError, match=r"fc.weight shares memory with (ema|kept|last)"):
        prune(source, loading=Loading(("model",)))

    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_what_else_is_in_the_file_has_any_dtype(tmp_path: Path) -> None:
    """It is not written, so safetensors need not have it."""
    other = torch.ones(3, dtype=torch.complex128)
    source = build.torch_zip(tmp_path / "m.pt", {"model": build.tensors(), "seen": [other]})

    output, report = prune(source, loading=Loading(("model",)))

    assert report.totals.channels_pruned == 8
    assert torch.equal(load(output)["seen"][0], other)


def negated() -> torch.Tensor:
    """A view that reads as the negative of what is stored."""
    return torch.view_as_complex(torch.randn(4, 6, 2)).conj().imag


REFUSED = {
    "masks": ({"bake": False}, build.tensors, "only safetensors can take"),
    "masked": ({}, lambda: build.masked(build.tensors(), {"fc.weight": 0}), "has a mask"),
    "expanded": ({}, lambda: {"a.weight": torch.ones(1, 4).expand(6, 4)}, "expanded from one"),
    "overlapping": ({}, lambda: {"a.weight": torch.ones(8).unfold(0, 4, 1)}, "share elements"),
    "negated": ({}, lambda: {"a.weight": negated()}, "negated or conjugated"),
}


@pytest.mark.parametrize(("options", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_zeroed_where_it_lies_is_refused(
    tmp_path: Path, options: dict[str, Any], content: Callable[[], Any], message: str
) -> None:
    """With the reason, and before anything is written."""
    source = build.torch_zip(tmp_path / "m.pt", content())

    with pytest.raises(RequestError, match=message):
        prune(source, **options)

    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_masks_are_removed_into_safetensors_only(tmp_path: Path) -> None:
    """Since names change."""
    masked = build.masked(build.tensors(), {"fc.weight": 0})
    source = build.torch_zip(tmp_path / "m.pt", masked)

    with pytest.raises(RequestError, match="masks change the names"):
        remove_masks(source, tmp_path / "out.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.onnx", ".onnx is no format that can be written"),
        ("out.h5", ".h5 is no format that can be written"),
        ("out.jit", "is made only of one"),
    ],
)
def test_a_name_of_a_format_that_cannot_be_made_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    """Before any work, and nothing is written under that name."""
    source = build.safetensors(tmp_path / "m.safetensors", build.tensors())

    with pytest.raises(UsageError, match=message):
        prune_checkpoint(source, tmp_path / name, amount=1)

    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_folder_of_torch_files_goes_in_kind(tmp_path: Path) -> None:
    """The same shards and index, each shard with its zeros."""
    content = build.tensors()
    shards = {
        "pytorch_model-00001-of-00002.bin": {k: content[k] for k in ("conv.weight", "conv.bias")},
        "pytorch_model-00002-of-00002.bin": {
            k: v for k, v in content.items() if not k.startswith("conv")
        },
    }
    index = "pytorch_model.bin.index.json"
    folder = build.write_folder(tmp_path / "m", shards, index=index)

    report = prune_checkpoint(folder, tmp_path / "out", amount=0.5, dim=0, format="in-kind")

    assert verify_checkpoint(tmp_path / "out", source=folder).disagreements == ()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*shards, index, "config.json", "tokenizer", "prune-report.json"}
    rows = {item.name: item for item in report.tensors}
    for name in shards:
        for key, tensor in load(tmp_path / "out" / name).items():
            wanted = content[key].clone()
            if key in rows:
                wanted[list(rows[key].pruned)] = 0
            assert build.same_bits(tensor, wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_distributed_checkpoint_goes_in_kind(tmp_path: Path) -> None:
    """What dcp.load reads, the checksums of its chunks right, other files copied."""
    from torch.distributed import checkpoint as dcp

    content = {"model": {"a.weight": torch.arange(1.0, 241).view(10, 24), "a.bias": torch.ones(10)}}
    dcp.save(content, checkpoint_id=tmp_path / "d")
    (tmp_path / "d" / "notes.txt").write_text("mine")

    report = prune_checkpoint(tmp_path / "d", tmp_path / "o", amount=0.5, dim=0, format="in-kind")

    assert verify_checkpoint(tmp_path / "o", source=tmp_path / "d").disagreements == ()
    assert verify_checkpoint(tmp_path / "o").disagreements == ()
    loaded = {"model": {"a.weight": torch.empty(10, 24), "a.bias": torch.empty(10)}}
    dcp.load(loaded, checkpoint_id=tmp_path / "o")
    wanted = content["model"]["a.weight"].clone()
    wanted[list(report.tensors[0].pruned)] = 0
    assert torch.equal(loaded["model"]["a.weight"], wanted)
    assert torch.equal(loaded["model"]["a.bias"], torch.ones(10))
    assert (tmp_path / "o" / "notes.txt").read_text() == "mine"
    for piece in open_checkpoint(tmp_path / "o").tensors["a.weight"].pieces:
        assert piece.summed
        data = (tmp_path / "o" / "__0_0.distcp").read_bytes()
        checksum = zlib.crc32(data[piece.summed.start : piece.summed.stop]).to_bytes(4, "little")
        assert all(data[place : place + 4] == checksum for place in piece.summed.checksums)
