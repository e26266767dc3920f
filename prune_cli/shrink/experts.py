"""Experts of a mixture: which tensors hold them, and whether the model without some is the masked one.

Their rows of the router go with them. The masked model is the whole one whose router never chooses
them (routing.py). A checkpoint may store each expert by itself where the model has all in one
tensor; then those go, and the others are numbered anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from prune_cli.amounts import Amount
from prune_cli.errors import RequestError
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.shrink import Group
from prune_cli.plan.units import EXPERTS
from prune_cli.shrink.agreement import Disagreement, find_disagreements
from prune_cli.shrink.axes import Axes, Axis, Owner
from prune_cli.shrink.config import lost_sizes
from prune_cli.shrink.copies import without_copies
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.routing import Routing
from prune_cli.shrink.step import Step, Work, count_units, draw_units, stay_of
from prune_cli.shrink.trace import Trace, trace

_COUNT = re.compile(r"(moe_)?(num|n)_?(local_|routed_)?experts?")
_CHOSEN = re.compile(r".*experts?_per_tok(en)?|(moe_)?(top_?k|num_selects)(_experts)?")


@dataclass(frozen=True)
class Mixture:
    """Experts that one router chooses from: the axes that they lie along, and its weight."""

    path: str
    router: str
    axes: Mapping[str, int]

    def modules(self) -> set[str]:
        """Return the paths by which it is selected."""
        return {self.path, *(name.rpartition(".")[0] for name in self.axes)}


@dataclass(frozen=True)
class Counted:
    """Mixtures whose experts a number of a config counts."""

    key: str
    size: int
    chosen: int
    mixtures: tuple[Mixture, ...] = field(default=())


def plan_experts(work: Work, amount: Amount) -> Step:
    """Return what goes with experts: as many of each mixture.

    Raises:
        RequestError: there are none that can go, or a token needs them.
    """
    if work.folder is None:
        raise RequestError(
            "experts of a model that code describes cannot be removed yet; give a folder with a "
            "config.json"
        )
    problems: list[str] = []
    for counted in _counted(work, work.folder):
        k = count_units(amount, counted.size, EXPERTS, counted.key)
        _refuse(work, counted, k, amount)
        changes = {counted.key: counted.size - k}
        model = work.folder.build(changes)
        removed = {each.path: _draw(work, each, counted.size, k) for each in counted.mixtures}
        axes = _axes(work, counted, removed)
        problem = _problem(work, model, axes)
        if problem is None:
            return Step(
                model,
                config=changes,
                kept={
                    name: {dim: axis.kept for dim, axis in enumerate(own) if axis.removed}
                    for name, own in axes.items()
                },
                stored_lists=dict(_pieces(work, counted, removed)),
                groups=tuple(
                    _group(work, each, amount, counted.size, removed[each.path])
                    for each in counted.mixtures
                ),
            )
        problems.append(problem)
    raise RequestError(
        f"no experts can be removed: {'; '.join(dict.fromkeys(problems))}"
        if problems
        else "no experts can be removed: no number in config.json counts the rows of routers and the "
        "experts they choose from alone"
    )


def _refuse(work: Work, counted: Counted, k: int, amount: Amount) -> None:
    left = [each for each in counted.mixtures if not work.is_chosen(each.modules())]
    if left:
        raise RequestError(
            f"config.json has one number for all experts, and those of {left[0].path} are not "
            "selected; select all of them"
        )
    if not k:
        raise RequestError(
            f"no expert is removed: of the {counted.size} that {counted.key} counts, "
            f"amount={amount} is none"
        )
    if counted.size - k < counted.chosen:
        raise RequestError(
            f"{counted.key}={counted.size - k} would leave fewer experts than the "
            f"{counted.chosen} that are chosen for each token; remove at most "
            f"{counted.size - counted.chosen}"
        )


def _draw(work: Work, mixture: Mixture, size: int, k: int) -> tuple[int, ...]:
    root = work.subject.outside(mixture.router)
    return draw_units(work, root, [*range(size)], k, EXPERTS)


def _counted(work: Work, folder: ModelFolder) -> Iterator[Counted]:
    numbers = folder.numbers()
    for key, size in numbers.items():
        parent, _, name = key.rpartition(".")
        if type(size) is not int or size < 2 or not _COUNT.fullmatch(name):
            continue
        chosen = [
            value
            for other, value in numbers.items()
            if other.rpartition(".")[0] == parent
            and _CHOSEN.fullmatch(other.rpartition(".")[2])
            and type(value) is int
        ]
        try:
            lost = lost_sizes(work.subject, folder.build({key: size - 1}))
        except RequestError:
            continue
        mixtures = _mixtures(work, lost, size)
        if mixtures:
            yield Counted(key, size, max(chosen, default=1), mixtures)


def _mixtures(work: Work, lost: Mapping[tuple[str, int], int], size: int) -> tuple[Mixture, ...]:
    """Sort the axes that got shorter by the smallest module that holds a router and its experts."""
    ranks = {name: len(work.subject.shape(name)) for name, _ in lost}
    routers = {name for name, dim in lost if ranks[name] == 2 and dim == 0 and _is_weight(name)}
    if any(count != 1 or work.subject.shape(n)[d] != size for (n, d), count in lost.items()):
        return ()
    paths: dict[str, dict[str, int]] = {}
    for name, dim in lost:
        path = name
        while path:
            path = path.rpartition(".")[0]
            inside = {other for other in ranks if other.startswith(f"{path}.")}
            if inside & routers and any(ranks[other] == 3 for other in inside):
                break
        paths.setdefault(path, {})[name] = dim
    own = {path: routers & axes.keys() for path, axes in paths.items()}
    if any(len(found) != 1 for found in own.values()):
        return ()
    return tuple(Mixture(path, own[path].pop(), axes) for path, axes in paths.items())


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"


def _axes(work: Work, counted: Counted, removed: Mapping[str, Sequence[int]]) -> dict[str, Axes]:
    axes: dict[str, Axes] = {}
    for mixture in counted.mixtures:
        root = work.subject.outside(mixture.router)
        owners = {expert: Owner(root, expert) for expert in removed[mixture.path]}
        for name, dim in mixture.axes.items():
            axes[name] = tuple(
                Axis(size, owners if position == dim else {})
                for position, size in enumerate(work.subject.shape(name))
            )
    return axes


def _problem(work: Work, model: nn.Module, axes: Mapping[str, Axes]) -> str | None:
    inputs = work.subject.inputs
    found = _disagreements(work.subject.recording, trace(model, inputs), axes)
    if not found and work.training is not None:
        found = _disagreements(work.training, trace(model.train(), inputs), axes)
        model.eval()
    return str(found[0]) if found else None


def _disagreements(before: Trace, after: Trace, axes: Mapping[str, Axes]) -> list[Disagreement]:
    return find_disagreements(
        without_copies(before), without_copies(after), axes, exact=True, routing=Routing()
    )


def _pieces(
    work: Work, counted: Counted, removed: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the lists in which a checkpoint stores each expert by itself, and who stays.

    Raises:
        RequestError: its names do not number the experts.
    """
    for mixture in counted.mixtures:
        stored = {
            made: [name for name, own in work.converted.items() if own == made]
            for made in mixture.axes
            if made not in work.subject.theirs
        }
        lists = {_list_of(names, counted.size) for names in stored.values()}
        if None in lists or len(lists) > 1:
            raise RequestError(
                f"the checkpoint does not number the experts of {mixture.path} from 0 to "
                f"{counted.size - 1}; save the model once with save_pretrained"
            )
        stay = stay_of(counted.size, removed[mixture.path])
        yield from ((path, stay) for path in lists if path is not None)


def _list_of(names: Sequence[str], size: int) -> str | None:
    """Return the list that tensors are of, one or more for each of `size` elements."""
    parts = [name.split(".") for name in names]
    for position in range(min(map(len, parts), default=0)):
        numbers = {own[position] for own in parts}
        before = {tuple(own[:position]) for own in parts}
        if numbers == {*map(str, range(size))} and len(before) == 1:
            return ".".join(before.pop())
    return None


def _group(
    work: Work, mixture: Mixture, amount: Amount, size: int, removed: tuple[int, ...]
) -> Group:
    root = work.subject.outside(mixture.router)
    members = sorted(
        (work.subject.theirs[name], dim)
        for name, dim in mixture.axes.items()
        if name in work.subject.theirs
    )
    seed = derive_seed(work.options.seed, root)
    return Group(root, 0, amount, seed, size, 1, removed, tuple(members), EXPERTS)
