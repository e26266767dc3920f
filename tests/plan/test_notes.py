"""What is told of a plan: each kind of note, and that there is none where all is as expected."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import prune_cli
from prune_cli.api import apply_report, prune_checkpoint, remove_masks
from tests import build

Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Plan a prune of a state dict, and give its notes, a line each."""

    def tell(content: build.Tensors, **options: object) -> str:
        path = build.torch_zip(tmp_path / "m.pt", content)
        options = {"amount": 0.5, "dim": 0, **options}
        return "\n".join(prune_checkpoint(path, dry_run=True, **options).notes)

    return tell


def matrices(**shapes: tuple[int, ...]) -> build.Tensors:
    """Weights of those modules."""
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


def test_what_is_as_expected_needs_no_note(told: Told) -> None:
    """Layers that feed each other, and no bias."""
    assert told(matrices(a=(8, 4, 3, 3), b=(4, 8)), modules="a") == ""


def test_the_last_dim_of_a_convolution_is_noted(told: Told) -> None:
    """Nobody prunes the columns of a kernel on purpose; of a matrix the last dim are inputs."""
    content = matrices(a=(8, 4, 4, 4), b=(4, 8))

    note = "dim -1 of a convolution is the width of its kernel (a.weight); --dim 0 is the outputs"
    assert told(content, dim=-1, amount=0.25) == note
    assert "kernel" not in told(content, dim=3, modules="a")
    assert "kernel" not in told(content, dim=-1, modules="b")


def test_weights_under_other_names_are_noted(told: Told) -> None:
    """Attention, recurrence and norms of weights keep theirs under names of their own."""
    with warnings.catch_warnings(action="ignore"):
        net = nn.ModuleDict(
            {
                "c": nn.Conv1d(4, 8, 3, bias=False),
                "w": nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3)),
                "s": nn.utils.spectral_norm(nn.Conv1d(8, 8, 3)),
                "a": nn.MultiheadAttention(8, 2, bias=False),
                "r": nn.LSTM(4, 5, bias=False),
            }
        )
    state = net.state_dict()

    assert told(state) == (
        "5 matrices are not called weight and stay as they are: a.in_proj_weight, "
        "r.weight_hh_l0, r.weight_ih_l0 and 2 more; choose them with --param"
    )
    assert "r.weight_hh_l0" not in told(state, modules=("a", "c"))
    assert "r.weight_hh_l0" not in told(state, exclude="r")
    assert "c.weight" not in told(state, exclude="c.weight", modules=("a*", "c"))
    assert "matrices" not in told(state, params=("weight*", "*_weight", "original0"))


def test_buffers_and_vectors_are_no_weights(told: Told) -> None:
    """Counters, tables of positions and masks of attention are nobody's channels."""
    content = matrices(a=(8, 4)) | {
        "a.positions": torch.zeros(4, 4, dtype=torch.int64),
        "a.pos_embed": torch.zeros(1, 4, 8),
        "a.gain": torch.zeros(8),
    }

    assert "matri" not in told(content)


def masked() -> build.Tensors:
    """Two layers, each of which torch pruned something of."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    prune.random_structured(net[2], "weight", 0.5, 0)
    prune.random_unstructured(net[0], "bias", 0.5)
    return net.state_dict()


def test_masks_that_nobody_selected_are_named(told: Told) -> None:
    """Baking makes every mask permanent; --keep-masks none."""
    note = (
        "the masks of 0.bias, 2.weight, which no pattern selects, become permanent too; "
        "--keep-masks keeps them"
    )

    assert note in told(masked(), modules="0")
    assert "mask of 0.bias, which" in told(masked(), dim=1)
    assert "permanent" not in told(masked(), modules="0", bake=False)


def test_a_last_layer_is_noted(told: Told) -> None:
    """Its outputs are classes: no other layer takes them in. Its inputs are channels like others."""
    content = matrices(a=(16, 8), b=(10, 16))

    assert told(content) == (
        "b.weight looks like a last layer, whose outputs are the classes or tokens; "
        "--exclude 'b' leaves it alone"
    )
    assert told(content, dim=1) == ""
    assert told(content, modules="a") == ""
    assert "lm_head.weight looks like" in told(matrices(lm_head=(16, 8), z=(8, 16)))


NONE = {
    "rounds": (
        {"amount": 0.1, "dim": 1},
        (
            "0 channels pruned in a.weight: 0.1 of 3 channels along dim 1 rounds to 0; "
            "dim 0 of a.weight has 64: --dim 0"
        ),
    ),
    "zero": ({"amount": 0}, "0 channels pruned in a.weight: the amount is 0"),
}


@pytest.mark.parametrize(("options", "note"), NONE.values(), ids=NONE)
def test_why_nothing_was_pruned_is_told(told: Told, options: dict[str, object], note: str) -> None:
    """With the dim that has more channels, if that helps."""
    assert told({"a.weight": torch.randn(64, 3)}, **options) == note


def test_that_nothing_is_left_to_prune_is_told(told: Told) -> None:
    """All of it is zero already."""
    text = told({"a.weight": torch.zeros(4, 4)})

    assert text == "0 channels pruned in a.weight: no channel along dim 0 is left to prune"


def test_biases_of_pruned_channels_are_noted(tmp_path: Path) -> None:
    """Of a run and of its replay, which has no --with-bias of its own."""
    path = build.safetensors(tmp_path / "m", build.tensors())
    run = prune_checkpoint(path, dry_run=True, amount=1, dim=0, modules="conv")
    with_bias = prune_checkpoint(
        path, dry_run=True, amount=1, dim=0, modules="conv", with_bias=True
    )

    begin = "in 1 module, pruned channels still output their bias; "
    assert run.notes == (begin + "--with-bias prunes it too",)
    assert apply_report(run, path, dry_run=True).notes == (
        begin + "a report of --with-bias prunes it too",
    )
    assert with_bias.notes == ()


def test_remove_counts_elements(tmp_path: Path) -> None:
    """Masks of single elements are no channels, so channels say little of them."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    path = build.torch_zip(tmp_path / "m.pt", net.state_dict())

    report = remove_masks(path, dry_run=True)

    assert report.notes == ("the masks zero 24 of 48 elements (50.0%)",)


def test_a_python_caller_is_told_in_keywords(tmp_path: Path) -> None:
    """There is no --with-bias to give in Python."""
    path = build.safetensors(tmp_path / "m", build.tensors())

    report = prune_cli.prune_checkpoint(path, dry_run=True, amount=1, dim=0, modules="conv")

    assert report.notes == (
        "in 1 module, pruned channels still output their bias; with_bias=True prunes it too",
    )
