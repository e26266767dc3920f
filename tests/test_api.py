"""The main job from Python: bytes against save_file, channels against stock torch."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.nn.utils import prune

from prune_cli import Rule, prune_checkpoint, read_report
from prune_cli.errors import (
    DeviceError,
    OutputError,
    ParameterError,
    RequestError,
    UsageError,
)
from prune_cli.torch_channels import zero_channels_
from tests import build

PRUNABLE = [name for name in build.TORCH_DTYPES if name not in ("F4", "F8_E8M0")]


@pytest.mark.parametrize("saver", build.SAVERS)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_every_byte_is_that_of_save_file(tmp_path: Path, saver: str, dim: int) -> None:
    """For every dtype, with random bits, the output is what save_file writes of torch's result."""
    content = {f"{dtype}.weight": build.random_bits(dtype, 4, 6, 5) for dtype in PRUNABLE}
    content |= {
        "scalar": torch.tensor(1),
        "重": torch.ones(3),
    }
    if "F8_E8M0" in build.TORCH_DTYPES:
        content["scale"] = build.random_bits("F8_E8M0", 3)
    content["none.weight"] = torch.empty(0, 4, 3)
    path = build.SAVERS[saver](tmp_path / "x", content)

    prune_checkpoint(path, tmp_path / "out", amount=0.5, dim=dim, exclude=["none"])

    for name in content:
        if name.removesuffix(".weight") in PRUNABLE:
            mask = build.stock_mask(torch.ones(4, 6, 5), name, 0.5, dim)
            octets = torch.frombuffer(bytearray(build.octets(content[name])), dtype=torch.uint8)
            octets.view(4, 6, 5, -1)[~mask] = 0
            content[name] = octets.view(content[name].dtype).view(4, 6, 5)
    save_file(content, tmp_path / "oracle", {"format": "pt"})
    assert (tmp_path / "out").read_bytes() == (tmp_path / "oracle").read_bytes()


@pytest.mark.parametrize("dtype", PRUNABLE)
def test_masks_of_every_dtype_can_be_kept_and_made_permanent(tmp_path: Path, dtype: str) -> None:
    """A mask in the weight's dtype is read back, counts as pruned, and bakes to the same bytes."""
    path = build.safetensors(tmp_path / "x", {"a.weight": build.random_bits(dtype, 4, 6)})
    kept = prune_checkpoint(path, tmp_path / "masked", amount=2, dim=0, bake=False)

    again = prune_checkpoint(tmp_path / "masked", tmp_path / "baked", amount=0, dim=0)
    prune_checkpoint(path, tmp_path / "direct", amount=2, dim=0)

    assert again.tensors[0].already_pruned == kept.tensors[0].pruned
    assert (tmp_path / "baked").read_bytes() == (tmp_path / "direct").read_bytes()
    masked = load_file(tmp_path / "masked")
    assert masked["a.weight_mask"].dtype == masked["a.weight_orig"].dtype


def test_the_result_does_not_depend_on_how_it_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of workers and any size of piece give the same bytes and the same report."""
    content = {f"{n}.weight": torch.randn(37, 41) for n in range(3)} | {"t": torch.randn(9, 8).t()}
    path = build.torch_zip(tmp_path / "x", content)
    outputs = []

    for workers, piece in ((1, 1 << 20), (4, 1 << 20), (3, 64), (2, 1000)):
        monkeypatch.setattr("prune_cli.write.stream.PIECE_BYTES", piece)
        monkeypatch.setattr("prune_cli.write.stream._ROWS_BYTES", piece)
        folder = tmp_path / f"{workers}-{piece}"
        folder.mkdir()
        prune_checkpoint(path, folder / "out", amount=0.4, dim=1, exclude=[""], workers=workers)
        outputs.append([file.read_bytes() for file in sorted(folder.iterdir())])

    assert outputs[1:] == outputs[:-1]


def test_the_channels_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    """One file, shards, pickled shards or another order: the tensors come out the same."""
    content = build.tensors()
    backwards = dict(reversed(content.items()))
    bins = build.shard_names(3, "pytorch_model-{:05d}-of-{:05d}.bin")
    inputs = [
        build.safetensors(tmp_path / "one", content),
        build.torch_zip(tmp_path / "zip", backwards),
        build.write_folder(tmp_path / "shards", build.split(content, build.shard_names(2))),
        build.write_folder(
            tmp_path / "bins", build.split(backwards, bins), index="pytorch_model.bin.index.json"
        ),
    ]

    reports = [
        prune_checkpoint(path, tmp_path / f"out{number}", amount=0.5, dim=0)
        for number, path in enumerate(inputs)
    ]

    assert all(report.tensors == reports[0].tensors for report in reports)
    for number, path in enumerate(inputs):
        out = tmp_path / f"out{number}"
        files = sorted(out.glob("*.safetensors")) if path.is_dir() else [out]
        found = {name: tensor for file in files for name, tensor in load_file(file).items()}
        assert found.keys() == content.keys()
        for name, wanted in load_file(tmp_path / "out0").items():
            assert build.same_bits(found[name], wanted)


def test_pruning_again_goes_on(tmp_path: Path) -> None:
    """A second run prunes a part of what is left, as torch's PruningContainer does."""
    weight = torch.randn(16, 4)
    path = build.safetensors(tmp_path / "x", {"fc.weight": weight})
    first = prune_checkpoint(path, tmp_path / "once", amount=0.5, dim=0)

    second = prune_checkpoint(tmp_path / "once", tmp_path / "twice", amount=0.5, dim=0, seed=1)

    assert second.tensors[0].already_pruned == first.tensors[0].pruned
    assert len(second.tensors[0].pruned) == 4
    assert int((load_file(tmp_path / "twice")["fc.weight"] == 0).all(1).sum()) == 12


def twice_pruned() -> nn.Module:
    """A module pruned by two methods of stock torch, so by a PruningContainer."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8))
    prune.random_unstructured(module[0], "weight", 0.3)
    prune.random_structured(module[0], "weight", 3, 0)
    return module


@pytest.mark.parametrize("saver", ["zip", "legacy"])
def test_checkpoints_pruned_by_stock_torch_are_baked(tmp_path: Path, saver: str) -> None:
    """Structured and unstructured masks are made permanent as torch's remove does."""
    module = twice_pruned()
    path = build.SAVERS[saver](tmp_path / "x", module.state_dict())

    report = prune_checkpoint(path, tmp_path / "out", amount=0, dim=0)

    dead = (module[0].weight_mask == 0).all(1).nonzero().flatten().tolist()
    assert list(report.tensors[0].already_pruned) == dead
    prune.remove(module[0], "weight")
    assert torch.equal(load_file(tmp_path / "out")["0.weight"], module[0].weight)
    module.load_state_dict(load_file(tmp_path / "out"))


def test_checkpoints_pruned_by_stock_torch_are_pruned_further(tmp_path: Path) -> None:
    """With --keep-masks the old mask goes on with more zeros, and loads into the pruned module."""
    module = twice_pruned()
    path = build.torch_zip(tmp_path / "x", module.state_dict())
    mask = module[0].weight_mask.clone()

    report = prune_checkpoint(path, tmp_path / "out", amount=2, dim=0, bake=False)

    module.load_state_dict(load_file(tmp_path / "out"))
    mask[list(report.tensors[0].pruned)] = 0
    assert torch.equal(module[0].weight_mask, mask)
    assert len(report.tensors[0].pruned) == 2


@pytest.mark.filterwarnings("error")
@build.needs_dtype("C64")
def test_a_complex_mask_is_understood(tmp_path: Path) -> None:
    """The mask of a complex weight is complex, as torch makes it, and bakes without a warning."""
    weight = torch.randn(4, 4, dtype=torch.complex64)
    content = build.masked({"a.weight": weight}, {"a.weight": 2})
    path = build.torch_zip(tmp_path / "x", content)

    prune_checkpoint(path, tmp_path / "out", amount=0)

    wanted = torch.where(content["a.weight_mask"] == 1, weight, torch.zeros(()))
    assert torch.equal(load_file(tmp_path / "out")["a.weight"], wanted)


class Tied(nn.Module):
    """An embedding and a head that share a weight, and a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.head = nn.Linear(4, 12)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("made_by", ["save", "save_model"])
def test_tied_weights_are_pruned_once(tmp_path: Path, made_by: str) -> None:
    """Shared memory is written once, recorded as save_model does, and load_model restores it."""
    model = Tied()
    path = tmp_path / "x"
    torch.save(model.state_dict(), path) if made_by == "save" else save_model(model, path)

    report = prune_checkpoint(path, tmp_path / "out", amount=0.5, dim=0, with_bias=True)

    row, bias = report.tensors[0], report.tensors[1]
    assert (row.name, row.aliases) == ("embedding.weight", ("head.weight",))
    assert (bias.name, bias.follows, bias.pruned) == ("head.bias", "embedding.weight", row.pruned)
    loaded = Tied()
    assert load_model(loaded, tmp_path / "out") == (set(), [])
    assert torch.equal(loaded.head.weight, loaded.embedding.weight)
    assert int((loaded.head.weight == 0).all(1).sum()) == 6


def test_partly_shared_memory_is_refused_if_selected(tmp_path: Path) -> None:
    """Views that reach into each other cannot be pruned apart, but left alone they are written."""
    base = torch.randn(6, 4)
    content = {"a.weight": base[:4], "b.weight": base[2:], "c.weight": torch.randn(3, 4)}
    path = build.torch_zip(tmp_path / "x", content)

    with pytest.raises(ParameterError, match="shares part of its memory with"):
        prune_checkpoint(path, tmp_path / "out", amount=1)
    prune_checkpoint(path, tmp_path / "out", amount=1, modules=["c"])

    assert torch.equal(load_file(tmp_path / "out")["b.weight"], base[2:])


def test_strided_and_expanded_tensors_are_written_packed(tmp_path: Path) -> None:
    """Transposed, channels-last and expanded tensors lose the channels that torch takes."""
    content = {
        "t.weight": torch.randn(7, 5).t(),
        "c.weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "e.weight": torch.randn(6, 1).expand(6, 5),
        "s.weight": torch.randn(40)[3:39:2].view(6, 3),
    }
    path = build.torch_zip(tmp_path / "x", content)

    prune_checkpoint(path, tmp_path / "out", amount=2, dim=1)

    pruned = load_file(tmp_path / "out")
    for name, tensor in content.items():
        assert build.same_bits(pruned[name], build.stock_pruned(tensor, name, 2, 1)), name


def test_what_is_in_memory_is_written_the_same(tmp_path: Path) -> None:
    """The tensors of a pickled module give the bytes of its state dict."""
    net = build.Net()
    module = build.torch_zip(tmp_path / "module", net)
    state = build.torch_zip(tmp_path / "state", net.state_dict())

    prune_checkpoint(module, tmp_path / "a", amount=0.5)
    prune_checkpoint(state, tmp_path / "b", amount=0.5)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_lstm_is_pruned_with_its_biases(tmp_path: Path) -> None:
    """weight_ih_l0 takes bias_ih_l0 along, channel for channel, and the result loads."""
    lstm = nn.LSTM(4, 3, 2)
    path = build.torch_zip(tmp_path / "x", lstm.state_dict())

    report = prune_checkpoint(
        path, tmp_path / "out", amount=0.5, dim=0, params=["weight_*"], with_bias=True
    )

    rows = {row.name: row for row in report.tensors}
    pruned = load_file(tmp_path / "out")
    for layer in ("ih_l0", "hh_l0", "ih_l1", "hh_l1"):
        bias = rows[f"bias_{layer}"]
        assert (bias.follows, bias.pruned) == (f"weight_{layer}", rows[f"weight_{layer}"].pruned)
        assert pruned[bias.name][list(bias.pruned)].eq(0).all()
    lstm.load_state_dict(pruned)


def test_biases_that_do_not_fit_are_told(tmp_path: Path) -> None:
    """A bias of another length, or of several weights, is left alone and listed."""
    shared = torch.randn(4)
    content = {
        "up.weight": torch.randn(6, 4, 2),
        "up.bias": torch.randn(4),
        "a.weight": torch.randn(4, 2),
        "a.bias": shared,
        "b.weight": torch.randn(4, 2),
        "b.bias": shared,
        "k.kernel": torch.randn(4, 2),
    }
    path = build.torch_zip(tmp_path / "x", content)

    report = prune_checkpoint(
        path, tmp_path / "out", amount=1, dim=0, with_bias=True, params=["weight", "kernel", "bias"]
    )

    assert [(skip.name, skip.reason) for skip in report.skipped] == [
        ("a.bias", "a bias of several weights"),
        ("up.bias", "a bias whose length does not match the channels of up.weight"),
    ]
    assert [row.name for row in report.tensors] == ["a.weight", "b.weight", "k.kernel", "up.weight"]


def test_scales_are_left_alone_and_said_so(tmp_path: Path) -> None:
    """A float8 weight is pruned, its scale is not, whatever the patterns."""
    content = {
        "fc.weight": build.random_bits("F8_E4M3", 4, 4),
        "fc.weight_scale_inv": torch.ones(2, 2),
    }
    path = build.safetensors(tmp_path / "x", content)

    by_default = prune_checkpoint(path, tmp_path / "a", amount=1)
    by_glob = prune_checkpoint(path, tmp_path / "b", amount=1, params=["weight*"])

    for report in (by_default, by_glob):
        assert [row.name for row in report.tensors] == ["fc.weight"]
        assert [skip.name for skip in report.skipped] == ["fc.weight_scale_inv"]
    assert torch.equal(load_file(tmp_path / "b")["fc.weight_scale_inv"], torch.ones(2, 2))


QUANTISED = {
    "zero-point": (
        {"a.weight": torch.ones(2, 2), "a.weight_zero_point": torch.ones(2)},
        "zero point",
    ),
    "packed": ({"a.weight": torch.ones(4, 1), "a.weight.absmax": torch.ones(2)}, "is packed"),
}
if "F8_E8M0" in build.TORCH_DTYPES:
    QUANTISED["no-zero"] = ({"a.weight": build.random_bits("F8_E8M0", 2, 2)}, "cannot hold zero")
if "F4" in build.TORCH_DTYPES:
    QUANTISED["float4"] = ({"a.weight": build.random_bits("F4", 2, 2)}, "below a byte")


@pytest.mark.parametrize(("content", "message"), QUANTISED.values(), ids=QUANTISED)
def test_where_zero_is_no_zero_nothing_is_pruned(
    tmp_path: Path, content: build.Tensors, message: str
) -> None:
    """Quantised tensors are refused by name if selected, and written as they are if not."""
    content = {**content, "b.weight": torch.ones(2, 2)}
    path = build.safetensors(tmp_path / "x", content)

    with pytest.raises(RequestError, match=f"a.weight.*{message}"):
        prune_checkpoint(path, tmp_path / "out", amount=1)
    prune_checkpoint(path, tmp_path / "out", amount=1, modules=["b"])

    for name, tensor in load_file(tmp_path / "out").items():
        assert name == "b.weight" or build.same_bits(tensor, content[name])


def test_a_recipe_decides_for_each_tensor(tmp_path: Path) -> None:
    """Rules from Python: the last that matches gives the amount and the dim."""
    path = build.safetensors(tmp_path / "x", build.tensors())
    rules = [Rule(("*",), ("weight",), 1, 0), Rule(("fc",), ("weight",), 0.5, 1)]

    report = prune_checkpoint(path, tmp_path / "out", rules=rules)

    assert [(row.name, row.amount, row.dim) for row in report.tensors] == [
        ("conv.weight", 1, 0),
        ("fc.weight", 0.5, 1),
    ]
    assert report.options.rules == tuple(rules)


def test_the_inputs_are_never_written(tmp_path: Path) -> None:
    """No path of the input can be an output, not even with force."""
    folder = build.write_folder(tmp_path / "m", {"model.safetensors": build.tensors()}, index=None)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    impossible: list[Callable[[], object]] = [
        lambda: prune_checkpoint(folder, folder, amount=1, force=True),
        lambda: prune_checkpoint(folder, folder / "sub", amount=1, force=True),
        lambda: prune_checkpoint(folder, tmp_path, amount=1, force=True),
        lambda: prune_checkpoint(
            folder, tmp_path / "out", report=folder / "config.json", amount=1, force=True
        ),
        lambda: prune_checkpoint(
            folder / "model.safetensors", folder, amount=1, force=True, max_shard_size=10**9
        ),
    ]

    for attempt in impossible:
        with pytest.raises(OutputError):
            attempt()

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_pipe_needs_an_output(tmp_path: Path) -> None:
    """There is no default place for what has no place; a dry run needs none."""
    with pytest.raises(UsageError, match="say where the output goes"):
        from_stdin(tmp_path, amount=1)
    assert from_stdin(tmp_path, amount=1, dry_run=True).output is None


def from_stdin(folder: Path, **options: object) -> object:
    """prune_checkpoint of stdin."""
    content = build.safetensors(folder / "x", build.tensors()).read_bytes()
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(content))
    try:
        return prune_checkpoint("-", **options)
    finally:
        sys.stdin = stdin


def test_devices_are_named(tmp_path: Path) -> None:
    """Auto is one of those there are, cpu is always one, and another is an error."""
    path = build.safetensors(tmp_path / "x", build.tensors())

    prune_checkpoint(path, tmp_path / "a", amount=1, device="auto")
    prune_checkpoint(path, tmp_path / "b", amount=1)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(DeviceError, match="there is cpu"):
        prune_checkpoint(path, tmp_path / "c", amount=1, device="cuda:77")


@pytest.mark.parametrize("bake", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_every_device_gives_the_same_bytes(
    tmp_path: Path, accelerator: str, dim: int, bake: bool
) -> None:
    """Where channels are zeroed makes no difference."""
    content = {f"{dtype}.weight": build.random_bits(dtype, 40, 60) for dtype in PRUNABLE}
    content["convolution.weight"] = torch.randn(12, 5, 3, 3)
    content["strided.weight"] = torch.randn(60, 40).t()
    path = build.torch_zip(tmp_path / "x", content)

    for device in ("cpu", accelerator):
        prune_checkpoint(path, tmp_path / device, amount=0.5, dim=dim, bake=bake, device=device)

    assert (tmp_path / "cpu").read_bytes() == (tmp_path / accelerator).read_bytes()


def test_channels_are_zeroed_on_the_device(
    tmp_path: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --device names is where the work is done."""
    path, seen = build.safetensors(tmp_path / "x", build.tensors()), set()

    def zero(tensor: torch.Tensor, dim: int, channels: torch.Tensor) -> torch.Tensor:
        seen.update({tensor.device.type, channels.device.type})
        return zero_channels_(tensor, dim, channels)

    monkeypatch.setattr("prune_cli.write.accelerator.zero_channels_", zero)
    prune_checkpoint(path, tmp_path / "out", amount=0.5, dim=0, device=accelerator)

    assert seen == {accelerator}


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    """The callback hears of each tensor, and the bytes add up to its size."""
    content = {**build.tensors(), "t.weight": torch.randn(5, 3).t()}
    path = build.torch_zip(tmp_path / "x", content)
    heard: dict[str, int] = {}

    def hear(name: str, nbytes: int) -> None:
        heard[name] = heard.get(name, 0) + nbytes

    prune_checkpoint(path, tmp_path / "out", amount=0.5, on_tensor=hear, workers=1)

    assert heard == {name: tensor.nbytes for name, tensor in content.items()}


def test_a_split_file_becomes_a_folder(tmp_path: Path) -> None:
    """max_shard_size makes shards and an index of a single file, with the tensors of one file."""
    path = build.torch_zip(tmp_path / "x.pt", build.tensors())
    prune_checkpoint(path, tmp_path / "one", amount=0.5)

    report = prune_checkpoint(path, amount=0.5, max_shard_size=600)

    folder = tmp_path / "x.pruned"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        held = load_file(file)
        assert {index["weight_map"][name] for name in held} == {file.name}
        found |= held
    wanted = load_file(tmp_path / "one")
    assert all(build.same_bits(found[name], wanted[name]) for name in wanted)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in wanted.values())
    assert read_report(folder / "prune-report.json") == report
    assert report.output and report.output.files == tuple(sorted(set(index["weight_map"].values())))
