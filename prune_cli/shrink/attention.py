"""Where the heads of attention are: in which axes of which tensors, and what counts them.

See also: heads.py, which takes some out and checks what comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from prune_cli.plan.shrink import Attribute
from prune_cli.plan.units import HEAD_DIM, HEADS
from prune_cli.shrink.channels import is_conv1d
from prune_cli.shrink.config import lost_sizes
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.subject import Subject
from prune_cli.shrink.trace import Call, Trace

_KEY_VALUE = re.compile(r".*(kv|key_value).*heads?|.*heads?_kv|multi_query_group_num")
_HEADS = re.compile(r"(.*_)?(n|num|number|q|query|attention|attn)?_?(of_)?n?heads?(\.\d+)?")
_WIDTHS = ("head_dim", "d_kv", "attention_head_dim", "attention_head_size", "kv_channels", "d_head")
_WIDTH = re.compile(r".*(head_?dim|head_?size|d_kv|d_k|d_head|dim_head|head_width|channels)")
_MODEL_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
_MOVES = {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "detach", "alias"} | {
    "unsqueeze",
    "expand",
    "_to_copy",
    "clone",
    "split",
    "chunk",
    "slice",
}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


@dataclass(frozen=True)
class AxisOfHeads:
    """An axis along which heads lie: `width` indices for each unit; `reads` is that of the reader."""

    tensor: str
    dim: int
    width: int
    reads: bool

    def indices(self, unit: int, attention: Attention, *, in_parts: bool) -> Iterator[int]:
        """Yield the indices of a unit; `in_parts`: those of queries, keys and values lie apart.

        A dim of the heads has one index in each head, whatever lies in what order.
        """
        if attention.unit == HEAD_DIM:
            yield from range(unit, self.width * attention.units, attention.units)
            return
        start = 0
        for width in self._parts(attention) if in_parts else (self.width,):
            yield from range(start + unit * width, start + (unit + 1) * width)
            start += attention.units * width

    def _parts(self, attention: Attention) -> tuple[int, ...]:
        """Return the widths of queries, keys and values, where this is a fused projection."""
        queries = attention.reader.width
        shared = queries // attention.sharing
        for parts in ((queries, shared, shared), (shared, shared)):
            if not self.reads and self.width == sum(parts) and self.width > queries:
                return parts
        return (self.width,)


@dataclass(frozen=True)
class Attention:
    """One attention: its module, the axes of its heads, and how many there are.

    Attributes:
        path: the module that holds all its projections.
        axes: of every tensor that heads lie in.
        units: how many heads have keys and values of their own.
        sharing: how many heads of queries share those.
        holders: the attributes of modules that count heads, and what they are for so many units.
        unit: heads, or dims that all heads have.
    """

    path: str
    axes: tuple[AxisOfHeads, ...]
    units: int
    sharing: int
    holders: tuple[Holder, ...] = ()
    unit: str = HEADS

    @property
    def reader(self) -> AxisOfHeads:
        """The axis of the projection that reads the heads."""
        return next(axis for axis in self.axes if axis.reads)

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths by which it is selected."""
        owners = {axis.tensor.rpartition(".")[0] for axis in self.axes}
        return tuple(sorted({self.path, *owners}))

    def counts(self, k: int) -> Iterator[dict[str, dict[str, Attribute]]]:
        """Yield what attributes may be without `k` units: those that count heads, and widths too."""
        for most in sorted({holder.certainty for holder in self.holders} | {0}):
            values: dict[str, dict[str, Attribute]] = {}
            for holder in self.holders:
                if holder.certainty <= most:
                    new = holder.each * (self.units - k)
                    values.setdefault(holder.module, {})[holder.name] = new
            yield values


@dataclass(frozen=True)
class Holder:
    """An attribute that is `each` times the number of units; 0 is the most certain to be that."""

    module: str
    name: str
    each: int
    certainty: int


# --- by the numbers of a config ----------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """Attentions that a number of a config counts the heads of, and its new values."""

    key: str
    units: int
    each: Mapping[str, int]
    fixed: Mapping[str, int]
    attentions: tuple[Attention, ...] = field(default=())

    def changes(self, k: int) -> dict[str, int]:
        """Return what is new in the config without `k` units."""
        return {**{key: each * (self.units - k) for key, each in self.each.items()}, **self.fixed}


def counted_by_config(subject: Subject, folder: ModelFolder, unit: str) -> Iterator[Counted]:
    """Yield the numbers of a config that count units, with the attentions that these are of."""
    numbers = _numbers_of_heads if unit == HEADS else _numbers_of_dims
    for counted in numbers(folder):
        possible = possible_counts(folder, counted)
        if not possible:
            continue
        lost = lost_sizes(subject, folder.build(counted.changes(possible[0])))
        if all(count % possible[0] == 0 for count in lost.values()):
            each = {place: count // possible[0] for place, count in lost.items()}
            attentions = _clusters(subject, each, counted, unit)
            if attentions:
                yield replace(counted, attentions=attentions)


def possible_counts(folder: ModelFolder, counted: Counted) -> list[int]:
    """Return how many units can go as far as the config checks itself."""
    return [k for k in range(1, counted.units) if folder.is_possible(counted.changes(k))]


def _numbers_of_heads(folder: ModelFolder) -> Iterator[Counted]:
    numbers = folder.numbers()
    for key, heads in numbers.items():
        parent, _, name = key.rpartition(".")
        if type(heads) is not int or heads < 2 or _KEY_VALUE.fullmatch(name):
            continue
        if not _HEADS.fullmatch(name):
            continue
        beside = {
            other.rpartition(".")[2]: value
            for other, value in numbers.items()
            if other.rpartition(".")[0] == parent
        }
        shared = {
            other: value
            for other, value in beside.items()
            if _KEY_VALUE.fullmatch(other) and type(value) is int and value and heads % value == 0
        }
        units = min(shared.values(), default=heads)
        if units < 2:
            continue
        dot = f"{parent}." if parent else ""
        each = {key: heads // units, **{f"{dot}{other}": v // units for other, v in shared.items()}}
        for width in _widths(beside, heads):
            fixed = {f"{dot}{name}": value for name, value in width.items()}
            yield Counted(key, units, each, fixed)


def _numbers_of_dims(folder: ModelFolder) -> Iterator[Counted]:
    for key, width in folder.numbers().items():
        if key.rpartition(".")[2] in _WIDTHS and type(width) is int and width > 1:
            yield Counted(key, width, {key: 1}, {})


def _widths(beside: Mapping[str, Any], heads: int) -> Iterator[dict[str, int]]:
    """Yield what to say of the width of a head, which would follow from their number otherwise."""
    for name in _WIDTHS:
        if type(beside.get(name)) is int:
            yield {name: beside[name]}
            return
    whole = next((beside[n] for n in _MODEL_WIDTHS if type(beside.get(n)) is int), 0)
    if whole % heads == 0 and whole:
        for name in [name for name in _WIDTHS if name in beside] or ["head_dim"]:
            yield {name: whole // heads}
    yield {}


def _clusters(
    subject: Subject, lost: Mapping[tuple[str, int], int], counted: Counted, unit: str
) -> tuple[Attention, ...]:
    """Sort the axes that got shorter by the smallest module that holds makers and a reader."""
    modules = dict(subject.model.named_modules())
    sides = {place: _reads(modules, *place) for place in lost}
    paths: dict[str, list[tuple[str, int]]] = {}
    for place in lost:
        path = place[0]
        while path:
            path = path.rpartition(".")[0]
            inside = {sides[other] for other in lost if not path or other[0].startswith(f"{path}.")}
            if len(inside) == 2:
                break
        paths.setdefault(path, []).append(place)
    sharing = max(counted.each.values()) // min(counted.each.values())
    found = tuple(
        Attention(
            path,
            tuple(AxisOfHeads(*place, lost[place], sides[place]) for place in places),
            counted.units,
            sharing,
            unit=unit,
        )
        for path, places in paths.items()
    )
    is_sound = all(
        any(axis.reads for axis in each.axes)
        and all(subject.shape(a.tensor)[a.dim] == a.width * each.units for a in each.axes)
        for each in found
    )
    return found if is_sound else ()


def _reads(modules: Mapping[str, nn.Module], tensor: str, dim: int) -> bool:
    """Return whether an axis of a tensor is that of the channels which its module reads."""
    path, _, name = tensor.rpartition(".")
    module = modules[path]
    if name != "weight" or not (isinstance(module, nn.Linear) or is_conv1d(module)):
        return False
    return dim == (0 if is_conv1d(module) else 1)


# --- by what a model does ----------------------------------------------------------------------


def found_in_recording(subject: Subject, unit: str) -> list[Attention]:
    """Return the attentions that a recording shows: a softmax between projections."""
    find = _attention if unit == HEADS else _dims_of_heads
    recording = subject.recording
    weights = _weights_read(recording)
    ends = [
        number
        for number, call in enumerate(recording.calls)
        if call.name in ("_softmax", "_safe_softmax") or "attention" in call.name
    ]
    found = []
    for begin, end, stop in zip([-1, *ends], ends, [*ends[1:], len(recording.calls)]):
        makers = _makers(recording, weights, begin, end)
        reader = next((weights[n] for n in range(end, stop) if n in weights), None)
        if makers and reader:
            attention = find(subject, recording.calls[end], makers, reader)
            found += [attention] if attention else []
    return found


def _weights_read(recording: Trace) -> dict[int, str]:
    """Return for the number of each product that reads a weight that weight's name."""
    names = {
        ref.index: name
        for name, ref in reversed([*recording.named.items()])
        if len(recording.shapes[ref.index]) == 2
    }
    read = {}
    for number, call in enumerate(recording.calls):
        own = [names[ref.index] for ref in call.operands if ref.index in names]
        if own and call.name in _MOVES:
            names.update((ref.index, own[0]) for ref in call.outputs)
        elif own and call.name in _PRODUCTS:
            read[number] = own[-1]
    return read


def _makers(recording: Trace, weights: Mapping[int, str], begin: int, end: int) -> list[str]:
    """Return the weights that are read before a softmax, in the smallest module that reads some."""
    path = recording.calls[end].module
    while True:
        own = [
            name
            for number, name in weights.items()
            if begin < number < end
            and (not path or f"{recording.calls[number].module}.".startswith(f"{path}."))
        ]
        if own or not path:
            return list(dict.fromkeys(own))
        path = path.rpartition(".")[0]


def _dims_of_heads(
    subject: Subject, softmax: Call, makers: Sequence[str], reader: str
) -> Attention | None:
    """Return an attention whose units are dims: each has one index in every head."""
    heads = _attention(subject, softmax, makers, reader)
    if heads is None:
        return None
    width = heads.reader.width // heads.sharing
    axes = [
        replace(axis, width=subject.shape(axis.tensor)[axis.dim] // width)
        for axis in heads.axes
        if subject.shape(axis.tensor)[axis.dim] % width == 0
    ]
    modules = dict(subject.model.named_modules())
    holders = _holders_of_width(modules, heads.path, heads.units * heads.sharing, width)
    return Attention(heads.path, tuple(axes), width, 1, tuple(holders), HEAD_DIM)


def _holders_of_width(
    modules: Mapping[str, nn.Module], path: str, heads: int, width: int
) -> Iterator[Holder]:
    """Yield the attributes of an attention that are the width of a head, or that of all of them."""
    for where, name, value in _numbers_inside(modules, path):
        if value == width and _WIDTH.fullmatch(name):
            yield Holder(where, name, 1, 0)
        elif value == heads * width and not _HEADS.fullmatch(name):
            yield Holder(where, name, heads, 1)


def _attention(
    subject: Subject, softmax: Call, makers: Sequence[str], reader: str
) -> Attention | None:
    shape = subject.recording.shapes[softmax.operands[0].index]
    heads = shape[1] if len(shape) == 4 else shape[0]  # the example has a batch of one
    modules = dict(subject.model.named_modules())
    sides = {name: _out_dim(modules, name) for name in (*makers, reader)}
    read = subject.shape(reader)[1 - sides[reader]]
    if heads < 2 or read % heads:
        return None
    width = read // heads
    sizes = [subject.shape(name)[sides[name]] for name in makers]
    units = _units(heads, width, sizes)
    if units is None or units < 2:
        return None
    axes = [
        AxisOfHeads(tensor, dim, subject.shape(tensor)[dim] // units, False)
        for name in makers
        for tensor, dim in _with_bias(subject, name, sides[name])
    ]
    axes.append(AxisOfHeads(reader, 1 - sides[reader], read // units, True))
    path = _common_module([*makers, reader])
    axes += _tables(subject, path, heads, units, {axis.tensor for axis in axes})
    holders = tuple(_holders(modules, path, heads, units, width))
    return Attention(path, tuple(axes), units, heads // units, holders)


def _tables(
    subject: Subject, path: str, heads: int, units: int, known: Collection[str]
) -> Iterator[AxisOfHeads]:
    """Yield what has a number for each head, such as biases for relative positions."""
    for name, _ in subject.model.named_parameters():
        shape = subject.shape(name)
        if name.startswith(f"{path}.") and name not in known and shape.count(heads) == 1:
            yield AxisOfHeads(name, shape.index(heads), heads // units, False)


def _out_dim(modules: Mapping[str, nn.Module], tensor: str) -> int:
    return 1 if is_conv1d(modules[tensor.rpartition(".")[0]]) else 0


def _units(heads: int, width: int, sizes: Sequence[int]) -> int | None:
    """Return how many heads have keys of their own, by the sizes of what makes them."""
    if any(size % width for size in sizes):
        return None
    counts = [size // width for size in sizes]
    if len(counts) == 1:
        return (counts[0] - heads) // 2 if (counts[0] - heads) % 2 == 0 else None
    fewest = min(counts)
    return fewest if heads % fewest == 0 and all(c % fewest == 0 for c in counts) else None


def _with_bias(subject: Subject, weight: str, dim: int) -> Iterator[tuple[str, int]]:
    yield weight, dim
    bias = weight.removesuffix("weight") + "bias"
    if weight.endswith("weight") and bias in subject.first_names:
        yield bias, 0


def _common_module(tensors: Sequence[str]) -> str:
    paths = [name.split(".")[:-1] for name in tensors]
    common = []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _holders(
    modules: Mapping[str, nn.Module], path: str, heads: int, units: int, width: int
) -> Iterator[Holder]:
    """Yield the attributes of an attention that count heads, and those that may count their channels."""
    for where, name, value in _numbers_inside(modules, path):
        if _KEY_VALUE.fullmatch(name) and value == units:
            yield Holder(where, name, 1, 0)
        elif _HEADS.fullmatch(name) and value == heads:
            yield Holder(where, name, heads // units, 0)
        elif value == heads * width:
            yield Holder(where, name, heads // units * width, 1)


def _numbers_inside(modules: Mapping[str, nn.Module], path: str) -> Iterator[tuple[str, str, int]]:
    """Yield the module, the name and the value of each number in an attention but its projections'."""
    for where, module in modules.items():
        is_inside = f"{where}.".startswith(f"{path}.") or not path
        if is_inside and not isinstance(module, nn.Linear) and not is_conv1d(module):
            for name, value in vars(module).items():
                if type(value) is int:
                    yield where, name, value
