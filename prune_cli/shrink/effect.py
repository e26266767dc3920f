"""What shrinking is worth: parameters and FLOPs from shapes, latency by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from prune_cli.plan.shrink import Latency
from prune_cli.shrink.model import Inputs
from prune_cli.shrink.trace import Call, Ref, Trace, call_model


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
    models: Mapping[str, nn.Module], inputs: Inputs, *, rounds: int = 20, warmups: int = 3
) -> Latency:
    """Time the models in turns, so that whatever slows the machine slows all of them.

    Every other round goes backwards: none always runs on what the same one left in the caches.

    Args:
        models: By the names under which the medians come back.
        inputs: On the models' device.
        rounds: How often each is timed.
        warmups: Rounds that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    with torch.inference_mode():
        for _ in range(warmups + rounds):
            for name in order:
                times[name].append(_time(models[name], inputs))
            order.reverse()
    counted = {name: values[warmups:] for name, values in times.items()}
    return Latency(
        {name: round(statistics.median(values), 3) for name, values in counted.items()},
        rounds,
        torch.get_num_threads(),
        {name: _spread(values) for name, values in counted.items()},
    )


def _time(model: nn.Module, inputs: Inputs) -> float:
    start = time.perf_counter()
    call_model(model, inputs)
    return (time.perf_counter() - start) * 1000


def _spread(values: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return round(high - low, 3)
