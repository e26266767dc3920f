"""Finds the state dicts in what a torch file held, by their structure.

Looked through are mappings, pickled modules (torch's and TorchScript's), and where these hold
none, also lists and the attributes of other objects. NumPy's arrays count where no tensor is.

See also: `torch_names` for the facts that are walked here, `torch_file` for what becomes of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from prune_cli.checkpoint.contents import Dropped
from prune_cli.checkpoint.pickled import (
    Collection,
    CorruptPickleError,
    Key,
    Maker,
    Name,
    Octets,
    StandIn,
    Text,
    printable,
)
from prune_cli.checkpoint.torch_names import (
    Array,
    NumpyDtype,
    Scalar,
    Storage,
    StorageType,
    Tensor,
    TorchDtype,
    numpy_dtype,
)
from prune_cli.errors import InputError

Entries: TypeAlias = Mapping[Any, object]
Weights: TypeAlias = Mapping[str, Tensor | Array]

_DEEPEST = 32
"""How many mappings down a state dict is looked for. Real ones are one or two; a trap is endless."""

_DEEPEST_MODULE = 100
_COST_OF_COPY = 8
_MOST_PARTS = 10_000
"""Parts of an object that are looked at for tensors, only to say that they are left out."""
_LONGEST = 40
"""Characters of a string that are shown."""


_Parts: TypeAlias = tuple[list[tuple[str, object]], list[tuple[str, Any]]]


@dataclass(frozen=True)
class ScriptClass:
    """What the code of a TorchScript class says of its attributes."""

    parameters: frozenset[str]
    buffers: frozenset[str]


@dataclass(frozen=True)
class Found:
    """A state dict: its path from the top, and its entries."""

    path: tuple[str, ...]
    entries: Entries
    weights: Weights

    @property
    def key(self) -> str:
        """Its path as a user writes it."""
        return ".".join(self.path)


@dataclass
class Content:
    """What a file held, with what has been found out about it.

    Attributes:
        value: the object at the top.
        scripts: the classes of a TorchScript archive, by name.
        length_of: how many characters a Text has.
        with_arrays: whether arrays of NumPy count as tensors.
        looks_into_objects: whether lists and objects are looked into.
        steps: how many more entries may be looked at; what a file can make endless is.
    """

    value: object
    scripts: Mapping[str, ScriptClass] = field(default_factory=dict)
    length_of: Callable[[Text], int] = lambda text: text.nbytes
    with_arrays: bool = False
    looks_into_objects: bool = False
    steps: int = 1_000_000
    _modules: dict[int, Entries] = field(default_factory=dict)
    _attributes: dict[int, Entries] = field(default_factory=dict)
    _descriptions: dict[int, str] = field(default_factory=dict)
    _lengths: dict[Text, int] = field(default_factory=dict)

    def spend(self, steps: int) -> None:
        """Raise where objects that hold one another make the walk longer than any model needs."""
        self.steps -= steps
        if self.steps < 0:
            raise CorruptPickleError("its objects hold one another too often")

    # --- what is walked ---

    def entries(self, value: object) -> Entries | None:
        """Return what `value` holds by name; None where that is nothing."""
        if isinstance(value, dict):
            return value
        if isinstance(value, StandIn):
            return self._entries_of_object(value)
        if self.looks_into_objects or value is self.value:
            return self._entries_of_list(value)
        return None

    def _entries_of_object(self, value: StandIn) -> Entries | None:
        if self.is_module(value):
            if id(value) not in self._modules:
                self._modules[id(value)] = dict(self._flatten(value))
            return self._modules[id(value)]
        if value.items is not None:
            return value.items
        if not self.looks_into_objects:
            return None
        return self.attributes(value) or self._entries_of_list(value.entries)

    def attributes(self, value: StandIn) -> Entries:
        """Return the attributes of an object, as far as its pickle holds them by name."""
        state = value.state
        if isinstance(state, dict):
            return state
        match state:
            case (dict() | None as values, dict() as slots) if id(value) not in self._attributes:
                self.spend(_COST_OF_COPY * (len(values or ()) + len(slots)))
                self._attributes[id(value)] = {**(values or {}), **slots}
        return self._attributes.get(id(value), {})

    def _entries_of_list(self, value: object) -> Entries | None:
        if not isinstance(value, list | tuple) or isinstance(value, Text | Octets | Name | Maker):
            return None
        self.spend(len(value))
        if self.looks_into_objects or any(self._is_mapping(part) for part in value):
            return {str(number): part for number, part in enumerate(value)}
        return None

    def _is_mapping(self, value: object) -> bool:
        return isinstance(value, dict | StandIn) and self.entries(value) is not None

    def weights(self, entries: Entries) -> Weights:
        """Return those entries that are tensors with a name."""
        self.spend(len(entries))
        kinds = (Tensor, Array) if self.with_arrays else (Tensor,)
        return {
            name: value
            for name, value in entries.items()
            if type(name) is str and isinstance(value, kinds) and _is_of_numbers(value)
        }

    # --- modules ---

    def is_module(self, value: object) -> bool:
        """Return whether `value` is a pickled module of torch, or of TorchScript."""
        if not isinstance(value, StandIn):
            return False
        if self._script(value):
            return True
        state = self.attributes(value)
        return all(
            isinstance(state.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
        )

    def _script(self, value: StandIn) -> ScriptClass | None:
        return self.scripts.get(str(value.of)) if self.scripts and type(value.of) is Name else None

    def _flatten(self, module: StandIn) -> Iterator[tuple[str, object]]:
        """Yield what `module.state_dict()` would: in torch's order, under torch's names."""
        waiting: list[tuple[str, StandIn]] = [("", module)]
        while waiting:
            prefix, module = waiting.pop()
            if prefix.count(".") > _DEEPEST_MODULE:
                raise CorruptPickleError("its modules hold one another without end")
            script = self._script(module)
            own, children = self._script_parts(module, script) if script else self._parts(module)
            for name, value in own:
                self.spend(len(prefix) + len(name))
                yield prefix + name, value
            for name, child in reversed(children):
                self.spend(len(prefix) + len(name))
                waiting.append((f"{prefix}{name}.", child))

    def _parts(self, module: StandIn) -> _Parts:
        """Return the tensors of a module itself, and the modules in it."""
        state: Any = self.attributes(module)
        parameters, buffers, modules = (
            state[part] for part in ("_parameters", "_buffers", "_modules")
        )
        self.spend(1 + len(parameters) + len(buffers) + len(modules))
        hidden = set(_strings(state.get("_non_persistent_buffers_set")))
        kept = {name: buffer for name, buffer in buffers.items() if name not in hidden}
        return (
            [*_named(parameters), *_named(kept)],
            [(name, child) for name, child in _named(modules) if self.is_module(child)],
        )

    def _script_parts(self, module: StandIn, script: ScriptClass) -> _Parts:
        named = list(_named(self.attributes(module)))
        self.spend(1 + len(named))
        own = [
            (name, value)
            for names in (script.parameters, script.buffers)
            for name, value in named
            if name in names
        ]
        return own, [(name, child) for name, child in named if self.is_module(child)]

    # --- finding ---

    def find(self, path: object, keys: Sequence[str]) -> tuple[Found, ...]:
        """Return the state dicts that `keys` pick, or without any the only one.

        Raises:
            InputError: there is none at a key; or without any, there is none or several.
        """
        if not keys:
            return (self._only(path, self.state_dicts()),)
        if "*" in keys:
            found = self.state_dicts()
            return tuple(found) if found else (self._only(path, found),)
        return tuple(self._pick(path, key) for key in dict.fromkeys(keys))

    def state_dicts(self) -> list[Found]:
        """Return every state dict; where the usual places have none, those of the unusual."""
        for with_arrays in (False, True):
            for looks_into_objects in (False, True):
                self.with_arrays, self.looks_into_objects = with_arrays, looks_into_objects
                found = self._candidates(_is_mostly_weights) or self._candidates(_has_weights)
                if found:
                    return found
        return []

    def _only(self, path: object, found: list[Found]) -> Found:
        if len(found) == 1:
            return found[0]
        if not found:
            raise InputError(f"{path} holds no state dict: it is {self._describe_all()}")
        listed = "; ".join(f"{one.key!r} ({self.describe(one.entries)})" for one in found[:20])
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        raise InputError(
            f"{path} holds {len(found)} state dicts; pick one with --state-dict-key: "
            f"{listed}{more} (give it several times, or '*' for all of them)"
        )

    def _describe_all(self) -> str:
        text = self.describe(self.value)
        if isinstance(self.value, StandIn) and isinstance(self.value.of, Name):
            if self.value.of.module == "torch.distributed.checkpoint.metadata":
                return "the metadata of a folder of torch.distributed.checkpoint; name the folder"
            return f"a {self.value.of}, whose code is not run; save its state_dict() instead"
        entries = self.entries(self.value) or {}
        numbered = [key for key, value in entries.items() if isinstance(value, Tensor)]
        if numbered:
            text += f", but their keys are no names ({', '.join(map(self.key_text, numbered[:3]))})"
        return text

    def _pick(self, path: object, key: str) -> Found:
        self.looks_into_objects = True
        for with_arrays in (False, True):
            self.with_arrays = with_arrays
            found = next(self._at(self.value, key, ()), None)
            if found is not None and found.weights:
                return found
        known = [repr(found.key) for found in self.state_dicts()[:20]]
        raise InputError(
            f"{path} has no state dict at {key!r}; there is {', '.join(known) or 'none at all'}"
        )

    def _at(self, value: object, key: str, path: tuple[str, ...]) -> Iterator[Found]:
        """Yield where `key` leads; a key in the file can itself hold dots."""
        entries = self.entries(value)
        if entries is None or len(path) > _DEEPEST:
            return
        if not key:
            yield Found(path, entries, self.weights(entries))
        for name in entries:
            if type(name) is str and name and f"{key}.".startswith(f"{name}."):
                yield from self._at(entries[name], key[len(name) + 1 :], (*path, name))

    def _candidates(self, fits: Callable[[Entries, Weights], bool]) -> list[Found]:
        """Return the outermost mappings that fit; an optimizer's state is not looked into."""
        found: list[Found] = []
        waiting: list[tuple[tuple[str, ...], object]] = [((), self.value)]
        seen: set[int] = set()
        for path, value in waiting:  # grows while it is walked: breadth first
            entries = self.entries(value)
            if entries is None or id(value) in seen:
                continue
            seen.add(id(value))
            weights = self.weights(entries) if self._has_names(value) else {}
            if fits(entries, weights):
                found.append(Found(path, entries, weights))
                continue
            waiting += [
                ((*path, name), inner)
                for name, inner in entries.items()
                if type(name) is str and not name.lower().startswith("optim")
                if len(path) < _DEEPEST and isinstance(inner, dict | StandIn | list | tuple)
            ]
        return found

    def _has_names(self, value: object) -> bool:
        """Whether its entries have names of their own; a list at the top is taken as it always was."""
        return isinstance(value, dict | StandIn) or not self.looks_into_objects

    def hooked(self, found: Sequence[Found]) -> set[str]:
        """Return the classes of the modules found whose state_dict runs hooks, which are code."""
        waiting: list[Any] = [
            value for one in found if self.is_module(value := self._value_at(one.path))
        ]
        names: set[str] = set()
        while waiting:
            module = waiting.pop()
            state: Any = self.attributes(module)
            hooks = state.get("_state_dict_hooks")
            if isinstance(hooks, dict) and not all(map(_keeps_names, hooks.values())):
                names.add(module.class_name)
            if not self._script(module):
                waiting += [child for _, child in self._parts(module)[1]]
        return names

    def everything(self) -> Iterator[tuple[str, object]]:
        """Yield each object of the file once, with the path that it was found by."""
        waiting: list[tuple[str, object]] = [("", self.value)]
        seen: set[int] = set()
        while waiting:
            path, value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield path, value
            parts = list(_parts_of(value))
            self.spend(len(parts))
            waiting += [(f"{path}.{self.key_text(key)}".strip("."), part) for key, part in parts]

    # --- what is left out ---

    def dropped(self, found: Sequence[Found]) -> Iterator[Dropped]:
        """Yield whatever the state dicts do not hold as a named tensor, on the way there too."""
        outside = "outside the state dict"
        outside += "s " if len(found) > 1 else " "
        outside += ", ".join(repr(one.key) for one in found)
        paths = {one.path for one in found}
        on_the_way = {path[:depth] for path in paths for depth in range(len(path) + 1)}
        for prefix in sorted(on_the_way - paths, key=len):
            for name, value in (self.entries(self._value_at(prefix)) or {}).items():
                if (*prefix, name) not in on_the_way:
                    yield self._drop((*prefix, name), f"{outside}: {self.describe(value)}")
        for one in found:
            for name, value in one.entries.items():
                if name not in one.weights:
                    reason = "not a tensor" if type(name) is str else "its key is not a string"
                    yield self._drop((*one.path, name), f"{reason}: {self.describe(value)}")

    def _value_at(self, path: tuple[str, ...]) -> object:
        value = self.value
        for name in path:
            value = (self.entries(value) or {})[name]
        return value

    def _drop(self, path: tuple[object, ...], reason: str) -> Dropped:
        return Dropped(printable(".".join(map(self.key_text, path))), printable(reason))

    def key_text(self, key: object) -> str:
        """Return a key as people read it."""
        if isinstance(key, Key):
            key = key.value
            return repr(key) if _is_simple(key) else self.describe(key)
        return str(key)

    def describe(self, value: object) -> str:
        """Return in a few words what `value` is."""
        match value:
            case Tensor():
                return f"a tensor of shape {list(value.shape)}"
            case dict():
                return self._describe_mapping(type(value).__name__, value)
            case StandIn():
                return self._describe_object(value)
            case Collection():
                return f"{value.kind} of {len(value.items)}"
            case Text():
                return f"str of {self._length(value)} characters"
            case str() if len(value) > _LONGEST:
                return f"str of {len(value)} characters"
            case int() if value.bit_length() > 4000:
                return f"int of {value.bit_length()} bits"
            case None | bool() | int() | float() | str():
                return f"{type(value).__name__} {value!r}"
            case Name() | Maker():
                return f"the name {value}"[:200] if isinstance(value, Name) else value.name
            case _ if type(value) in _KINDS:
                return _KINDS[type(value)]
            case Octets() | Scalar():
                return value.kind if isinstance(value, Octets) else value.name
            case list() | tuple():
                return f"{type(value).__name__} of {len(value)}"
            case _:
                return type(value).__name__

    def _length(self, text: Text) -> int:
        if text not in self._lengths:
            self._lengths[text] = self.length_of(text)
        return self._lengths[text]

    def _describe_mapping(self, kind: str, entries: Entries) -> str:
        if id(entries) not in self._descriptions:
            self.spend(len(entries))
            tensors = sum(isinstance(inner, Tensor) for inner in entries.values())
            text = f"{kind} of {len(entries)} entries, {tensors} of them tensors"
            self._descriptions[id(entries)] = text
        return self._descriptions[id(entries)]

    def _describe_object(self, value: StandIn) -> str:
        if id(value) not in self._descriptions:
            text = value.class_name
            if value.items is not None:
                text = self._describe_mapping(text, value.items)
            elif value.entries is not None:
                text += f" of {len(value.entries)}"
            if not self.is_module(value) and self._holds_tensors(value):
                text += ", which holds tensors"
            self._descriptions[id(value)] = text
        return self._descriptions[id(value)]

    def _holds_tensors(self, value: StandIn) -> bool:
        """Return whether there is a tensor among the first things that an object holds."""
        waiting: list[object] = [value]
        seen: set[int] = set()
        for part in waiting:  # grows while it is walked
            if len(seen) > _MOST_PARTS:
                return False
            if id(part) in seen:
                continue
            seen.add(id(part))
            if isinstance(part, Tensor | Storage):
                return True
            parts = _parts(part)
            self.spend(len(parts))
            waiting += parts
        return False


_KINDS: dict[type, str] = {
    Array: "ndarray",
    NumpyDtype: "dtype",
    TorchDtype: "dtype",
    Storage: "TypedStorage",
    StorageType: "type",
    bytes: "bytes",
}


def _parts(value: object) -> Sequence[object]:
    """Return what `value` holds directly."""
    match value:
        case dict():
            return [*value.values()]
        case StandIn():
            return [value.args, value.state, value.items, value.entries]
        case Collection():
            return value.items
        case Octets() | Text() | Name() | Maker() | Scalar() | TorchDtype() | StorageType():
            return ()
        case list() | tuple():
            return value
    return ()


def _named(entries: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    return ((n, value) for n, value in entries.items() if type(n) is str and value is not None)


def _strings(value: object) -> Iterator[str]:
    items = value.items if isinstance(value, Collection) else []
    return (item for item in items if type(item) is str)


def _keeps_names(hook: object) -> bool:
    """Return whether a hook is torch's own that only notes a version: spectral_norm's."""
    return isinstance(hook, StandIn) and hook.class_name.startswith("SpectralNorm")


def _is_of_numbers(value: object) -> bool:
    return isinstance(value, Tensor) or numpy_dtype(getattr(value, "dtype", None)) is not None


def _is_mostly_weights(entries: Entries, weights: Weights) -> bool:
    return 2 * len(weights) > len(entries) and any(
        isinstance(value.shape, tuple) and len(value.shape) >= 2 for value in weights.values()
    )


def _has_weights(_: Entries, weights: Weights) -> bool:
    return bool(weights)


def _is_simple(value: object) -> bool:
    """Return whether its repr is short."""
    if type(value) is tuple:
        return (
            len(value) <= 8
            and all(type(part) in (int, str, bool) for part in value)
            and all(not isinstance(part, int) or part.bit_length() < 64 for part in value)
        )
    return type(value) is int and value.bit_length() < 4000


def _parts_of(value: object) -> Iterator[tuple[object, object]]:
    """Yield what an object holds, whatever it is, each with what it is called in it."""
    match value:
        case dict():
            yield from value.items()
            yield from ((key, key.value) for key in value if isinstance(key, Key))
        case Text() | Octets() | Name() | Maker():
            return
        case list() | tuple():
            yield from enumerate(value)
        case Collection():
            yield from enumerate(value.items)
        case StandIn():
            held = (value.state, value.items, value.entries, value.args, value.of)
            yield from ((value.class_name, part) for part in held if part is not None)
