"""Model folders: which files make up the checkpoint, and what of an index is not believed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from prune_cli.checkpoint import Loading, open_checkpoint
from prune_cli.errors import InputError
from tests import build

WEIGHTS = build.tensors()
BIN_NAMES = build.shard_names(2, "pytorch_model-{:05d}-of-{:05d}.bin")


def sharded(folder: Path, names: list[str] | None = None, **options: object) -> Path:
    """A folder of shards."""
    return build.write_folder(
        folder, build.split(WEIGHTS, names or build.shard_names(2)), **options
    )


LAYOUTS = {
    "single": (["model.safetensors"], None),
    "single-other-name": (["weights.safetensors"], None),
    "sharded": (build.shard_names(3), "model.safetensors.index.json"),
    "diffusers": (
        build.shard_names(2, "diffusion_pytorch_model-{:05d}-of-{:05d}.safetensors"),
        "diffusion_pytorch_model.safetensors.index.json",
    ),
    "variant": (build.shard_names(2), "model.fp16.safetensors.index.json"),
    "bin": (["pytorch_model.bin"], None),
    "bin-sharded": (BIN_NAMES, "pytorch_model.bin.index.json"),
}


@pytest.mark.parametrize(("names", "index"), LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_is_understood(tmp_path: Path, names: list[str], index: str | None) -> None:
    """The tensors of all shards are there, and every other file is one to copy."""
    folder = build.write_folder(tmp_path / "m", build.split(WEIGHTS, names), index=index)

    checkpoint = open_checkpoint(folder)

    assert [shard.name for shard in checkpoint.shards] == names
    for name, tensor in WEIGHTS.items():
        assert build.same_bits(build.tensor(checkpoint, checkpoint.tensors[name]), tensor)
    assert checkpoint.others == ("config.json", "tokenizer/vocab.txt")
    assert (checkpoint.index.name if checkpoint.index else None) == index


def test_the_index_file_names_the_folder(tmp_path: Path) -> None:
    """The path of the index is as good as that of the folder."""
    folder = sharded(tmp_path / "m", metadata={"total_size": 5, "by": "me"})

    checkpoint = open_checkpoint(folder / "model.safetensors.index.json")

    assert checkpoint.path == folder
    assert checkpoint.index and checkpoint.index.metadata == {"total_size": 5, "by": "me"}


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    """Where both kinds are there, the pickled weights are left out, and a note says so."""
    folder = sharded(tmp_path / "m")
    build.torch_zip(folder / "pytorch_model.bin", WEIGHTS)
    build.torch_zip(folder / "training_args.bin", {"lr": 1})

    checkpoint = open_checkpoint(folder)

    assert checkpoint.format == "safetensors"
    assert checkpoint.others == ("config.json", "tokenizer/vocab.txt", "training_args.bin")
    [note] = checkpoint.notes
    assert "left out are pytorch_model.bin" in note


def test_shards_of_metadata_alone_are_read_and_copied(tmp_path: Path) -> None:
    """A shard without tensors is no error, whether the index names it or not."""
    folder = sharded(tmp_path / "m")
    build.safetensors(folder / "model-00009-of-00009.safetensors", {})

    checkpoint = open_checkpoint(folder)

    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    assert "model-00009-of-00009.safetensors" in checkpoint.others
    assert "copied as they are: model-00009-of-00009.safetensors" in checkpoint.notes[0]


def test_aliases_reach_across_shards(tmp_path: Path) -> None:
    """What the metadata of one shard calls an alias can be of a tensor in another."""
    folder = sharded(tmp_path / "m")
    first = folder / build.shard_names(2)[0]
    content = build.split(WEIGHTS, build.shard_names(2))[first.name]
    build.safetensors(first, content, {"head.weight": "fc.weight", "x": "conv.weight"})

    checkpoint = open_checkpoint(folder)

    assert checkpoint.aliases == {"head.weight": "fc.weight", "x": "conv.weight"}


def test_links_to_files_are_followed_and_others_left_out(tmp_path: Path) -> None:
    """A folder of links to files, as the Hugging Face cache is, is read; the rest is noted."""
    folder = sharded(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    (linked / "gone.json").symlink_to("nowhere")

    checkpoint = open_checkpoint(linked)

    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    assert checkpoint.others == ("config.json",)
    assert checkpoint.notes == ("links that lead to no file are left out: gone.json, tokenizer",)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["training_args.bin"], ["a.gguf"]], ids=repr)
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, names: list[str]) -> None:
    """Neither an empty folder nor stray pickles are a checkpoint."""
    for name in names:
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)


def test_two_checkpoints_in_a_folder_are_refused(tmp_path: Path) -> None:
    """The error names both, and each can be opened by its own name."""
    folder = sharded(tmp_path / "m")
    build.safetensors(folder / "adapter.safetensors", {"a": torch.ones(2)})

    with pytest.raises(InputError, match=r"2 checkpoints: model.*index\.json, adapter\.safet"):
        open_checkpoint(folder)

    assert open_checkpoint(folder / "adapter.safetensors").tensors.keys() == {"a"}
    assert open_checkpoint(folder / "model.safetensors.index.json").tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "..",
        "",
        ".",
        "./model.safetensors",
        "a\\b.safetensors",
        "a\0b",
    ],
    ids=repr,
)
def test_an_index_cannot_lead_outside(tmp_path: Path, file: str) -> None:
    """Whatever path an index names, it stays a plain one inside the folder."""
    folder = sharded(tmp_path / "m")
    build.safetensors(tmp_path / "secret.safetensors", {"w": torch.ones(2)})
    build.write_index(folder / "model.safetensors.index.json", {"w": file})

    with pytest.raises(InputError, match="no plain paths inside its folder"):
        open_checkpoint(folder)


BAD_INDEXES = {
    "not-json": ("{", "not valid JSON"),
    "not-text": ("\udcff", "not valid JSON"),
    "too-deep": ("[" * 100_000, "not valid JSON"),
    "no-map": ("{}", "no weight_map"),
    "list": ("[]", "no weight_map"),
    "bad-map": ('{"weight_map": {"a": 1}}', "no weight_map"),
    "bad-metadata": ('{"weight_map": {"a": "b"}, "metadata": [1]}', "metadata is not an object"),
}


@pytest.mark.parametrize(("text", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_a_corrupt_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong with the index file is said."""
    folder = sharded(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    """An incomplete download is told by the names of what is missing."""
    folder = sharded(tmp_path / "m")
    (folder / build.shard_names(2)[1]).unlink()

    with pytest.raises(InputError, match=r"1 file.*model-00002-of-00002\.safetensors"):
        open_checkpoint(folder)


def test_a_misplaced_tensor_is_named(tmp_path: Path) -> None:
    """The index must put every tensor into the shard that holds it."""
    folder = sharded(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    first, second = build.shard_names(2)
    content = json.loads(index.read_text())
    content["weight_map"] |= {"conv.weight": second, "ghost": first}
    index.write_text(json.dumps(content))

    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)

    assert f"conv.weight ({second} does not hold it; {first} does)" in str(caught.value)
    assert f"ghost ({first} does not hold it; no shard does)" in str(caught.value)


def test_many_misplaced_tensors_are_counted(tmp_path: Path) -> None:
    """The list ends after twenty."""
    folder = sharded(tmp_path / "m")
    first, second = build.shard_names(2)
    ghosts = {f"ghost{number}": first for number in range(30)} | {"conv.weight": first}
    build.write_index(folder / "model.safetensors.index.json", {**ghosts, "fc.bias": second})

    with pytest.raises(InputError, match="and 10 more"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """Which of the two would be the right one, nobody can know."""
    folder = sharded(tmp_path / "m")
    first, second = build.shard_names(2)
    shutil.copy(folder / first, folder / second)

    with pytest.raises(InputError, match=r"holds .*conv\.weight.* in more than one shard"):
        open_checkpoint(folder)


def test_loading_options_reach_every_shard(tmp_path: Path) -> None:
    """A pickled shard is refused or read as a single file is."""
    folder = sharded(tmp_path / "m", BIN_NAMES, index="pytorch_model.bin.index.json")
    content = torch.load(folder / BIN_NAMES[1], weights_only=True)
    torch.save({**content, "fc.bias": torch.eye(2).to_sparse()}, folder / BIN_NAMES[1])

    with pytest.raises(InputError, match="'fc.bias' is sparse_coo"):
        open_checkpoint(folder)
    opened = open_checkpoint(folder, Loading(drop_unwritable=True))

    assert opened.unwritable.keys() == {"fc.bias"}
    assert opened.tensors.keys() == build.tensors().keys() - {"fc.bias"}
