"""Makes the checkpoint of a trial: the main job's own pipeline, on a source that is opened once.

See also: `Maker`, which whoever makes trials otherwise (`shrink`) looks like.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from glob import escape
from hashlib import sha256
from typing import Any, Protocol, Self

from prune_cli.amounts import Amount
from prune_cli.api import carry_out, plan_choice
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.source import identity_of, open_source
from prune_cli.errors import InputError
from prune_cli.plan.choice import USUAL, Choice, make_choice
from prune_cli.plan.facts import Options, Plan
from prune_cli.plan.selection import Rule
from prune_cli.report.report import Report
from prune_cli.stores import Location
from prune_cli.sweep.grid import Point, Trial
from prune_cli.sweep.record import Achieved
from prune_cli.write.target import Execution, Target

_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class Made:
    """A checkpoint that was written: what its report says, and what the draw achieved."""

    report: Report
    achieved: Achieved


@dataclass(frozen=True, slots=True)
class Prepared:
    """A trial that is decided and not written.

    Attributes:
        facts: everything that was decided, as text; two trials with the same are the same.
        write: makes the checkpoint where its argument says.
    """

    facts: str
    write: Callable[[Target], Made]


class Maker(Protocol):
    """Decides and writes the checkpoint of a trial. It can be pickled, and opens its source once."""

    @property
    def source(self) -> Checkpoint:
        """The checkpoint that is pruned."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """What was asked for of every trial, by the names of the options."""
        ...

    def prepare(self, trial: Trial) -> Prepared:
        """Decide a trial; raise RequestError where it does not fit the source."""
        ...

    def modules(self) -> tuple[str, ...]:
        """Return the modules (or coupled groups) that a sensitivity sweep takes one at a time."""
        ...

    def recipe(self, amounts: Mapping[str, Amount]) -> tuple[Rule, ...]:
        """Return the rules that prune so much of some of `modules`, and nothing else."""
        ...

    def from_anywhere(self) -> "Maker":
        """Return the same with paths that do not depend on where a process stands."""
        ...


@dataclass(frozen=True)
class FileMaker:
    """What makers of both kinds are told. Not slotted, so that what is opened stays open.

    Attributes:
        path: the checkpoint.
        options: of every trial, but for amount, seed, allocation and criterion.
        rules: of a recipe, for each amount that a rule of it leaves open.
        loading: how a pickle may be loaded.
        choice: how channels are chosen, but for what the point of a trial says.
        scores: the score file, for the criterion "scores".
        workers: threads of each trial.
    """

    path: Location
    options: Options
    rules: Mapping[Amount | None, tuple[Rule, ...]] = field(default_factory=dict)
    loading: Loading = field(default_factory=Loading)
    choice: Choice = USUAL
    scores: Location | None = None
    workers: int | None = None

    @cached_property
    def source(self) -> Checkpoint:
        """The checkpoint, opened when it is first asked for."""
        checkpoint = open_checkpoint(self.path, self.loading)
        checkpoint.liveness.look()  # many plans are made of it, and hashing it reads it in any case
        return checkpoint

    @property
    def facts(self) -> Mapping[str, object]:
        """The options of every trial; a recipe shows as its rules for the first amount."""
        rules = next(iter(self.rules.values()), ())
        choice = None if self.choice == USUAL else self.choice
        facts = asdict(replace(self.options, rules=rules, choice=choice))
        return {name: value for name, value in facts.items() if name not in ("amount", "seed")}

    def from_anywhere(self) -> Self:
        """Return the same with absolute paths."""
        return replace(
            self, path=self.path.absolute(), scores=self.scores and self.scores.absolute()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {told.name: getattr(self, told.name) for told in fields(self)}


@dataclass(frozen=True)
class RandomMaker(FileMaker):
    """Prunes as `random-structured` does.

    Attributes:
        device: where channels are zeroed.
    """

    device: str = "cpu"

    def prepare(self, trial: Trial) -> Prepared:
        """Decide a trial.

        Raises:
            RequestError: it does not fit the source.
        """
        plan = self._plan(trial)
        return Prepared(_spell(plan), partial(self._write, plan))

    def modules(self) -> tuple[str, ...]:
        """Return the modules that are pruned, in the order of the checkpoint."""
        planned = {item.module for item in self._unpruned().items}
        order = (parameter.module for parameter in self.source.parameters)
        return tuple(dict.fromkeys(module for module in order if module in planned))

    def recipe(self, amounts: Mapping[str, Amount]) -> tuple[Rule, ...]:
        """Return one rule for each pruned parameter of the modules: their dims may differ."""
        return tuple(
            Rule((escape(item.module),), (escape(item.param),), amounts[item.module], item.dim)
            for item in self._unpruned().items
            if item.module in amounts and item.follows is None
        )

    def _unpruned(self) -> Plan:
        return self._plan(Trial(Point(0), 0))

    def _plan(self, trial: Trial) -> Plan:
        scores = self.scores if trial.point.criterion == "scores" else None
        execution = Execution(self.device, self.workers)
        return plan_choice(self.source, self._options(trial), scores, execution.threads)

    def _options(self, trial: Trial) -> Options:
        point = trial.point
        return replace(
            self.options,
            amount=point.amount,
            seed=trial.seed,
            rules=trial.rules or self._rules(point),
            choice=None if point.is_unpruned else choose(self.choice, point, self.scores),
        )

    def _rules(self, point: Point) -> tuple[Rule, ...]:
        if point.is_unpruned:
            rules = next(iter(self.rules.values()), ())
            return tuple(replace(rule, amount=0) for rule in rules)
        if point.module is not None and point.amount is not None:
            return self.recipe({point.module: point.amount})
        return self.rules.get(point.amount, ())

    def _write(self, plan: Plan, target: Target) -> Made:
        report = carry_out(self.source, lambda: plan, target, Execution(self.device, self.workers))
        return Made(report, _achieved(self.source, report))


def choose(common: Choice, point: Point, scores: Location | None) -> Choice | None:
    """Return how the channels of a point are chosen; `common` is what all points have."""
    return make_choice(
        allocate=point.allocation,
        between=common.between if point.allocation == "random" else None,
        target=point.target,
        is_global=common.is_global,
        criterion=point.criterion,
        scores=scores.name if scores and point.criterion == "scores" else None,
        round_to=common.round_to,
        at_least=common.at_least,
    )


def digest_source(checkpoint: Checkpoint) -> str:
    """Return the sha256 of a checkpoint: of the names and bytes of all its files.

    Raises:
        InputError: a file cannot be read.
    """
    files = [(shard.name, shard.path) for shard in checkpoint.shards]
    files += [(name, checkpoint.path / name) for name in sorted(checkpoint.others)]
    total = sha256()
    for name, path in files:
        total.update(f"{name if checkpoint.is_folder else ''}\0{_digest_file(path)}\n".encode())
    return total.hexdigest()


def stamp_source(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what changes when a file of the checkpoint does, of each.

    Raises:
        InputError: a file is not there any more.
    """
    try:
        return tuple(identity_of(shard.path) for shard in checkpoint.shards)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _digest_file(path: Location) -> str:
    digest = sha256()
    with open_source(path) as source:
        for piece in source.pieces(0, path.stat().st_size):
            digest.update(piece)
    return digest.hexdigest()


def _spell(plan: Plan) -> str:
    items = [(item.name, item.dim, item.already_pruned, item.pruned) for item in plan.items]
    options = asdict(plan.options)
    return json.dumps([plan.method, options, items], sort_keys=True, default=str)


def _achieved(checkpoint: Checkpoint, report: Report) -> Achieved:
    leading = [item for item in report.tensors if item.follows is None]
    channels = sum(item.channels for item in leading)
    gone = sum(len(item.pruned) + len(item.already_pruned) for item in leading)
    return Achieved(
        amount=gone / channels if channels else 0.0,
        parameters=sum(parameter.tensor.elements for parameter in checkpoint.parameters),
        elements_zero=report.totals.elements_zero,
        sparsity=report.totals.sparsity,
        bytes=report.output.bytes if report.output else None,
    )
