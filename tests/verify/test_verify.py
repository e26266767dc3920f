"""verify: an output is held against its report and its source, and nothing wrong gets past."""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prune_cli import apply_report, prune_checkpoint, remove_masks, verify_checkpoint
from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.checkpoint.source import FileSource
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.errors import InputError, UsageError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import Effect, Group, ShrinkPlan
from prune_cli.verify.differences import NOWHERE, ComparingSink, first_bits
from prune_cli.verify.facts import MAX_CHANNELS_LISTED, Disagreement
from prune_cli.verify.shrink import report_problems
from prune_cli.verify.verify import to_json
from prune_cli.write.segments import OutputTensor, Place
from tests import build

# --- what must hold --------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A checkpoint to prune: how it is made, how it is read, and what is asked for."""

    make: Callable[[Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    loading: Loading | None = None


def tied(folder: Path) -> Path:
    """Two names for one weight, a strided weight, a 0-d one, and one without elements."""
    weight = torch.randn(6, 4)
    content = {
        "a.weight": weight,
        "b.weight": weight,
        "strided.weight": torch.randn(5, 7).t(),
        "expanded.weight": torch.randn(5, 1).expand(5, 3),
        "scale": torch.tensor(3.0),
        "empty.weight": torch.zeros(0, 4),
        "nothing": torch.zeros(0),
    }
    return build.torch_zip(folder / "tied.pt", content)


def tied_module(folder: Path) -> Path:
    """A module that stock torch pruned, under two names: both halves are shared."""
    content = build.masked(
        {"a.weight": torch.randn(6, 4), "c.weight": torch.randn(3, 4)}, {"a.weight": 2}
    )
    for half in ("orig", "mask"):
        content[f"b.weight_{half}"] = content[f"a.weight_{half}"]
    return build.torch_zip(folder / "tied.pt", content)


def dtypes(folder: Path) -> Path:
    """Every dtype; those that cannot be pruned are in modules of another name."""
    content = {
        f"{'no' if kind in ('F4', 'F8_E8M0') else 'yes'}.{kind}.weight": build.random_bits(
            kind, 6, 4
        )
        for kind in build.TORCH_DTYPES
    }
    return build.torch_zip(folder / "dtypes.pt", content)


def nested(folder: Path) -> Path:
    """A training checkpoint: the state dict is one entry of several."""
    content = {"state_dict": build.tensors(), "epoch": 3, "optimizer": {"state": torch.ones(3)}}
    return build.torch_zip(folder / "nested.pt", content)


def live_complex(folder: Path) -> Path:
    """A tensor that is conjugated when it is read, so it lives in memory."""
    weight = torch.randn(4, 6, dtype=torch.complex64)
    return build.torch_zip(
        folder / "conj.pt", {"a.weight": weight.clone().conj(), "b.weight": weight}
    )


def folder_of(pattern: str, index: str, count: int = 2) -> Callable[[Path], Path]:
    """A function that makes a folder of `count` shards."""

    def make(folder: Path) -> Path:
        shards = build.split(build.tensors(), build.shard_names(count, pattern))
        metadata = {"total_size": 1, "author": "ada"}
        return build.write_folder(folder / "model", shards, index=index, metadata=metadata)

    return make


SAFETENSORS_FOLDER = folder_of("model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json")
BIN_FOLDER = folder_of("pytorch_model-{:05d}-of-{:05d}.bin", "pytorch_model.bin.index.json")
LSTM = nn.LSTM(4, 3, 2, bidirectional=True)

KINDS = {
    "safetensors": Kind(lambda f: build.safetensors(f / "m.safetensors", build.tensors())),
    "zip": Kind(lambda f: build.torch_zip(f / "m.pt", build.tensors())),
    "legacy": Kind(lambda f: build.torch_legacy(f / "m.pt", build.tensors())),
    "last-dim": Kind(lambda f: build.torch_zip(f / "m.pt", build.tensors()), {"dim": -1}),
    "nested": Kind(nested),
    "masked": Kind(
        lambda f: build.torch_zip(f / "m.pt", build.masked(build.tensors(), {"fc.weight": 3}))
    ),
    "masked-elsewhere": Kind(
        lambda f: build.torch_zip(f / "m.pt", build.masked(build.tensors(), {"fc.weight": 3}, 1)),
        {"modules": ["conv"]},
    ),
    "tied": Kind(tied, {"exclude": ["empty"]}),
    "tied-module": Kind(tied_module),
    "dtypes": Kind(dtypes, {"modules": ["yes.*"]}),
    "in-memory": Kind(live_complex),
    "module": Kind(lambda f: build.torch_zip(f / "m.pt", nn.Linear(4, 6))),
    "with-bias": Kind(lambda f: build.torch_zip(f / "m.pt", build.tensors()), {"with_bias": True}),
    "lstm": Kind(
        lambda f: build.torch_zip(f / "m.pt", LSTM.state_dict()),
        {"params": ["weight_*"], "with_bias": True},
    ),
    "recipe": Kind(
        lambda f: build.torch_zip(f / "m.pt", build.tensors()),
        {
            "amount": None,
            "rules": [Rule(("*",), ("weight",), 0.5, 0), Rule(("fc",), ("weight",), 7, -1)],
        },
    ),
    "folder": Kind(SAFETENSORS_FOLDER),
    "folder-of-bin": Kind(BIN_FOLDER),
    "folder-of-one": Kind(
        folder_of("model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json", 1)
    ),
    "folder-without-index": Kind(
        lambda f: build.write_folder(
            f / "model", {"model.safetensors": build.tensors()}, index=None
        )
    ),
    "split": Kind(lambda f: build.torch_zip(f / "m.pt", build.tensors()), {"max_shard_size": 500}),
    **{
        f"split-anew-{size}": Kind(SAFETENSORS_FOLDER, {"max_shard_size": size})
        for size in (300, 700, 1000, 100_000)
    },
    "split-bin": Kind(BIN_FOLDER, {"max_shard_size": 700}),
}


def prune(kind: Kind, folder: Path, *, bake: bool = True) -> tuple[Path, Path]:
    """The checkpoint of that kind, and what pruning it gives."""
    source = kind.make(folder)
    is_folder = source.is_dir() or "max_shard_size" in kind.options
    output = folder / ("out" if is_folder else "out.safetensors")
    options = {"amount": 0.5, "dim": 0, **kind.options}
    prune_checkpoint(source, output, bake=bake, loading=kind.loading, **options)
    return source, output


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "masks"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_was_pruned_verifies(tmp_path: Path, kind: Kind, bake: bool) -> None:
    """Every kind of checkpoint agrees with its report, alone and with its source."""
    source, output = prune(kind, tmp_path, bake=bake)

    alone = verify_checkpoint(output)
    whole = verify_checkpoint(output, source=source, loading=kind.loading, workers=2)

    assert alone.disagreements == whole.disagreements == ()
    assert (alone.with_source, whole.with_source) == (False, True)


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "masks"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pruning_goes_on_and_verifies(tmp_path: Path, kind: Kind, bake: bool) -> None:
    """An output is an input like any other: pruned again, or its masks removed, it verifies."""
    _, output = prune(kind, tmp_path, bake=bake)
    again = tmp_path / f"again{output.suffix}"
    exclude = kind.options.get("exclude", ())

    prune_checkpoint(
        output,
        again,
        amount=1,
        dim=0,
        modules=kind.options.get("modules", "*"),
        params=kind.options.get("params", ("weight",)),
        exclude=exclude,
    )

    assert verify_checkpoint(again, source=output).disagreements == ()
    if not bake:
        removed = tmp_path / f"removed{output.suffix}"
        remove_masks(output, removed)
        assert verify_checkpoint(removed).disagreements == ()
        assert verify_checkpoint(removed, source=output).disagreements == ()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_was_applied_verifies(tmp_path: Path, kind: Kind) -> None:
    """A report applied to its own source gives the same weights, and verifies."""
    source, output = prune(kind, tmp_path)
    applied = tmp_path / f"applied{output.suffix}"
    report = report_of(output)

    apply_report(report, source, applied, loading=kind.loading)

    verification = verify_checkpoint(applied, source=source, loading=kind.loading)
    assert verification.disagreements == ()
    here, there = open_checkpoint(applied), open_checkpoint(output)
    assert here.tensors.keys() == there.tensors.keys()
    for name, info in here.tensors.items():
        if info.dtype != "F4":
            assert build.same_bits(
                build.tensor(here, info), build.tensor(there, there.tensors[name])
            )


def report_of(output: Path) -> Path:
    """Where the report of `output` is."""
    return output / "prune-report.json" if output.is_dir() else output.with_suffix(".report.json")


# --- what must be caught: the output ---------------------------------------------------------


SOURCE = {
    **build.tensors(),
    "twin.weight": torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1)),
}
METADATA = {"format": "pt", "author": "ada", "tied.weight": "fc.weight", "also.bias": "fc.bias"}


@dataclass(frozen=True)
class Pruned:
    """A source, what pruning dim 0 of it by a half gave, and the report as JSON."""

    source: Path
    output: Path

    @property
    def report(self) -> Path:
        """Where the report is."""
        return report_of(self.output)

    def channels(self, name: str) -> list[int]:
        """The channels that the report has for `name`."""
        rows = json.loads(self.report.read_text())["tensors"]
        return next(row["pruned"] for row in rows if row["name"] == name)


@pytest.fixture
def pruned(tmp_path: Path) -> Pruned:
    """A file with aliases and metadata, pruned."""
    source = build.safetensors(tmp_path / "in.safetensors", SOURCE, METADATA)
    prune_checkpoint(source, tmp_path / "out.safetensors", amount=0.5, dim=0)
    return Pruned(source, tmp_path / "out.safetensors")


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], None], data: bytes | None = None
) -> None:
    """Rewrites the header of a safetensors file; the data stay unless they are given."""
    content = path.read_bytes()
    stop = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:stop])
    change(header)
    build.raw_safetensors(path, header, content[stop:] if data is None else data)


def offset_of(path: Path, name: str) -> int:
    """The first byte of a tensor in its file."""
    return open_checkpoint(path).tensors[name].offset or 0


def poke(path: Path, at: int, value: bytes) -> None:
    """Puts `value` at byte `at`."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)


def flip(path: Path, at: int) -> None:
    """Flips the lowest bit of byte `at`."""
    poke(path, at, bytes([path.read_bytes()[at] ^ 1]))


def disagreements(pruned: Pruned, *, with_source: bool = True) -> tuple[Disagreement, ...]:
    """What verify says."""
    source = pruned.source if with_source else None
    return verify_checkpoint(pruned.output, source=source).disagreements


def test_one_flipped_bit_in_a_kept_element_is_caught(pruned: Pruned) -> None:
    """In a pruned tensor with channel and offset; the offset is where the element begins."""
    kept = min({*range(6)} - {*pruned.channels("conv.weight")})
    element = offset_of(pruned.output, "conv.weight") + (kept * 27 + 5) * 4
    flip(pruned.output, element + 2)

    expected = Disagreement("its bytes are not the source's", "conv.weight", kept, element)
    assert disagreements(pruned) == (expected,)


def test_one_flipped_bit_in_an_untouched_tensor_is_caught(pruned: Pruned) -> None:
    """Without a channel, as it loses none."""
    element = offset_of(pruned.output, "bn.weight") + 3 * 4
    flip(pruned.output, element)

    expected = Disagreement("its bytes are not the source's", "bn.weight", None, element)
    assert disagreements(pruned) == (expected,)


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("value", [b"\x80\x3f", b"\x00\x80", b"\x01\x00"], ids=["1", "-0", "tiny"])
def test_a_pruned_channel_that_is_not_plus_zero_is_caught(
    pruned: Pruned, value: bytes, with_source: bool
) -> None:
    """A one, a -0 and the smallest number, each in the last element of a channel."""
    channel = pruned.channels("fc.weight")[-1]
    element = offset_of(pruned.output, "fc.weight") + (channel * 24 + 23) * 2
    poke(pruned.output, element, value)

    expected = Disagreement("a pruned channel is not +0", "fc.weight", channel, element)
    assert disagreements(pruned, with_source=with_source) == (expected,)


def test_every_wrong_channel_is_listed_once_with_its_first_element(pruned: Pruned) -> None:
    """Whatever the order and the number of the wrong elements."""
    start = offset_of(pruned.output, "twin.weight")
    for channel in range(6):
        for element in (7, 26):
            flip(pruned.output, start + (channel * 27 + element) * 4)

    found = disagreements(pruned)

    assert [(d.channel, d.offset) for d in found] == [
        (channel, start + (channel * 27 + 7) * 4) for channel in range(6)
    ]
    zero = {d.channel for d in found if d.fact == "a pruned channel is not +0"}
    assert zero == {*pruned.channels("twin.weight")}


def test_swapped_tensors_are_caught(pruned: Pruned) -> None:
    """Two tensors of one shape that changed places in the header."""

    def swap(header: dict[str, Any]) -> None:
        one, other = header["conv.weight"], header["twin.weight"]
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]

    rewrite(pruned.output, swap)

    assert {d.tensor for d in disagreements(pruned)} >= {"conv.weight", "twin.weight"}
    assert disagreements(pruned, with_source=False)


def drop(header: dict[str, Any], name: str) -> None:
    """Renames the tensor `name`, so that it is missing and another is there."""
    header["ghost"] = header.pop(name)


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], set[tuple[str | None, str]], bool]] = {
    "dtype": (
        lambda h: h["fc.weight"].update(dtype="F16"),
        {("fc.weight", "its dtype is F16, it should be BF16")},
        True,
    ),
    "dtype-of-another": (
        lambda h: h["bn.weight"].update(dtype="I32"),
        {("bn.weight", "its dtype is I32, it should be F32")},
        False,
    ),
    "shape": (
        lambda h: h["fc.weight"].update(shape=[24, 10]),
        {("fc.weight", "its shape is [24, 10], it should be [10, 24]")},
        True,
    ),
    "missing": (
        lambda h: drop(h, "fc.weight"),
        {("fc.weight", "it is missing"), ("ghost", "it should not be in out.safetensors")},
        True,
    ),
    "missing-other": (lambda h: drop(h, "fc.bias"), {("fc.bias", "it is missing")}, False),
    "alias": (
        lambda h: h["__metadata__"].pop("tied.weight"),
        {("fc.weight", "its alias tied.weight is missing")},
        True,
    ),
    "alias-of-another": (
        lambda h: h["__metadata__"].pop("also.bias"),
        {("fc.bias", "its alias also.bias is missing")},
        False,
    ),
    "metadata": (
        lambda h: h["__metadata__"].update(author="bob"),
        {(None, "the metadata 'author' of out.safetensors is not as it should be")},
        False,
    ),
    "metadata-extra": (
        lambda h: h["__metadata__"].update(ghost="boo"),
        {(None, "the metadata 'ghost' of out.safetensors is not as it should be")},
        False,
    ),
    "order": (
        lambda h: h.update({"conv.weight": h.pop("conv.weight")}),
        {(None, "the header of out.safetensors is not the one that prune-cli writes")},
        False,
    ),
}


@pytest.mark.parametrize(("change", "facts", "alone"), HEADERS.values(), ids=HEADERS)
def test_a_changed_header_is_caught(
    pruned: Pruned,
    change: Callable[[dict[str, Any]], Any],
    facts: set[tuple[str | None, str]],
    alone: bool,
) -> None:
    """With the source all of it; without, what is about a row of the report, or the file's size."""
    size = pruned.output.stat().st_size
    rewrite(pruned.output, change)

    found = {
        (d.tensor, d.fact.removesuffix(" from out.safetensors")) for d in disagreements(pruned)
    }
    assert facts <= found
    without = {(d.tensor, d.fact) for d in disagreements(pruned, with_source=False)}
    is_longer = pruned.output.stat().st_size != size
    assert bool(without) == (alone or is_longer)


def test_an_extra_tensor_is_caught(pruned: Pruned) -> None:
    """By its name, and by the number of tensors."""
    content = pruned.output.read_bytes()
    stop = 8 + int.from_bytes(content[:8], "little")
    data = content[stop:]
    extra = {"ghost": build.entry(len(data), len(data) + 2, 2)}
    rewrite(pruned.output, lambda header: header.update(extra), data + b"ab")

    facts = {(d.tensor, d.fact) for d in disagreements(pruned)}

    assert ("ghost", "it should not be in out.safetensors") in facts
    assert (None, "the report says 7 tensors, there are 8") in facts


def test_a_truncated_file_cannot_be_read(pruned: Pruned) -> None:
    """That is no disagreement, but an input that is broken."""
    pruned.output.write_bytes(pruned.output.read_bytes()[:-1])

    with pytest.raises(InputError, match="truncated"):
        disagreements(pruned)


def test_another_format_is_no_output_of_ours(pruned: Pruned) -> None:
    """The pruned weights saved by torch.save, strided too: told, not crashed over."""
    written = open_checkpoint(pruned.output)
    content = {name: build.tensor(written, info).clone() for name, info in written.tensors.items()}
    content["conv.weight"] = content["conv.weight"].transpose(0, 3).contiguous().transpose(0, 3)
    build.torch_zip(pruned.output, content)

    facts = {d.fact for d in disagreements(pruned)}

    assert "the report says safetensors, the output is torch" in facts
    assert disagreements(pruned, with_source=False)


@pytest.mark.parametrize("suffix", ["_orig", "_mask"])
def test_kept_masks_are_verified_too(tmp_path: Path, suffix: str) -> None:
    """NAME_orig is the source's, NAME_mask is 1 but for the channels that went."""
    source, output = prune(KINDS["zip"], tmp_path, bake=False)
    channel = Pruned(source, output).channels("conv.weight")[0]
    at = offset_of(output, f"conv.weight{suffix}") + channel * 27 * 4
    poke(output, at, b"\0\0\0\x80")

    [found] = verify_checkpoint(output, source=source).disagreements

    assert (found.tensor, found.offset) == (f"conv.weight{suffix}", at)
    alone = verify_checkpoint(output).disagreements
    assert alone == (() if suffix == "_orig" else (found,))


def test_what_was_pruned_before_is_still_zero(tmp_path: Path) -> None:
    """A channel of `already_pruned` that is alive again is caught without the source."""
    content = build.tensors()
    content["fc.weight"][4] = -0.0
    source = build.torch_zip(tmp_path / "m.pt", content)
    output = tmp_path / "out.safetensors"
    prune_checkpoint(source, output, amount=2, dim=0)
    assert verify_checkpoint(output).is_verified
    poke(output, offset_of(output, "fc.weight") + 4 * 48 + 6, b"\x80\x3f")

    expected = Disagreement("the report says it was pruned before", "fc.weight", 4)
    assert verify_checkpoint(output).disagreements == (expected,)


def test_removed_masks_leave_no_bit(tmp_path: Path) -> None:
    """In the output of remove, a -0 in a channel whose mask is all zero is ours, so wrong."""
    source = build.torch_zip(tmp_path / "m.pt", build.masked(build.tensors(), {"fc.weight": 3}))
    output = tmp_path / "out.safetensors"
    row = remove_masks(source, output).tensors[0]
    at = offset_of(output, "fc.weight") + row.already_pruned[1] * 48
    poke(output, at, b"\0\x80")

    expected = Disagreement("a pruned channel is not +0", "fc.weight", row.already_pruned[1], at)
    assert verify_checkpoint(output).disagreements == (expected,)
    assert expected in verify_checkpoint(output, source=source).disagreements


def test_a_file_that_is_wrong_throughout_is_summed_up(tmp_path: Path) -> None:
    """Of more wrong channels than a person reads, the first are listed and the rest counted."""
    wide = 2 * MAX_CHANNELS_LISTED
    source = build.safetensors(tmp_path / "m.safetensors", {"a.weight": torch.randn(40, wide)})
    output = tmp_path / "out.safetensors"
    prune_checkpoint(source, output, amount=0.5)
    start = offset_of(output, "a.weight")
    poke(output, start, bytes(255 - byte for byte in output.read_bytes()[start:]))

    for held in (source, None):
        first, *rest = verify_checkpoint(output, source=held).disagreements

        count = wide if held else wide // 2
        assert (
            first.fact == f"{count:,} of its channels are wrong; the first 1,000 follow" or not held
        )
        assert len(rest) == 1000 - (held is None)


# --- what must be caught: folders ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Pruned:
    """A folder of two shards, pruned."""
    return Pruned(*prune(KINDS["folder"], tmp_path))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


INDEXES: dict[str, tuple[Callable[[Any], Any], Disagreement, bool]] = {
    "total_size": (
        lambda index: index["metadata"].update(total_size=7),
        Disagreement("the total_size in model.safetensors.index.json is not 1204"),
        True,
    ),
    "unnamed": (
        lambda index: index["weight_map"].pop("fc.bias"),
        Disagreement(
            "model.safetensors.index.json does not say that it is in "
            "model-00002-of-00002.safetensors",
            "fc.bias",
        ),
        True,
    ),
    "metadata": (
        lambda index: index["metadata"].update(author="bob"),
        Disagreement("the metadata 'author' of model.safetensors.index.json is not the source's"),
        False,
    ),
}


@pytest.mark.parametrize(("change", "expected", "alone"), INDEXES.values(), ids=INDEXES)
def test_a_changed_index_is_caught(
    folder: Pruned, change: Callable[[Any], Any], expected: Disagreement, alone: bool
) -> None:
    """What it says of tensors and sizes without the source, what it keeps of it with it."""
    edit_json(folder.output / "model.safetensors.index.json", change)

    assert disagreements(folder) == (expected,)
    assert disagreements(folder, with_source=False) == ((expected,) if alone else ())


@pytest.mark.parametrize("tensor", ["fc.bias", "ghost"])
def test_an_index_that_no_loader_would_take_cannot_be_read(folder: Pruned, tensor: str) -> None:
    """A tensor that is not where the index says, or nowhere."""
    wrong = {tensor: "model-00001-of-00002.safetensors"}
    edit_json(
        folder.output / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(wrong),
    )

    with pytest.raises(InputError, match=tensor):
        disagreements(folder)


def test_an_alias_in_the_index_is_no_tensor_of_ours(tmp_path: Path) -> None:
    """prune-cli names what is stored, and only that."""
    shards = build.split(build.tensors(), build.shard_names(2))
    source = build.write_folder(tmp_path / "model", shards)
    build.safetensors(
        source / "model-00002-of-00002.safetensors",
        shards["model-00002-of-00002.safetensors"],
        {"format": "pt", "tied": "fc.bias"},
    )
    prune_checkpoint(source, tmp_path / "out", amount=1, dim=0)
    name = "model.safetensors.index.json"
    alias = {"tied": "model-00002-of-00002.safetensors"}
    edit_json(tmp_path / "out" / name, lambda index: index["weight_map"].update(alias))

    expected = Disagreement(f"{name} names it, but it is not stored", "tied")
    assert verify_checkpoint(tmp_path / "out", source=source).disagreements == (expected,)


@pytest.mark.parametrize("name", ["config.json", "tokenizer/vocab.txt"])
def test_a_copy_that_changed_or_is_missing_is_caught(folder: Pruned, name: str) -> None:
    """The other files of the folder are the source's too."""
    copied = folder.output / name
    copied.write_bytes(copied.read_bytes() + b" ")
    assert disagreements(folder) == (Disagreement(f"{name} is not the source's"),)

    copied.unlink()
    assert disagreements(folder) == (Disagreement(f"{name} is missing"),)
    assert disagreements(folder, with_source=False) == ()


def test_a_tensor_in_another_shard_is_caught(folder: Pruned) -> None:
    """Shards, index and report agree with each other, but not with the source."""
    names = build.shard_names(2)
    shards = build.split(build.tensors(), names)
    shards[names[0]]["fc.bias"] = shards[names[1]].pop("fc.bias")
    content = open_checkpoint(folder.output)
    for name, held in shards.items():
        tensors = {key: build.tensor(content, content.tensors[key]).clone() for key in held}
        build.safetensors(folder.output / name, tensors)
    weight_map = {key: name for name, held in shards.items() for key in held}
    index = folder.output / "model.safetensors.index.json"
    edit_json(index, lambda found: found.update(weight_map=weight_map))

    facts = {(d.fact, d.tensor) for d in disagreements(folder)}

    assert (f"it is missing from {names[1]}", "fc.bias") in facts
    assert (f"it should not be in {names[0]}", "fc.bias") in facts


def test_a_lost_index_is_caught(tmp_path: Path) -> None:
    """A single shard can be read without its index, but the source had one."""
    source, output = prune(KINDS["folder-of-one"], tmp_path)
    (output / "model.safetensors.index.json").unlink()

    expected = Disagreement("model.safetensors.index.json is missing")
    assert verify_checkpoint(output, source=source).disagreements == (expected,)


def test_an_index_of_another_name_is_caught(tmp_path: Path) -> None:
    """Loaders look for one name."""
    source, output = prune(KINDS["folder"], tmp_path)
    (output / "model.safetensors.index.json").rename(output / "other.safetensors.index.json")

    fact = "the index is other.safetensors.index.json, it should be model.safetensors.index.json"
    assert verify_checkpoint(output, source=source).disagreements == (Disagreement(fact),)


@pytest.mark.parametrize(
    "options",
    [{"modules": "b"}, {"modules": ["a", "b"]}, {"params": ("weight", "b"), "exclude": "b"}],
    ids=["alone", "with a module", "excluded"],
)
def test_patterns_that_meant_whole_names_verify(tmp_path: Path, options: dict[str, Any]) -> None:
    """Without the source too: the output has the names that they met."""
    content = {"a.weight": torch.randn(4, 3), "b": torch.randn(4, 3)}
    source = build.safetensors(tmp_path / "m", content)
    output = tmp_path / "out"
    prune_checkpoint(source, output, amount=0.5, dim=0, **options)

    assert verify_checkpoint(output).disagreements == ()
    assert verify_checkpoint(output, source=source).disagreements == ()


def test_a_plain_state_dict_of_a_nested_one_verifies(tmp_path: Path) -> None:
    """The key is that of the source; the output has nothing there."""
    content = {"model": build.tensors(), "ema": build.tensors(seed=1)}
    source, output = build.torch_zip(tmp_path / "m.pt", content), tmp_path / "out"
    loading = Loading(("ema",))
    prune_checkpoint(source, output, amount=0.5, dim=0, format="torch", loading=loading)

    assert verify_checkpoint(output, loading=loading).disagreements == ()
    assert verify_checkpoint(output, source=source, loading=loading).disagreements == ()


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "masked"])
def test_a_tensor_of_several_names_verifies_under_any(tmp_path: Path, bake: bool) -> None:
    """A file of torch does not say which of them the source had it under."""
    content = {"b.weight": torch.randn(4, 3), "c.weight": torch.randn(4, 3)}
    metadata = {"a.weight": "b.weight"}
    source, output = build.safetensors(tmp_path / "m", content, metadata), tmp_path / "out.pt"
    prune_checkpoint(source, output, amount=0.5, dim=0, bake=bake)

    assert verify_checkpoint(output).disagreements == ()
    assert verify_checkpoint(output, source=source).disagreements == ()


def test_shards_without_tensors_verify(tmp_path: Path) -> None:
    """The index of the output names none of them, so none is reported."""
    names, output = build.shard_names(2), tmp_path / "out"
    source = build.write_folder(tmp_path / "m", dict(zip(names, ({}, build.tensors()))), index=None)
    build.safetensors(source / names[0], {}, {"format": "pt", "of": "the first shard"})

    report = prune_checkpoint(source, output, amount=0.5, dim=0)

    assert report.output and report.output.files == (names[1],)
    assert verify_checkpoint(output).disagreements == ()
    assert verify_checkpoint(output, source=source).disagreements == ()


# --- what must be caught: the report ---------------------------------------------------------

ALONE, SOURCE_NEEDED, UNREADABLE = "alone", "with the source", "refused"
TOOL = "who wrote a report cannot be told from it"
RENAMED = "files and folders can be renamed"

# For each field of a report: another value for it, and how that is caught, or why it cannot be.
EDITS: dict[str, tuple[object, str]] = {
    "schema": (3, UNREADABLE),
    "tool.name": ("other", TOOL),
    "tool.version": ("9", TOOL),
    "tool.torch": ("9", TOOL),
    "method": ("apply", ALONE),
    "options.amount": (0.25, ALONE),
    "options.dim": (1, ALONE),
    "options.seed": (1, ALONE),
    "options.modules": (["conv"], ALONE),
    "options.exclude": (["fc"], ALONE),
    "options.params": (["bias"], ALONE),
    "options.bake": (False, ALONE),
    "options.with_bias": (False, SOURCE_NEEDED),
    "options.rules": ([{"modules": ["*"], "params": ["*"], "amount": 1, "dim": 0}], ALONE),
    "input.path": ("other.pt", RENAMED),
    "input.format": ("safetensors", SOURCE_NEEDED),
    "input.tensors": (8, SOURCE_NEEDED),
    "input.bytes": (8, SOURCE_NEEDED),
    "output": (None, UNREADABLE),
    "output.path": ("other.safetensors", ALONE),
    "output.format": ("torch", ALONE),
    "output.files": (["other.safetensors"], ALONE),
    "output.tensors": (8, ALONE),
    "output.bytes": (8, ALONE),
    "totals.tensors_pruned": (5, ALONE),
    "totals.channels": (5, ALONE),
    "totals.channels_pruned": (5, ALONE),
    "totals.elements": (5, ALONE),
    "totals.elements_zero": (5, ALONE),
    "totals.sparsity": (0.25, ALONE),
    "tensors.1.name": ("ghost.weight", ALONE),
    "tensors.1.module": ("ghost", ALONE),
    "tensors.1.param": ("ghost", ALONE),
    "tensors.1.aliases": (["ghost.weight"], ALONE),
    "tensors.3.aliases": ([], SOURCE_NEEDED),
    "tensors.1.dtype": ("F16", ALONE),
    "tensors.1.shape": ([6, 3, 9], ALONE),
    "tensors.1.dim": (1, ALONE),
    "tensors.1.amount": (0.25, ALONE),
    "tensors.1.seed": (5, ALONE),
    "tensors.1.channels": (7, ALONE),
    "tensors.1.already_pruned": ([0], ALONE),
    "tensors.1.pruned": ([0, 1, 2], ALONE),
    "tensors.0.follows": ("fc.weight", ALONE),
    "tensors.0.seed": (5, ALONE),
    "tensors.0.pruned": ([0, 1, 2], ALONE),
    "tensors.0.already_pruned": ([0], ALONE),
    "tensors": ([], ALONE),
    "skipped.0.name": ("ghost.weight", ALONE),
    "skipped.0.reason": ("no reason", SOURCE_NEEDED),
    "skipped": ([], SOURCE_NEEDED),
    "dropped.0.key": ("ghost", SOURCE_NEEDED),
    "dropped.0.reason": ("no reason", SOURCE_NEEDED),
    "dropped": ([], SOURCE_NEEDED),
}


@pytest.fixture
def rich(tmp_path: Path) -> Pruned:
    """A checkpoint whose report has something in every field: aliases, biases, skipped, dropped."""
    content = build.tensors()
    content["tied.weight"] = content["fc.weight"]
    path = build.torch_zip(tmp_path / "m.pt", {"state_dict": content, "epoch": 3})
    prune_checkpoint(path, tmp_path / "out.safetensors", amount=0.5, dim=0, with_bias=True)
    return Pruned(path, tmp_path / "out.safetensors")


def leaves(value: object, at: str = "") -> Iterator[str]:
    """The paths of a report's fields, as EDITS spells them, without the numbers of rows."""
    inside: list[tuple[str, object]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        inside = [("#", entry) for entry in value]
    for key, entry in inside:
        yield from leaves(entry, f"{at}.{key}".lstrip("."))
    if not inside:
        yield at


def test_every_field_of_a_report_is_edited_below(rich: Pruned) -> None:
    """So no field can be added without a word on how verify holds it."""
    fields = {*leaves(json.loads(rich.report.read_text()))}

    edited = {re.sub(r"\.\d+\.", ".#.", path) for path in EDITS}

    assert fields <= edited


def put(content: Any, path: str, value: object) -> None:
    """Sets the field of a report that `path` leads to."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in way:
        content = content[key]
    assert content[last] != value
    content[last] = value


@pytest.mark.parametrize(("path", "edit"), EDITS.items(), ids=EDITS)
def test_an_edited_report_is_caught(rich: Pruned, path: str, edit: tuple[object, str]) -> None:
    """Without the source if it can be, with it otherwise, or not for a reason that is given."""
    value, how = edit
    edit_json(rich.report, lambda content: put(content, path, value))

    if how == UNREADABLE:
        with pytest.raises(InputError):
            disagreements(rich)
        return
    assert bool(disagreements(rich)) == (how in (ALONE, SOURCE_NEEDED))
    assert bool(disagreements(rich, with_source=False)) == (how == ALONE)


def test_no_key_of_a_report_can_be_left_out_or_added(rich: Pruned) -> None:
    """Nothing has a default: not even what the command line has one for."""
    original = json.loads(rich.report.read_text())
    for part in (original, *(original[key] for key in original if isinstance(original[key], dict))):
        for key in [*part]:
            value = part.pop(key)
            rich.report.write_text(json.dumps(original))
            with pytest.raises(InputError):
                disagreements(rich)
            part[key] = value
        part["ghost"] = 1
        rich.report.write_text(json.dumps(original))
        with pytest.raises(InputError, match="ghost"):
            disagreements(rich)
        del part["ghost"]


HOSTILE: dict[str, dict[str, object]] = {
    "negative shape": {"tensors.1.shape": [-6, 3, 3, 3], "tensors.1.channels": -6},
    "huge shape": {"tensors.1.shape": [10**15, 3], "tensors.1.channels": 10**15},
    "channels that are not there": {"tensors.1.pruned": [6, 10**12]},
    "negative channels": {"tensors.1.pruned": [-1]},
    "no dim": {"tensors.1.dim": 9},
    "impossible amount": {"options.amount": 7, "tensors.1.amount": 7},
    "no amount": {"options.amount": None},
    "NaN": {"tensors.1.amount": float("nan"), "options.amount": float("nan")},
    "a row of what cannot be pruned": {
        "tensors.1.name": "bn.num_batches_tracked",
        "tensors.1.shape": [],
        "tensors.1.channels": 1,
        "tensors.1.pruned": [0],
    },
    "idle pattern": {"options.modules": ["ghost"]},
    "masks with channels that are not there": {
        "options.bake": False,
        "tensors.1.already_pruned": [99],
    },
    "apply": {
        "method": "apply",
        "tensors.1.seed": None,
        "tensors.3.seed": None,
        "tensors.1.dim": 9,
    },
    "remove": {"method": "remove"},
}


@pytest.mark.parametrize("edits", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_report_is_a_disagreement(rich: Pruned, edits: dict[str, object]) -> None:
    """Whatever numbers a report claims: no crash, no endless work, no memory."""
    for path, value in edits.items():
        edit_json(rich.report, lambda content, path=path, value=value: put(content, path, value))

    assert disagreements(rich)
    assert disagreements(rich, with_source=False)


def test_blocks_beyond_number_take_no_time() -> None:
    """A group of a shrunk model is held against its seed, however many blocks its report claims."""
    seed = derive_seed(0, "a.weight")
    group = Group("a.weight", 0, 0.5, seed, 2, 1 << 60, (), (("a.weight", 0),))
    for removed in ((), (1,)):
        kept = {"a.weight": {0: (0, 1)[: 2 - len(removed)]}}
        shapes = {"a.weight": (2 - len(removed), 3)}
        groups = (replace(group, removed=removed),)
        plan = ShrinkPlan(kept, shapes, {}, {}, groups, (), Effect(0, 0, 0, 0))

        facts = list(report_problems(plan, seed=0))

        assert len(facts) == len(removed)


def test_a_row_twice_or_out_of_order_is_caught(rich: Pruned) -> None:
    """The rows of a report are sorted by name, each once."""
    original = json.loads(rich.report.read_text())
    doubled = copy.deepcopy(original)
    doubled["tensors"].insert(2, doubled["tensors"][1])
    rich.report.write_text(json.dumps(doubled))
    assert Disagreement("the report has 2 rows of it", "conv.weight") in disagreements(rich)

    original["tensors"].reverse()
    rich.report.write_text(json.dumps(original))
    expected = Disagreement("the rows of the report are not in the order of their names")
    assert disagreements(rich) == (expected,)


@pytest.mark.parametrize("edit", [{"seed": 5}, {"pruned": [1]}, {"already_pruned": []}, {"dim": 1}])
@pytest.mark.parametrize("method", ["apply", "remove"])
def test_edited_reports_of_the_other_methods_are_caught(
    tmp_path: Path, method: str, edit: dict[str, object]
) -> None:
    """They draw nothing, but what they say of the source can be found again."""
    content = build.masked({"fc.weight": torch.randn(10, 24)}, {"fc.weight": 3})
    source = build.torch_zip(tmp_path / "m.pt", content)
    output = tmp_path / "out.safetensors"
    if method == "remove":
        remove_masks(source, output)
    else:
        told = prune_checkpoint(source, dry_run=True, amount=2, dim=0)
        apply_report(told, source, output)
    report = report_of(output)
    edit_json(report, lambda found: found["tensors"][0].update(edit))

    assert verify_checkpoint(output, source=source).disagreements


@pytest.mark.parametrize("key", ["amount", "modules", "seed"])
def test_the_options_of_remove_are_fixed(tmp_path: Path, key: str) -> None:
    """A report of remove has options that say nothing, and no others."""
    source = build.torch_zip(tmp_path / "m.pt", build.masked(build.tensors(), {"fc.weight": 3}))
    output = tmp_path / "out.safetensors"
    remove_masks(source, output)
    edited = {"amount": 0.5, "modules": ["fc"], "seed": 5}[key]
    edit_json(report_of(output), lambda found: found["options"].update({key: edited}))

    expected = Disagreement("the options of the report are not those of remove")
    assert verify_checkpoint(output, source=source).disagreements == (expected,)


def test_amounts_differ_in_type_too(tmp_path: Path) -> None:
    """All of the channels, and one channel, are not the same request."""
    source = build.torch_zip(tmp_path / "m.pt", {"a.weight": torch.randn(1, 4)})
    output = tmp_path / "out.safetensors"
    prune_checkpoint(source, output, amount=1.0, dim=0)
    edit_json(report_of(output), lambda found: found["options"].update(amount=1))

    assert verify_checkpoint(output).disagreements
    assert verify_checkpoint(output, source=source).disagreements


def test_the_report_of_another_file_is_caught(pruned: Pruned, tmp_path: Path) -> None:
    """Even of the same checkpoint with another seed."""
    other = tmp_path / "other.safetensors"
    prune_checkpoint(pruned.source, other, amount=0.5, dim=0, seed=1)

    found = verify_checkpoint(pruned.output, report=report_of(other)).disagreements

    assert {d.tensor for d in found} >= {"conv.weight", "fc.weight", "twin.weight"}


def test_another_source_is_caught(pruned: Pruned, tmp_path: Path) -> None:
    """Of the same shapes: by its bytes."""
    other = build.safetensors(tmp_path / "o.safetensors", {**SOURCE, **build.tensors(1)}, METADATA)

    found = verify_checkpoint(pruned.output, source=other).disagreements

    assert {d.tensor for d in found} == {*build.tensors()} - {"bn.num_batches_tracked"}


# --- where things are ------------------------------------------------------------------------


def test_a_renamed_output_verifies(pruned: Pruned, tmp_path: Path) -> None:
    """A file can be moved; then its report has to be named, or moved with it."""
    moved = tmp_path / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    shutil.move(pruned.output, moved)

    with pytest.raises(InputError, match=r"renamed\.report\.json.*`report`"):
        verify_checkpoint(moved)
    assert verify_checkpoint(moved, report=pruned.report, source=pruned.source).is_verified


def test_a_dry_run_has_no_output(pruned: Pruned, tmp_path: Path) -> None:
    """Its report says so."""
    report = tmp_path / "dry.json"
    prune_checkpoint(pruned.source, amount=0.5, dry_run=True, report=report)

    with pytest.raises(InputError, match="dry run"):
        verify_checkpoint(pruned.output, report=report)


def test_an_unknown_method_is_refused(pruned: Pruned) -> None:
    """A report of a newer prune-cli can say what this one knows nothing of."""
    edit_json(pruned.report, lambda content: content.update(method="random_unstructured"))

    with pytest.raises(InputError, match="random_unstructured"):
        disagreements(pruned)


def test_stdin_needs_a_named_report_and_is_one_thing() -> None:
    """There is no place beside it, and it is read once."""
    with pytest.raises(UsageError, match="`report`"):
        verify_checkpoint("-")
    with pytest.raises(UsageError, match="only one"):
        verify_checkpoint("-", report="-")
    with pytest.raises(UsageError, match="only one"):
        verify_checkpoint("-", report="r.json", source="-")


def test_progress_counts_every_byte_of_the_tensors(pruned: Pruned) -> None:
    """Of those that are compared, so of all of them."""
    seen: dict[str, int] = {}

    def note(name: str, count: int) -> None:
        seen[name] = seen.get(name, 0) + count

    verification = verify_checkpoint(pruned.output, source=pruned.source, on_tensor=note)

    assert sum(seen.values()) == verification.nbytes
    assert len(seen) == verification.tensors


def test_json_has_a_line_for_each_disagreement(pruned: Pruned) -> None:
    """In the order of the fields."""
    start = offset_of(pruned.output, "bn.weight")
    flip(pruned.output, start)

    verification = verify_checkpoint(pruned.output, source=pruned.source)

    assert to_json(verification) == (
        '{\n  "verified": false,\n  "tensors": 7,\n'
        f'  "nbytes": {verification.nbytes},\n  "with_source": true,\n  "disagreements": [\n'
        '    {"fact": "its bytes are not the source\'s", "tensor": "bn.weight", '
        f'"channel": null, "offset": {start}}}\n  ]\n}}\n'
    )


# --- the laws of differences -----------------------------------------------------------------

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(
    shape=SHAPES,
    dim=st.integers(0, 3),
    width=st.sampled_from(["U8", "I16", "F32", "C64"]),
    pieces=st.integers(1, 9),
    wrong=st.sets(st.integers(0, 10**6), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_the_sink_finds_the_first_difference_of_each_channel(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dim: int,
    width: str,
    pieces: int,
    wrong: set[int],
    order: Any,
) -> None:
    """For any shape, dim and dtype, and for pieces of any length in any order."""
    dim %= len(shape)
    info = TensorInfo("a", width, shape, 0, 16)
    itemsize = info.nbytes // info.elements
    wrong = {byte % info.nbytes for byte in wrong}
    path = tmp_path_factory.getbasetemp() / "compared"
    data = bytes(info.nbytes)
    path.write_bytes(bytes(16) + bytes(int(i in wrong) for i in range(info.nbytes)))
    with path.open("rb") as file:
        empty = OutputTensor(TensorInfo("none", width, (0, 3), 0, 16), None)
        tensor = OutputTensor(info, info, dim=dim, zero=(0,))
        sink = ComparingSink(FileSource(file.fileno()), [Place(16, tensor), Place(16, empty)])
        steps = list(range(0, info.nbytes, pieces * itemsize))
        order.shuffle(steps)
        for at in steps:
            sink.write(memoryview(data)[at : at + pieces * itemsize], 16 + at)

    expected = np.full(shape[dim], NOWHERE)
    index = torch.arange(info.elements).view(shape)
    for channel in range(shape[dim]):
        held = index.select(dim, channel).flatten().tolist()
        hits = [e for e in held if wrong & {*range(e * itemsize, (e + 1) * itemsize)}]
        if hits:
            expected[channel] = 16 + min(hits) * itemsize
    assert np.array_equal(sink.first.get("a", np.full_like(expected, NOWHERE)), expected)


@given(
    shape=SHAPES,
    dim=st.integers(0, 3),
    block=st.integers(1, 40),
    wrong=st.sets(st.integers(0, 10**6), max_size=8),
    chosen=st.sets(st.integers(0, 4)),
)
def test_first_bits_are_those_of_a_loop(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dim: int,
    block: int,
    wrong: set[int],
    chosen: set[int],
) -> None:
    """For any shape and dim, and however small the blocks are."""
    dim %= len(shape)
    tensor = torch.zeros(shape, dtype=torch.int16)
    elements = {element % tensor.numel() for element in wrong}
    tensor.view(-1)[list(elements)] = -(2**15)
    path = build.safetensors(tmp_path_factory.getbasetemp() / "bits", {"a": tensor})
    checkpoint = open_checkpoint(path)
    info = checkpoint.tensors["a"]
    channels = sorted(channel for channel in chosen if channel < shape[dim])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prune_cli.verify.differences._BLOCK_ELEMENTS", block)
        found = first_bits(checkpoint, info, dim, channels)

    index = torch.arange(tensor.numel()).view(shape)
    for channel in range(shape[dim]):
        hits = elements & {*index.select(dim, channel).flatten().tolist()}
        told = (info.offset or 0) + 2 * min(hits) if hits and channel in channels else NOWHERE
        assert found[channel] == told
