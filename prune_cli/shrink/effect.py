"""What shrinking is worth: parameters and FLOPs from shapes, latency by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prune_cli.plan.shrink import Effect, Latency
from prune_cli.shrink.model import Inputs, count_parameters
from prune_cli.shrink.trace import call_model


def compare(whole: nn.Module, shrunk: nn.Module, inputs: Inputs) -> Effect:
    """Count both models; neither needs weights.

    Example:
        Effect(parameters_before=11_689_512, parameters_after=6_6..., ...)
    """
    return Effect(
        count_parameters(whole),
        count_parameters(shrunk),
        count_flops(whole, inputs),
        count_flops(shrunk, inputs),
    )


def count_flops(model: nn.Module, inputs: Inputs) -> int:
    """The FLOPs of the matrix products and convolutions of one forward pass, as torch counts them."""
    # With autograd on, nn.TransformerEncoder stays off its fused path, which torch does not count.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        call_model(model, inputs)
    return int(counter.get_total_flops())


def measure_latency(
    models: Mapping[str, nn.Module], inputs: Inputs, *, rounds: int = 20, warmups: int = 3
) -> Latency:
    """Time the models in turns, so that whatever slows the machine slows all of them.

    Args:
        models: By the names under which the medians come back.
        inputs: On the models' device.
        rounds: How often each is timed.
        warmups: Rounds that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(warmups + rounds):
            for name, model in models.items():
                times[name].append(_time(model, inputs))
    medians = {name: _median(values[warmups:]) for name, values in times.items()}
    return Latency(medians, rounds, torch.get_num_threads())


def _time(model: nn.Module, inputs: Inputs) -> float:
    start = time.perf_counter()
    call_model(model, inputs)
    return (time.perf_counter() - start) * 1000


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)
