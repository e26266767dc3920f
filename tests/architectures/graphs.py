"""Random graphs of layers, by a seed: residuals, joins, halves, shuffles, groups, einsum, recurrences.

See also: `python -m tests.architectures.fuzz`, which shrinks them and checks what was written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

SHAPE = (1, 6, 8, 8)
"""Of the input: a batch of images."""

_Do = Callable[[Any, Sequence[Tensor]], Any]
"""Gives a result of the net and what the step reads."""


@dataclass(frozen=True)
class _Step:
    """One operation: the positions of what it reads among all results so far, and what it does."""

    reads: tuple[int, ...]
    do: _Do


class Graph(nn.Module):
    """A net of random steps, each on results of earlier ones."""

    def __init__(self, seed: int, length: int = 9) -> None:
        super().__init__()
        self._draw = random.Random(seed)
        self._shapes: list[tuple[int, int]] = [(SHAPE[1], SHAPE[2])]  # channels and width
        self._steps: list[_Step] = []
        self.layers = nn.ModuleDict()
        self._add(self._convolution, 0)
        for _ in range(length):
            self._add(self._draw.choice(self._kinds()), len(self._shapes) - 1)
        last = self._shapes[-1][0]
        self.head = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return five numbers for each image."""
        results = [x]
        for step in self._steps:
            results.append(step.do(self, [results[number] for number in step.reads]))
        told: Tensor = self.head(results[-1].mean((2, 3)))
        return told

    # --- the steps ------------------------------------------------------------------------------

    def _kinds(self) -> list[Callable[[int], tuple[_Step, tuple[int, int]] | None]]:
        often = [self._convolution, self._norm, self._activation, self._residual, self._joined]
        rare = [self._grouped, self._transposed, self._halves, self._split, self._shuffled]
        others = [self._einsum, self._gate, self._pixels, self._attention, self._recurrent]
        more = [self._turned, self._scaled, self._pooled, self._linear, self._swapped]
        return [*often, *often, *rare, *others, *more]

    def _add(self, kind: Callable[[int], tuple[_Step, tuple[int, int]] | None], at: int) -> None:
        made = kind(at)
        if made is not None:
            self._steps.append(made[0])
            self._shapes.append(made[1])

    def _layer(self, layer: nn.Module) -> _Do:
        name = f"l{len(self.layers)}"
        self.layers[name] = layer
        return lambda net, xs: net.layers[name](xs[0])

    def _own(self, *shape: int) -> str:
        name = f"p{len(dict(self.named_parameters()))}"
        self.register_parameter(name, nn.Parameter(torch.empty(*shape).normal_()))
        return name

    def _convolution(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, width = self._shapes[at]
        out = self._draw.choice([8, 12, 16, 24])
        size = self._draw.choice([1, 3])
        layer = nn.Conv2d(channels, out, size, padding=size // 2, bias=self._draw.random() < 0.7)
        return _Step((at,), self._layer(layer)), (out, width)

    def _linear(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, width = self._shapes[at]
        out = self._draw.choice([8, 16])
        name = f"l{len(self.layers)}"
        self.layers[name] = nn.Linear(channels, out)
        return _Step(
            (at,), lambda net, xs: net.layers[name](xs[0].movedim(1, -1)).movedim(-1, 1)
        ), (out, width)

    def _norm(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, _ = self._shapes[at]
        groups = next(n for n in (4, 3, 2, 1) if channels % n == 0)
        layers = [
            nn.BatchNorm2d(channels),
            nn.GroupNorm(groups, channels),
            nn.GroupNorm(1, channels),
            nn.InstanceNorm2d(channels, affine=True),
        ]
        return _Step((at,), self._layer(self._draw.choice(layers))), self._shapes[at]

    def _activation(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, _ = self._shapes[at]
        layers = [nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.PReLU(channels)]
        return _Step((at,), self._layer(self._draw.choice(layers))), self._shapes[at]

    def _residual(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        alike = [n for n, shape in enumerate(self._shapes) if shape == self._shapes[at] and n != at]
        if not alike:
            return None
        other = self._draw.choice(alike)
        do = self._draw.choice(["add", "mul", "maximum", "sub"])
        step = _Step((at, other), lambda _, xs: getattr(torch, do)(xs[0], xs[1]))
        return step, self._shapes[at]

    def _joined(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        near = [
            n
            for n, (count, size) in enumerate(self._shapes)
            if size == width and count + channels <= 48
        ]
        if not near:
            return None
        other = self._draw.choice(near)
        step = _Step((other, at), lambda _, xs: torch.cat([xs[0], xs[1]], 1))
        return step, (channels + self._shapes[other][0], width)

    def _grouped(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, width = self._shapes[at]
        groups = self._draw.choice([n for n in (2, 3, 4, channels) if channels % n == 0] or [1])
        out = channels * self._draw.choice([1, 1, 2]) if channels <= 24 else channels
        layer = nn.Conv2d(channels, out, 3, padding=1, groups=groups)
        return _Step((at,), self._layer(layer)), (out, width)

    def _transposed(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, width = self._shapes[at]
        groups = self._draw.choice([n for n in (1, 2, 4, channels) if channels % n == 0])
        out = channels * self._draw.choice([1, 2]) if channels <= 24 else channels
        layer = nn.ConvTranspose2d(channels, out, 3, padding=1, groups=groups)
        return _Step((at,), self._layer(layer)), (out, width)

    def _halves(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        if channels % 2:
            return None

        def do(_: Any, xs: Sequence[Tensor]) -> Any:
            one, other = xs[0].chunk(2, 1)
            return one * torch.sigmoid(other)

        def joined(_: Any, xs: Sequence[Tensor]) -> Any:
            one, other = xs[0].chunk(2, 1)
            return torch.cat([one, other, one + other], 1)

        if self._draw.random() < 0.5 or channels > 32:
            return _Step((at,), do), (channels // 2, width)
        return _Step((at,), joined), (channels // 2 * 3, width)

    def _split(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        first = self._draw.choice([channels // 2, channels // 4])
        if not first:
            return None
        is_literal = self._draw.random() < 0.3
        quarter = self._draw.choice([2, 4])

        def do(_: Any, xs: Sequence[Tensor]) -> Any:
            size = first if is_literal else xs[0].shape[1] // quarter
            one, other = xs[0][:, :size], xs[0][:, size:]
            return torch.cat([other, F.relu(one)], 1)

        return _Step((at,), do), (channels, width)

    def _shuffled(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        groups = self._draw.choice([2, 3, 4])
        if channels % groups:
            return None
        if self._draw.random() < 0.3:
            return _Step((at,), self._layer(nn.ChannelShuffle(groups))), (channels, width)

        def do(_: Any, xs: Sequence[Tensor]) -> Any:
            n, c, h, w = xs[0].shape
            return xs[0].view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

        return _Step((at,), do), (channels, width)

    def _einsum(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, width = self._shapes[at]
        out = self._draw.choice([8, 12])
        if self._draw.random() < 0.5:
            name = self._own(channels, out)
            equation = "bchw,cd->bdhw"
        else:
            name = self._own(out, channels)
            equation = "bchw,dc->bdhw"
        return _Step((at,), lambda net, xs: torch.einsum(equation, xs[0], getattr(net, name))), (
            out,
            width,
        )

    def _gate(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, _ = self._shapes[at]
        down, up = f"l{len(self.layers)}", f"l{len(self.layers) + 1}"
        self.layers[down], self.layers[up] = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

        def do(net: Any, xs: Sequence[Tensor]) -> Any:
            gate = F.relu(net.layers[down](F.adaptive_avg_pool2d(xs[0], 1)))
            return xs[0] * torch.sigmoid(net.layers[up](gate))

        return _Step((at,), do), self._shapes[at]

    def _pixels(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        if width <= 8 and channels % 4 == 0 and channels >= 8:
            return _Step((at,), self._layer(nn.PixelShuffle(2))), (channels // 4, width * 2)
        if width % 2 == 0 and channels <= 12:
            return _Step((at,), self._layer(nn.PixelUnshuffle(2))), (channels * 4, width // 2)
        return None

    def _attention(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        heads = self._draw.choice([1, 2, 4])
        if channels % heads or width > 8:
            return None
        qkv, out = f"l{len(self.layers)}", f"l{len(self.layers) + 1}"
        self.layers[qkv] = nn.Linear(channels, 3 * channels)
        self.layers[out] = nn.Linear(channels, channels)

        def do(net: Any, xs: Sequence[Tensor]) -> Any:
            x = xs[0].flatten(2).transpose(1, 2)
            n, t, _ = x.shape
            q, k, v = net.layers[qkv](x).view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3)
            y = net.layers[out](mixed.transpose(1, 2).flatten(2))
            return xs[0] + y.transpose(1, 2).reshape(n, -1, *xs[0].shape[2:])

        return _Step((at,), do), self._shapes[at]

    def _recurrent(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        if width > 8:
            return None
        kind = self._draw.choice([nn.LSTM, nn.GRU, nn.RNN])
        both, layers = self._draw.random() < 0.4, self._draw.choice([1, 2])
        name = f"l{len(self.layers)}"
        self.layers[name] = kind(channels, 8, layers, batch_first=True, bidirectional=both)

        def do(net: Any, xs: Sequence[Tensor]) -> Any:
            row = xs[0].mean(2).transpose(1, 2)
            told = net.layers[name](row)[0].transpose(1, 2)
            return told[:, :, None].expand(-1, -1, xs[0].shape[2], -1)

        return _Step((at,), do), (16 if both else 8, width)

    def _turned(self, at: int) -> tuple[_Step, tuple[int, int]]:
        dim = self._draw.choice([1, 2, 3])
        if self._draw.random() < 0.5:
            return _Step((at,), lambda _, xs: xs[0].flip(dim)), self._shapes[at]
        return _Step((at,), lambda _, xs: xs[0].roll(1, dim)), self._shapes[at]

    def _scaled(self, at: int) -> tuple[_Step, tuple[int, int]]:
        channels, _ = self._shapes[at]
        if self._draw.random() < 0.3:
            return _Step((at,), lambda _, xs: xs[0] / xs[0].shape[1] ** 0.5), self._shapes[at]
        name = self._own(1, channels, 1, 1)
        return _Step((at,), lambda net, xs: xs[0] * getattr(net, name)), self._shapes[at]

    def _pooled(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        channels, width = self._shapes[at]
        if width < 4 or width % 2:
            return None
        layer = self._draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)])
        return _Step((at,), self._layer(layer)), (channels, width // 2)

    def _swapped(self, at: int) -> tuple[_Step, tuple[int, int]] | None:
        """Parts of the channels in another order, or each repeated."""
        channels, width = self._shapes[at]
        if channels % 2 == 0 and self._draw.random() < 0.7:
            swap = lambda _, xs: torch.cat(xs[0].chunk(2, 1)[::-1], 1)
            return _Step((at,), swap), (channels, width)
        if channels > 16:
            return None
        return _Step((at,), lambda _, xs: xs[0].repeat(1, 2, 1, 1)), (channels * 2, width)


def graph(seed: int) -> nn.Module:
    """Return the graph of a seed; its weights are drawn by torch."""
    return Graph(seed)
