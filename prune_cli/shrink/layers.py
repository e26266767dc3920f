"""Whole layers: which can go, and whether the model without them is the one that passes them over.

A layer goes as if it gave back what it is given. So it has to be a residual block: what it is given
reaches its output by additions. The model without the layers must then compute, operation by
operation, what the whole one does in which these layers are passed over (equality.py).
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.plan.config import Value
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.lists import Lists, names_before
from prune_cli.plan.shrink import Attribute, Group, Whole
from prune_cli.plan.units import LAYERS
from prune_cli.shrink.equality import find_difference
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.load import shorten
from prune_cli.shrink.proposals import NOT_SELECTED
from prune_cli.shrink.step import Step, Work, count_units, draw_units, stay_of
from prune_cli.shrink.trace import Trace, named_tensors, trace

_COUNT = re.compile(r"(n|num|depth|number).*|.*(layer|block|depth)s?")
"""How attributes of a module are called that count its layers."""

_PLACE = re.compile(r".*(idx|index|id|layer|number|num|depth)|i")
"""How attributes of a layer are called that say which one it is."""

_PER_LAYER = re.compile(r".*layer.*|.*block.*")
"""How lists of a config are called that have something for each layer."""

_HEAVY = {
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "convolution",
    "_softmax",
    "_log_softmax",
    "embedding",
    "index",
}


@dataclass(frozen=True)
class Stack:
    """A list of layers: its path in the model, what the checkpoint calls it, and what can go.

    `staying` says of the layers that cannot go why; `alike` are those that can, and have the same
    tensors as most of them; `modules` are the paths of each layer and all in it; `key` is the number
    of a config that counts them.
    """

    path: str
    name: str
    size: int
    passing: Mapping[int, Passing]
    staying: Mapping[int, str]
    modules: Mapping[int, tuple[str, ...]]
    alike: frozenset[int]
    key: str = ""

    def alike_only(self) -> Stack:
        """Return the same list, of which only layers can go that are like most others."""
        odd = self.passing.keys() - self.alike
        reason = "its tensors are not those of the other layers"
        return replace(
            self,
            passing={number: self.passing[number] for number in self.passing if number not in odd},
            staying={**self.staying, **dict.fromkeys(odd, reason)},
        )

    def can_go(self, work: Work) -> list[int]:
        """Return the layers that can go and are selected."""
        return [number for number in self.passing if work.is_chosen(self.modules[number])]

    def is_chosen(self, work: Work) -> bool:
        """Return whether any layer is selected that can go."""
        return bool(self.can_go(work))

    def wholes(self, work: Work) -> Iterator[Whole]:
        """Yield the layers that stay, whatever is drawn."""
        for number in range(self.size):
            reason = self.staying.get(number)
            if reason is None and not work.is_chosen(self.modules[number]):
                reason = NOT_SELECTED
            if reason is not None:
                yield Whole(f"{self.name}.{number}", 0, 1, reason)


@dataclass(frozen=True)
class Passing:
    """How to pass a layer over: for each part of its output, the argument that it would be.

    An argument is a position or a name; what is no tensor stays as it is. Without `is_tuple` the
    output is the first part itself.
    """

    parts: tuple[Any, ...]
    is_tuple: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what was given."""
        given = [_given(part, args, kwargs) for part in self.parts]
        return tuple(given) if self.is_tuple else given[0]


@dataclass(frozen=True)
class _Argument:
    key: int | str


def _given(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if not isinstance(part, _Argument):
        return part
    return args[part.key] if isinstance(part.key, int) else kwargs[part.key]


def plan_layers(work: Work, amount: Amount) -> Step:
    """Return what goes with layers: so many of each list of them.

    Raises:
        RequestError: there are none that can go, or not so many.
    """
    stacks = _find_stacks(work)
    if work.folder is not None:
        stacks = _counted(work, work.folder, stacks)
    problems: list[str] = []
    for tried in (stacks, [stack.alike_only() for stack in stacks]):
        try:
            step = _plan(work, tried, amount)
        except _DifferenceError as error:
            problems.append(str(error))
        else:
            return step
    raise RequestError(f"no layers can be removed: {'; '.join(dict.fromkeys(problems))}")


class _DifferenceError(Exception):
    """The model without the layers is not the one that passes them over."""


def _plan(work: Work, stacks: Sequence[Stack], amount: Amount) -> Step:
    goes = {stack.path: _draw(work, stack, amount) for stack in stacks if stack.is_chosen(work)}
    losing = [stack for stack in stacks if goes.get(stack.path)]
    kept = {stack.path: stay_of(stack.size, goes[stack.path]) for stack in losing}
    if not kept:
        raise RequestError(_nothing_goes(stacks))
    return replace(
        _same_model(work, losing, goes, kept),
        lists=kept,
        stored_lists={stack.name: kept[stack.path] for stack in losing},
        groups=tuple(_group(work, stack, amount, goes[stack.path]) for stack in losing),
        whole=tuple(whole for stack in stacks for whole in stack.wholes(work)),
    )


def _same_model(
    work: Work, stacks: Sequence[Stack], goes: Mapping[str, tuple[int, ...]], kept: Lists
) -> Step:
    """Return the first of the models without the layers that is the one that passes them over."""
    masked, problems = _passed_over(work, stacks, goes), []
    for shrunk in _models(work, stacks, kept):
        problem = _difference(work, masked, shrunk, kept)
        if problem is None:
            return shrunk
        problems.append(problem)
    raise _DifferenceError("; ".join(dict.fromkeys(problems)))


def _draw(work: Work, stack: Stack, amount: Amount) -> tuple[int, ...]:
    k = count_units(amount, stack.size, LAYERS, stack.name)
    return draw_units(work, stack.name, stack.can_go(work), k, LAYERS)


def _group(work: Work, stack: Stack, amount: Amount, removed: tuple[int, ...]) -> Group:
    seed = derive_seed(work.options.seed, stack.name)
    return Group(stack.name, 0, amount, seed, stack.size, 1, removed, (), LAYERS)


def _nothing_goes(stacks: Sequence[Stack]) -> str:
    if stacks:
        return "no layer is removed: the amount is less than one, or none is selected"
    return (
        "no list of layers was found of which some can go: they have to be residual blocks of one "
        "kind in a torch.nn.ModuleList or Sequential, each run once in a forward pass"
    )


# --- which there are -------------------------------------------------------------------------


def _find_stacks(work: Work) -> list[Stack]:
    """Return the lists of layers of which some can go; the inner ones only where the outer have none."""
    model = work.subject.model
    lists = {
        path: list(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module)
    }
    runs = _runs(work, [layer for layers in lists.values() for layer in layers])
    stacks = [_stack(work, path, layers, runs) for path, layers in lists.items()]
    found: list[Stack] = []
    for stack in (stack for stack in stacks if stack is not None):
        holds_others = any(
            f"{path}.".startswith(f"{stack.path}.") for path in lists.keys() - {stack.path}
        )
        is_inside = any(f"{stack.path}.".startswith(f"{outer.path}.") for outer in found)
        if not is_inside and not (holds_others and len(stack.alike) < 2):
            found.append(stack)
    return found


def _is_stack(module: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {type(layer) for layer in module}
    return len(module) > 1 and len(kinds) == 1 and any(True for _ in module.parameters())


@dataclass(frozen=True)
class _Run:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


def _runs(work: Work, layers: Sequence[nn.Module]) -> dict[nn.Module, list[_Run]]:
    """Run the model once, and see what each of the layers is given and gives."""
    runs: dict[nn.Module, list[_Run]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        runs[layer].append(_Run(args, kwargs, output))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in runs]
    try:
        trace(work.subject.model, work.subject.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return runs


def _stack(
    work: Work, path: str, layers: list[nn.Module], runs: Mapping[nn.Module, list[_Run]]
) -> Stack | None:
    """Return the list, if at least one of its layers can go."""
    name = work.stored_list(path)
    passing: dict[int, Passing] = {}
    staying: dict[int, str] = {}
    for number, layer in enumerate(layers):
        where = ".".join(filter(None, (path, str(number))))
        found = _passing(runs[layer], _unread(work.subject.recording, where))
        if isinstance(found, Passing) and not _is_residual(work.subject.recording, where):
            found = "it is no residual block: what it is given does not reach its output"
        if isinstance(found, Passing):
            passing[number] = found
        else:
            staying[number] = found
    if not passing or name is None:
        return None
    modules = {
        number: tuple(
            ".".join(filter(None, (path, str(number), inner))) for inner, _ in layer.named_modules()
        )
        for number, layer in enumerate(layers)
    }
    signatures = {number: _signature(layers[number]) for number in passing}
    [(most, _)] = Counter(signatures.values()).most_common(1)
    alike = frozenset(number for number, own in signatures.items() if own == most)
    return Stack(path, name, len(layers), passing, staying, modules, alike)


def _signature(layer: nn.Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tuple(tensor.shape)) for name, tensor in named_tensors(layer))


def _unread(recording: Trace, path: str) -> list[bool]:
    """Return of each tensor that a layer gives back whether nothing else reads it."""
    read = {ref.index for ref in recording.outputs}
    for call in recording.calls:
        if not f"{call.module}.".startswith(f"{path}."):
            read.update(ref.index for ref in call.operands)
    return [ref.index not in read for ref in recording.returned.get(path, ())]


def _passing(runs: list[_Run], unread: list[bool]) -> Passing | str:
    """Return how a layer is passed over, or why it cannot be; what nobody reads may be None."""
    if len(runs) != 1:
        return f"it runs {len(runs)} times in one forward pass"
    [run] = runs
    arguments: dict[int | str, Any] = dict(enumerate(run.args))
    arguments.update(run.kwargs)
    is_tuple = isinstance(run.output, tuple)
    output = run.output if is_tuple else (run.output,)
    parts: list[Any] = []
    is_unread = iter(unread)
    for position, part in enumerate(output):
        if not isinstance(part, Tensor):
            if part is not None:
                return f"its output holds a {type(part).__name__}"
            parts.append(None)
            continue
        same = [key for key, given in arguments.items() if given is part]
        alike = [key for key, given in arguments.items() if _is_alike(given, part)]
        if next(is_unread, False) and position:
            parts.append(None)
        elif position and not same:
            return "it makes more than its hidden state"
        elif not (same or alike):
            return "its output has another shape than what it is given"
        else:
            parts.append(_Argument((same or alike)[0] if position else (alike or same)[0]))
    return Passing(tuple(parts), is_tuple)


def _is_alike(given: Any, output: Tensor) -> bool:
    return (
        isinstance(given, Tensor)
        and given.shape == output.shape
        and given.dtype == output.dtype
        and output.is_floating_point()
    )


def _is_residual(recording: Trace, path: str) -> bool:
    """Return whether something light leads through the layer, by an addition."""
    inside = [c for c in recording.calls if f"{c.module}.".startswith(f"{path}.")]
    made = {ref.index for call in inside for ref in call.outputs}
    named = {ref.index for ref in recording.named.values()}
    if not inside:
        return False
    last = inside[-1].outputs[0]
    shape = recording.shapes[last.index]
    given = {
        ref.index
        for call in inside
        for ref in call.operands
        if ref.index not in made | named and recording.shapes[ref.index] == shape
    }
    light, added = set(given), set[int]()
    for call in inside:
        operands = {ref.index for ref in call.operands}
        if call.name in _HEAVY or "attention" in call.name or not operands & light:
            continue
        outputs = {ref.index for ref in call.outputs}
        light |= outputs
        if call.name == "add" or operands & added:
            added |= outputs
    return last.index in added


# --- the model without some --------------------------------------------------------------------


def _passed_over(
    work: Work, stacks: Sequence[Stack], goes: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """Return the whole model, in which the layers that go give back what they are given."""
    masked = copy.deepcopy(work.subject.model)
    for stack in stacks:
        layers = masked.get_submodule(stack.path)
        for number in goes.get(stack.path, ()):
            layers[number].forward = stack.passing[number]  # type: ignore[index]
    return masked


def _models(work: Work, stacks: Sequence[Stack], kept: Lists) -> Iterator[Step]:
    """Yield the models without the layers that are to be tried."""
    if work.folder is None:
        yield _cut(work, kept)
        return
    for wants in (_is_per_layer, lambda _: True, lambda _: False):
        changes = _changes(work.folder, stacks, kept, wants)
        try:
            yield Step(work.folder.build(changes), changes)
        except RequestError:
            continue


def _cut(work: Work, kept: Lists) -> Step:
    """Return the model whose lists are shorter, and whose layers know their new places."""
    model = copy.deepcopy(work.subject.model)
    attributes: dict[str, dict[str, Attribute]] = {}
    for path, stay in kept.items():
        owner = path.rpartition(".")[0]
        size = len(model.get_submodule(path)._modules)
        counts = {
            name: len(stay)
            for name, value in vars(model.get_submodule(owner)).items()
            if type(value) is int and value == size and _COUNT.fullmatch(name)
        }
        if counts and owner not in kept:
            attributes.setdefault(owner, {}).update(counts)
        for inner, name, first in _places(model, path):
            for new in range(len(stay)):
                where = ".".join(filter(None, (path, str(new), inner)))
                attributes.setdefault(where, {})[name] = first + new
    shorten(model, kept)
    for module, values in attributes.items():
        for name, value in values.items():
            setattr(model.get_submodule(module), name, value)
    return Step(model, attributes=attributes)


def _places(model: nn.Module, path: str) -> list[tuple[str, str, int]]:
    """Return the attributes that number the layers: the module in a layer, the name, the first."""
    layers = [{**dict(layer.named_modules())} for layer in model.get_submodule(path).children()]
    return [
        (inner, name, value)
        for inner, module in layers[0].items()
        for name, value in vars(module).items()
        if type(value) is int
        and _PLACE.fullmatch(name)
        and all(
            inner in layer and vars(layer[inner]).get(name) == value + number
            for number, layer in enumerate(layers)
        )
    ]


def _counted(work: Work, folder: ModelFolder, stacks: Sequence[Stack]) -> list[Stack]:
    """Return the lists that a number of the config counts, and no other with them, by that number.

    Raises:
        RequestError: there are lists, and none is counted so.
    """
    left = {stack.path: stack for stack in stacks}
    found: list[Stack] = []
    for key, value in folder.numbers().items():
        for path in _shortened(work, folder, key, value, left):
            found.append(replace(left.pop(path), key=key))
    if stacks and not found:
        names = ", ".join(stack.name for stack in stacks)
        raise RequestError(f"no number in config.json counts the layers of {names} alone")
    return found


def _shortened(
    work: Work, folder: ModelFolder, key: str, value: float | None, left: Mapping[str, Stack]
) -> list[str]:
    """Return the lists of `left` that get shorter with a number, if no other does."""
    if type(value) is not int or value not in {stack.size for stack in left.values()}:
        return []
    try:
        stack = next(stack for stack in left.values() if stack.size == value)
        one_less = {stack.path: tuple(range(value - 1))}
        changes = _changes(folder, [replace(stack, key=key)], one_less, _is_per_layer)
        smaller = _sizes(folder.build(changes))
    except RequestError:
        return []
    sizes = _sizes(work.subject.model)
    paths = [path for path, size in sizes.items() if smaller.get(path, size) != size]
    fits = all(path in left and smaller[path] == sizes[path] - 1 for path in paths)
    return paths if fits else []


def _sizes(model: nn.Module) -> dict[str, int]:
    lists = nn.ModuleList | nn.Sequential
    return {path: len(m) for path, m in model.named_modules() if isinstance(m, lists)}


def _changes(
    folder: ModelFolder, stacks: Sequence[Stack], kept: Lists, wants: Callable[[str], bool]
) -> dict[str, Value]:
    """Return what is new in a config: numbers, and of the lists beside them those that are wanted."""
    changes: dict[str, Value] = {}
    for stack in stacks:
        stay = kept[stack.path]
        changes[stack.key] = len(stay)
        for name, values in _lists_beside(folder, stack.key, stack.size):
            if wants(name):
                changes[name] = tuple(values[number] for number in stay)
        changes |= _last_stage(folder, stack.size, len(stay))
    return changes


def _is_per_layer(key: str) -> bool:
    return _PER_LAYER.fullmatch(key.rpartition(".")[2]) is not None


def _lists_beside(folder: ModelFolder, key: str, size: int) -> list[tuple[str, list[Any]]]:
    """Return the lists of a config that stand beside a number and are as long as it says."""
    place: Any = folder.values()
    parents = key.split(".")[:-1]
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    if not isinstance(place, dict):
        return []
    return [
        (".".join([*parents, name]), value)
        for name, value in place.items()
        if isinstance(value, list) and len(value) == size
    ]


def _last_stage(folder: ModelFolder, before: int, after: int) -> dict[str, Value]:
    """Return the last stage of what can be a backbone, where its config says that it is that."""
    stages = folder.raw.get("stage_names")
    if not isinstance(stages, list) or len(stages) != before + 1:
        return {}
    new: dict[str, Value] = {"stage_names": tuple(stages[: after + 1])}
    if folder.raw.get("out_features") == stages[-1:]:
        new["out_features"] = (stages[after],)
    if folder.raw.get("out_indices") == [before]:
        new["out_indices"] = (after,)
    return new


# --- whether it is the same --------------------------------------------------------------------


def _difference(work: Work, masked: nn.Module, shrunk: Step, kept: Lists) -> str | None:
    names = names_before(kept, work.subject.first_names)
    inputs = work.subject.inputs
    ours = {name for name, _ in named_tensors(shrunk.model)}
    if ours != names.keys():
        odd = sorted(ours ^ names.keys())
        return f"the model that the config describes then has other tensors ({odd[0]})"
    found = find_difference(trace(masked, inputs), trace(shrunk.model, inputs), names)
    found = found or _changed_attribute(work.subject.model, shrunk.model, kept)
    if found is None and work.training is not None:
        both = trace(masked.train(), inputs), trace(shrunk.model.train(), inputs)
        shrunk.model.eval()
        masked.eval()
        found = find_difference(*both, names)
        return found and f"in training, {found}"
    return found


def _changed_attribute(whole: nn.Module, shrunk: nn.Module, kept: Lists) -> str | None:
    """Return a plain attribute of a layer that is another one than it was, but for its place."""
    for path, stay in kept.items():
        places = {(inner, name) for inner, name, _ in _places(whole, path)}
        for new, old in enumerate(stay):
            before = dict(whole.get_submodule(path)._modules[str(old)].named_modules())  # type: ignore[union-attr]
            after = dict(shrunk.get_submodule(path)._modules[str(new)].named_modules())  # type: ignore[union-attr]
            for inner, module in before.items():
                for name, value in vars(module).items():
                    is_plain = isinstance(value, int | float | str)
                    if not is_plain or name == "training" or (inner, name) in places:
                        continue
                    if inner not in after or vars(after[inner]).get(name) != value:
                        return f"{name} of layer {old} of {path} would no longer be {value}"
    return None
