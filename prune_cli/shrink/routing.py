"""How a router chooses among experts, where some of them are gone: rules beside those of rules.py.

The masked model is the whole one whose router gives them minus infinity, so that it never chooses
them. The numbers that it chooses are then those of the experts that stay, counted anew; what reads
them has to be an axis that lost the same experts.
"""

from __future__ import annotations

from prune_cli.shrink.axes import Axes, Axis, DisagreementError, require, whole_axes
from prune_cli.shrink.rules import Comparison
from prune_cli.shrink.trace import Call

_MOVES = {"view", "_unsafe_view", "reshape", "clone", "_to_copy", "detach", "alias"} | {
    "t",
    "transpose",
    "unsqueeze",
    "squeeze",
    "expand",
    "contiguous",
}
_PRODUCTS = {"mm", "addmm", "bmm"}
_KEEP_INFINITY = {"add", "sub", "mul", "div"}


class Routing:
    """What is known of choices so far. A class because every operation may add to it."""

    def __init__(self) -> None:
        self._numbers: dict[int, Axis] = {}
        self._logits: set[int] = set()

    def rule(self, c: Comparison, whole: Call, shrunk: Call) -> list[Axes] | None:
        """Return the axes of the first outputs of what has to do with choices; None for the rest."""
        self._follow_logits(c, whole)
        chosen = [self._numbers[ref.index] for ref in whole.operands if ref.index in self._numbers]
        if whole.name == "topk":
            return self._choose(c, whole, shrunk)
        if whole.name in ("_softmax", "_log_softmax"):
            return self._normalise(c, whole)
        if not chosen:
            return None
        if whole.name in _MOVES:
            self._numbers.update((ref.index, chosen[0]) for ref in whole.outputs)
            return [whole_axes(c.before.shapes[ref.index]) for ref in whole.outputs]
        if whole.name == "index":
            return [_look_up(c, whole, chosen[0])]
        if whole.name == "gather":
            return [_gather(c, whole, chosen[0])]
        raise DisagreementError(
            "it calculates with the numbers of experts", chosen[0].removed.values()
        )

    def _follow_logits(self, c: Comparison, whole: Call) -> None:
        """What the router says of each expert may be minus infinity; what keeps that is the same."""
        axes = [c.axes(ref) for ref in whole.operands]
        is_new = whole.name in _PRODUCTS and any(a.removed for own in axes for a in own)
        is_kept = whole.name in _MOVES or (
            whole.name in _KEEP_INFINITY and all(_is_positive(number) for number in whole.numbers)
        )
        if is_new or (is_kept and any(ref.index in self._logits for ref in whole.operands)):
            self._logits.update(ref.index for ref in whole.outputs)

    def _normalise(self, c: Comparison, whole: Call) -> list[Axes] | None:
        axes = c.axes(whole.operands[0])
        if not axes[whole.argument("dim")].removed:
            return None
        require(
            whole.operands[0].index in self._logits,
            "it normalises over experts what the router says of them no more",
        )
        return [tuple(axis.with_zero(()) for axis in axes)]

    def _choose(self, c: Comparison, whole: Call, shrunk: Call) -> list[Axes] | None:
        axes = c.axes(whole.operands[0])
        dim = whole.argument("dim", -1) % len(axes)
        if not axes[dim].removed:
            return None
        require(whole.argument("k") == shrunk.argument("k"), "it chooses another number of experts")
        require(bool(whole.argument("largest", True)), "it chooses the experts that score least")
        others = [axis for position, axis in enumerate(axes) if position != dim]
        require(not any(axis.removed for axis in others))
        self._numbers[whole.outputs[1].index] = axes[dim]
        return [whole_axes(c.before.shapes[ref.index]) for ref in whole.outputs]


def _is_positive(number: complex) -> bool:
    return not isinstance(number, complex) and number > 0


def _look_up(c: Comparison, whole: Call, chosen: Axis) -> Axes:
    """Return the axes of x[:, chosen]."""
    x, indices = c.axes(whole.argument("self")), whole.argument("indices")
    used = [dim for dim, index in enumerate(indices) if index is not None]
    require(len(used) == 1, "indexing by several tensors is not known")
    require(x[used[0]].agrees(chosen), "it looks up experts among others than those that stay")
    inserted = whole_axes(c.before.shapes[indices[used[0]].index])
    return (*x[: used[0]], *inserted, *x[used[0] + 1 :])


def _gather(c: Comparison, whole: Call, chosen: Axis) -> Axes:
    x = c.axes(whole.argument("self"))
    dim = whole.argument("dim") % len(x)
    require(x[dim].agrees(chosen), "it looks up experts among others than those that stay")
    require(not any(axis.removed for position, axis in enumerate(x) if position != dim))
    return whole_axes(c.before.shapes[whole.argument("index").index])
