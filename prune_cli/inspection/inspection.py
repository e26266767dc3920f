"""What is in a checkpoint, from its headers: for people before a command, and for the next program.

Without torch, unless zeros are counted: then the weights are mapped and read, one tensor at a
time, and no further than it takes to see that a channel is not zero. Not here: how any of it
looks (`console`).
"""

import glob
import heapq
import itertools
import os
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prune_cli.checkpoint import Checkpoint, Dropped, Loading, open_checkpoint
from prune_cli.checkpoint.tensors import DTYPES, Parameter, TensorInfo
from prune_cli.errors import DimError
from prune_cli.jsontext import encode
from prune_cli.plan.prunable import find_problems, scaled_by
from prune_cli.plan.selection import Rule, Selection, matcher, select
from prune_cli.write.progress import OnTensor

SCHEMA = 1

MAX_GLOBS = 16
"""How many patterns are proposed at most."""


@dataclass(frozen=True, slots=True)
class ZeroCount:
    """How many of a tensor's channels along `dim` are all zero."""

    dim: int
    channels: int
    zero: int


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """One parameter, as its module knows it.

    Attributes:
        name: full dotted name without `_orig`; module, param: its two parts.
        aliases: further names of the same memory.
        dtype, shape: dtype as safetensors spells it.
        elements, bytes: of the parameter, without its mask.
        file: the shard that holds it.
        mask: the name of the tensor that is its mask, where torch pruned it.
        prunable_dims: the dims along which it can be pruned, counted from the front.
        reason: why there are none.
        zeros: for each dim that was asked for; None where they were not counted.
    """

    name: str
    module: str
    param: str
    aliases: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    file: str
    mask: str | None
    prunable_dims: tuple[int, ...]
    reason: str | None
    zeros: tuple[ZeroCount, ...] | None = None


@dataclass(frozen=True, slots=True)
class DtypeTotal:
    """All tensors of one dtype, masks included."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern for `--module`, and what can be pruned of what it matches.

    `param` is a pattern for `--param` that matches all of it, and `depth` how many of the
    patterns listed above this one hold its modules.
    """

    pattern: str
    param: str
    depth: int
    modules: int
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a checkpoint; `parameters` and what sums them up are those that were asked for.

    Attributes:
        path: its name, without the folders above it.
        format: as in Checkpoint.
        files: how many of them hold tensors.
        bytes: of these files.
        dtypes: totals, the largest first.
        parameters: in the order of a torch file; in that of their names, numbers as numbers, for
            safetensors, which has no order of its own.
        globs: patterns that group the modules; None where they were not asked for.
        dropped: entries that are no tensors.
        notes: what a user should be told about how it was read.
    """

    path: str
    format: str
    files: int
    bytes: int
    dtypes: tuple[DtypeTotal, ...]
    parameters: tuple[ParameterFacts, ...]
    globs: tuple[Glob, ...] | None
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]


def inspect_checkpoint(
    path: str | Path,
    *,
    modules: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    params: Sequence[str] = ("*",),
    zeros: bool = False,
    dim: int | None = None,
    globs: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
) -> Inspection:
    """What is in the checkpoint at `path`: `prune-cli inspect` from Python.

    Args:
        path: a checkpoint: a file, or a folder in the Hugging Face layout.
        modules: globs of dotted module names, as for pruning.
        exclude: globs of modules to leave out.
        params: globs of parameter names within a module.
        zeros: count the channels that are all zero, which reads weights.
        dim: the only dim along which they are counted; by default all.
        globs: propose patterns that group the modules.
        loading: how a pickle may be loaded.
        on_tensor: progress of the counting.

    Raises:
        InputError: it cannot be read, or is refused.
        SelectionError: a pattern matches nothing.
        DimError: no tensor has that dim.

    Example:
        >>> inspect_checkpoint("model.safetensors").parameters[0].prunable_dims
        (0, 1)
    """
    return inspect(
        open_checkpoint(path, loading),
        modules=modules,
        exclude=exclude,
        params=params,
        zeros=zeros,
        dim=dim,
        globs=globs,
        on_tensor=on_tensor,
    )


def inspect(
    checkpoint: Checkpoint,
    *,
    modules: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    params: Sequence[str] = ("*",),
    zeros: bool = False,
    dim: int | None = None,
    globs: bool = False,
    on_tensor: OnTensor | None = None,
) -> Inspection:
    """The Inspection of an opened `checkpoint`; arguments and errors as for inspect_checkpoint."""
    rule = Rule(tuple(modules), tuple(params), amount=0, dim=0)
    selection = Selection((rule,), tuple(exclude))
    picked = select(checkpoint.parameters, selection, aliases=checkpoint.names_of)
    parameters = [pick.parameter for pick in picked]
    if checkpoint.format == "safetensors":
        parameters.sort(key=lambda parameter: natural_key(parameter.name))
    counts = _count_zeros(checkpoint, parameters, dim, on_tensor) if zeros else {}
    facts = tuple(_facts(checkpoint, each, counts.get(each.name)) for each in parameters)
    return Inspection(
        path=checkpoint.path.name or checkpoint.path.resolve().name,
        format=checkpoint.format,
        files=len(checkpoint.shards),
        bytes=checkpoint.nbytes,
        dtypes=_sum_up(parameters),
        parameters=facts,
        globs=propose_globs(facts, among=_prunable_modules(checkpoint)) if globs else None,
        dropped=checkpoint.dropped,
        notes=checkpoint.notes,
    )


def to_json(inspection: Inspection) -> str:
    """The inspection as JSON, a line for each parameter, ending in a newline.

    The keys are those of Inspection in their order, after "schema"; "globs" and the "zeros" of a
    parameter are there only if they were asked for.
    """
    facts = asdict(inspection)
    rows = [_without(row, "zeros") for row in facts["parameters"]]
    lists = {key: list(facts[key]) for key in ("dtypes", "dropped")}
    if inspection.globs is not None:
        lists["globs"] = list(facts["globs"])
    kept = _without(facts, "globs")
    return encode({"schema": SCHEMA, **kept, **lists, "parameters": rows})


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts numbers in names as numbers: "layers.2" comes before "layers.10"."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts if p)


def _without(row: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != key or value is not None}


# --- facts -----------------------------------------------------------------------------------


def _facts(
    checkpoint: Checkpoint, parameter: Parameter, zeros: tuple[ZeroCount, ...] | None
) -> ParameterFacts:
    info = parameter.tensor
    reason = next(find_problems(checkpoint, parameter), None)
    return ParameterFacts(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        shape=info.shape,
        elements=info.elements,
        bytes=info.nbytes,
        file=checkpoint.shards[info.shard].name,
        mask=parameter.mask.name if parameter.mask else None,
        prunable_dims=() if reason else tuple(range(len(info.shape))),
        reason=reason,
        zeros=zeros,
    )


def _sum_up(parameters: Iterable[Parameter]) -> tuple[DtypeTotal, ...]:
    groups: dict[str, list[TensorInfo]] = {}
    for parameter in parameters:
        for info in filter(None, (parameter.tensor, parameter.mask)):
            groups.setdefault(info.dtype, []).append(info)
    totals = [
        DtypeTotal(
            dtype,
            len(infos),
            sum(info.elements for info in infos),
            sum(info.nbytes for info in infos),
        )
        for dtype, infos in groups.items()
    ]
    return tuple(sorted(totals, key=lambda total: (-total.bytes, total.dtype)))


# --- zeros -----------------------------------------------------------------------------------


def _count_zeros(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    dim: int | None,
    on_tensor: OnTensor | None,
) -> dict[str, tuple[ZeroCount, ...]]:
    """The zero channels of each parameter that has dims, and a dtype that has a zero."""
    counts: dict[str, tuple[ZeroCount, ...]] = {}
    if not any(_dims(parameter, dim) for parameter in parameters):
        raise DimError(f"none of the {len(parameters)} tensor(s) has a dim {dim}; leave out --dim")
    for parameter in parameters:
        if _can_be_counted(parameter.tensor):
            counts[parameter.name] = tuple(
                _count(checkpoint, parameter, each) for each in _dims(parameter, dim)
            )
        if on_tensor:
            on_tensor(parameter.name, parameter.tensor.nbytes)
    return counts


def _dims(parameter: Parameter, dim: int | None) -> Sequence[int]:
    size = len(parameter.tensor.shape)
    if dim is None:
        return range(size)
    return (dim % size,) if -size <= dim < size else ()


def _can_be_counted(info: TensorInfo) -> bool:
    dtype = DTYPES[info.dtype]
    return dtype.holds_zero and dtype.bits >= 8 and dtype.torch is not None


def _count(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> ZeroCount:
    """By the mask where there is one, as the plan does."""
    from prune_cli.channels import live_channels

    info = parameter.mask or parameter.tensor
    channels = info.shape[dim]
    return ZeroCount(
        dim, channels, channels - len(live_channels(checkpoint.bits(info), dim, info.dtype))
    )


# --- trees of names --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A module, a group of modules or a parameter, and what is in it.

    `path` has its labels from the root on, "*" for any number; a node without children is a
    group of parameters that look alike.
    """

    path: tuple[str, ...]
    label: str
    parameters: tuple[ParameterFacts, ...]
    children: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an outline: a node, how deep it stands, and whether its children follow."""

    depth: int
    node: Node
    is_open: bool


def outline(parameters: Sequence[ParameterFacts], limit: int | None) -> list[Line]:
    """The modules and parameters as a tree, in at most `limit` lines if that can be.

    Where there are more, modules that differ by a number only become one, and then the smallest
    stay closed: their line stands for all they hold.

    Example:
        >>> [line.node.label for line in outline(inspect_checkpoint("m.safetensors").parameters, 9)]
        ['fc', 'bias', 'weight', 'layers.*', 'bias', 'weight']
    """
    is_long = limit is not None and len(parameters) > limit
    tree = _tree(parameters, _parts_and_look, is_starred=is_long)
    if limit is None:
        return list(_lines(tree, None))
    if not is_long and _count_lines(tree) > limit:
        tree = _tree(parameters, _parts_and_look, is_starred=True)
    return list(_lines(tree, _open_largest(tree, limit)))


Part = tuple[str, Hashable]
"""A label, and what tells it from another of the same label."""

_Entry = tuple[Sequence[Part], ParameterFacts]


def _parts_and_look(facts: ParameterFacts) -> list[Part]:
    look = (facts.shape, facts.dtype, facts.mask is None, facts.prunable_dims)
    return [*_module_parts(facts), (facts.param, look)]


def _module_parts(facts: ParameterFacts) -> list[Part]:
    return [(part, None) for part in facts.module.split(".") if part]


def _tree(
    parameters: Iterable[ParameterFacts],
    parts_of: Callable[[ParameterFacts], Sequence[Part]],
    *,
    is_starred: bool,
) -> Node:
    """The root of the tree that the parts of `parameters` make up."""
    return _grow((), "", [(parts_of(facts), facts) for facts in parameters], is_starred=is_starred)


def _grow(
    path: tuple[str, ...], label: str, entries: Sequence[_Entry], *, is_starred: bool
) -> Node:
    """The Node of what lies under `path`; one with a single child becomes one with it."""
    groups = _group(entries, len(path), is_starred=is_starred)
    parameters = tuple(facts for _, facts in entries)
    if None in groups and len(groups) == 1:
        return Node(path, label, parameters)
    chained = f"{label}." if len(groups) == 1 and label else ""
    children = tuple(
        _grow((*path, part[0]), chained + part[0], group, is_starred=is_starred)
        if part
        else Node(path, label, tuple(facts for _, facts in group))
        for part, group in groups.items()
    )
    return children[0] if len(children) == 1 and path else Node(path, label, parameters, children)


def _group(
    entries: Sequence[_Entry], at: int, *, is_starred: bool
) -> dict[Part | None, list[_Entry]]:
    """`entries` by their part number `at`, None for those that end before it."""
    groups: dict[Part | None, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry[0][at] if at < len(entry[0]) else None, []).append(entry)
    numbers = [part for part in groups if part and part[0].isdecimal()]
    if is_starred and len(numbers) > 1:
        together: dict[Part | None, list[_Entry]] = {}
        for part, group in groups.items():
            key = ("*", part[1]) if part in numbers and part else part
            together.setdefault(key, []).extend(group)
        return together
    return groups


def _count_lines(node: Node) -> int:
    return sum(1 + _count_lines(child) for child in node.children)


def _open_largest(root: Node, limit: int) -> set[int]:
    """The ids of the nodes to open, the largest first, so that there are at most `limit` lines."""
    opened, count = {id(root)}, len(root.children)
    numbers = itertools.count()  # among equals the first one found
    waiting = [(-_nbytes(child), next(numbers), child) for child in root.children]
    heapq.heapify(waiting)
    while waiting:
        node = heapq.heappop(waiting)[-1]
        if node.children and count + len(node.children) <= limit:
            opened.add(id(node))
            count += len(node.children)
            for child in node.children:
                heapq.heappush(waiting, (-_nbytes(child), next(numbers), child))
    return opened


def _nbytes(node: Node) -> int:
    return sum(facts.bytes for facts in node.parameters)


def _lines(node: Node, opened: set[int] | None, depth: int = 0) -> Iterator[Line]:
    for child in node.children:
        is_open = bool(child.children) and (opened is None or id(child) in opened)
        yield Line(depth, child, is_open)
        if is_open:
            yield from _lines(child, opened, depth + 1)


# --- globs -----------------------------------------------------------------------------------


def propose_globs(
    parameters: Iterable[ParameterFacts],
    *,
    among: Iterable[str] | None = None,
    limit: int = MAX_GLOBS,
) -> tuple[Glob, ...]:
    """A few patterns for `--module` that group the prunable of `parameters`, wide ones first.

    Args:
        parameters: of a checkpoint, or some of them.
        among: all module names of the checkpoint that hold something to prune. A pattern that
            stands for several of the listed ones matches, of these, nothing else.
        limit: the most patterns to propose.

    Example:
        >>> [g.pattern for g in propose_globs(inspect_checkpoint("llama.safetensors").parameters)]
        ['*', 'lm_head', 'model.embed_tokens', 'model.layers.*', 'model.layers.*.mlp.*', ...]
    """
    prunable = _without_scales([facts for facts in parameters if facts.prunable_dims])
    if not prunable:
        return ()
    modules = list(dict.fromkeys(among or (facts.module for facts in prunable)))
    return _globs_of(prunable, modules, limit, is_starred=True) or _globs_of(
        prunable, modules, limit, is_starred=False
    )


def _globs_of(
    prunable: Sequence[ParameterFacts], modules: Sequence[str], limit: int, *, is_starred: bool
) -> tuple[Glob, ...]:
    tree = _tree(prunable, _module_parts, is_starred=is_starred)
    lines = [Line(0, tree, is_open=True), *_lines(tree, _open_largest(tree, limit - 1), depth=1)]
    globs: dict[frozenset[str], Glob] = {}
    around: list[int] = []  # how deep those patterns stand that hold the next one
    for line in lines:
        pattern = _pattern(line.node, modules, {facts.module for facts in prunable})
        matched = _matched(prunable, pattern) if pattern is not None else []
        held = frozenset(facts.name for facts in matched)
        if pattern is None or held in globs:
            continue
        around = [depth for depth in around if depth < line.depth]
        globs[held] = _glob(pattern, len(around), matched)
        around.append(line.depth)
    return tuple(globs.values())[:limit]


def _without_scales(parameters: Sequence[ParameterFacts]) -> list[ParameterFacts]:
    """Scales of quantised tensors have dims as well, but nobody prunes them for themselves."""
    names = {facts.name for facts in parameters}
    return [facts for facts in parameters if scaled_by(facts.name) not in names]


def _prunable_modules(checkpoint: Checkpoint) -> list[str]:
    return [
        parameter.module
        for parameter in checkpoint.parameters
        if not any(find_problems(checkpoint, parameter))
    ]


def _pattern(node: Node, modules: Sequence[str], asked: Collection[str]) -> str | None:
    """A pattern for the modules of `node`, and for none of `modules` that was not `asked` for.

    That of a group is for no other module at all.
    """
    stem = ".".join(part if part == "*" else glob.escape(part) for part in node.path)
    own = {facts.module for facts in node.parameters}
    patterns = (f"{stem}.*", f"{stem}*") if node.children else (stem,)
    for pattern in patterns:
        pattern = re.sub(r"(\.\*)+$", ".*", pattern) if stem else "*" if node.children else ""
        fits = matcher([pattern])
        found = {module for module in modules if fits(module)}
        if found == own or (not node.children and found <= {*asked}):
            return pattern
    return None


def _matched(parameters: Sequence[ParameterFacts], pattern: str) -> list[ParameterFacts]:
    fits = matcher([pattern])
    return [facts for facts in parameters if fits(facts.module)]


def _glob(pattern: str, depth: int, matched: Sequence[ParameterFacts]) -> Glob:
    return Glob(
        pattern=pattern,
        param=_common_param([facts.param for facts in matched]),
        depth=depth,
        modules=len({facts.module for facts in matched}),
        tensors=len(matched),
        elements=sum(facts.elements for facts in matched),
        bytes=sum(facts.bytes for facts in matched),
    )


def _common_param(params: Sequence[str]) -> str:
    """The one name of `params`, or a pattern that fits them all: "weight_*"."""
    first, last = min(params), max(params)
    if first == last:
        return first
    return glob.escape(os.path.commonprefix([first, last])) + "*"
