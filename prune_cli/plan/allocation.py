"""Allocation: how one amount is spread over layers, and what it comes to in whole channels.

    uniform             the same fraction of every layer
    uniform-keep-ends   the same, but the first and the last layer stay whole
    er                  layers stay as dense as (fan_in + fan_out) / (fan_in * fan_out) says
    erk                 layers stay as dense as sum(shape) / prod(shape) says
    random              a fraction of its own for every layer, between two bounds

Shapes and numbers of channels go in, fractions and numbers come out; no tensor is needed, so
`verify` does the same again from the rows of a report, and `shrink` from its groups. Layers are
given in one fixed order (of their names), which decides ties.

See also: budget.py (amounts of a whole model), draw.py (which channels go).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

from prune_cli.checkpoint.names import natural_key
from prune_cli.errors import AmountError

Kind = Literal["uniform", "uniform-keep-ends", "er", "erk", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FIRST = {"embed", "embeddings", "embed_tokens", "patch_embed", "stem", "conv_stem", "wte", "wpe"}
_LAST = {"fc", "classifier", "head", "heads", "lm_head", "embed_out", "logits", "output", "score"}
"""What models call the modules that their input meets first and their output leaves last."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What an allocation has to know of a tensor, or of a group of coupled channels.

    Attributes:
        name: the full dotted name of the tensor (of a group: of its root).
        shape: of the tensor.
        dim: whose indices are the channels, counted from the front.
        live: how many channels are not pruned yet.
        step: channels are left in multiples of this; a layer that loses none stays as it is.
        at_least: how many channels stay, if there are so many.
        copies: how many such tensors lose the same number of channels.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    live: int
    step: int = 1
    at_least: int = 0
    copies: int = 1

    @property
    def live_shape(self) -> tuple[int, ...]:
        """The shape that is left once the channels pruned so far are gone."""
        return (*self.shape[: self.dim], self.live, *self.shape[self.dim + 1 :])

    @property
    def width(self) -> int:
        """The number of elements of one channel, of all copies."""
        before, after = self.shape[: self.dim], self.shape[self.dim + 1 :]
        return self.copies * math.prod(before) * math.prod(after)

    @property
    def elements(self) -> int:
        """The number of elements in live channels."""
        return self.live * self.width

    @property
    def most(self) -> int:
        """The most channels that can go."""
        return self.live - min(self.live, _up(self.at_least, self.step))


@dataclass(frozen=True, slots=True)
class Allocation:
    """How an amount is spread; `between` and `seed` matter to "random" only."""

    kind: Kind = "uniform"
    between: tuple[float, float] = (0.1, 0.9)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reach:
    """The least and the most elements that can go."""

    least: float
    most: float


def round_to_step(layer: Layer, k: int) -> int:
    """Return how many channels go where `k` were asked for: so many that a whole step is left.

    Example:
        >>> round_to_step(Layer("fc.weight", (10, 4), 0, live=10, step=4), 5)
        2
    """
    left = min(layer.live, _up(layer.live - k, layer.step))
    return min(layer.live - left, layer.most)


def share_out(layers: Sequence[Layer], allocation: Allocation, amount: float) -> tuple[int, ...]:
    """Return how many channels of each layer go, so that `amount` of all live elements do.

    Raises:
        AmountError: no channels within the bounds of the layers come to that.

    Example:
        >>> conv, fc = Layer("conv", (8, 3, 3, 3), 0, 8), Layer("fc", (10, 72), 1, 72)
        >>> share_out([conv, fc], Allocation("erk"), 0.5)
        (5, 33)
    """
    gone = amount * sum(layer.elements for layer in layers)
    return whole_channels(layers, fractions(layers, allocation, gone), gone)


def fractions(layers: Sequence[Layer], allocation: Allocation, gone: float) -> tuple[float, ...]:
    """Return the fraction of each layer's live channels that goes, for `gone` elements in all.

    These are the numbers as published, before they are rounded to whole channels.

    Raises:
        AmountError: `gone` is out of reach.
    """
    shares = _shares(layers, allocation)
    total = sum(layer.elements for layer in layers)
    reach = reach_of(layers, allocation)
    _check_reach(reach, gone, total, allocation)
    if allocation.kind in ("er", "erk"):
        return tuple(1 - kept for kept in _proportional(shares, total - gone))
    return _proportional(shares, gone)


def reach_of(layers: Sequence[Layer], allocation: Allocation) -> Reach:
    """Return the least and the most elements that can go under `allocation`."""
    shares = _shares(layers, allocation)
    low = math.fsum(share.low * share.size for share in shares)
    high = math.fsum(share.high * share.size for share in shares)
    if allocation.kind in ("er", "erk"):
        total = sum(layer.elements for layer in layers)
        return Reach(total - high, total - low)
    return Reach(low, high)


def whole_channels(
    layers: Sequence[Layer], wanted: Sequence[float], gone: float
) -> tuple[int, ...]:
    """Return `wanted` fractions as numbers of channels that come to `gone` elements.

    Each layer loses the number of steps below or above what is wanted of it. Those whose part of
    a step is largest take one more, as long as that brings the sum nearer; so the sum is off by
    at most half a step of one layer.
    """
    nearest = [
        _neighbours(layer, fraction * layer.live)
        for layer, fraction in zip(layers, wanted, strict=True)
    ]
    numbers = [found.fewer for found in nearest]
    rest = gone - sum(k * layer.width for k, layer in zip(numbers, layers, strict=True))
    for index in sorted(range(len(layers)), key=lambda index: -nearest[index].part):
        step = (nearest[index].more - nearest[index].fewer) * layers[index].width
        if step and 2 * rest >= step:
            numbers[index] = nearest[index].more
            rest -= step
    return tuple(numbers)


def ends(names: Sequence[str]) -> tuple[str, str]:
    """Return the first and the last layer of a model, as far as its names tell.

    A checkpoint need not have the order of the model (safetensors sorts), so it is told by names
    alone, and is the same for every format: numbers count as numbers, what is called like an
    embedding or a stem comes first, what is called like a classifier or a head comes last.

    Example:
        >>> ends(["classifier.0.weight", "features.0.weight", "features.10.weight"])
        ('features.0.weight', 'classifier.0.weight')
    """
    return min(names, key=_place), max(names, key=_place)


# --- fractions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Share:
    """One layer's part of a sum: `weight` times a scale that is common to all, within bounds."""

    weight: float
    size: int
    low: float
    high: float

    def at(self, scale: float) -> float:
        return min(max(self.weight * scale, self.low), self.high)


def _shares(layers: Sequence[Layer], allocation: Allocation) -> list[_Share]:
    """What is in proportion: of er and erk the density that stays, else the fraction that goes."""
    match allocation.kind:
        case "er" | "erk":
            return [_density(layer, allocation.kind) for layer in layers]
        case "random":
            return [_drawn(layer, allocation) for layer in layers]
        case "uniform-keep-ends":
            kept = ends([layer.name for layer in layers]) if layers else ()
            tops = [0.0 if layer.name in kept else _most(layer) for layer in layers]
        case _:
            tops = [_most(layer) for layer in layers]
    return [_Share(1.0, layer.elements, 0.0, top) for layer, top in zip(layers, tops, strict=True)]


def _density(layer: Layer, kind: Literal["er", "erk"]) -> _Share:
    """Return the raw density: Mocanu et al. 2018 (ER) and Evci et al. 2020 (ERK, with the kernel).

    For ER the kernel of a convolution counts for nothing, as in Evci et al.: a connection is one
    between channels. What is more than 1 becomes 1, and the scale makes up for it in the others.
    """
    shape = layer.live_shape if kind == "erk" else layer.live_shape[:2]
    raw = sum(shape) / math.prod(shape) if layer.elements else 1.0
    return _Share(raw, layer.elements, 1 - _most(layer), 1.0)


def _drawn(layer: Layer, allocation: Allocation) -> _Share:
    low, high = allocation.between
    digest = sha256(f"{allocation.seed}:{layer.name}:fraction".encode()).digest()
    fraction = low + (high - low) * int.from_bytes(digest[:8], "big") / 2**64
    top = min(high, _most(layer))
    return _Share(fraction or 1.0, layer.elements, min(low, top), top)  # 0 has no proportion


def _most(layer: Layer) -> float:
    return layer.most / layer.live if layer.live else 0.0


def _proportional(shares: Sequence[_Share], total: float) -> tuple[float, ...]:
    """Return the share of each, so that they sum up to `total` elements.

    The sum grows with the scale, in straight lines between the scales at which some layer meets
    a bound; so it is found exactly. Where a density has the bound 1 this is what is published:
    make dense what is above 1, and solve the rest again.
    """
    edges = sorted({b / share.weight for share in shares for b in (share.low, share.high)})

    def sum_at(scale: float) -> float:
        return math.fsum(share.at(scale) * share.size for share in shares)

    index = bisect_left(edges, total, key=sum_at)
    if 0 < index < len(edges):
        left, right = edges[index - 1], edges[index]
        low, high = sum_at(left), sum_at(right)
        scale = left + (right - left) * (total - low) / (high - low)
    else:
        scale = edges[min(index, len(edges) - 1)] if edges else 0.0
    return tuple(share.at(scale) for share in shares)


def _check_reach(reach: Reach, gone: float, total: int, allocation: Allocation) -> None:
    slack = 1e-9 * total
    if reach.least - slack <= gone <= reach.most + slack:
        return
    raise AmountError(
        f"{total - gone:,.0f} of {total:,} selected elements cannot be what remains: with the "
        f"allocation {allocation.kind} the least is {_part(total - reach.most, total)} and the most "
        f"is {_part(total - reach.least, total)}"
    )


def _part(elements: float, total: int) -> str:
    return f"{elements:,.0f} ({elements / total if total else 0:.1%})"


# --- whole channels --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """The numbers of channels next to a wanted one, and which part of the way it is to `more`."""

    fewer: int
    more: int
    part: float


def _neighbours(layer: Layer, wanted: float) -> _Neighbours:
    left = round(layer.live - wanted, 9)  # 5.000000000000001 is 5
    fewer = max(min(layer.live - _up(left, layer.step), layer.most), 0)
    more = min(layer.live - math.floor(left / layer.step) * layer.step, layer.most)
    if layer.step > 1 and more == layer.live and left > 0:
        more = fewer  # a step is not so coarse that a layer goes of which something should stay
    if more <= fewer:
        return _Neighbours(fewer, fewer, 0.0)
    return _Neighbours(fewer, more, (layer.live - left - fewer) / (more - fewer))


def _up(number: float, step: int) -> int:
    return math.ceil(number / step) * step


# --- the ends of a model ---------------------------------------------------------------------


def _place(name: str) -> tuple[int, object, str]:
    modules = name.lower().split(".")
    place = 0 if _FIRST & {*modules[:3]} else 2 if _LAST & {*modules[:2]} else 1
    return place, natural_key(name), name
