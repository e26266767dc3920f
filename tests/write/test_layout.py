"""What the output holds: from headers alone, with no tensor in sight."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prune_cli.checkpoint import Checkpoint, Index, Shard
from prune_cli.checkpoint.tensors import TensorInfo
from prune_cli.errors import RequestError
from prune_cli.plan.facts import Options, Plan, PlanItem
from prune_cli.write.layout import encode_index, index_name, lay_out, output_name


def info(name: str, *shape: int, dtype: str = "F32") -> TensorInfo:
    """A tensor of a header."""
    return TensorInfo(name, dtype, shape, 0, 0)


def checkpoint(*tensors: TensorInfo, **facts: object) -> Checkpoint:
    """A checkpoint of one shard."""
    metadata = facts.pop("metadata", {})
    shard = Shard("model.safetensors", Path("model.safetensors"), 0, tensors, metadata)
    return replace(Checkpoint(Path("model.safetensors"), "safetensors", (shard,)), **facts)


def plan(*items: PlanItem, bake: bool = True) -> Plan:
    """A plan with these rows."""
    return Plan("random_structured", Options(0.5, bake=bake), items)


def item(name: str, *shape: int, pruned: tuple[int, ...] = (1,), dim: int = 0) -> PlanItem:
    """A row that prunes channels of dim 0."""
    module, _, param = name.rpartition(".")
    facts = ((), "F32", shape, dim, 0.5, 0, shape[dim], (), pruned)
    return PlanItem(name, module, param, *facts)


def test_baked_tensors_keep_their_names_in_layout_order() -> None:
    """The widest dtype comes first, then the alphabet, whatever the input's order was."""
    source = checkpoint(info("b", 2), info("a", 2, 2), info("c", 3, dtype="I64"))

    [file] = lay_out(source, plan(item("a", 2, 2)))

    assert [tensor.info.name for tensor in file.content] == ["c", "a", "b"]
    assert file.content[1].zero == (1,)
    assert file.metadata == {"format": "pt"}
    assert file.nbytes == len(file.head) + 24 + 16 + 8


def test_masks_take_the_dtype_and_the_place_of_their_tensor() -> None:
    """With masks kept, NAME becomes NAME_orig and NAME_mask; what is not pruned stays NAME."""
    source = checkpoint(info("a", 4, 2), info("b", 2, 2))

    [file] = lay_out(source, plan(item("a", 4, 2, pruned=(0, 3)), bake=False))

    mask, orig, other = file.content
    assert (mask.info.name, mask.info.shape, mask.source, mask.zero) == (
        "a_mask",
        (4, 2),
        None,
        (0, 3),
    )
    assert (orig.info.name, orig.zero, other.info.name) == ("a_orig", (), "b")


def test_a_mask_of_the_input_is_baked_or_carried_on() -> None:
    """NAME_orig and NAME_mask of the input become NAME, or a mask with more zeros."""
    source = checkpoint(
        info("a_orig", 2, 2), info("a_mask", 2, 2), info("b_orig", 2), info("b_mask", 2)
    )

    [baked] = lay_out(source, plan(item("a", 2, 2)))
    [masked] = lay_out(source, plan(item("a", 2, 2), bake=False))

    assert [tensor.info.name for tensor in baked.content] == ["a", "b"]
    assert [tensor.mask and tensor.mask.name for tensor in baked.content] == ["a_mask", "b_mask"]
    assert [tensor.info.name for tensor in masked.content] == [
        "a_mask",
        "a_orig",
        "b_mask",
        "b_orig",
    ]
    assert masked.content[0].zero == (1,)


def test_a_name_cannot_be_taken_twice() -> None:
    """Where NAME_orig is a tensor of its own, the masks of NAME cannot be kept."""
    source = checkpoint(info("a", 2, 2), info("a_orig", 5))

    with pytest.raises(RequestError, match="would hold a_orig twice"):
        lay_out(source, plan(item("a", 2, 2), bake=False))


def test_files_cannot_be_taken_twice() -> None:
    """Two pickled shards that would become one safetensors file are refused."""
    shards = [Shard(name, Path(name), 0, ()) for name in ("pytorch_model.bin", "model.bin")]

    with pytest.raises(RequestError, match=r"would hold model\.safetensors twice"):
        lay_out(Checkpoint(Path("m"), "torch", tuple(shards)), plan())


def test_aliases_follow_their_tensor() -> None:
    """An alias is recorded under the name that its tensor has in the output, and no other."""
    tied = checkpoint(
        info("a.w", 2, 2), aliases={"b.w": "a.w"}, metadata={"b.w": "a.w", "by": "me"}
    )
    masked = checkpoint(
        info("a.w_orig", 2, 2),
        info("a.w_mask", 2, 2),
        aliases={"b.w_orig": "a.w_orig", "b.w_mask": "a.w_mask"},
        metadata={"b.w_orig": "a.w_orig", "b.w_mask": "a.w_mask"},
    )

    def recorded(source: Checkpoint, *, bake: bool) -> object:
        return lay_out(source, plan(item("a.w", 2, 2), bake=bake))[0].metadata

    rest = {"format": "pt"}
    both = {"b.w_orig": "a.w_orig", "b.w_mask": "a.w_mask"}
    assert recorded(tied, bake=True) == {"b.w": "a.w", "by": "me"} | rest
    assert recorded(tied, bake=False) == both | {"by": "me"} | rest
    assert recorded(masked, bake=True) == {"b.w": "a.w"} | rest
    assert recorded(masked, bake=False) == both | rest
    assert masked.names_of["a.w_orig"] == ("b.w",)


SPLITS = {
    "all-in-one": (100, [["a", "b", "c", "d"]]),
    "two-each": (32, [["a", "b"], ["c", "d"]]),
    "one-each": (16, [["a"], ["b"], ["c"], ["d"]]),
    "none-fits": (1, [["a"], ["b"], ["c"], ["d"]]),
    "uneven": (48, [["a", "b", "c"], ["d"]]),
}


@pytest.mark.parametrize(("limit", "wanted"), SPLITS.values(), ids=SPLITS)
def test_shards_are_no_larger_than_asked(limit: int, wanted: list[list[str]]) -> None:
    """Tensors of 16 bytes are dealt out in order; one that is too large stands alone."""
    source = checkpoint(*(info(name, 2, 2) for name in "abcd"))

    files = lay_out(source, plan(), max_shard_size=limit)

    assert [[tensor.info.name for tensor in file.content] for file in files] == wanted
    count = len(wanted)
    assert [file.name for file in files] == (
        ["model.safetensors"]
        if count == 1
        else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    )


NAMES = {
    "model-00001-of-00002.safetensors": "model-00001-of-00002.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "pytorch_model-00001-of-00002.bin": "model-00001-of-00002.safetensors",
    "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
    "sub/pytorch_model.bin": "sub/model.safetensors",
    "model": "model.safetensors",
}


@pytest.mark.parametrize(("name", "wanted"), NAMES.items(), ids=NAMES)
def test_a_pickled_shard_gets_its_usual_name(name: str, wanted: str) -> None:
    """A .bin becomes the .safetensors that Hugging Face would write."""
    assert output_name(name) == wanted


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        ("model.safetensors.index.json", "model.safetensors.index.json"),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        (None, "model.safetensors.index.json"),
    ],
)
def test_the_index_keeps_its_stem(index: str | None, wanted: str) -> None:
    """The index is named after the one that there was, or as usual."""
    facts = {"is_folder": True, "index": Index(index, {}) if index else None}

    assert index_name(checkpoint(info("a", 2), **facts)) == wanted


def test_the_index_adds_up() -> None:
    """total_size counts what the output holds, masks too; other metadata stays; names are sorted."""
    source = checkpoint(
        info("b", 2, 2),
        info("a", 2),
        is_folder=True,
        index=Index("model.safetensors.index.json", {"total_size": 1, "by": "me"}),
    )
    files = lay_out(source, plan(item("b", 2, 2), bake=False))

    index = json.loads(encode_index(source, files))

    assert index["metadata"] == {"total_size": 40, "by": "me"}
    assert list(index["weight_map"].items()) == [
        (name, "model.safetensors") for name in ("a", "b_mask", "b_orig")
    ]
