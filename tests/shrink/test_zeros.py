"""Removing what is zero already leaves the output the same, or says what stands in the way."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prune_cli.errors import RequestError
from prune_cli.shrink.load import resize
from tests.shrink.builders import build, inputs, plan, slice_state, zeros_of


def silence(module: nn.Module, *channels: int) -> None:
    """Zero rows of a weight and its bias."""
    for channel in channels:
        module.weight[channel] = 0
        if module.bias is not None:
            module.bias[channel] = 0


def plain(model: nn.Module) -> None:
    """A convolution under a norm that emits nothing, a row, and a column."""
    silence(model.c1, 1, 5)
    model.b1.bias[1] = model.b1.running_mean[1] = 0
    silence(model.f1, 3)
    model.f2.weight[:, 20] = 0


def residual(model: nn.Module) -> None:
    """An inner layer, and both sides of a sum."""
    silence(model.a1, 0)
    silence(model.d, 7)
    silence(model.e2, 7)


def depthwise(model: nn.Module) -> None:
    """Through a depthwise convolution, and under a gate that is not zero."""
    silence(model.c1, 2)
    model.dw.bias[2] = model.b.bias[2] = model.b.running_mean[2] = 0
    silence(model.pw, 5)


def gated(model: nn.Module) -> None:
    """A zero gate is enough, whatever the value."""
    silence(model.a, 3, 20)


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        ("Plain", plain, {"c1.weight": (1,), "f1.weight": (3, 20)}),
        ("Residual", residual, {"a1.weight": (0,), "d.weight": (7,)}),
        ("Depthwise", depthwise, {"c1.weight": (2,), "pw.weight": (5,)}),
        ("Gated", gated, {"a.weight": (3, 4, 19, 20)}),
    ],
)
def test_zeros_go_and_the_output_stays(
    name: str, edit: Callable[[nn.Module], None], expected: dict[str, tuple[int, ...]]
) -> None:
    """What can go is found through norms, gates, sums and reshapes."""
    model, example = build(name), inputs(name)
    with torch.no_grad():
        edit(model)

    made = plan(name, zeros=zeros_of(model.state_dict()))

    small = build(name)
    resize(small, made.resizing)
    small.load_state_dict(slice_state(model, made))
    assert {group.root: group.removed for group in made.groups} == expected
    torch.testing.assert_close(small(*example), model(*example))


def test_what_still_emits_is_named() -> None:
    """A bias, a norm and a coupled layer stand in the way of rows that are zero."""
    model = build("Residual")
    with torch.no_grad():
        model.a1.weight[[0, 2]] = 0
        model.a1.bias[0] = 0
        model.stem.weight[4] = 0

    made = plan("Residual", zeros=zeros_of(model.state_dict()))

    reasons = {whole.root: whole.reason for whole in made.whole}
    assert [group.removed for group in made.groups] == [(0,)]
    assert reasons["a1.weight"].startswith("channels 2 still matter: not zero there are a1.bias")
    assert "bn.bias" in reasons["stem.weight"]
    assert "a2.weight" in reasons["stem.weight"]


def test_a_number_that_would_be_another_keeps_channels() -> None:
    """Fewer channels would divide by less; and what is written over is not zero any more."""
    model = build("Scaled")
    with torch.no_grad():
        silence(model.a, 3)
        silence(model.b, 2, 9)

    with pytest.raises(RequestError) as caught:
        plan("Scaled", zeros=zeros_of(model.state_dict()))

    assert "a.weight: div in the model itself: a number in it depends on how many" in str(
        caught.value
    )
    assert "b.weight: " in str(caught.value)


def test_zeros_that_only_go_with_others_stay() -> None:
    """What is left of a group after some of it was given back may hang together: then it stays."""
    model, generator = build("Experts"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                dead = torch.rand(layer.out_features, generator=generator) < 0.3
                silence(layer, *dead.nonzero().flatten().tolist())

    made = plan("Experts", zeros=zeros_of(model.state_dict()))

    assert [group.root for group in made.groups] == [f"up.{n}.weight" for n in range(4)]
    assert any("still matter: not zero there are a.weight" in w.reason for w in made.whole)
