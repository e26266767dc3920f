"""The guard: a plan that is wrong in any way is found by following both models."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prune_cli.shrink.agreement import find_disagreements
from prune_cli.shrink.axes import Axis, Owner
from prune_cli.shrink.trace import trace


class Two(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        """Through both."""
        return self.b(self.between(self.a(x)))


def disagreements(between, out: list[int], into: list[int], *, zero=(), exact=False) -> list[str]:
    """Remove `out` from the rows of the first layer and `into` from the columns of the second."""
    with torch.device("meta"):
        whole = Two(between)
    shrunk = copy.deepcopy(whole)
    shrunk.a.weight = nn.Parameter(whole.a.weight[: 8 - len(out)])
    shrunk.a.bias = nn.Parameter(whole.a.bias[: 8 - len(out)])
    shrunk.b.weight = nn.Parameter(whole.b.weight[:, : 8 - len(into)])
    rows = Axis(8, {i: Owner("a.weight", i) for i in out}, frozenset(zero))
    columns = Axis(8, {i: Owner("a.weight", i) for i in into})
    axes = {"a.weight": (rows, Axis(4)), "a.bias": (rows,), "b.weight": (Axis(3), columns)}
    example = (torch.empty(5, 4, device="meta"),)
    found = find_disagreements(trace(whole, example), trace(shrunk, example), axes, exact=exact)
    return [str(item) for item in found]


ALIKE = {
    "relu": torch.relu,
    "scaled": lambda x: x * 0.5 + 1,
    "residual": lambda x: x + torch.tanh(x),
    "there and back": lambda x: x.unsqueeze(0).transpose(1, 2).transpose(1, 2)[0],
    "chunks that are swapped back": lambda x: torch.cat(
        [t for t in reversed([t for t in reversed(x.unbind(0))])]
    ).view(x.shape),
    "sums over another axis": lambda x: x.cumsum(0),
    "normalised": lambda x: x / x.norm(dim=-1, keepdim=True),
    "flattened and unflattened": lambda x: x.flatten().view(5, -1),
    "added to as many zeros": lambda x: x + torch.zeros(5, x.shape[1], device=x.device),
    "turned in place": lambda x: (x + 0).t_().t_(),
}


@pytest.mark.parametrize("between", ALIKE.values(), ids=ALIKE)
def test_the_same_channels_on_both_sides_agree(between) -> None:
    """Whatever moves channels consistently is followed."""
    assert disagreements(between, [1, 6], [1, 6]) == []


@pytest.mark.parametrize("between", ALIKE.values(), ids=ALIKE)
def test_other_channels_disagree(between) -> None:
    """The shapes fit, the channels do not."""
    assert disagreements(between, [1, 6], [1, 5]) != []


def _write(x: Tensor, value: float = 1.0) -> Tensor:
    """Overwrite the last three channels in place."""
    x[:, -3:] = value
    return x


def _fill_view(x: Tensor) -> Tensor:
    """Add to all elements, through a view."""
    x.view(x.shape).add_(1)
    return x


def _fill_zeros(x: Tensor) -> Tensor:
    """Write channels into zeros, row by row, and read those back."""
    made = torch.zeros(x.shape, device=x.device)
    for row in range(len(x)):
        made[row] = x[row]
    return made.flip(1)


DIFFERENT = {
    "reversed": lambda x: x.flip(-1),
    "rolled": lambda x: x.roll(1, -1),
    "heads mixed": lambda x: x.view(5, -1, 2).transpose(1, 2).flatten(1),
    "a constant part": lambda x: torch.cat([x[:, 3:], x[:, :3]], 1),
    "sorted": lambda x: x.sort(-1).values,
    "added to its mirror": lambda x: x + x.flip(-1),
    "by indices": lambda x: torch.nn.functional.max_unpool2d(
        x[None], torch.nn.functional.max_pool2d(x[None], 1, return_indices=True)[1], 1
    )[0],
    "picked by numbers": lambda x: x[:, torch.arange(x.shape[1], device=x.device)],
    "written over": lambda x: _write(x),
    "counted": lambda x: x * torch.ones(5, x.shape[1], device=x.device).cumsum(1),
    "written into a part of zeros": lambda x: _fill_zeros(x),
    "normalised outside a norm": lambda x: x.softmax(1),
    "unknown": lambda x: torch.linalg.matrix_exp(x[:, :, None] * torch.ones(x.shape[1]))[..., 0],
}


@pytest.mark.parametrize("between", DIFFERENT.values(), ids=DIFFERENT)
def test_what_moves_or_mixes_channels_disagrees(between) -> None:
    """The same channels are gone on both sides, but they no longer correspond."""
    assert disagreements(between, [1, 5], [1, 5]) != []


@pytest.mark.parametrize(
    ("between", "zero", "quiet"),
    [
        (torch.relu, [1, 6], True),
        (torch.relu, [1], False),
        (torch.sigmoid, [1, 6], False),
        (lambda x: x * torch.sigmoid(x), [1, 6], True),
        (lambda x: x + 1, [1, 6], False),
        (lambda x: x + torch.tanh(x), [1, 6], True),
        (lambda x: torch.layer_norm(x, x.shape[-1:]), [1, 6], False),
        (lambda x: x.view(5, -1, 1).flatten(1), [1, 6], True),
        (lambda x: x / x.shape[-1], [1, 6], False),
        (lambda x: x / torch.tensor(float(x.shape[-1])), [1, 6], False),
        (lambda x: x + torch.full((5, 1), 1 / x.shape[-1], device="meta"), [1, 6], False),
        (lambda x: x.cumsum(0), [1, 6], False),
        (lambda x: x.softmax(-1), [1, 6], False),
        (lambda x: torch.relu_(x.view(x.shape)), [1, 6], True),
        (_fill_view, [1, 6], False),
    ],
)
def test_exactly_the_same_output_needs_zeros_that_stay_zero(between, zero, quiet: bool) -> None:
    """What is removed has to be zero where it is summed over."""
    found = disagreements(between, [1, 6], [1, 6], zero=zero, exact=True)

    assert (found == []) is quiet
