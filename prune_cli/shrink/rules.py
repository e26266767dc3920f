"""What each operation does to the axes of its operands: one rule for each kind.

A rule takes the comparison and the call as both models made it, and gives the axes of the first
outputs; what is left of the outputs (statistics, indices) must keep its shape. An operation without
a rule may not touch an axis that lost channels. See also: walking through a model (agreement.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from prune_cli.shrink.axes import (
    Axes,
    Axis,
    DisagreementError,
    require,
    same_axis,
    whole_axes,
)
from prune_cli.shrink.movement import moved
from prune_cli.shrink.trace import Call, Ref, Trace


class Comparison:
    """What is known of every tensor so far. A class because all rules share that.

    Attributes:
        before: The recording of the whole model.
        after: That of the shrunk one.
        exact: Whether the removed channels must make no difference.
    """

    def __init__(
        self,
        before: Trace,
        after: Trace,
        axes: Mapping[str, Axes],
        *,
        exact: bool,
    ) -> None:
        self.before, self.after = before, after
        self.exact = exact
        self.known: dict[int, Axes] = {}
        for name, ref in before.named.items():
            if name in axes:
                self.known[ref.index] = axes[name]
        self.aliases: set[int] = set()

    def axes(self, ref: Ref) -> Axes:
        """Return what is known of a tensor; nothing means that it is whole."""
        axes = self.known.get(ref.index)
        return axes if axes is not None else whole_axes(self.before.shapes[ref.index])

    def filled(self, ref: Ref) -> Axes:
        """Return the axes of a tensor whose elements are all alike along each of them."""
        before, after = self.before.shapes[ref.index], self.after.shapes[ref.index]
        require(len(before) == len(after))
        sizes = zip(before, after, strict=True)
        return tuple(Axis(n) if n == m else Axis(n, left=m) for n, m in sizes)

    def block(self, axis: Axis, reason: str) -> None:
        """For `exact`: this operation mixes along `axis`, so no channel of it may go."""
        if self.exact and axis.removed:
            raise DisagreementError(reason, axis.removed.values())

    def block_outside_norms(self, call: Call, axis: Axis, reason: str) -> None:
        """Let no channel go of an axis along which masked ones count, but in a norm.

        A norm that is shrunk normalises over the channels that are left, as everybody expects.
        """
        self.block(axis, reason)
        require(not axis.removed or call.module in self.before.norms, reason)

    def block_unless_zero(self, left: Axis, right: Axis) -> None:
        """For `exact`: a sum over an axis stays the same if one side is zero wherever it was cut."""
        if self.exact:
            gone = {**left.removed, **right.removed}  # of indices that are all alike none is named
            loud = [i for i in gone if i not in left.zero and i not in right.zero]
            if loud:
                reason = "it reads channels that still emit, with weights that are not zero"
                raise DisagreementError(reason, [gone[i] for i in loud])

    def alias(self, call: Call) -> None:
        """Remember that the result may be a part of what was read."""
        self.aliases.update(ref.index for ref in (*call.operands, *call.outputs))


def _pointwise(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    operands = [c.axes(ref) for ref in whole.operands]
    rank = max(len(axes) for axes in operands)
    result = []
    for position in range(-rank, 0):
        present = [axes[position] for axes in operands if len(axes) >= -position]
        wide = [axis for axis in present if axis.size > 1] or present[:1]
        axis = same_axis(wide)
        result.append(axis.with_zero(_zero_pointwise(whole, operands, position, axis.size)))
    return [tuple(result)]


def _zero_pointwise(whole: Call, operands: list[Axes], position: int, size: int) -> Iterable[int]:
    """Return the indices of an axis at which the result is zero because operands are."""
    zeros = [
        axes[position].zero
        if len(axes) >= -position and axes[position].size == size
        else frozenset()
        for axes in operands
    ]
    patterns: dict[tuple[bool, ...], bool] = {}
    result = []
    for index in frozenset().union(*zeros):
        pattern = tuple(index in zero for zero in zeros)
        if pattern not in patterns:
            patterns[pattern] = _gives_zero(whole, pattern)
        if patterns[pattern]:
            result.append(index)
    return result


def _gives_zero(whole: Call, is_zero: tuple[bool, ...]) -> bool:
    """Try it: 0 for the operands that are zero, NaN for those that may be anything."""
    if whole.name == "mul":
        return True  # any factor is enough; NaN would hide that
    values = iter([torch.zeros(()) if zero else torch.full((), math.nan) for zero in is_zero])
    args, kwargs = tree_map(
        lambda leaf: next(values) if isinstance(leaf, Ref) else leaf,
        (whole.args, dict(whole.kwargs)),
    )
    kwargs.pop("device", None)
    try:
        return bool(whole.op(*args, **kwargs) == 0)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _along(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """Softmax, cumsum: the shape stays, values mix along `dim`."""
    axes = c.axes(whole.operands[0])
    axis, reason = axes[whole.argument("dim")], "it normalises over the channels"
    if whole.name == "cumsum":
        c.block(axis, reason)
    else:
        c.block_outside_norms(whole, axis, reason)
    return [tuple(axis.with_zero(()) for axis in axes)]


def _reduce(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    axes = c.axes(whole.operands[0])
    dims = whole.argument("dim")
    dims = range(len(axes)) if dims is None or dims == [] else dims
    gone = (
        {dim % len(axes) for dim in ([dims] if isinstance(dims, int) else dims)} if axes else set()
    )
    for dim in gone:
        if whole.name in ("sum", "linalg_vector_norm", "any"):
            c.block(axes[dim], "it reduces over the channels")
        else:
            c.block_outside_norms(whole, axes[dim], "it reduces over the channels")
    keeps_zero = whole.name in ("mean", "sum", "amax", "amin")
    kept = [
        Axis(1) if dim in gone else axis if keeps_zero else axis.with_zero(())
        for dim, axis in enumerate(axes)
        if dim not in gone or whole.argument("keepdim")
    ]
    return [tuple(kept)] * (2 if whole.name == "var_mean" else 1)


def _extreme(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    """The largest or smallest: of two tensors, or over axes; over one axis, with the indices too."""
    if isinstance(whole.argument("other"), Ref):
        return _pointwise(c, whole, shrunk)
    [axes] = _reduce(c, whole, shrunk)
    axes = tuple(axis.with_zero(()) for axis in axes)
    return [axes] * len(whole.outputs)


def _matrix_product(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """mm, bmm, addmm, baddbmm: [..., m, k] by [..., k, n], plus what broadcasts to [..., m, n]."""
    *added, left, right = (c.axes(ref) for ref in whole.operands)
    batch = [same_axis(pair) for pair in zip(left[:-2], right[:-2], strict=True)]
    require(left[-1].agrees(right[-2]), "it would multiply channels that do not correspond")
    require(left[-1].left is None or right[-2].left is None, "a sum depends on how many there are")
    c.block_unless_zero(left[-1], right[-2])
    result = [*batch, left[-2], right[-1]]
    for axes in added:
        for position in range(-len(axes), 0):
            zero = result[position].zero & axes[position].zero
            if axes[position].size > 1:
                result[position] = same_axis([result[position], axes[position]])
            result[position] = result[position].with_zero(zero)
        if len(axes) < len(result):  # the bias is added at every row
            result[:-1] = [axis.with_zero(()) for axis in result[:-1]]
    return [tuple(result)]


def _convolution(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    x, weight = c.axes(whole.argument("input")), c.axes(whole.argument("weight"))
    bias = whole.argument("bias")
    spatial = (*x[2:], *weight[2:])
    require(not any(axis.removed for axis in spatial), "an image lost rows or columns")
    is_transposed = whole.argument("transposed")
    out, inner = (weight[1], weight[0]) if is_transposed else (weight[0], weight[1])
    if whole.argument("groups") > 1 and is_transposed:
        require(x[1].agrees(inner), "it would multiply channels that do not correspond")
        out = _out_of_transposed_groups(c, whole, shrunk, x[1], out)
    elif whole.argument("groups") == shrunk.argument("groups") == 1:
        require(x[1].agrees(inner), "it would multiply channels that do not correspond")
        c.block_unless_zero(x[1], inner)
    else:
        _check_convolution_groups(c, whole, shrunk, x[1], out, inner)
        if whole.argument("groups") == out.size == x[1].size:
            out = out.with_zero(out.zero | x[1].zero)
    if bias is not None:
        require(c.axes(bias)[0].agrees(out))
        out = out.with_zero(out.zero & c.axes(bias)[0].zero)
    return [(x[0], out, *_sizes_after(c, whole, 2))]


def _check_convolution_groups(
    c: Comparison, whole: Call, shrunk: Call, x: Axis, out: Axis, inner: Axis
) -> None:
    """Each kept filter must read, in the shrunk model, the channels that it read in the whole one."""
    require(x.known and out.known and inner.known)
    groups, groups_left = whole.argument("groups"), shrunk.argument("groups")
    require(len(out.kept) % groups_left == 0 and len(x.kept) % groups_left == 0)
    filters_left, reads_left = len(out.kept) // groups_left, len(x.kept) // groups_left
    filters = out.size // groups
    for position, filter_ in enumerate(out.kept):
        group, group_left = filter_ // filters, position // filters_left
        reads = tuple(group * inner.size + index for index in inner.kept)
        require(
            x.kept[group_left * reads_left : (group_left + 1) * reads_left] == reads,
            "the groups of the convolution would read other channels",
        )
    if c.exact and inner.removed:
        raise DisagreementError("a convolution in groups mixes the channels", x.removed.values())


def _out_of_transposed_groups(c: Comparison, whole: Call, shrunk: Call, x: Axis, out: Axis) -> Axis:
    """Return what goes out where each group makes the channels `out`; a group without inputs is gone."""
    require(x.known and out.known and x.left is None and out.left is None)
    groups, groups_left = whole.argument("groups"), shrunk.argument("groups")
    width, width_left = x.size // groups, len(x.kept) // groups_left
    groups_kept = list(dict.fromkeys(index // width for index in x.kept))
    reads = [groups_kept.index(index // width) for index in x.kept]
    require(
        reads == [position // width_left for position in range(len(x.kept))],
        "the groups of the convolution would read other channels",
    )
    if c.exact and (x.removed or out.removed):
        raise DisagreementError("a convolution in groups mixes the channels", x.removed.values())
    removed = {
        group * out.size + index: owner
        for group in range(groups)
        for index, owner in out.removed.items()
    }
    for group in {*range(groups)} - {*groups_kept}:
        owner = x.removed[group * width]
        removed.update(dict.fromkeys(range(group * out.size, (group + 1) * out.size), owner))
    return Axis(groups * out.size, removed)


def _sizes_after(c: Comparison, whole: Call, leading: int) -> Axes:
    """Return the axes behind the first `leading` ones, where nothing was removed."""
    return whole_axes(c.before.shapes[whole.outputs[0].index][leading:])


def _batch_norm(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    x = c.axes(whole.argument("input"))
    require(
        not any(axis.removed for dim, axis in enumerate(x) if dim != 1),
        "it normalises over what would be gone",
    )
    names = ("weight", "bias", "running_mean", "running_var")
    given = {name: c.axes(whole.argument(name))[0] for name in names if whole.argument(name)}
    require(all(axis.agrees(x[1]) for axis in given.values()))
    none: frozenset[int] = frozenset()
    scale = given["weight"].zero if "weight" in given else none
    mean = given["running_mean"].zero if "running_mean" in given else none
    shift = given["bias"].zero if "bias" in given else frozenset(range(x[1].size))
    quiet = shift & (scale | (x[1].zero & mean))
    return [tuple(axis.with_zero(quiet if i == 1 else ()) for i, axis in enumerate(x))]


def _layer_norm(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    x = c.axes(whole.argument("input"))
    result = [axis.with_zero(()) for axis in x]
    for name in ("weight", "bias"):
        if whole.argument(name):
            for position, axis in zip(
                range(-len(c.axes(whole.argument(name))), 0), c.axes(whole.argument(name))
            ):
                require(axis.agrees(x[position]))
    for axis in x[len(x) - len(whole.argument("normalized_shape")) :]:
        c.block(axis, "it normalises over the channels")
    return [tuple(result)]


def _group_norm(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    x = c.axes(whole.argument("input"))
    groups = whole.argument("group")
    require(groups == shrunk.argument("group") and x[1].known)
    counts = {0: 0} | dict.fromkeys(range(groups), 0)
    for index in x[1].kept:
        counts[index * groups // x[1].size] += 1
    require(len(set(counts.values())) == 1, "the groups of the norm would not stay together")
    for name in ("weight", "bias"):
        if whole.argument(name):
            require(c.axes(whole.argument(name))[0].agrees(x[1]))
    c.block(x[1], "it normalises over the channels")
    return [tuple(axis.with_zero(()) for axis in x)]


def _windows(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """Pooling, padding and resizing: batch and channels stay, the axes behind them must be whole."""
    x = c.axes(whole.operands[0])
    name = whole.name
    spatial = (
        len(whole.argument("pad")) // 2
        if name == "constant_pad_nd"
        else int(next(digit for digit in name if digit.isdigit()))
    )
    leading = len(x) - spatial
    require(not any(axis.removed for axis in x[leading:]), "an image lost rows or columns")
    keeps_zero = name != "constant_pad_nd" or not whole.argument("value")
    front = [axis if keeps_zero else axis.with_zero(()) for axis in x[:leading]]
    return [(*front, *_sizes_after(c, whole, leading))]


def _embedding(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    table, indices = c.axes(whole.argument("weight")), c.axes(whole.argument("indices"))
    require(not table[0].removed, "entries of an embedding would be gone")
    return [(*indices, table[1])]


def _attention(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    query, key, value = (c.axes(whole.argument(name)) for name in ("query", "key", "value"))
    require(all(q.agrees(k) and q.agrees(v) for q, k, v in zip(query[:-2], key[:-2], value[:-2])))
    require(query[-1].agrees(key[-1]), "it would multiply channels that do not correspond")
    require(key[-2].agrees(value[-2]))
    require(
        not query[-1].removed or whole.argument("scale") == shrunk.argument("scale") is not None,
        "it divides by the root of the width of a head, which would be another",
    )
    c.block(query[-1], "attention scores are sums over the channels")
    return [tuple(axis.with_zero(()) for axis in (*query[:-1], value[-1]))]


def _weight_norm(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    direction, dim = c.axes(whole.operands[0]), whole.argument("dim")
    require(
        not any(axis.removed for i, axis in enumerate(direction) if i != dim),
        "the norm of the weights would change",
    )
    require(all(a.agrees(b) for a, b in zip(direction, c.axes(whole.operands[1])) if b.size > 1))
    return [tuple(axis.with_zero(()) for axis in direction)]


def _index(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """x[:, i]: one tensor of indices on one whole axis puts its own axes there."""
    x, indices = c.axes(whole.argument("self")), whole.argument("indices")
    used = [dim for dim, index in enumerate(indices) if index is not None]
    require(len(used) == 1, "indexing by several tensors is not known")
    require(not x[used[0]].removed, "an axis is indexed that lost channels")
    inserted = tuple(axis.with_zero(()) for axis in c.axes(indices[used[0]]))
    return [(*x[: used[0]], *inserted, *x[used[0] + 1 :])]


def _filled(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """Zeros, ones and the like: only how many there are matters."""
    return [c.filled(whole.outputs[0])]


def _noise(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """Dropout that is not fused: each element is drawn for itself."""
    return [tuple(axis.with_zero(()) for axis in c.axes(whole.operands[0]))]


def _same(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    c.alias(whole)
    return [c.axes(whole.operands[0])]


def _drawn(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """What is drawn for each element, or not set yet: it has the shape of the operand."""
    c.alias(whole)
    return [tuple(axis.with_zero(()) for axis in c.axes(whole.operands[0]))]


def _rearrange(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """Transposing and broadcasting: a stride says which axis comes from which."""
    c.alias(whole)
    axes = c.axes(whole.operands[0])
    origins = axis_origins(whole, [axis.size for axis in axes])
    spread = c.filled(whole.outputs[0])
    return [
        tuple(
            axis if origin is None else axes[origin]
            for origin, axis in zip(origins, spread, strict=True)
        )
    ]


def axis_origins(call: Call, sizes: Sequence[int]) -> list[int | None]:
    """Return which axis of `sizes` each axis of the result is; None for one that is broadcast."""
    strides = [7 + 2 * position for position in range(len(sizes))]
    result = _replay(call, [torch.empty_strided(sizes, strides, device="meta")])[0]
    origin = {stride: position for position, stride in enumerate(strides)}
    return [
        None if size == 1 or stride == 0 else origin[stride]
        for size, stride in zip(result.shape, result.stride(), strict=True)
    ]


def _along_one_axis(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    """Slicing, splitting, joining: only `dim` is followed, the other axes stay as they are."""
    c.alias(whole)
    operands = [c.axes(ref) for ref in whole.operands]
    dim = whole.argument("dim", 0) % len(operands[0])
    for axes in operands[1:]:
        require(len(axes) == len(operands[0]))
    lines = [tuple(axis if i == dim else Axis(1) for i, axis in enumerate(a)) for a in operands]
    results = _follow(whole, shrunk, lines)
    others = tuple(_zero_everywhere([(*a[:dim], *a[dim + 1 :]) for a in operands]))
    return [
        (*others[:dim], line[dim], *others[dim:]) if len(line) == len(operands[0]) else others
        for line in results
    ]


def _zero_everywhere(operands: list[Axes]) -> Iterable[Axis]:
    """Joined tensors are zero at an index of another axis where all of them are."""
    for axes in zip(*operands, strict=True):
        yield same_axis(axes).with_zero(frozenset.intersection(*(axis.zero for axis in axes)))


def _stack(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    operands = [c.axes(ref) for ref in whole.operands]
    stacked = list(_zero_everywhere(operands))
    dim = whole.argument("dim", 0) % (len(stacked) + 1)
    stacked.insert(dim, Axis(len(operands)))
    return [tuple(stacked)]


def _view(c: Comparison, whole: Call, _shrunk: Call) -> list[Axes]:
    """A reshape falls into runs of axes that are reshaped independently; only cut runs are followed."""
    c.alias(whole)
    source, target = whole.operands[0], whole.outputs[0]
    axes = c.axes(source)
    sizes, sizes_after = c.before.shapes[target.index], c.after.shapes[target.index]
    require(len(sizes) == len(sizes_after), "it reshapes to another number of axes")
    result: list[Axis] = []
    for run, run_target in runs([axis.size for axis in axes], list(sizes)):
        part = axes[run]
        if len(part) == len(sizes[run_target]) == 1:
            result.extend(part)
        elif not any(axis.removed or axis.zero or not axis.known for axis in part):
            result.extend(whole_axes(sizes[run_target]))
        else:
            result.extend(_reshape_run(part, sizes[run_target], sizes_after[run_target]))
    return [tuple(result)]


def runs(source: list[int], target: list[int]) -> Iterable[tuple[slice, slice]]:
    """Cut two shapes of one tensor into the shortest runs of equal products.

    [2, 12, 5] and [2, 3, 4, 5] give [2]/[2], [12]/[3, 4] and [5]/[5].
    """
    i = j = 0
    while i < len(source) or j < len(target):
        i_end, j_end = min(i + 1, len(source)), min(j + 1, len(target))
        while math.prod(source[i:i_end]) != math.prod(target[j:j_end]):
            if i_end == len(source) and j_end == len(target):
                raise ValueError(f"{source} and {target} are not of one tensor")
            if j_end == len(target) or (
                i_end < len(source) and math.prod(source[i:i_end]) < math.prod(target[j:j_end])
            ):
                i_end += 1
            else:
                j_end += 1
        if i_end == len(source) or j_end == len(target):  # trailing ones
            i_end, j_end = len(source), len(target)
        yield slice(i, i_end), slice(j, j_end)
        i, j = i_end, j_end


def _reshape_run(part: Axes, sizes: Sequence[int], sizes_after: Sequence[int]) -> Axes:
    require(all(axis.known and axis.left is None for axis in part), "what it reshapes is not known")
    require(
        math.prod(len(axis.kept) for axis in part) == math.prod(sizes_after),
        "it would reshape across channels",
    )
    return moved(
        lambda labels: [labels[0].reshape(*sizes)],
        lambda labels: [labels[0].reshape(*sizes_after)],
        [part],
    )[0]


def _labelled(c: Comparison, whole: Call, shrunk: Call) -> list[Axes]:
    """Anything else that only moves elements: done on labels."""
    return _follow(whole, shrunk, [c.axes(ref) for ref in whole.operands])


def _follow(whole: Call, shrunk: Call, operands: list[Axes]) -> list[Axes]:
    return moved(
        lambda labels: _replay(whole, labels), lambda labels: _replay(shrunk, labels), operands
    )


def _replay(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Return the same operation with the same arguments on other tensors."""
    remaining = iter(tensors)
    args, kwargs = tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, Ref) else leaf,
        (call.args, dict(call.kwargs)),
    )
    try:
        result = call.op(*args, **kwargs)
    except (RuntimeError, IndexError) as error:
        raise DisagreementError(str(error).split("\n")[0]) from error
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


Rule = Callable[[Comparison, Call, Call], list[Axes]]

_BY_NAME: Mapping[str, Rule] = {
    name: rule
    for rule, names in {
        _pointwise: "_prelu_kernel hardswish clone _to_copy copy dropout native_dropout lift_fresh "
        "zeros_like ones_like full_like",
        _filled: "zeros ones full empty new_zeros new_ones new_full new_empty",
        _noise: "empty_like rand_like bernoulli",
        _same: "detach alias contiguous",
        _along: "_softmax _log_softmax _safe_softmax cumsum",
        _reduce: "mean sum amax amin var var_mean std linalg_vector_norm any all",
        _matrix_product: "mm bmm addmm baddbmm",
        _convolution: "convolution",
        _batch_norm: "native_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training cudnn_batch_norm",
        _layer_norm: "native_layer_norm",
        _group_norm: "native_group_norm",
        _windows: "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
        "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d constant_pad_nd "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d "
        "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa",
        _embedding: "embedding",
        _attention: "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention "
        "_scaled_dot_product_fused_attention_overrideable",
        _weight_norm: "_weight_norm_interface",
        _index: "index",
        _rearrange: "t transpose permute unsqueeze squeeze expand movedim",
        _along_one_axis: "slice select split split_with_sizes unsafe_split "
        "unsafe_split_with_sizes unsafe_chunk chunk unbind cat",
        _stack: "stack",
        _view: "view _unsafe_view reshape _reshape_alias",
        _labelled: "pixel_shuffle pixel_unshuffle channel_shuffle flip roll repeat tril triu",
        _drawn: "empty_like rand_like randn_like bernoulli",
        _extreme: "max min",
    }.items()
    for name in names.split()
}


_FOLLOW_ALIKE = {
    *(_pointwise, _filled, _same, _matrix_product, _rearrange, _along_one_axis, _stack, _view)
}
"""The rules that an axis may meet of which only the number of its indices is known."""


def follows_alike(call: Call) -> bool:
    """Return whether the rule of an operation goes by the number of indices that are all alike."""
    return rule_of(call) in _FOLLOW_ALIKE


def fills(call: Call) -> bool:
    """Return whether an operation makes or spreads elements that are all alike."""
    return rule_of(call) in (_filled, _rearrange)


def rule_of(call: Call) -> Rule | None:
    """Return the rule for an operation, if there is one."""
    rule = _BY_NAME.get(call.name)
    return _pointwise if rule is None and torch.Tag.pointwise in call.op.tags else rule
