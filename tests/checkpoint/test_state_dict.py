"""The state dict is found by its structure; what cannot be written is named."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.testing._internal.two_tensor import TwoTensor

from prune_cli.checkpoint import Dropped, Loading, open_checkpoint
from prune_cli.checkpoint.strided import Place, find_aliases, find_overlaps
from prune_cli.errors import InputError
from tests import build

WEIGHTS = build.tensors()
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(6, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}

NESTED = {
    "top": (WEIGHTS, ""),
    "ordered": (OrderedDict(WEIGHTS), ""),
    "state_dict": ({"state_dict": WEIGHTS, "epoch": 3}, "state_dict"),
    "model": ({"model": WEIGHTS, "optimizer": OPTIMIZER, "scaler": None}, "model"),
    "model_state": (
        {"model_state": WEIGHTS, "optim_state": {"x": torch.ones(2, 2)}},
        "model_state",
    ),
    "any-name": ({"netG": WEIGHTS, "args": {"lr": 0.1}}, "netG"),
    "two-deep": ({"ema": {"module": WEIGHTS, "decay": 0.9}}, "ema.module"),
    "dotted-key": ({"ema.v2": {"module": WEIGHTS}}, "ema.v2.module"),
    "beside-statistics": ({"net": WEIGHTS, "norm": {"mean": torch.ones(3)}}, "net"),
    "with-numbers": ({**WEIGHTS, "step": 3, "best": 0.9}, ""),
}


@pytest.mark.parametrize("saver", ["zip", "legacy"])
@pytest.mark.parametrize(("content", "key"), NESTED.values(), ids=NESTED)
def test_the_state_dict_is_found(tmp_path: Path, saver: str, content: object, key: str) -> None:
    """Wherever a training script put it, its tensors are found, and its key picks the same."""
    path = build.SAVERS[saver](tmp_path / "x", content)

    found = open_checkpoint(path)

    assert found.tensors.keys() == WEIGHTS.keys()
    if key:
        assert open_checkpoint(path, Loading((key,))).tensors == found.tensors


def test_two_state_dicts_are_an_ambiguity(tmp_path: Path) -> None:
    """A model and its EMA: the error lists both keys, and each can be picked."""
    ema = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    path = build.torch_zip(tmp_path / "x", {"model": WEIGHTS, "ema": {"shadow": ema}})

    with pytest.raises(InputError, match=r"--state-dict-key: 'model' \(dict of 6.*'ema.shadow'"):
        open_checkpoint(path)
    picked = open_checkpoint(path, Loading(("ema.shadow",)))

    info = picked.tensors["bn.num_batches_tracked"]
    assert build.tensor(picked, info) == 8


def test_several_state_dicts_at_once(tmp_path: Path) -> None:
    """Each under its key, so that no name is there twice; an optimizer's is none."""
    ema = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    content = {"model": WEIGHTS, "ema": {"shadow": ema}, "optimizer": OPTIMIZER, "epoch": 3}
    path = build.torch_zip(tmp_path / "x", content)

    every = open_checkpoint(path, Loading(("*",)))
    one = open_checkpoint(path, Loading(("ema.shadow", "model")))

    names = {f"{key}.{name}" for key in ("model", "ema.shadow") for name in WEIGHTS}
    assert every.tensors.keys() == one.tensors.keys() == names
    assert build.tensor(every, every.tensors["ema.shadow.bn.num_batches_tracked"]) == 8
    assert [dropped.key for dropped in every.dropped] == ["optimizer", "epoch"]


def test_a_star_over_one_state_dict_is_that_one(tmp_path: Path) -> None:
    """Its names are as they are."""
    path = build.torch_zip(tmp_path / "x", {"model": WEIGHTS, "epoch": 3})

    assert open_checkpoint(path, Loading(("*",))).tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("key", ["nothing", "model.fc", "epoch", ".", "model.fc.weight"])
def test_a_wrong_key_is_refused(tmp_path: Path, key: str) -> None:
    """The error lists the keys that there are."""
    path = build.torch_zip(tmp_path / "x", {"model": WEIGHTS, "epoch": 3})

    with pytest.raises(InputError, match=f"no state dict at {key!r}; there is 'model'"):
        open_checkpoint(path, Loading((key,)))


@pytest.mark.parametrize(
    "content", [[1, 2], "text", {}, {"a": 1}, torch.ones(2, 2), {1: torch.ones(2, 2)}], ids=repr
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    """A file of torch.save can hold anything; the error says what this one holds."""
    path = build.torch_zip(tmp_path / "x", content)

    with pytest.raises(InputError, match="holds no state dict: it is"):
        open_checkpoint(path)


def test_everything_else_is_dropped_by_name(tmp_path: Path) -> None:
    """Entries that are no named tensors, inside and outside of the state dict, are listed."""
    state = {**WEIGHTS, "_extra": {"a": 1}, 7: torch.ones(2), "note": "x" * 99, "list": [1]}
    path = build.torch_zip(tmp_path / "x", {"net": state, "epoch": 3, "optimizer": OPTIMIZER})

    dropped = open_checkpoint(path).dropped

    assert dropped == (
        Dropped("epoch", "outside the state dict 'net': int 3"),
        Dropped("optimizer", "outside the state dict 'net': dict of 2 entries, 0 of them tensors"),
        Dropped("net._extra", "not a tensor: dict of 1 entries, 0 of them tensors"),
        Dropped("net.7", "its key is not a string: a tensor of shape [2]"),
        Dropped("net.note", "not a tensor: str of 99 characters"),
        Dropped("net.list", "not a tensor: list of 1"),
    )


def dtensor() -> torch.Tensor:
    """A tensor as FSDP has it, on a cluster of one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        return distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    finally:
        dist.destroy_process_group()


def quantised() -> torch.Tensor:
    """Of one scale."""
    return torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> torch.Tensor:
    """Of two lengths."""
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


UNWRITABLE = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"is sparse_coo; make it dense"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "is sparse_csr; make it dense"),
    "quantised": (quantised, r"is quantised \(torch.qint8\); save it with .dequantize"),
    "complex128": (lambda: torch.ones(2, 2, dtype=torch.complex128), "torch.complex128"),
    "meta": (lambda: torch.ones(2, 2, device="meta"), "meta device: it has no data"),
    "nested": (lambda: nested(torch.strided), "is nested; save its parts"),
    "jagged": (lambda: nested(torch.jagged), "is nested; save its parts"),
    "dtensor": (dtensor, r"is a DTensor; save its .full_tensor\(\)"),
    "dtensor-parameter": (lambda: nn.Parameter(dtensor()), r"is a DTensor; save its .full"),
    "wrapper": (
        lambda: TwoTensor(torch.ones(2, 2), torch.ones(2, 2)),
        r"is a TwoTensor \(.*\), which holds other tensors; save it as a plain tensor",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saver", ["zip", "legacy"])
@pytest.mark.parametrize(("make", "fact"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_safetensors_cannot_hold_is_refused_by_name(
    tmp_path: Path, make: Callable[[], torch.Tensor], fact: str, saver: str
) -> None:
    """Even a tensor that is not selected is refused, unless it may be left out."""
    path = build.SAVERS[saver](tmp_path / "x", {**WEIGHTS, "odd": make()})

    with pytest.raises(InputError, match=f"1 tensor.*'odd' .*{fact}"):
        open_checkpoint(path)
    opened = open_checkpoint(path, Loading(drop_unwritable=True))

    assert opened.tensors.keys() == WEIGHTS.keys()
    assert opened.unwritable.keys() == {"odd"}


ZERO_3 = {
    "by-its-version": {"module": {"l.weight": torch.empty(0), "x": torch.ones(2)}, "ds_version": 1},
    "all-of-them": {"l.weight": torch.empty(0), "l.bias": torch.empty(0)},
}


@pytest.mark.parametrize("content", ZERO_3.values(), ids=ZERO_3)
def test_the_empty_weights_of_zero_3_are_told(tmp_path: Path, content: object) -> None:
    """The error names the script that makes them whole."""
    path = build.torch_zip(tmp_path / "x", content)

    with pytest.raises(InputError, match=r"'l\.weight' is empty: DeepSpeed.*zero_to_fp32\.py"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800b"])
def test_what_safetensors_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    """A reserved name, or half of a surrogate pair, cannot be a key of the header."""
    path = build.torch_zip(tmp_path / "x", {**WEIGHTS, name: torch.ones(2)})

    with pytest.raises(InputError, match="has a name that"):
        open_checkpoint(path)


@pytest.mark.parametrize("saver", ["zip", "legacy"])
def test_shared_memory_is_stored_once(tmp_path: Path, saver: str) -> None:
    """Tied weights are one tensor and an alias; the first name is kept, as save_model does."""
    shared = torch.randn(4, 3)
    content = {"z.weight": shared, "a.weight": shared, "b.weight": shared.clone()}

    checkpoint = open_checkpoint(build.SAVERS[saver](tmp_path / "x", content))

    assert checkpoint.aliases == {"z.weight": "a.weight"}
    assert sorted(checkpoint.tensors) == ["a.weight", "b.weight"]
    assert checkpoint.overlaps == {}


def test_partly_shared_memory_is_an_overlap(tmp_path: Path) -> None:
    """Views that reach into each other are told, with the name of another one."""
    base = torch.randn(6, 4)
    content = {"a.weight": base[:4], "b.weight": base[2:], "c.weight": torch.ones(2, 2)}

    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "x", content))

    assert checkpoint.overlaps == {"a.weight": "b.weight", "b.weight": "a.weight"}


def test_columns_of_one_tensor_are_no_overlap(tmp_path: Path) -> None:
    """q, k and v of one matrix reach over one another, and share no element."""
    q, k, v = torch.randn(8, 96).chunk(3, dim=1)
    content = {"q.weight": q, "k.weight": k, "v.weight": v}

    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "x", content))

    assert checkpoint.overlaps == {}
    for name, tensor in content.items():
        assert build.same_bits(build.tensor(checkpoint, checkpoint.tensors[name]), tensor)


def test_columns_that_share_one_are_an_overlap(tmp_path: Path) -> None:
    """Told exactly, with the name of the other."""
    base = torch.randn(8, 12)
    content = {"a": base[:, :5], "b": base[:, 4:8], "c": base[:, 8:]}

    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "x", content))

    assert checkpoint.overlaps == {"a": "b", "b": "a"}


def test_hooks_of_modules_are_noted(tmp_path: Path) -> None:
    """A state_dict hook is code and can rename what it likes; that it did not run is said."""
    net = nn.Sequential(nn.Linear(3, 2))
    net[0].register_state_dict_post_hook(hook)
    path = build.torch_zip(tmp_path / "x", net)

    [note] = open_checkpoint(path).notes

    assert note.endswith("names can differ from state_dict()'s in Linear")


def hook(*_: object) -> None:
    """Does nothing."""


def test_a_mask_that_is_shared_makes_no_alias(tmp_path: Path) -> None:
    """Two weights under one mask are two weights once the mask is gone."""
    mask = torch.ones(4, 3)
    content = {
        f"{module}.weight_{part}": mask if part == "mask" else torch.randn(4, 3)
        for module in ("a", "b")
        for part in ("orig", "mask")
    }

    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "x", content))

    assert checkpoint.aliases == {}
    assert [parameter.name for parameter in checkpoint.parameters] == ["a.weight", "b.weight"]


def test_aliases_and_overlaps_of_plain_places() -> None:
    """Equal places are aliases of the first name; places that reach into one another overlap."""
    places = {
        "b": Place(0, 8, ()),
        "a": Place(0, 8, ()),
        "other-shape": Place(0, 8, (1,)),
        "inner": Place(20, 24, ()),
        "outer": Place(16, 32, ()),
        "empty": Place(20, 20, ()),
        "next": Place(32, 40, ()),
    }

    assert find_aliases(places) == {"b": "a"}
    del places["b"]
    assert find_overlaps(places) == {
        "a": "other-shape",
        "other-shape": "a",
        "inner": "outer",
        "outer": "inner",
    }


@build.needs_dtype("F4")
def test_a_float4_tensor_is_counted_one_by_one(tmp_path: Path) -> None:
    """Safetensors counts the two values of a byte; packed ones are refused where they move."""
    packed = build.random_bits("F4", 4, 3)
    path = build.torch_zip(tmp_path / "x", {"w": packed, "v": torch.ones(2, 2)})
    strided = build.torch_zip(tmp_path / "y", {"w": packed.t(), "v": torch.ones(2, 2)})

    assert open_checkpoint(path).tensors["w"].shape == (4, 6)
    with pytest.raises(InputError, match="packs several"):
        open_checkpoint(strided)


def test_a_module_below_the_top_is_a_state_dict(tmp_path: Path) -> None:
    """A pickled module in a mapping is found too."""
    path = build.torch_zip(tmp_path / "x", {"net": nn.Linear(3, 2), "epoch": 1})

    checkpoint = open_checkpoint(path)

    assert checkpoint.tensors.keys() == {"weight", "bias"}


def test_a_state_dict_in_a_tuple_is_found(tmp_path: Path) -> None:
    """Its key is its place; what is beside it is dropped."""
    path = build.torch_zip(tmp_path / "x", (build.tensors(), None, {"lr": 0.1}))

    opened = open_checkpoint(path)

    assert opened.tensors.keys() == build.tensors().keys()
    assert [drop.key for drop in opened.dropped] == ["1", "2"]
    assert open_checkpoint(path, Loading(("0",))).tensors.keys() == opened.tensors.keys()


def test_two_state_dicts_whose_names_meet_are_refused(tmp_path: Path) -> None:
    """No tensor is lost because another one has its name."""
    content = {"a": {"b": {"c.w": torch.ones(2, 2)}}, "a.b": {"c.w": torch.zeros(2, 2)}}
    path = build.torch_zip(tmp_path / "x", content)

    with pytest.raises(InputError, match=r"two tensors that would be called 'a\.b\.c\.w'"):
        open_checkpoint(path, Loading(("*",)))
