"""What a model computes: the tensor operations of one forward pass, recorded on the meta device.

Nothing is computed and no weight is needed: a recording knows which operation read which tensors,
with which arguments and shapes. See also: what the operations mean (agreement.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_FILLS = ("full", "full_like", "new_full")
_LARGEST_CONSTANT = 64


@dataclass(frozen=True)
class Ref:
    """A tensor in a recorded call: the position of its shape in `Trace.shapes`."""

    index: int


@dataclass(frozen=True)
class Call:
    """One operation: its arguments as they were, with a Ref in the place of every tensor."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    module: str

    @cached_property
    def name(self) -> str:
        """The operation without namespace, overload and in-place mark: `aten::add_.Tensor` -> "add"."""
        return self.op._schema.name.split("::")[-1].rstrip("_")

    @property
    def writes_in_place(self) -> bool:
        """Whether the call overwrites one of its arguments."""
        return self.op._schema.is_mutable

    @cached_property
    def operands(self) -> tuple[Ref, ...]:
        """The tensors read, in the order of the arguments."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Ref))

    @property
    def numbers(self) -> tuple[int | float | complex, ...]:
        """The numbers that elements are calculated with: 8 of x / 8, but not the sizes of a view."""
        if torch.Tag.pointwise not in self.op.tags and self.name not in _FILLS:
            return ()
        values = (self.argument("fill_value"),) if self.name in _FILLS else self.args
        leaves = tree_leaves((values, {k: v for k, v in self.kwargs.items() if k != "dtype"}))
        return tuple(leaf for leaf in leaves if isinstance(leaf, int | float | complex))

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by the name that the operation's schema gives it."""
        for position, parameter in enumerate(self.op._schema.arguments):
            if parameter.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(
                    name, parameter.default_value if parameter.has_default_value() else default
                )
        return default


@dataclass(frozen=True)
class Trace:
    """A recorded forward pass; `failure` is the exception that ended it early, if one did.

    `constants` are the values of small tensors that the forward itself makes of Python numbers;
    `returned` has for each module by its path the tensors that it gave back when it last ran.
    `norms` are the paths of modules that normalise, which is what their classes are called.
    """

    calls: tuple[Call, ...]
    shapes: tuple[tuple[int, ...], ...]
    named: Mapping[str, Ref]
    outputs: tuple[Ref, ...]
    failure: Exception | None = None
    constants: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    returned: Mapping[str, tuple[Ref, ...]] = dataclasses.field(default_factory=dict)
    norms: frozenset[str] = frozenset()

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every tensor that the model returned."""
        return tuple(self.shapes[ref.index] for ref in self.outputs)


def trace(model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...]) -> Trace:
    """Run `model` once and record it.

    The inputs are keyword arguments if they are a mapping, else positional ones.
    Autograd stays on: it keeps nn.TransformerEncoder and its like on their plain path.
    """
    recorder = _Recorder(model)
    failure = None
    returned: Any = ()
    with torch.enable_grad(), _module_paths(model, recorder), recorder:
        try:
            returned = call_model(model, inputs)
        except Exception as error:  # noqa: BLE001 - whatever the user's model raises, we report
            failure = error
    outputs = tuple(recorder.refer(tensor) for tensor in tensors_in(returned))
    return Trace(
        tuple(recorder.calls),
        tuple(recorder.shapes),
        recorder.named,
        outputs,
        failure,
        recorder.constants,
        recorder.returned,
        frozenset(path for path, each in model.named_modules() if "Norm" in type(each).__name__),
    )


def call_model(model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...]) -> Any:
    """Call `model` on its example: keyword arguments for a mapping, positional ones for a tuple."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returned: tuples, mappings and dataclasses are looked into."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


class _Recorder(TorchDispatchMode):
    """A class because torch asks for one: it sees every operation below autograd."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.shapes: list[tuple[int, ...]] = []
        self.modules: list[str] = [""]
        self.constants: dict[int, Any] = {}
        self.returned: dict[str, tuple[Ref, ...]] = {}
        self._refs: dict[int, Ref] = {}
        self._alive: list[Tensor] = []  # an id is only unique among the living
        self.named = {name: self.refer(tensor) for name, tensor in named_tensors(model)}
        self._is_known = type(model).__module__.startswith("transformers.")
        self._weighed = {ref.index for ref in self.named.values()}

    def refer(self, tensor: Tensor) -> Ref:
        ref = self._refs.get(id(tensor))
        if ref is None or self.shapes[ref.index] != tuple(tensor.shape):  # transpose_ and its like
            ref = self._refs[id(tensor)] = Ref(len(self.shapes))
            self.shapes.append(tuple(tensor.shape))
            self._alive.append(tensor)
            if tensor.device.type == "cpu" and tensor.numel() <= _LARGEST_CONSTANT:
                self.constants[ref.index] = tensor.tolist()
        return ref

    def _refer_if_tensor(self, leaf: Any) -> Any:
        return self.refer(leaf) if isinstance(leaf, Tensor) else leaf

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        recorded = tree_map(self._refer_if_tensor, (args, kwargs or {}))
        if self._is_asked(func, args):
            return False if args[0].dtype is torch.bool else 0
        result = func(*args, **(kwargs or {}))
        outputs = tuple(
            self.refer(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)
        )
        self.calls.append(Call(func, recorded[0], recorded[1], outputs, self.modules[-1]))
        if any(leaf.index in self._weighed for leaf in self.calls[-1].operands):
            self._weighed.update(ref.index for ref in outputs)
        return result

    def _is_asked(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Return whether transformers looks into its inputs: is there padding, are there several texts.

        To all such questions the answer is no, after which it does what is right for any inputs.
        """
        return (
            self._is_known
            and func is torch.ops.aten._local_scalar_dense.default
            and args[0].device.type == "meta"
            and self.refer(args[0]).index not in self._weighed
        )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer with each of its names, in the order of registration."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@contextmanager
def _module_paths(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the path of the module whose forward runs on top of the recorder's, and what it gave."""

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: recorder.modules.append(path)

    def leave(_: Any, __: Any, output: Any) -> None:
        path = recorder.modules.pop()
        recorder.returned[path] = tuple(map(recorder.refer, tensors_in(output)))

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(enter(path)).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
