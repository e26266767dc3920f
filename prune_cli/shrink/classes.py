"""Which channels go together, read off a recording: every index of every axis, in classes.

All indices of all tensors begin in classes of their own; each operation that holds two of them
against each other makes their classes one. What an operation divides into equal parts (heads, the
halves of a gated unit, the gates of an LSTM) must lose the same of each part, so positions of the
parts are one class too. The classes below FIXED hold what has to stay, each for one reason.

It only proposes, generously: whether a model without some classes does what the whole one does is
for the guard to say (agreement.py). See also: how classes become couplings (coupling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from prune_cli.shrink.rules import axis_origins, runs
from prune_cli.shrink.trace import Call, Ref, Trace

FIXED = 64
"""Classes below this stay."""

_OF_INPUTS = "it is held against an axis of the inputs"
_OF_OUTPUTS = "the shape of the model's output would change"
_IN_TABLE = "entries of an embedding would be gone"
_RESHAPED = "a reshape divides it"

Nodes = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Place:
    """An axis of a named tensor."""

    tensor: str
    dim: int


@dataclass(frozen=True, eq=False)
class _Line:
    """The indices of an axis of some tensor, as nodes; `place` is where they are a named tensor's."""

    nodes: Nodes
    place: Place | None = None

    def __len__(self) -> int:
        return len(self.nodes)


_Lines = tuple[_Line, ...]


class Classes:
    """The classes of a model. A class because every operation of a recording adds to them.

    Attributes:
        made: the axes of weights along which channels are made, in the order of the recording.
    """

    def __init__(self, sizes: Mapping[str, Sequence[int]], movable: Callable[[str], bool]) -> None:
        """Begin with the axes of named tensors; those that are not movable stay."""
        self._parents: Nodes = np.arange(FIXED)
        self._count = FIXED
        self._reasons = [_OF_INPUTS]
        self._named: dict[str, _Lines] = {}
        for name, shape in sizes.items():
            fresh = self.fresh if movable(name) else _fixed
            self._named[name] = tuple(
                _Line(fresh(size).nodes, Place(name, dim)) for dim, size in enumerate(shape)
            )
        self.made: dict[Place, None] = {}

    def of(self, place: Place) -> Nodes:
        """Return the class of each index of an axis."""
        return self.find(self._named[place.tensor][place.dim].nodes)

    @property
    def places(self) -> list[Place]:
        """Every axis of every named tensor."""
        return [line.place for lines in self._named.values() for line in lines if line.place]

    def follow(self, recording: Trace, names: Mapping[int, str]) -> None:
        """Make one what a recording holds against each other.

        Args:
            recording: Of the whole model.
            names: Of the named tensors, by the positions of their shapes in the recording.
        """
        _Walk(self, recording, {ref: self._named[name] for ref, name in names.items()}).run()

    # --- what the operations use --------------------------------------------------------------

    def fresh(self, size: int) -> _Line:
        """Return an axis whose indices belong to nothing yet."""
        return self._fresh(size) if size > 1 else _fixed(size)

    def unite(self, one: Nodes, other: Nodes) -> None:
        """Make classes one, index by index."""
        while True:
            left, right = self.find(one), self.find(other)
            low, high = np.minimum(left, right), np.maximum(left, right)
            differ = (low != high) & (high >= FIXED)
            if not differ.any():
                return
            np.minimum.at(self._parents, high[differ], low[differ])

    def fix(self, lines: Iterable[_Line], reason: str) -> None:
        """Let indices stay."""
        if reason not in self._reasons and len(self._reasons) < FIXED:
            self._reasons.append(reason)
        number = self._reasons.index(reason) if reason in self._reasons else 0
        for line in lines:
            self.unite(line.nodes, np.full_like(line.nodes, number))

    def why(self, class_: int) -> str:
        """Return why a class stays."""
        return self._reasons[class_]

    def unite_parts(self, nodes: Nodes, width: int) -> None:
        """Make the same positions of all parts of an axis, each `width` wide, one class."""
        if 0 < width < len(nodes) and len(nodes) % width == 0:
            parts = nodes.reshape(-1, width)
            self.unite(parts[1:].ravel(), np.tile(parts[0], len(parts) - 1))

    def _fresh(self, size: int) -> _Line:
        start, self._count = self._count, self._count + size
        if self._count > len(self._parents):  # by doubling, as there are many axes
            longer = np.arange(2 * self._count)
            longer[: len(self._parents)] = self._parents
            self._parents = longer
        nodes = np.arange(start, start + size)
        return _Line(nodes)

    def find(self, nodes: Nodes) -> Nodes:
        """Return the class of each node."""
        found = self._parents[nodes]
        while True:
            above = self._parents[found]
            if (above == found).all():
                self._parents[nodes] = found
                return found
            found = above


def _fixed(size: int) -> _Line:
    return _Line(np.zeros(size, np.int64))


class _Walk:
    """Goes through a recording. A class because all rules share what is known of each tensor."""

    def __init__(self, classes: Classes, recording: Trace, known: dict[int, _Lines]) -> None:
        self.classes, self.recording, self._known = classes, recording, known

    def run(self) -> None:
        for call in self.recording.calls:
            rule = _BY_NAME.get(call.name)
            if rule is None:
                rule = _pointwise if torch.Tag.pointwise in call.op.tags else _unknown
            try:
                results = rule(self, call)
            except (IndexError, KeyError, TypeError, ValueError, RuntimeError):
                results = _unknown(self, call)  # a form that its rule did not foresee
            for ref, lines in zip(call.outputs, results, strict=False):
                if tuple(map(len, lines)) == self.shape(ref):
                    self._known[ref.index] = lines
                else:
                    self._known[ref.index] = tuple(map(_fixed, self.shape(ref)))
        for ref in self.recording.outputs:
            self.classes.fix(self.lines(ref), _OF_OUTPUTS)

    def lines(self, ref: Ref) -> _Lines:
        """Return the axes of a tensor; those of the inputs stay."""
        known = self._known.get(ref.index)
        return known if known is not None else tuple(map(_fixed, self.shape(ref)))

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.recording.shapes[ref.index]

    def one(self, one: _Line, other: _Line) -> _Line:
        """Make two axes one; one of a single index is broadcast."""
        if len(one) != len(other):
            return one if len(other) == 1 else other
        if one.nodes is not other.nodes:
            self.classes.unite(one.nodes, other.nodes)
        return one

    def made(self, line: _Line) -> None:
        """Note an axis along which channels are made."""
        if line.place is not None:
            self.classes.made[line.place] = None


_Rule = Callable[[_Walk, Call], list[_Lines]]


def _unknown(walk: _Walk, call: Call) -> list[_Lines]:
    for ref in call.operands:
        walk.classes.fix(walk.lines(ref), _not_known(call))
    return [tuple(map(_fixed, walk.shape(ref))) for ref in call.outputs]


def _not_known(call: Call) -> str:
    return f"it is not known what {call.name} does to channels"


def _pointwise(walk: _Walk, call: Call) -> list[_Lines]:
    operands = [walk.lines(ref) for ref in call.operands]
    rank = max(map(len, operands))
    result = []
    for position in range(-rank, 0):
        line, *others = (lines[position] for lines in operands if len(lines) >= -position)
        for other in others:
            line = walk.one(line, other)
        result.append(_Line(line.nodes))
    return [tuple(result)] * len(call.outputs)


def _filled(walk: _Walk, call: Call) -> list[_Lines]:
    """Zeros, ones and the like, whose indices are all alike."""
    return [tuple(map(walk.classes.fresh, walk.shape(ref))) for ref in call.outputs]


def _same(walk: _Walk, call: Call) -> list[_Lines]:
    return [walk.lines(call.operands[0])] * len(call.outputs)


def _reduce(walk: _Walk, call: Call) -> list[_Lines]:
    lines = walk.lines(call.operands[0])
    dims = call.argument("dim")
    dims = range(len(lines)) if dims is None or dims == [] else dims
    gone = {dim % len(lines) for dim in ([dims] if isinstance(dims, int) else dims)}
    kept = call.argument("keepdim")
    left = [_fixed(1) if d in gone else line for d, line in enumerate(lines)]
    return [tuple(line for d, line in enumerate(left) if kept or d not in gone)] * 2


def _product(walk: _Walk, call: Call) -> list[_Lines]:
    *added, left, right = (walk.lines(ref) for ref in call.operands)
    walk.one(left[-1], right[-2])
    batch = [walk.one(a, b) for a, b in zip(left[:-2], right[:-2], strict=True)]
    walk.made(left[-2])
    walk.made(right[-1])
    result = [*batch, _Line(left[-2].nodes), _Line(right[-1].nodes)]
    for lines in added:
        for position in range(-len(lines), 0):
            result[position] = walk.one(result[position], lines[position])
    return [tuple(result)]


def _convolution(walk: _Walk, call: Call) -> list[_Lines]:
    x, weight = walk.lines(call.argument("input")), walk.lines(call.argument("weight"))
    groups, bias = call.argument("groups"), call.argument("bias")
    is_transposed = call.argument("transposed")
    out, inner = (weight[1], weight[0]) if is_transposed else (weight[0], weight[1])
    walk.made(out if len(out) > 1 else inner)
    if groups == 1:
        walk.one(x[1], inner)
    elif is_transposed:
        out = _transposed_groups(walk, groups, x[1], out, inner)
    else:
        _groups(walk, groups, x[1], out, inner)
    if bias is not None:
        walk.one(out, walk.lines(bias)[0])
    sizes = walk.shape(call.outputs[0])[2:]
    return [(x[0], _Line(out.nodes), *map(_fixed, sizes))]


def _groups(walk: _Walk, groups: int, x: _Line, out: _Line, inner: _Line) -> None:
    """Each group loses the same of what it reads and makes; one of a single channel goes whole."""
    if len(inner) == 1:
        walk.classes.unite(np.repeat(x.nodes, len(out) // groups), out.nodes)
        return
    walk.classes.unite_parts(x.nodes, len(inner))
    walk.one(_Line(x.nodes[: len(inner)]), inner)
    walk.classes.unite_parts(out.nodes, len(out) // groups)


def _transposed_groups(walk: _Walk, groups: int, x: _Line, out: _Line, inner: _Line) -> _Line:
    """Return what goes out, where the weight has all that goes in and what one group makes."""
    walk.one(x, inner)
    if len(x) == groups:
        return _Line(np.repeat(x.nodes, len(out)))
    walk.classes.unite_parts(x.nodes, len(x) // groups)
    return _Line(np.tile(out.nodes, groups))


def _batch_norm(walk: _Walk, call: Call) -> list[_Lines]:
    x = walk.lines(call.argument("input"))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.argument(name) is not None:
            walk.one(x[1], walk.lines(call.argument(name))[0])
    return [x, (x[1],), (x[1],)]


def _layer_norm(walk: _Walk, call: Call) -> list[_Lines]:
    x = walk.lines(call.argument("input"))
    for name in ("weight", "bias"):
        if call.argument(name) is not None:
            for one, other in zip(reversed(x), reversed(walk.lines(call.argument(name)))):
                walk.one(one, other)
    return [x]


def _group_norm(walk: _Walk, call: Call) -> list[_Lines]:
    x = walk.lines(call.argument("input"))
    walk.classes.unite_parts(x[1].nodes, len(x[1]) // call.argument("group"))
    for name in ("weight", "bias"):
        if call.argument(name) is not None:
            walk.one(x[1], walk.lines(call.argument(name))[0])
    return [x]


def _windows(walk: _Walk, call: Call) -> list[_Lines]:
    """Batch and channels stay, the axes behind them are another image's."""
    x = walk.lines(call.operands[0])
    spatial = int(next(digit for digit in call.name if digit.isdigit()))
    return [
        (*x[: len(x) - spatial], *map(_fixed, walk.shape(ref)[len(x) - spatial :]))
        for ref in call.outputs
    ]


def _pad(walk: _Walk, call: Call) -> list[_Lines]:
    lines, pad = list(walk.lines(call.operands[0])), call.argument("pad")
    for number in range(len(pad) // 2):
        before, after = pad[2 * number : 2 * number + 2]
        if before or after:
            line = lines[-1 - number].nodes
            inside = line[max(0, -before) : len(line) - max(0, -after)]
            ends = (np.zeros(max(0, before), np.int64), np.zeros(max(0, after), np.int64))
            lines[-1 - number] = _Line(np.concatenate([ends[0], inside, ends[1]]))
    return [tuple(lines)]


def _embedding(walk: _Walk, call: Call) -> list[_Lines]:
    table, indices = walk.lines(call.argument("weight")), walk.lines(call.argument("indices"))
    walk.classes.fix(table[:1], _IN_TABLE)
    walk.made(table[1])
    return [(*indices, _Line(table[1].nodes))]


def _attention(walk: _Walk, call: Call) -> list[_Lines]:
    query, key, value = (walk.lines(call.argument(name)) for name in ("query", "key", "value"))
    walk.one(query[-1], key[-1])
    for one, *others in zip(query[:-2], key[:-2], value[:-2], strict=True):
        for other in others:
            walk.one(one, other)
    return [(*query[:-1], value[-1])]


def _index(walk: _Walk, call: Call) -> list[_Lines]:
    x, indices = walk.lines(call.argument("self")), call.argument("indices")
    used = [dim for dim, index in enumerate(indices) if index is not None]
    walk.classes.fix([x[dim] for dim in used], "it is indexed")
    if len(used) != 1:
        sizes = walk.shape(call.outputs[0])
        rest = [line for dim, line in enumerate(x) if dim not in used]
        return [(*map(_fixed, sizes[: len(sizes) - len(rest)]), *rest)]
    inserted = map(_fixed, walk.shape(indices[used[0]]))
    return [(*x[: used[0]], *inserted, *x[used[0] + 1 :])]


def _picked(walk: _Walk, call: Call) -> list[_Lines]:
    """Top-k, sort, gather and the like: along `dim` all may go anywhere, other axes stay."""
    lines = [walk.lines(ref) for ref in call.operands]
    dim = call.argument("dim", -1) % len(lines[0])
    walk.classes.fix([each[dim] for each in lines if len(each) > dim], _not_known(call))
    return [
        tuple(_fixed(size) if d == dim else lines[0][d] for d, size in enumerate(walk.shape(ref)))
        for ref in call.outputs
    ]


def _along(walk: _Walk, call: Call) -> list[_Lines]:
    return [walk.lines(call.operands[0])] * len(call.outputs)


def _rearrange(walk: _Walk, call: Call) -> list[_Lines]:
    lines = walk.lines(call.operands[0])
    origins = axis_origins(call, [len(line) for line in lines])
    sizes = walk.shape(call.outputs[0])
    return [
        tuple(
            walk.classes.fresh(size) if origin is None else lines[origin]
            for origin, size in zip(origins, sizes, strict=True)
        )
    ]


def _slice(walk: _Walk, call: Call) -> list[_Lines]:
    lines = list(walk.lines(call.argument("self")))
    dim = call.argument("dim", 0) % len(lines)
    size = len(lines[dim])
    start, end, step = (call.argument(name) for name in ("start", "end", "step"))
    part = lines[dim].nodes[start:end:step]
    if len(part) < size and len(part) and (start or 0) % len(part) == 0 and step == 1:
        walk.classes.unite_parts(lines[dim].nodes, len(part))
    lines[dim] = lines[dim] if len(part) == size else _Line(part)
    return [tuple(lines)]


def _select(walk: _Walk, call: Call) -> list[_Lines]:
    lines = list(walk.lines(call.argument("self")))
    dim = call.argument("dim") % len(lines)
    walk.classes.fix([lines.pop(dim)], "one of its indices is picked")
    return [tuple(lines)]


def _unbind(walk: _Walk, call: Call) -> list[_Lines]:
    lines = list(walk.lines(call.operands[0]))
    dim = call.argument("dim", 0) % len(lines)
    walk.classes.fix([lines.pop(dim)], "its indices go different ways")
    return [tuple(lines)] * len(call.outputs)


def _split(walk: _Walk, call: Call) -> list[_Lines]:
    lines = walk.lines(call.operands[0])
    dim = call.argument("dim", 0) % len(lines)
    sizes = [walk.shape(ref)[dim] for ref in call.outputs]
    if len(set(sizes)) == 1:
        walk.classes.unite_parts(lines[dim].nodes, sizes[0])
    ends = np.cumsum([0, *sizes])
    pieces = [lines[dim].nodes[start:end] for start, end in pairwise(ends)]
    return [(*lines[:dim], _Line(piece), *lines[dim + 1 :]) for piece in pieces]


def _cat(walk: _Walk, call: Call) -> list[_Lines]:
    operands = [walk.lines(ref) for ref in call.operands if walk.shape(ref) != (0,)]
    dim = call.argument("dim", 0) % len(operands[0])
    lines = list(operands[0])
    for other in operands[1:]:
        lines = [line if d == dim else walk.one(line, other[d]) for d, line in enumerate(lines)]
    lines[dim] = _Line(np.concatenate([each[dim].nodes for each in operands]))
    return [tuple(lines)]


def _stack(walk: _Walk, call: Call) -> list[_Lines]:
    operands = [walk.lines(ref) for ref in call.operands]
    lines = list(operands[0])
    for other in operands[1:]:
        lines = [walk.one(*pair) for pair in zip(lines, other, strict=True)]
    lines.insert(call.argument("dim", 0) % (len(lines) + 1), _fixed(len(operands)))
    return [tuple(lines)]


def _turn(walk: _Walk, call: Call) -> list[_Lines]:
    """Flip and roll: an axis is read in another order."""
    lines = list(walk.lines(call.operands[0]))
    shifts = call.argument("shifts", [])
    for number, dim in enumerate(call.argument("dims")):
        nodes = lines[dim].nodes
        lines[dim] = _Line(nodes[::-1] if call.name == "flip" else np.roll(nodes, shifts[number]))
    return [tuple(lines)]


def _repeat(walk: _Walk, call: Call) -> list[_Lines]:
    lines, repeats = walk.lines(call.operands[0]), call.argument("repeats")
    more = len(repeats) - len(lines)
    padded = [*map(_fixed, [1] * more), *lines]
    return [
        tuple(
            line if times == 1 else _Line(np.tile(line.nodes, times))
            for line, times in zip(padded, repeats, strict=True)
        )
    ]


def _pixel_shuffle(walk: _Walk, call: Call) -> list[_Lines]:
    *front, channels, _, _ = walk.lines(call.operands[0])
    factor = call.argument("upscale_factor") ** 2
    blocks = channels.nodes.reshape(-1, factor)
    walk.classes.unite(blocks[:, 1:].ravel(), np.repeat(blocks[:, 0], factor - 1))
    sizes = walk.shape(call.outputs[0])[-2:]
    return [(*front, _Line(blocks[:, 0]), *map(_fixed, sizes))]


def _pixel_unshuffle(walk: _Walk, call: Call) -> list[_Lines]:
    *front, channels, _, _ = walk.lines(call.operands[0])
    factor = call.argument("downscale_factor") ** 2
    sizes = walk.shape(call.outputs[0])[-2:]
    return [(*front, _Line(np.repeat(channels.nodes, factor)), *map(_fixed, sizes))]


def _channel_shuffle(walk: _Walk, call: Call) -> list[_Lines]:
    lines = list(walk.lines(call.operands[0]))
    groups = call.argument("groups")
    walk.classes.unite_parts(lines[1].nodes, len(lines[1]) // groups)
    lines[1] = _Line(lines[1].nodes.reshape(groups, -1).T.ravel())
    return [tuple(lines)]


def _view(walk: _Walk, call: Call) -> list[_Lines]:
    lines = walk.lines(call.operands[0])
    sizes = list(walk.shape(call.outputs[0]))
    result: list[_Line] = []
    for run, target in runs([len(line) for line in lines], sizes):
        part = lines[run]
        if len(part) == len(sizes[target]) == 1:
            result.extend(part)
        else:
            result.extend(_reshape(walk, part, sizes[target]))
    return [tuple(result)]


def _reshape(walk: _Walk, part: _Lines, sizes: list[int]) -> Iterable[_Line]:
    """Of the axes that are reshaped one carries its classes on: the longest that can lose any."""
    moving = [
        d
        for d, line in enumerate(part)
        if len(line) > 1 and (walk.classes.find(line.nodes) >= FIXED).any()
    ]
    if not moving:
        return map(_fixed, sizes)
    carrying = max(moving, key=lambda d: len(part[d]))
    walk.classes.fix([part[d] for d in moving if d != carrying], _RESHAPED)
    shape = [len(line) if d == carrying else 1 for d, line in enumerate(part)]
    nodes = np.broadcast_to(
        part[carrying].nodes.reshape(shape), [len(line) for line in part]
    ).reshape(sizes)
    onto = max(range(len(sizes)), key=lambda d: (sizes[d], d))
    slabs = np.moveaxis(nodes, onto, 0).reshape(sizes[onto], -1)
    if len(part[carrying]) == sizes[onto] == nodes.size:  # only axes of one index come and go
        return [part[carrying] if d == onto else _fixed(size) for d, size in enumerate(sizes)]
    if slabs.shape[1] > 1:
        walk.classes.unite(slabs[:, 1:].ravel(), np.repeat(slabs[:, 0], slabs.shape[1] - 1))
    return [_Line(slabs[:, 0].copy()) if d == onto else _fixed(s) for d, s in enumerate(sizes)]


_BY_NAME: Mapping[str, _Rule] = {
    name: rule
    for rule, names in {
        _pointwise: "_prelu_kernel hardswish clone _to_copy copy dropout native_dropout lift_fresh "
        "rrelu_with_noise empty_like zeros_like ones_like full_like rand_like bernoulli",
        _filled: "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor",
        _same: "detach alias contiguous",
        _along: "_softmax _log_softmax _safe_softmax cumsum tril triu",
        _reduce: "mean sum amax amin var var_mean std linalg_vector_norm any all argmax argmin max "
        "min prod",
        _product: "mm bmm addmm baddbmm",
        _convolution: "convolution",
        _batch_norm: "native_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training cudnn_batch_norm",
        _layer_norm: "native_layer_norm",
        _group_norm: "native_group_norm",
        _pad: "constant_pad_nd",
        _windows: "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
        "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d "
        "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa",
        _embedding: "embedding",
        _attention: "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention "
        "_scaled_dot_product_fused_attention_overrideable",
        _index: "index",
        _picked: "topk sort gather scatter scatter_add index_select",
        _rearrange: "t transpose permute unsqueeze squeeze expand movedim",
        _slice: "slice",
        _select: "select",
        _unbind: "unbind",
        _split: "split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk chunk",
        _cat: "cat",
        _stack: "stack",
        _turn: "flip roll",
        _repeat: "repeat",
        _view: "view _unsafe_view reshape _reshape_alias",
        _pixel_shuffle: "pixel_shuffle",
        _pixel_unshuffle: "pixel_unshuffle",
        _channel_shuffle: "channel_shuffle",
    }.items()
    for name in names.split()
}
