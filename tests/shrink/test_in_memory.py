"""A live model gets smaller in place, and its training goes on."""

import pytest
import torch

from prune_cli import shrink_module
from prune_cli.errors import RequestError
from tests.shrink.builders import build, inputs, plan, prune_live


@pytest.mark.parametrize("name", ["Plain", "Residual", "Depthwise", "TiedAndFrozen", "Encoder"])
def test_a_live_model_loses_what_its_checkpoint_would(name: str) -> None:
    """The same channels by the same draw; its outputs are those of the model that was pruned live."""
    model, example = build(name), inputs(name)
    expected = prune_live(model, example, plan(name))

    made = shrink_module(model, example, amount=0.25)

    assert made == plan(name)
    torch.testing.assert_close(model(*example), expected(*example))
    assert all(parameter.is_leaf for parameter in model.parameters())


def test_training_goes_on_as_if_it_had_been_small_all_along() -> None:
    """The optimizer holds the same parameters, and remembers of each element what it did."""
    model, (x,) = build("Plain").train(), inputs("Plain")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    made = shrink_module(model, x, amount=0.25, optimizer=optimizer)

    assert "f1.weight" in made.kept
    for name, parameter in model.named_parameters():
        old, grad = before[name], grads[name]
        for dim, kept in made.kept.get(name, {}).items():
            old = old.index_select(dim, torch.tensor(kept))
            grad = grad.index_select(dim, torch.tensor(kept))
        assert torch.equal(optimizer.state[parameter]["exp_avg"], old)
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, grad)
    model(x).square().sum().backward()
    optimizer.step()
    assert model.training


def test_a_model_that_loses_nothing_is_as_it_was() -> None:
    """The refusal comes before anything is sliced."""
    model = build("Scaled")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(RequestError, match="nothing can be removed"):
        shrink_module(model, inputs("Scaled"), amount=0.25)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
