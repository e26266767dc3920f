"""Folders as their libraries write them: what is taken, what is left out, and what is said."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from torch import nn

from prune_cli import apply_report, prune_checkpoint, verify_checkpoint
from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.errors import InputError, UsageError
from tests import build


def weights(count: int = 4, seed: int = 0) -> build.Tensors:
    """A few matrices."""
    generator = torch.Generator().manual_seed(seed)
    return {f"b.{n}.weight": torch.randn(8, 8, generator=generator) for n in range(count)}


def folder_of(path: Path, shards: Mapping[str, list[str]], index: str | None = None) -> Path:
    """A folder with those files, of those tensors each."""
    content = weights()
    files = {file: {name: content[name] for name in names} for file, names in shards.items()}
    return build.write_folder(path, files, index=index)


HALVES = [["b.0.weight", "b.1.weight"], ["b.2.weight", "b.3.weight"]]


def halves(pattern: str) -> dict[str, list[str]]:
    """Two shards of that name, with a half of the tensors each."""
    return dict(zip(build.shard_names(2, pattern), HALVES, strict=True))


VARIANTS = {
    "transformers": (
        "model.fp16-{:05d}-of-{:05d}.safetensors",
        "model.safetensors.index.fp16.json",
        "model.safetensors.index.fp16.json",
    ),
    "diffusers": (
        "diffusion_pytorch_model.fp16-{:05d}-of-{:05d}.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "older-diffusers": (
        "diffusion_pytorch_model-{:05d}-of-{:05d}.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "pickled": (
        "pytorch_model.fp16-{:05d}-of-{:05d}.bin",
        "pytorch_model.bin.index.fp16.json",
        "model.safetensors.index.fp16.json",
    ),
    "without-an-index": (
        "model.fp16-{:05d}-of-{:05d}.safetensors",
        None,
        "model.safetensors.index.fp16.json",
    ),
    "plain-without-an-index": (
        "model-{:05d}-of-{:05d}.safetensors",
        None,
        "model.safetensors.index.json",
    ),
}


@pytest.mark.parametrize(("pattern", "index", "expected"), VARIANTS.values(), ids=VARIANTS)
def test_the_index_of_a_variant_has_the_name_that_is_looked_for(
    tmp_path: Path, pattern: str, index: str | None, expected: str
) -> None:
    """Shards keep their names, every tensor is in the index, and the output verifies."""
    source = folder_of(tmp_path / "in", halves(pattern), index)

    prune_checkpoint(source, tmp_path / "out", amount=0.5, dim=0)

    weight_map = json.loads((tmp_path / "out" / expected).read_text())["weight_map"]
    assert weight_map.keys() == weights().keys()
    assert [path.name for path in (tmp_path / "out").glob("*.index*")] == [expected]
    for name, file in weight_map.items():
        assert name in load_file(tmp_path / "out" / file)
    assert verify_checkpoint(tmp_path / "out", source=source).is_verified


def test_a_variant_that_is_split_anew_is_still_that_variant(tmp_path: Path) -> None:
    """The shards get its name, as transformers gives it."""
    pattern, index, _ = VARIANTS["transformers"]
    source = folder_of(tmp_path / "in", halves(pattern), index)

    prune_checkpoint(source, tmp_path / "out", amount=0.5, dim=0, max_shard_size=300)

    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert names == {*build.shard_names(4, pattern)}
    assert verify_checkpoint(tmp_path / "out", source=source).is_verified


def test_transformers_loads_a_pruned_variant(tmp_path: Path) -> None:
    """from_pretrained(variant=...) finds it under the names that it looks for."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path / "in", variant="fp16", max_shard_size="2KB")

    report = prune_checkpoint(tmp_path / "in", tmp_path / "out", amount=0.5, dim=0)

    loaded = transformers.BertModel.from_pretrained(tmp_path / "out", variant="fp16").state_dict()
    for item in report.tensors:
        assert not loaded[item.name][list(item.pruned)].any()
        assert loaded[item.name].any()


# --- several forms of one model --------------------------------------------------------------


def test_other_forms_of_the_same_weights_are_left_out(tmp_path: Path) -> None:
    """They would be unpruned; a note names them, and copy_all copies them."""
    source = build.write_folder(
        tmp_path / "in", {"diffusion_pytorch_model.safetensors": weights()}, index=None
    )
    build.torch_zip(source / "diffusion_pytorch_model.bin", weights())
    (source / "original").mkdir()
    build.torch_zip(source / "original" / "consolidated.00.pth", weights())
    (source / "original" / "params.json").write_text("{}")
    (source / "tf_model.h5").write_bytes(b"h5")
    forms = ["diffusion_pytorch_model.bin", "original/consolidated.00.pth", "tf_model.h5"]

    report = prune_checkpoint(source, tmp_path / "out", amount=0.5, dim=0)
    everything = open_checkpoint(source, Loading(copy_all=True))

    assert any(f"left out are {', '.join(forms)}" in note for note in report.notes)
    assert not any((tmp_path / "out" / form).exists() for form in forms)
    assert (tmp_path / "out" / "original" / "params.json").exists()
    assert {*forms} <= {*everything.others}
    assert everything.notes == (
        f"no part of the checkpoint, so copied as they are: {', '.join(forms)}",
    )


def test_a_plain_checkpoint_wins_over_its_variants(tmp_path: Path) -> None:
    """Which the index or the file still names."""
    pattern, index, _ = VARIANTS["transformers"]
    source = folder_of(tmp_path / "in", halves(pattern), index)
    build.safetensors(source / "model.safetensors", weights(seed=1))

    plain = open_checkpoint(source)
    variant = open_checkpoint(source / "model.safetensors.index.fp16.json")

    assert [shard.name for shard in plain.shards] == ["model.safetensors"]
    assert [shard.name for shard in variant.shards] == build.shard_names(2, pattern)
    assert "model.safetensors" not in variant.others
    assert not [name for name in plain.others if "fp16" in name]


def test_the_weights_of_an_adapter_are_another_checkpoint(tmp_path: Path) -> None:
    """Neither is a form of the other, so both are named."""
    source = build.write_folder(tmp_path / "in", {"model.safetensors": weights()}, index=None)
    build.safetensors(source / "adapter_model.safetensors", weights())

    with pytest.raises(InputError, match=r"2 checkpoints: adapter_model\.safetensors, model\.saf"):
        open_checkpoint(source)


def test_a_pickled_adapter_is_a_checkpoint(tmp_path: Path) -> None:
    """And becomes what PEFT looks for first."""
    source = build.write_folder(tmp_path / "in", {"adapter_model.bin": weights()}, index=None)

    prune_checkpoint(source, tmp_path / "out", amount=0.5, dim=0)

    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == weights().keys()


def test_an_index_of_files_that_are_not_there_is_passed_over(tmp_path: Path) -> None:
    """If there is a checkpoint without it; and it is not copied, for a loader would follow it."""
    source = build.write_folder(tmp_path / "in", {"model.safetensors": weights()}, index=None)
    build.write_index(
        source / "model.safetensors.index.json", {"b.0.weight": "model-00001-of-00002.safetensors"}
    )

    checkpoint = open_checkpoint(source)

    assert checkpoint.index is None
    assert "model.safetensors.index.json" not in checkpoint.others
    assert checkpoint.notes == (
        "model.safetensors.index.json names files that are not there, so it is left out",
    )


def test_missing_shards_without_an_index_are_named(tmp_path: Path) -> None:
    """Their names say how many there should be."""
    source = folder_of(tmp_path / "in", halves("model-{:05d}-of-{:05d}.safetensors"))
    (source / "model-00001-of-00002.safetensors").unlink()

    with pytest.raises(InputError, match="has 1 of 2 shards.*model-00001-of-00002.* is missing"):
        open_checkpoint(source)


# --- outputs of ours, and files of torch -----------------------------------------------------


def test_outputs_of_earlier_runs_are_passed_over(tmp_path: Path) -> None:
    """Their reports name them."""
    model = build.safetensors(tmp_path / "model.safetensors", weights())
    prune_checkpoint(model, amount=0.5, dim=0)

    checkpoint = open_checkpoint(tmp_path)

    assert [shard.name for shard in checkpoint.shards] == ["model.safetensors"]
    assert "outputs of earlier runs are left out: model.pruned.safetensors" in checkpoint.notes


def test_a_folder_with_one_file_of_torch_stands_for_it(tmp_path: Path) -> None:
    """A note says which; what was made of it before is passed over."""
    model = build.torch_zip(tmp_path / "model.pt", weights())
    build.torch_zip(tmp_path / "optimizer.pt", {"lr": 1})
    prune_checkpoint(model, amount=0.5, dim=0)

    checkpoint = open_checkpoint(tmp_path)

    assert not checkpoint.is_folder
    assert checkpoint.notes == (
        (
            f"model.pt is used, the only checkpoint in {tmp_path} but outputs of earlier runs: "
            "model.pruned.safetensors"
        ),
    )


def test_several_files_of_torch_are_named(tmp_path: Path) -> None:
    """Which of them is meant, nobody can know."""
    for name in ("a.pt", "b.pth"):
        build.torch_zip(tmp_path / name, weights())

    with pytest.raises(InputError, match=r"2 checkpoints: a\.pt, b\.pth; name the file"):
        open_checkpoint(tmp_path)


# --- what there is instead -------------------------------------------------------------------


def pipeline(path: Path) -> Path:
    """A pipeline as diffusers saves it: a unet, a vae with other forms of it, and a scheduler."""
    for name, seed in (("unet", 1), ("vae", 2)):
        stem = "diffusion_pytorch_model"
        (path / name).mkdir(parents=True)
        (path / name / "config.json").write_text(f'"{name}"')
        files = halves(f"{stem}-{{:05d}}-of-{{:05d}}.safetensors") if name == "unet" else None
        content = weights(seed=seed)
        for file, names in (files or {f"{stem}.safetensors": [*content]}).items():
            build.safetensors(path / name / file, {each: content[each] for each in names})
        if files:
            weight_map = {each: file for file, names in files.items() for each in names}
            build.write_index(path / name / f"{stem}.safetensors.index.json", weight_map)
    build.torch_zip(path / "vae" / "diffusion_pytorch_model.bin", weights(seed=2))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return path


def cache(path: Path) -> Path:
    """A model in the cache of the Hub: links to blobs, one folder for each revision."""
    for revision in ("aaa", "bbb"):
        (path / "snapshots" / revision).mkdir(parents=True)
    (path / "blobs").mkdir()
    build.safetensors(path / "blobs" / "0", weights())
    (path / "snapshots" / "aaa" / "model.safetensors").symlink_to("../../blobs/0")
    (path / "refs").mkdir()
    (path / "refs" / "main").write_text("aaa")
    return path


def test_a_pipeline_is_told_from_an_empty_folder(tmp_path: Path) -> None:
    """Each is said to be what it is, and what to name or to choose."""
    (tmp_path / "empty").mkdir()
    pipeline(tmp_path / "sd")
    cache(tmp_path / "models--a--b")
    (tmp_path / "run" / "checkpoint-500").mkdir(parents=True)
    build.safetensors(tmp_path / "run" / "checkpoint-500" / "model.safetensors", weights())

    said = {}
    for folder in ("empty", "sd", "models--a--b", "run", "."):
        with pytest.raises(InputError) as caught:
            open_checkpoint(tmp_path / folder)
        said[folder] = str(caught.value)

    assert said["empty"].endswith("holds no checkpoint: it is empty")
    assert "is a diffusers pipeline, whose weights are in unet, vae; choose with" in said["sd"]
    assert "--subfolder 'vae', or '*' for all" in said["sd"]
    assert said["models--a--b"].endswith(f"name {tmp_path / 'models--a--b/snapshots/aaa'}")
    assert "there is one in checkpoint-500" in said["run"]
    assert f"{tmp_path / 'models--a--b'}/snapshots/REVISION" in said["."]
    assert open_checkpoint(tmp_path / "models--a--b/snapshots/aaa").tensors.keys() == {*weights()}


def test_subfolders_of_a_pipeline_are_pruned_together(tmp_path: Path) -> None:
    """Each file has the names it had, each subfolder its index, and the rest is copied."""
    source, out = pipeline(tmp_path / "in"), tmp_path / "out"

    report = prune_checkpoint(
        source, out, amount=0.5, dim=0, modules="*.b.*", loading=Loading(subfolders=("*",))
    )

    assert [item.name for item in report.tensors] == [
        f"{part}.b.{n}.weight" for part in ("unet", "vae") for n in range(4)
    ]
    for item in report.tensors:
        part, _, name = item.name.partition(".")
        original = weights(seed=1 if part == "unet" else 2)[name]
        original[list(item.pruned)] = 0
        [written] = [
            file[name] for path in (out / part).glob("*.safetensors")
            if name in (file := load_file(path))
        ]  # fmt: skip
        assert build.same_bits(written, original)
    index = json.loads(
        (out / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert {*index["weight_map"].values()} == {
        *build.shard_names(2, "diffusion_pytorch_model-{:05d}-of-{:05d}.safetensors")
    }
    copied = ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json")
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in copied)
    assert not (out / "vae" / "diffusion_pytorch_model.bin").exists()
    assert any(note.startswith("vae: ") for note in report.notes)


def test_a_pruned_pipeline_is_verified_and_its_report_applied(tmp_path: Path) -> None:
    """Verify finds the subfolders in the report; a wrong byte, file or index shows."""
    source, out = pipeline(tmp_path / "in"), tmp_path / "out"
    everything = Loading(subfolders=("*",))
    prune_checkpoint(source, out, amount=0.5, dim=0, loading=everything)
    again = tmp_path / "again"
    apply_report(out / "prune-report.json", source, again, loading=everything)

    assert verify_checkpoint(out).is_verified
    assert verify_checkpoint(out, source=source).is_verified
    assert verify_checkpoint(again, source=source).is_verified
    shutil.copy(source / "vae/diffusion_pytorch_model.safetensors", out / "vae")
    found = verify_checkpoint(out, source=source).disagreements
    assert {problem.tensor for problem in found} == {f"vae.b.{n}.weight" for n in range(4)}


def test_one_subfolder_is_pruned_and_the_others_copied_with_a_note(tmp_path: Path) -> None:
    """Nothing of a pipeline is lost, and nothing unpruned is unmentioned."""
    source, out = pipeline(tmp_path / "in"), tmp_path / "out"

    report = prune_checkpoint(source, out, amount=0.5, dim=0, loading=Loading(subfolders=("unet",)))

    assert [item.module for item in report.tensors] == [f"unet.b.{n}" for n in range(4)]
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (out / vae).read_bytes() == (source / vae).read_bytes()
    assert any("copied as they are" in note and vae in note for note in report.notes)


def test_a_model_and_what_is_in_its_subfolders_are_one(tmp_path: Path) -> None:
    """As of sentence-transformers: a model at the top, and a dense layer in a folder."""
    source = build.write_folder(tmp_path / "in", {"model.safetensors": weights()}, index=None)
    (source / "2_Dense").mkdir()
    build.torch_zip(source / "2_Dense" / "pytorch_model.bin", weights(1))
    both, out = Loading(subfolders=("*",)), tmp_path / "out"

    alone = open_checkpoint(source)
    prune_checkpoint(source, out, amount=0.5, dim=0, loading=both)

    assert alone.notes == (
        "no part of the checkpoint, so copied as they are: 2_Dense/pytorch_model.bin",
    )
    assert (load_file(out / "2_Dense" / "model.safetensors")["b.0.weight"] == 0).any()
    assert not (out / "2_Dense" / "pytorch_model.bin").exists()
    assert (load_file(out / "model.safetensors")["b.3.weight"] == 0).any()
    assert verify_checkpoint(out, source=source).is_verified


def test_outputs_beside_the_subfolders_are_passed_over(tmp_path: Path) -> None:
    """Unless one is spelt out, or has taken the place of its source."""
    source = pipeline(tmp_path / "sd")
    prune_checkpoint(source / "unet", amount=0.5, dim=0)

    def read(*patterns: str) -> set[str]:
        checkpoint = open_checkpoint(source, Loading(subfolders=patterns))
        return {part.folder for part in checkpoint.parts}

    assert read("*") == {"unet/", "vae/"}
    assert read("unet.pruned") == {"unet.pruned/"}
    shutil.rmtree(source / "unet")
    (source / "unet.pruned").rename(source / "unet")
    assert read("*") == {"unet/", "vae/"}


def test_a_subfolder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With those that are; and several are not split anew."""
    source = pipeline(tmp_path / "in")

    with pytest.raises(InputError, match="matches text_encoder; there is unet, vae"):
        open_checkpoint(source, Loading(subfolders=("text_encoder", "unet")))
    with pytest.raises(UsageError, match="only one checkpoint can be split anew or written"):
        prune_checkpoint(source, amount=1, max_shard_size=300, loading=Loading(subfolders=("*",)))


# --- aliases ---------------------------------------------------------------------------------


def test_a_word_in_the_metadata_is_no_alias(tmp_path: Path) -> None:
    """A tensor may be called as any word: "pt" is in every file's "format"."""
    content = {"pt": torch.ones(2, 2), "me": torch.ones(2, 2)}
    path = build.safetensors(tmp_path / "m", content, {"format": "pt", "author": "me"})

    assert open_checkpoint(path).aliases == {}


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_what_save_model_recorded_is_an_alias(tmp_path: Path) -> None:
    """And is still recorded in what is written."""
    save_model(Tied(), tmp_path / "m.safetensors", {"format": "pt"})

    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    prune_checkpoint(tmp_path / "m.safetensors", amount=1, dim=0)

    assert checkpoint.aliases == {"head.weight": "embed.weight"}
    with safe_open(tmp_path / "m.pruned.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
