"""Recordings without the copies that only a reshape makes: whether it makes one depends on the sizes.

With one head left of several, what was copied before it was reshaped need not be copied any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from prune_cli.shrink.trace import Call, Ref, Trace

_VIEWS = {"view", "_unsafe_view"}


def without_copies(recording: Trace) -> Trace:
    """Return the recording with a view in the place of every copy that is only made for one."""
    readers: defaultdict[int, list[Call]] = defaultdict(list)
    for call in recording.calls:
        for ref in call.operands:
            readers[ref.index].append(call)
    given = {ref.index for ref in recording.outputs}
    instead: dict[int, int] = {}
    for call in recording.calls:
        [*made] = (ref.index for ref in call.outputs)
        is_copy = call.name == "clone" and made[0] not in given
        if is_copy and {reader.name for reader in readers[made[0]]} <= _VIEWS:
            source = call.operands[0].index
            instead[made[0]] = instead.get(source, source)
    return _renumbered(recording, instead)


def _renumbered(recording: Trace, instead: dict[int, int]) -> Trace:
    """Return the recording without some tensors, in whose place others stand."""
    left = [index for index in range(len(recording.shapes)) if index not in instead]
    new = {old: Ref(number) for number, old in enumerate(left)}

    def renumber(value: Any) -> Any:
        return tree_map(
            lambda leaf: (
                new[instead.get(leaf.index, leaf.index)] if isinstance(leaf, Ref) else leaf
            ),
            value,
        )

    return replace(
        recording,
        calls=tuple(
            _renamed(call, renumber) for call in recording.calls if not _is_left_out(call, instead)
        ),
        shapes=tuple(recording.shapes[index] for index in left),
        named=renumber(dict(recording.named)),
        outputs=renumber(recording.outputs),
        constants={
            new[index].index: value
            for index, value in recording.constants.items()
            if index not in instead
        },
        returned=renumber(dict(recording.returned)),
    )


def _is_left_out(call: Call, instead: dict[int, int]) -> bool:
    return call.name == "clone" and call.outputs[0].index in instead


def _renamed(call: Call, renumber: Callable[[Any], Any]) -> Call:
    op = torch.ops.aten.view.default if call.name == "_unsafe_view" else call.op
    args, kwargs, outputs = renumber((call.args, dict(call.kwargs), call.outputs))
    return Call(op, args, kwargs, outputs, call.module)
