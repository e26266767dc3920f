"""One step of removing units: what it works on, and what comes of it.

See also: layers.py, experts.py and heads.py, which take such steps; units.py, which joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from prune_cli.amounts import Amount, number_to_prune
from prune_cli.channels import draw_channels
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.errors import AmountError, RequestError
from prune_cli.plan.config import Changes
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.lists import Lists
from prune_cli.plan.selection import Selection, matcher, select
from prune_cli.plan.shrink import Attribute, Group, Kept, Whole
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.request import Request
from prune_cli.shrink.subject import Subject
from prune_cli.shrink.trace import Trace, trace


@dataclass(frozen=True)
class Work:
    """A model of which units go.

    Attributes:
        subject: the model.
        folder: its config, where that describes it.
        options: what was asked for.
        converted: for each tensor of the checkpoint that from_pretrained makes others of, the
            tensor of the model.
    """

    subject: Subject
    folder: ModelFolder | None
    options: Request
    converted: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def training(self) -> Trace | None:
        """A recording of the model while it trains; None where that cannot be recorded."""
        model = self.subject.model
        recorded = trace(model.train(), self.subject.inputs)
        model.eval()
        return recorded if recorded.failure is None else None

    def stored_list(self, path: str) -> str | None:
        """Return what the checkpoint calls a list of modules; None if its names do not say."""
        prefix = f"{path}." if path else ""
        found = set()
        for name in self.subject.first_names:
            if name.startswith(prefix) and name in self.subject.theirs:
                inside, theirs = name.removeprefix(prefix), self.subject.theirs[name]
                if theirs.endswith(f".{inside}"):
                    found.add(theirs.removesuffix(f".{inside}"))
                elif theirs == inside:
                    found.add("")
        return found.pop() if len(found) == 1 else None

    def is_chosen(self, modules: Iterable[str]) -> bool:
        """Return whether the patterns select one of these modules, and exclude none of them."""
        outside = {*modules}
        return bool(outside & self._picked) and not any(map(self._excluded, outside))

    def _excluded(self, module: str) -> bool:
        return matcher(self.options.exclude)(module)

    @cached_property
    def _picked(self) -> set[str]:
        """Every module that the patterns pick; one that matches nothing is an error."""
        names = [path for path, _ in self.subject.model.named_modules() if path]
        every = [Parameter(name, TensorInfo(name, "F32", ())) for name in _as_weights(names)]
        selection = Selection(self.options.rules, self.options.exclude)
        return {pick.parameter.name.rpartition(".")[0] for pick in select(every, selection)}


def _as_weights(names: Iterable[str]) -> list[str]:
    return [f"{name}.weight" for name in names]


@dataclass(frozen=True)
class Step:
    """What goes with units of one kind; tensors by their names in the model before.

    Attributes:
        model: without the units, on meta.
        config: what is new in the config.
        kept: the indices that stay, of each tensor and axis that gets shorter.
        lists: the lists of modules that get shorter.
        stored_lists: what the checkpoint calls them, and those of tensors that are stored in pieces.
        attributes: what load_shrunk has to change, by the names of modules in `model`.
        groups: the units, by the names in the checkpoint.
        whole: what stays, and why.
    """

    model: nn.Module
    config: Changes = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    lists: Lists = field(default_factory=dict)
    stored_lists: Lists = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Attribute]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    whole: tuple[Whole, ...] = ()


def count_units(amount: Amount, size: int, unit: str, name: str) -> int:
    """Return how many units of `size` go.

    Raises:
        AmountError: it would be all of them, or more.
    """
    k = number_to_prune(amount, size, name)
    if k == size:
        raise AmountError(
            f"{name}: amount={amount} would remove all of its {size} {unit}, which leaves no "
            "model; give a smaller one"
        )
    return k


def draw_units(work: Work, name: str, can_go: list[int], k: int, unit: str) -> tuple[int, ...]:
    """Draw which units go.

    Raises:
        RequestError: fewer than `k` can.
    """
    if k > len(can_go):
        raise RequestError(f"{name}: {k} {unit} are to go, and only {len(can_go)} can")
    return draw_channels(can_go, k, derive_seed(work.options.seed, name))


def stay_of(size: int, removed: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers below `size` that are not removed."""
    gone = {*removed}
    return tuple(number for number in range(size) if number not in gone)
