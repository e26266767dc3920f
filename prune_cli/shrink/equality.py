"""Whether two recordings are of one computation: the same operations, on the same tensors.

See also: agreement.py, where one of the two has fewer channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from prune_cli.shrink.trace import Call, Ref, Trace


def find_difference(one: Trace, other: Trace, names: Mapping[str, str]) -> str | None:
    """Return the first place where `other` does not compute what `one` does; None if it does.

    What no output depends on may differ.

    Args:
        one: A recording.
        other: Another one.
        names: For each parameter and buffer of `other` its name in `one`.
    """
    if one.failure is not None or other.failure is not None:
        return f"it does not run ({one.failure or other.failure})"
    pairing = _Pairing(one, other)
    for name, ref in other.named.items():
        if not pairing.pair(one.named[names[name]], ref):
            return f"{name} has another shape, or is tied to something else"
    ours, theirs = needed(one).calls, needed(other).calls
    for call, twin in zip(ours, theirs):
        if not pairing.is_same(call, twin):
            where = twin.module or "the model itself"
            return f"{twin.name} in {where} is another computation"
    same = [pairing.pair(a, b) for a, b in zip(one.outputs, other.outputs)]
    if len(ours) != len(theirs) or len(one.outputs) != len(other.outputs) or not all(same):
        return "it ends otherwise"
    return None


def needed(recording: Trace) -> Trace:
    """Return the calls that an output depends on; what writes in place may be one of them."""
    if recording.failure is not None:
        return recording
    read = {ref.index for ref in recording.outputs}
    calls = []
    for call in reversed(recording.calls):
        if call.writes_in_place or any(ref.index in read for ref in call.outputs):
            read.update(ref.index for ref in call.operands)
            calls.append(call)
    return replace(recording, calls=tuple(calls[::-1]))


class _Pairing:
    """Which tensor of one recording is which of the other. A class because it grows."""

    def __init__(self, one: Trace, other: Trace) -> None:
        self._one, self._other = one, other
        self._drawn = {*_drawn(one)}
        self._there: dict[int, int] = {}
        self._back: dict[int, int] = {}

    def pair(self, ours: Ref, theirs: Ref) -> bool:
        """Hold two tensors for the same from now on; False if they cannot be."""
        if self._one.shapes[ours.index] != self._other.shapes[theirs.index]:
            return False
        values = self._one.constants.get(ours.index), self._other.constants.get(theirs.index)
        if values[0] != values[1] and ours.index not in self._drawn:
            return False
        is_known = self._there.setdefault(ours.index, theirs.index) == theirs.index
        return is_known and self._back.setdefault(theirs.index, ours.index) == ours.index

    def is_same(self, call: Call, twin: Call) -> bool:
        """Return whether two calls do the same with the same."""
        if call.op is not twin.op:
            return False
        ours, theirs = tree_flatten(_parts(call)), tree_flatten(_parts(twin))
        if ours[1] != theirs[1]:
            return False
        return all(map(self._is_same_leaf, ours[0], theirs[0]))

    def _is_same_leaf(self, ours: Any, theirs: Any) -> bool:
        if isinstance(ours, Ref) and isinstance(theirs, Ref):
            return self.pair(ours, theirs)
        return type(ours) is type(theirs) and bool(ours == theirs)


def _parts(call: Call) -> tuple[Any, ...]:
    return call.args, dict(call.kwargs), call.outputs


def _drawn(recording: Trace) -> Iterator[int]:
    """Yield the tensors that are drawn at random, or made of such: on the CPU they have values."""
    found: set[int] = set()
    for call in recording.calls:
        is_random = torch.Tag.nondeterministic_seeded in call.op.tags
        if is_random or any(ref.index in found for ref in call.operands):
            found.update(ref.index for ref in call.outputs)
    yield from found
