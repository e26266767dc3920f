"""The biases that go with pruned channels: which they are, and their rows in a plan."""

import re
from collections import Counter
from dataclasses import replace

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.encodings import Role
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.errors import ParameterError, RequestError
from prune_cli.plan.facts import PlanItem, Skipped
from prune_cli.plan.selection import split_name

_STANDS_FOR = {
    r"(^|\.)parametrizations\.(\w+)\.original0$": r"\1\2",
    r"(weight\w*?)_(g|scale)$": r"\1",
    r"(^|\.)scales$": r"\1weight",
}
"""How what stands for a weight is called, and the weight."""


def biases_of(checkpoint: Checkpoint, item: PlanItem) -> list[Parameter]:
    """Return the biases with one element for each channel of `item`, if its dim counts the outputs.

    Of its module, and of every other module that shares the weight. Headers do not tell a
    transposed convolution, whose bias belongs to dim 1, from another; where it is not square its
    bias has the wrong length, and is left alone.
    """
    biases = _vectors_beside(checkpoint, item) if _counts_outputs(checkpoint, item) else []
    return [bias for bias in biases if bias.tensor.shape == (item.channels,)]


def bias_name(weight: str) -> str | None:
    """What the bias beside `weight` is called: "fc.bias", "rnn.bias_ih_l0", "attn.in_proj_bias".

    `weight` can be what stands for one: its magnitude in a weight norm, or its scale.
    None: the parameter is not called a weight, so nothing is known of its bias.
    """
    if not weight.endswith("weight"):
        for pattern, plain in _STANDS_FOR.items():
            weight = re.sub(pattern, plain, weight)
    module, param = split_name(weight)
    return f"{module}.".lstrip(".") + param.replace("weight", "bias") if "weight" in param else None


def _counts_outputs(checkpoint: Checkpoint, item: PlanItem) -> bool:
    """Whether the dim of `item` is that of the outputs: the first, but of a scale its own."""
    encoding = checkpoint.encodings.get(item.name)
    is_scale = encoding is not None and encoding.role is Role.SCALE
    return item.dim == (encoding.outputs if encoding and is_scale else 0)


def _vectors_beside(checkpoint: Checkpoint, item: PlanItem) -> list[Parameter]:
    names = filter(None, map(bias_name, (item.name, *item.aliases)))
    stored = dict.fromkeys(checkpoint.parameter_aliases.get(name, name) for name in names)
    return [checkpoint.parameter_of[name] for name in stored if name in checkpoint.parameter_of]


def bias_items(
    checkpoint: Checkpoint, items: list[PlanItem]
) -> tuple[list[PlanItem], list[Skipped]]:
    """The rows of the biases that go with `items`, and the weights whose bias does not fit."""
    if not any(_counts_outputs(checkpoint, item) for item in items):
        raise RequestError("a bias has one element for each channel of dim 0: --with-bias needs it")
    biases = [(item, bias) for item in items for bias in biases_of(checkpoint, item)]
    shared = [bias.name for _, bias in biases if bias.tensor.name in checkpoint.overlaps]
    if shared:
        raise ParameterError(
            "\n".join(
                f"{name} shares its memory with another tensor; save the two apart (.clone())"
                for name in shared
            )
        )
    times = Counter(bias.name for _, bias in biases)
    rows = [_bias_item(checkpoint, item, bias) for item, bias in biases if times[bias.name] == 1]
    without = [
        Skipped(bias.name, f"a bias whose length does not match the channels of {item.name}")
        for item in items
        if _counts_outputs(checkpoint, item)
        for bias in _vectors_beside(checkpoint, item)
        if bias.tensor.shape != (item.channels,)
    ]
    of_several = [Skipped(name, "a bias of several weights") for name in times if times[name] > 1]
    return rows, without + of_several


def _bias_item(checkpoint: Checkpoint, item: PlanItem, bias: Parameter) -> PlanItem:
    return replace(
        item,
        name=bias.name,
        module=bias.module,
        param=bias.param,
        aliases=checkpoint.names_of.get(bias.tensor.name, ()),
        dtype=bias.tensor.dtype,
        shape=bias.tensor.shape,
        dim=0,
        already_pruned=(),
        follows=item.name,
    )
