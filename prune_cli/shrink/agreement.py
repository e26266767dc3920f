"""Whether a shrunk model computes what the whole one does, on the channels that were kept.

Two recordings are followed side by side, one of the whole model and one of the shrunk one. For each tensor it is known
which indices of each axis the shrunk model still has; each operation is held against that. So a
reshape that mixes attention heads, a sum of channels that do not correspond or an output that lost
a class is found before a byte is written, whatever proposed the channels.

Data movement (view, cat, slice, ...) is not modelled but done: on integers that name positions. An
operation that is not known here may not touch an axis that lost channels: unknown is an error.

With `exact`, it is also proved that the removed channels made no difference: wherever channels are
summed over, the removed ones are zero on one side. See also: the recording (trace.py), and what each operation does (rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from prune_cli.shrink.axes import Axes, Axis, DisagreementError, Owner, whole_axes
from prune_cli.shrink.rules import Comparison, fills, follows_alike, rule_of
from prune_cli.shrink.trace import Call, Ref, Trace


@dataclass(frozen=True)
class Disagreement:
    """One operation that the kept channels do not survive, and who removed channels there.

    `channels` names the channels at fault where that is known: then giving those back is enough.
    """

    module: str
    operation: str
    reason: str
    owners: frozenset[Owner]
    channels: frozenset[Owner] = frozenset()

    def __str__(self) -> str:
        """Return a sentence for a reader: "softmax in layer.0.attention: it would mix channels"."""
        return f"{self.operation} in {self.module or 'the model itself'}: {self.reason}"

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups whose channels are involved."""
        return frozenset(owner.group for owner in self.channels or self.owners)


def find_disagreements(
    before: Trace,
    after: Trace,
    axes: Mapping[str, Axes],
    *,
    exact: bool = False,
    routing: Routing | None = None,
) -> list[Disagreement]:
    """Every operation, in the order of execution, where the shrunk model does not follow the whole one.

    Args:
        before: A recording of the whole model.
        after: A recording of the shrunk one, on the same example.
        axes: For each named tensor that lost channels (or has zeros, for `exact`) all its axes.
        exact: Require that the outputs are those of the whole model, but for rounding.
        routing: Follows choices among experts, where some of those are gone.

    Returns:
        An empty list if the two agree, output shapes included.
    """
    return _Walk(before, after, axes, exact=exact, routing=routing).run()


class Routing(Protocol):
    """Rules that come before the usual ones: routing.py has them."""

    def rule(self, c: Comparison, whole: Call, shrunk: Call) -> list[Axes] | None:
        """Return the axes of the first outputs; None where the usual rules hold."""


class _Walk(Comparison):
    """Goes through both recordings at once."""

    def __init__(
        self,
        before: Trace,
        after: Trace,
        axes: Mapping[str, Axes],
        *,
        exact: bool,
        routing: Routing | None,
    ) -> None:
        super().__init__(before, after, axes, exact=exact)
        self._routing = routing

    def run(self) -> list[Disagreement]:
        found: list[Disagreement] = []
        for number, (whole, shrunk) in enumerate(zip(self.before.calls, self.after.calls)):
            if self._parted(whole, shrunk):
                reason = f"the shrunk model does {shrunk.name} there"
                return [*found, self._disagreement(whole, reason, number)]
            try:
                results = self._results(whole, shrunk)
            except DisagreementError as error:
                results = [self._guess(ref) for ref in whole.outputs]
                if not (found and self._reads_unknown(whole)):  # else it is but a consequence
                    found.append(self._disagreement(whole, str(error), number, error.channels))
            if not found and self._reads_unknown(whole):
                reason = "it reads a result that is not followed, such as the indices of a pooling"
                found.append(self._disagreement(whole, reason, number))
            for ref, axes in zip(whole.outputs, results, strict=True):
                self.known[ref.index] = axes
        return found or self._ending()

    def _reads_unknown(self, call: Call) -> bool:
        return any(not axis.known for ref in call.operands for axis in self.axes(ref))

    def _parted(self, whole: Call, shrunk: Call) -> bool:
        return (
            whole.op is not shrunk.op
            or whole.operands != shrunk.operands
            or whole.outputs != shrunk.outputs
        )

    def _ending(self) -> list[Disagreement]:
        number = len(self.after.calls)
        if self.after.failure is not None or number < len(self.before.calls):
            whole = self.before.calls[min(number, len(self.before.calls) - 1)]
            failure = str(self.after.failure or "it ends early").strip().split("\n")[0]
            return [self._disagreement(whole, f"the shrunk model fails there ({failure})", number)]
        owners: set[Owner] = set()
        for ref in self.before.outputs:
            owners.update(*(axis.removed.values() for axis in self.axes(ref)))
        if owners or self.before.output_shapes != self.after.output_shapes:
            reason = "the shape of the model's output would change"
            return [Disagreement("", "the output", reason, frozenset(owners))]
        return []

    def _disagreement(
        self, call: Call, reason: str, number: int, channels: frozenset[Owner] = frozenset()
    ) -> Disagreement:
        """Blame the groups that removed channels from the operands, or from the last pruned operands before."""
        for earlier in (call, *reversed(self.before.calls[:number])):
            owners = frozenset(
                owner
                for ref in earlier.operands
                for axis in self.axes(ref)
                for owner in axis.removed.values()
            )
            if owners:
                return Disagreement(call.module, call.name, reason, owners, channels)
        return Disagreement(call.module, call.name, reason, frozenset(), channels)

    def _unknown(self, ref: Ref) -> Axes:
        return tuple(Axis(size, known=False) for size in self.before.shapes[ref.index])

    def _guess(self, ref: Ref) -> Axes:
        """The axes behind a disagreement: whole where nothing got shorter, so that more is found.

        With `exact` they are unknown: what is zero there depends on what was disagreed on.
        """
        before, after = self.before.shapes[ref.index], self.after.shapes[ref.index]
        if self.exact or len(before) != len(after):
            return self._unknown(ref)
        sizes = zip(before, after, strict=True)
        return tuple(Axis(size, known=size == left) for size, left in sizes)

    def _results(self, whole: Call, shrunk: Call) -> list[Axes]:
        try:
            routed = self._routing.rule(self, whole, shrunk) if self._routing else None
            results = self._by_rule(whole, shrunk) if routed is None else routed
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # A form of the operation that its rule did not foresee: in doubt, the channels stay.
            raise DisagreementError(f"its channels cannot be followed ({error})") from error
        if whole.writes_in_place:
            self._forget_zeros(whole)
        for ref, axes in zip(whole.outputs, results, strict=True):
            self._check_shape(ref, axes)
        return results

    def _by_rule(self, whole: Call, shrunk: Call) -> list[Axes]:
        operands = [self.axes(ref) for ref in whole.operands]
        if self._has_other_numbers(whole, shrunk):
            raise DisagreementError("a number in it depends on how many channels there are")
        each = [axis for axes in operands for axis in axes]
        is_whole = not any(a.removed or not a.known or a.left is not None for a in each)
        if is_whole and not any(axis.zero for axis in each):
            return [self._untouched(whole, ref) for ref in whole.outputs]
        if any(axis.left is not None for axis in each):
            self._check_alike(whole)
        rule = rule_of(whole)
        if rule is not None:
            try:
                first = rule(self, whole, shrunk)
            except DisagreementError:
                if not is_whole:
                    raise
                first = []  # only zeros could not be followed, and those it need not know
            return [*first, *map(self._as_it_is, whole.outputs[len(first) :])]
        if any(axis.removed for axis in each):
            raise DisagreementError("it is not known what this operation does to channels")
        return [self._as_it_is(ref) for ref in whole.outputs]

    def _untouched(self, whole: Call, ref: Ref) -> Axes:
        """Return the axes of what reads nothing that lost channels."""
        if not fills(whole):
            return whole_axes(self.before.shapes[ref.index])
        is_zero = self.exact and whole.name in ("zeros", "new_zeros")
        axes = self.filled(ref)
        return tuple(axis.with_zero(range(axis.size)) for axis in axes) if is_zero else axes

    def _check_alike(self, whole: Call) -> None:
        """Refuse what would make indices differ of which only the number is known."""
        written = whole.operands[0]
        if not follows_alike(whole) or (
            whole.writes_in_place
            and written.index in self.aliases
            and any(axis.left is not None for axis in self.axes(written))
        ):
            raise DisagreementError("it reads channels of which only the number is known")

    def _has_other_numbers(self, whole: Call, shrunk: Call) -> bool:
        constants = [
            (self.before.constants.get(ref.index), self.after.constants.get(ref.index))
            for ref in whole.operands
        ]
        return whole.numbers != shrunk.numbers or any(one != other for one, other in constants)

    def _as_it_is(self, ref: Ref) -> Axes:
        if self.before.shapes[ref.index] != self.after.shapes[ref.index]:
            return self._unknown(ref)
        return whole_axes(self.before.shapes[ref.index])

    def _forget_zeros(self, whole: Call) -> None:
        """What is written through a view changes all that shares its memory, which is not followed."""
        written = {ref.index for ref in whole.outputs}
        if written & self.aliases and whole.name != "relu":  # of zeros it makes zeros
            for index in self.aliases & self.known.keys():
                self.known[index] = tuple(axis.with_zero(()) for axis in self.known[index])

    def _check_shape(self, ref: Ref, axes: Axes) -> None:
        before, after = self.before.shapes[ref.index], self.after.shapes[ref.index]
        is_known = all(axis.known for axis in axes)
        counts = tuple(axis.count for axis in axes)
        if tuple(axis.size for axis in axes) != before or (is_known and counts != after):
            raise DisagreementError(f"its result is {list(before)} before and {list(after)} after")
