"""Which channels must go together: Torch-Pruning's dependency graph, read into plain facts.

The one place that touches Torch-Pruning, which is not typed. It only proposes: it never changes the
model here, and what it proposes is held against the model's own operations (agreement.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from prune_cli.errors import RequestError, UsageError
from prune_cli.shrink.channels import Cut, NotSliceableError, Side, blocks, cuts, is_conv1d
from prune_cli.shrink.trace import call_model, tensors_in

_ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class Coupling:
    """Channels that share a fate with others, by the tensor that makes them.

    `channels` are those of axis `dim` of `root` that no earlier coupling holds; where `blocks` is
    more than 1, they fall into that many equal blocks that must lose the same positions. `modules`
    are the layers that make the channels. An `obstacle` says why they have to stay.
    """

    root: str
    dim: int
    channels: tuple[int, ...]
    blocks: int
    modules: tuple[str, ...]
    obstacle: str | None = None


class CouplingGraph:
    """The couplings of a model. A class because Torch-Pruning's graph is expensive and has state."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._model = model
        self._graph = _dependency_graph(model, inputs)
        _map_indices(self._graph)
        self._paths = {module: path for path, module in model.named_modules()}
        self._tensors = {id(p): name for name, p in model.named_parameters()}
        self._order = {name: position for position, name in enumerate(model.state_dict())}

    def couplings(self) -> Iterator[Coupling]:
        """Yield every coupling once, its root the first tensor in the order of the state dict."""
        covered: dict[nn.Module, set[int]] = {}
        for module in self._model.modules():
            if not _makes_channels(module) or module not in self._graph.module2node:
                continue
            size = self._graph.get_pruner_of_module(module).get_out_channels(module)
            channels = [i for i in range(size) if i not in covered.get(module, ())]
            if channels:
                yield self._coupling(module, channels, covered)

    def _coupling(
        self, module: nn.Module, channels: list[int], covered: dict[nn.Module, set[int]]
    ) -> Coupling:
        root, dim = self._root_tensor(module)
        try:
            first = list(self._items(module, channels[:1]))  # an endless walk is shorter with one
            items = list(self._items(module, channels))
        except NotSliceableError as error:
            return Coupling(root, dim, tuple(channels), 1, (self._paths[module],), str(error))
        for item in items:
            if item.side == "out" and isinstance(item.module, nn.Module):
                covered.setdefault(item.module, set()).update(item.channels)
        members = [item for item in items if item.module is not None]
        makers = tuple(
            self._paths[item.module]
            for item in members
            if item.side == "out" and _makes_channels(item.module)
        )
        obstacle = None
        try:
            for item in members:
                list(self._cuts(item))
        except NotSliceableError as error:
            obstacle = str(error)
        if any(item.is_output for item in items):
            obstacle = "the shape of the model's output would change"
        count = math.lcm(_common_blocks(members, len(channels)), _echoes(module, channels, first))
        return Coupling(root, dim, tuple(channels), count, makers, obstacle)

    def removal(self, coupling: Coupling, channels: Sequence[int]) -> list[Cut]:
        """Everything that goes with `channels` of the root: in each cut, index to root channel.

        Raises:
            NotSliceableError: They cannot be taken out, or other channels of the root would go with them.
        """
        module = self._model.get_submodule(coupling.root.rpartition(".")[0])
        merged: dict[tuple[str, int], dict[int, int]] = {}
        for item in self._items(module, channels):
            for cut in self._cuts(item):
                merged.setdefault((cut.tensor, cut.dim), {}).update(cut.channels)
        own = merged.get((coupling.root, coupling.dim), {})
        if set(own) != set(channels):
            raise NotSliceableError("its channels are coupled with each other")
        return [Cut(tensor, dim, indices) for (tensor, dim), indices in merged.items()]

    def _root_tensor(self, module: nn.Module) -> tuple[str, int]:
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        path = self._paths[module]
        dim = 1 if transposed or isinstance(module, nn.Embedding) or is_conv1d(module) else 0
        return f"{path}.weight" if path else "weight", dim

    def _cuts(self, item: _Item) -> Iterator[Cut]:
        if isinstance(item.module, nn.Parameter):
            yield Cut(self._tensors[id(item.module)], item.dim, item.channels)
        elif item.module is not None:
            path = self._paths[item.module]
            yield from cuts(item.module, path, item.side, item.channels)
            if isinstance(item.module, nn.MultiheadAttention):
                for side in ("out", "in"):
                    yield from cuts(item.module.out_proj, f"{path}.out_proj", side, item.channels)

    def _items(self, module: nn.Module, channels: Sequence[int]) -> Iterator[_Item]:
        try:
            reached = self._walk(module, channels)
        except NotSliceableError:
            raise
        except Exception as error:  # untyped and unbounded, as in _dependency_graph
            raise NotSliceableError(
                f"Torch-Pruning cannot follow its channels ({type(error).__name__}: {error})"
            ) from error
        shared: dict[int, dict[int, int]] = {}  # most steps have the very same indices
        for step in reached:
            target, owners = step.node, shared.get(id(step.indices))
            if owners is None:
                owners = shared[id(step.indices)] = _owners(step)
            side: Side = "out" if self._graph.is_out_channel_pruning_fn(step.handler) else "in"
            is_output = type(target.module).__name__ == "_OutputOp" or (
                side == "out" and not target.outputs
            )
            known = isinstance(target.module, nn.Parameter) or target.module in self._paths
            dim = target.pruning_dim
            if isinstance(target.module, nn.Parameter):
                dim %= target.module.dim()
            yield _Item(target.module if known else None, side, owners, dim, is_output)

    def _walk(self, module: nn.Module, channels: Sequence[int]) -> list[_Step]:
        """What pruning `channels` of a module triggers, as Torch-Pruning's get_pruning_group walks.

        That looks up what it has reached in a list, and through rotary embeddings it would walk for
        ever. Steps are counted and not timed, so that the plan is the same on every machine.
        """
        node = self._graph.module2node[module]
        start = _Step(node, self._out_pruning(module), tuple(map(_index, channels)))
        reached = _Reached()
        reached.add(start)
        stack = [start]
        while stack:
            step = stack.pop()
            reached.count(step)
            for dependency in step.node.dependencies:
                if dependency.is_triggered_by(step.handler):
                    after = _Step(dependency.target, dependency.handler, _mapped(dependency, step))
                    if after.indices and reached.add(after):
                        stack.append(after)
        return reached.merged()

    def _out_pruning(self, module: nn.Module) -> Any:
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1:
            from torch_pruning.pruner.function import prune_depthwise_conv_out_channels

            return prune_depthwise_conv_out_channels
        return self._graph.get_pruner_of_module(module).prune_out_channels


@dataclass(frozen=True)
class _Step:
    """A node of Torch-Pruning's graph, the function that prunes it, and the channels that go."""

    node: Any
    handler: Any
    indices: tuple[Any, ...]


class _Reached:
    """What a walk has reached. A class because every step of it adds something."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, Any], list[_Step]] = {}
        self._alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._visited: set[int] = set()
        self._count = 0

    def add(self, step: _Step) -> bool:
        """Note a step, and tell whether it is new."""
        place = (id(step.node), step.handler)
        ends = (*place, step.indices[0], step.indices[-1])  # to hash all of them takes longer
        alike = self._alike.setdefault(ends, [])
        if step.indices in alike:
            return False
        alike.append(step.indices)
        self._steps.setdefault(place, []).append(step)
        return True

    def count(self, step: _Step) -> None:
        """Count what is looked at.

        Raises:
            NotSliceableError: it is more than a walk that ends looks at.
        """
        self._count += 1
        self._visited.add(id(step.node))
        if self._count > 500 + 32 * len(self._visited):
            raise NotSliceableError("Torch-Pruning finds no end of what is coupled to it")

    def merged(self) -> list[_Step]:
        """Everything that goes of each node, in one step, in the order in which it was reached."""
        return list(map(_merge, self._steps.values()))


def _merge(steps: list[_Step]) -> _Step:
    if len(steps) == 1:
        return steps[0]
    first = {index.idx: index for step in reversed(steps) for index in reversed(step.indices)}
    ordered = dict.fromkeys(index.idx for step in steps for index in step.indices)
    return replace(steps[0], indices=tuple(first[index] for index in ordered))


def _owners(step: _Step) -> dict[int, int]:
    """Return the channel of the root that each index goes with."""
    owners: dict[int, int] = dict(step.indices)
    if None in owners.values():  # its mapping of repeated heads gives no root
        raise NotSliceableError("Torch-Pruning does not say which channels go together")
    return owners


@cache
def _index(channel: int) -> Any:
    from torch_pruning._helpers import _HybridIndex

    return _HybridIndex(channel, channel)


def _mapped(dependency: Any, step: _Step) -> tuple[Any, ...]:
    mappings = list(filter(None, dependency.index_mapping))
    if not mappings:
        return step.indices
    indices = list(step.indices)
    for mapping in mappings:
        indices = mapping(indices)
    return tuple(indices)


def _makes_channels(module: object) -> bool:
    return isinstance(module, _ROOTS) or is_conv1d(module)


class _Conv1DPruner:
    """What Torch-Pruning asks of a kind of module that it does not know: transformers' Conv1D.

    Its functions are never called: they name what the graph triggers.
    """

    pruning_dim = 1

    def prune_out_channels(self, layer: nn.Module, indices: Sequence[int]) -> nn.Module:
        """Stand for what goes of the channels that it makes."""
        raise NotImplementedError

    def prune_in_channels(self, layer: nn.Module, indices: Sequence[int]) -> nn.Module:
        """Stand for what goes of the channels that it reads."""
        raise NotImplementedError

    def get_out_channels(self, layer: Any) -> int:
        """Return how many channels it makes."""
        return int(layer.weight.shape[1])

    def get_in_channels(self, layer: Any) -> int:
        """Return how many channels it reads."""
        return int(layer.weight.shape[0])


_CONV1D = _Conv1DPruner()


@dataclass(frozen=True)
class _Item:
    """One module (or bare parameter) of a group, and its channels: index to root channel."""

    module: nn.Module | nn.Parameter | None
    side: Side
    channels: Mapping[int, int]
    dim: int
    is_output: bool


def _echoes(module: nn.Module, channels: list[int], first: list[_Item]) -> int:
    """How many of the channels of a module go together, if they stand at equal distances; else 1.

    The two halves of a gated linear unit do: of 32 channels, 0 goes with 16. `first` is what goes
    with the first channel.
    """
    own = sorted(
        channel
        for item in first
        if item.module is module and item.side == "out"
        for channel in item.channels
    )
    width = len(channels) // max(1, len(own))
    evenly = own == [channels[i * width] for i in range(len(own))]
    return len(own) if evenly and width * len(own) == len(channels) else 1


def _common_blocks(items: list[_Item], channels: int) -> int:
    """The number of blocks that satisfies all; 1 where none does, which the check will refuse."""
    wanted = {blocks(item.module) for item in items if isinstance(item.module, nn.Module)}
    most = max(wanted, default=1)
    fits = all(most % count == 0 for count in wanted) and channels % most == 0
    return most if fits else 1


def _dependency_graph(model: nn.Module, inputs: Any) -> Any:
    try:
        import torch_pruning  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise UsageError(
            "shrinking needs Torch-Pruning 1.6, which is not installed; "
            "pip install 'prune-cli[shrink]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=call_model,
                customized_pruners={
                    type(module): _CONV1D for module in model.modules() if is_conv1d(module)
                },
                output_transform=_differentiable,
                verbose=False,
            )
        except Exception as error:  # untyped and unbounded: whatever it raises, it could not do it
            raise RequestError(
                f"Torch-Pruning cannot follow the model ({type(error).__name__}: {error}); "
                "simplify its forward, or prune without shrinking"
            ) from error


def _map_indices(graph: Any) -> None:
    """Let Torch-Pruning find how indices change on the way from layer to layer.

    It does so before each group; twice is enough, as the sizes of joined tensors are found by the
    first for the second.
    """
    from torch_pruning.dependency.index_mapping import update_index_mapping

    update_index_mapping(graph)
    update_index_mapping(graph)


def _differentiable(returned: Any) -> list[Any]:
    """Return the outputs that autograd can follow back; frozen parameters were thawed before."""
    return [tensor for tensor in tensors_in(returned) if tensor.grad_fn is not None]
