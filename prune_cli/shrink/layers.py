"""Whole layers: which can go, and whether the model without them is the one that passes them over.

A layer goes as if it gave back what it is given. So it has to be a residual block: what it is given
reaches its output by additions. The model without the layers must then compute, operation by
operation, what the whole one does in which these layers are passed over (equality.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.lists import Lists, names_before
from prune_cli.plan.shrink import Attribute, Group, Whole
from prune_cli.plan.units import LAYERS
from prune_cli.shrink.equality import find_difference
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.load import shorten
from prune_cli.shrink.proposals import NOT_SELECTED
from prune_cli.shrink.step import Step, Work, count_units, draw_units, stay_of
from prune_cli.shrink.trace import Trace, call_model, named_tensors, trace

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

    `staying` says of the layers that cannot go why.
    """

    path: str
    name: str
    size: int
    passing: Mapping[int, Passing]
    staying: Mapping[int, str]
    modules: Mapping[int, tuple[str, ...]]

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
    goes = {stack.path: _draw(work, stack, amount) for stack in stacks if stack.is_chosen(work)}
    kept = {
        stack.path: stay_of(stack.size, goes[stack.path]) for stack in stacks if goes.get(stack.path)
    }
    if not kept:
        raise RequestError(_nothing_goes(stacks))
    masked = _passed_over(work, stacks, goes)
    step, problems = None, []
    for shrunk in _models(work, stacks, kept):
        problem = _difference(work, masked, shrunk, kept)
        if problem is None:
            step = shrunk
            break
        problems.append(problem)
    if step is None:
        raise RequestError(f"no layers can be removed: {'; '.join(dict.fromkeys(problems))}")
    return replace(
        step,
        lists=kept,
        stored_lists={s.name: kept[s.path] for s in stacks if s.path in kept},
        groups=tuple(_group(work, s, amount, goes[s.path]) for s in stacks if s.path in kept),
        whole=tuple(whole for s in stacks for whole in s.wholes(work)),
    )


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
    model = work.subject.model
    lists = {
        path: list(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module)
    }
    runs = _runs(work, [layer for layers in lists.values() for layer in layers])
    found: list[Stack] = []
    for path, layers in lists.items():
        if not any(f"{path}.".startswith(f"{outer.path}.") for outer in found):
            stack = _stack(work, path, layers, runs)
            found += [stack] if stack else []
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
        call_model(work.subject.model, work.subject.inputs)
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
        found = _passing(runs[layer])
        if isinstance(found, Passing) and not _is_residual(
            work.subject.recording, f"{path}.{number}" if path else str(number)
        ):
            found = "it is no residual block: what it is given does not reach its output"
        if isinstance(found, Passing):
            passing[number] = found
        else:
            staying[number] = found
    if not passing or name is None:
        return None
    modules = {
        number: tuple(
            ".".join(filter(None, (path, str(number), inner)))
            for inner, _ in layer.named_modules()
        )
        for number, layer in enumerate(layers)
    }
    return Stack(path, name, len(layers), passing, staying, modules)


def _passing(runs: list[_Run]) -> Passing | str:
    """Return how a layer is passed over, or why it cannot be."""
    if len(runs) != 1:
        return f"it runs {len(runs)} times in one forward pass"
    [run] = runs
    arguments = {**dict(enumerate(run.args)), **run.kwargs}
    is_tuple = isinstance(run.output, tuple)
    output = run.output if is_tuple else (run.output,)
    parts: list[Any] = []
    for position, part in enumerate(output):
        if not isinstance(part, Tensor):
            if part is not None:
                return f"its output holds a {type(part).__name__}"
            parts.append(None)
            continue
        same = [key for key, given in arguments.items() if given is part]
        alike = [key for key, given in arguments.items() if _is_alike(given, part)]
        if position and not same:
            return "it makes more than its hidden state"
        if not (same or alike):
            return "its output has another shape than what it is given"
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
    number, lists = _counted_by(work, work.folder, stacks, kept)
    for changes in (number | lists[0], number | lists[1], number):
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


def _counted_by(
    work: Work, folder: ModelFolder, stacks: Sequence[Stack], kept: Lists
) -> tuple[dict[str, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """Return the numbers of a config that count the layers, and the lists beside them.

    Of the lists those come first whose name says that they have something for each layer, then
    all that are as long.

    Raises:
        RequestError: no number stands for a list alone.
    """
    numbers: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    by_size: dict[str, Any] = {}
    left = {stack.path: stack for stack in stacks if stack.path in kept}
    for key, value in folder.numbers().items():
        paths = _shortened(work, folder, key, value, left)
        if not paths:
            continue
        stay = {kept[path] for path in paths}
        numbers[key] = len(kept[paths[0]])
        for name, values in _lists_beside(folder, key, int(value or 0)):
            if len(stay) == 1:
                part = tuple(values[n] for n in kept[paths[0]])
                by_size[name] = part
                if _PER_LAYER.fullmatch(name.rpartition(".")[2]):
                    by_name[name] = part
        for path in paths:
            del left[path]
    if left:
        names = ", ".join(stack.name for stack in left.values())
        raise RequestError(f"no number in config.json counts the layers of {names} alone")
    return numbers, (by_name, by_size)


def _shortened(
    work: Work, folder: ModelFolder, key: str, value: float | None, left: Mapping[str, Stack]
) -> list[str]:
    """Return the lists of `left` that get shorter with a number, if no other does."""
    if type(value) is not int or value not in {stack.size for stack in left.values()}:
        return []
    try:
        beside = _lists_beside(folder, key, value)
        shorter = {name: tuple(values[:-1]) for name, values in beside if _is_per_layer(name)}
        smaller = _sizes(folder.build({**shorter, key: value - 1}))
    except RequestError:
        return []
    sizes = _sizes(work.subject.model)
    paths = [path for path, size in sizes.items() if smaller.get(path, size) != size]
    fits = all(path in left and smaller[path] == sizes[path] - 1 for path in paths)
    return paths if fits else []


def _sizes(model: nn.Module) -> dict[str, int]:
    lists = nn.ModuleList | nn.Sequential
    return {path: len(m) for path, m in model.named_modules() if isinstance(m, lists)}


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
                        return f"{name} of layer {old} of {path} would be another one"
    return None
