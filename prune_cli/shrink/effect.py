"""What shrinking is worth: parameters and FLOPs from shapes; latency, memory and tokens by measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from prune_cli.plan.shrink import Latency
from prune_cli.shrink.model import Inputs
from prune_cli.shrink.trace import Call, Ref, Trace, call_model

_NEW_TOKENS = 16


def count_flops(recording: Trace) -> int:
    """The FLOPs of the matrix products and convolutions of a recorded pass, as torch counts them."""
    return sum(_flops(call, recording) for call in recording.calls)


def _flops(call: Call, recording: Trace) -> int:
    count = flop_registry.get(call.op._overloadpacket)
    if count is None:
        return 0
    args, kwargs, outputs = tree_map(
        lambda leaf: torch.Size(recording.shapes[leaf.index]) if isinstance(leaf, Ref) else leaf,
        (call.args, dict(call.kwargs), call.outputs),
    )
    return int(count(*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else outputs))


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    rounds: int = 20,
    warmups: int = 3,
    is_thorough: bool = False,
) -> Latency:
    """Time the models in turns, so that whatever slows the machine slows all of them.

    Every other round goes backwards: none always runs on what the same one left in the caches.

    Args:
        models: By the names under which the medians come back.
        inputs: On the models' device.
        rounds: How often each is timed.
        warmups: Rounds that are not counted.
        is_thorough: Measure memory and tokens a second too.
    """
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), torch.empty(1))
    with torch.inference_mode():
        times = _times(models, lambda model: call_model(model, inputs), rounds, warmups)
        memory = {name: peak_memory(model, inputs) for name, model in models.items() if is_thorough}
        tokens = _tokens_a_second(models, inputs) if is_thorough else None
    return Latency(
        {name: round(statistics.median(values), 3) for name, values in times.items()},
        rounds,
        torch.get_num_threads(),
        {name: _spread(values) for name, values in times.items()},
        batch=first.shape[0] if first.dim() else 1,
        device=first.device.type,
        memory=memory or None,
        tokens=tokens,
    )


def _times(
    models: Mapping[str, nn.Module], run: Callable[[nn.Module], Any], rounds: int, warmups: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for _ in range(warmups + rounds):
        for name in order:
            times[name].append(_time(models[name], run))
        order.reverse()
    return {name: values[warmups:] for name, values in times.items()}


def _time(model: nn.Module, run: Callable[[nn.Module], Any]) -> float:
    _wait(model)
    start = time.perf_counter()
    run(model)
    _wait(model)
    return (time.perf_counter() - start) * 1000


def _wait(model: nn.Module) -> None:
    """Wait until a device has done all that it was given."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()


def _spread(values: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return round(high - low, 3)


def _tokens_a_second(models: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, float] | None:
    """Return how fast models write, greedily and with their cache; None if they do not."""
    can = all(getattr(m, "can_generate", lambda: False)() for m in models.values())
    if not can or not isinstance(inputs, Mapping):
        return None
    given = {key: value for key, value in inputs.items() if not key.startswith("decoder_")}
    options = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False}
    batch = next(iter(given.values())).shape[0]

    def write(model: Any) -> Any:
        return model.generate(**given, **options, use_cache=True)

    try:
        times = _times(models, write, rounds=5, warmups=1)
    except Exception:  # noqa: BLE001 - what a model cannot generate from its example is not timed
        return None
    return {
        name: round(1000 * batch * _NEW_TOKENS / statistics.median(values), 1)
        for name, values in times.items()
    }


def peak_memory(model: nn.Module, inputs: Inputs) -> int:
    """Return the bytes that one pass holds at the most, beyond the model and its inputs."""
    memory = _Memory()
    with torch.inference_mode(), memory:
        call_model(model, inputs)
    return memory.peak


class _Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive. A class because torch asks for one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._alive = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in known:
                storage = leaf.untyped_storage()
                self._alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
