"""Makes the trials of a sweep physically smaller: a Maker that removes channels.

See also: `sweep.maker`, the Maker that zeroes them.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from glob import escape
from pathlib import Path
from typing import Any

from prune_cli.amounts import Amount
from prune_cli.api import carry_out
from prune_cli.errors import RequestError
from prune_cli.plan.facts import SHRUNK, Options, Plan
from prune_cli.plan.selection import Rule, split_name
from prune_cli.plan.shrink import Effect, ShrinkOptions, ShrinkPlan
from prune_cli.report.report import Report
from prune_cli.shrink.child import DEFAULT_TIME_LIMIT, PlanningChild
from prune_cli.shrink.request import Request, Source
from prune_cli.shrink.shrink import (
    find_source,
    item_bytes,
    scorer,
    shapes_of,
    spell_arguments,
)
from prune_cli.sweep.grid import Point, Trial
from prune_cli.sweep.maker import FileMaker, Made, Prepared, choose
from prune_cli.sweep.record import Achieved
from prune_cli.write.target import Execution, Target

_planning = threading.Lock()
"""Recording a model is not safe in threads, and timing two at a time is worth nothing."""


@dataclass(frozen=True)
class ShrinkMaker(FileMaker):
    """Removes channels as `shrink` does.

    Attributes:
        model_arguments: for the factory, as values.
        is_measured: whether the latency of each trial is measured.
        time_limit: for the first plan, in seconds.
    """

    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    is_measured: bool = False
    time_limit: float = DEFAULT_TIME_LIMIT

    def prepare(self, trial: Trial) -> Prepared:
        """Decide a trial.

        Raises:
            RequestError: the model cannot be followed, or loses nothing.
            UsageError: shrinking has no such choice of channels.
        """
        point = trial.point
        options = replace(
            self.options,
            amount=point.amount,
            seed=trial.seed,
            rules=trial.rules or self._rules(point),
            choice=None if point.is_unpruned else choose(self.choice, point, self.scores),
        )
        decided = self._whole if point.is_unpruned else self._decide(options)
        plan = Plan(SHRUNK, options, (), shrink=decided)
        return Prepared(_spell(plan), partial(self._write, plan))

    def modules(self) -> tuple[str, ...]:
        """Return the modules that name the coupled groups: those of their roots."""
        asked = self.options.shrink
        each = asked and replace(asked, round_to=1)
        one = replace(self.options, amount=1, rules=(), shrink=each)
        return tuple(dict.fromkeys(split_name(group.root)[0] for group in self._decide(one).groups))

    def recipe(self, amounts: Mapping[str, Amount]) -> tuple[Rule, ...]:
        """Return rules: all layers are selected with nothing, then the root of each group."""
        nothing = Rule(self.options.modules, ("weight",), 0, 0)
        return (
            nothing,
            *(Rule((escape(module),), ("weight",), each, 0) for module, each in amounts.items()),
        )

    def _rules(self, point: Point) -> tuple[Rule, ...]:
        if point.module is not None and point.amount is not None:
            return self.recipe({point.module: point.amount})
        return () if point.is_unpruned else self.rules.get(point.amount, ())

    @cached_property
    def _code(self) -> Source:
        asked = self.options.shrink
        assert asked is not None
        return find_source(self.source, asked.model, self.model_arguments, asked.examples)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.source)

    @cached_property
    def _whole(self) -> ShrinkPlan:
        """The plan that removes nothing, with the size of the model."""
        from prune_cli.shrink.effect import count_flops
        from prune_cli.shrink.huggingface import read_folder
        from prune_cli.shrink.model import count_parameters
        from prune_cli.shrink.subject import make_subject

        with _in_this_process():
            code = self._code
            subject = make_subject(code, read_folder(code.model) if code.is_folder else None)
            parameters = count_parameters(subject.model)
            flops = count_flops(subject.recording)
            effect = Effect(parameters, parameters, flops, flops)
        return ShrinkPlan({}, {}, {}, {}, (), (), effect)

    def _decide(self, options: Options) -> ShrinkPlan:
        """Follow the model in a child first: one that never ends must not end a sweep likewise."""
        from prune_cli.shrink.plan import plan_shrink
        from prune_cli.shrink.planning import no_scores

        wanted = self._wanted(options)
        score = scorer(self.source, options.choice, self.scores, self.workers)
        if not self._followed.is_set():
            with PlanningChild() as child:
                plan = child.plan(
                    self._code, wanted, self._shapes, time_limit=self.time_limit, score=score
                )
            self._followed.set()
            return plan
        with _in_this_process():
            return plan_shrink(self._code, wanted, self._shapes, score=score or no_scores)

    @cached_property
    def _followed(self) -> threading.Event:
        return threading.Event()

    def _wanted(self, options: Options) -> Request:
        asked = options.shrink
        assert asked is not None
        everything = Rule(options.modules, ("weight",), options.amount or 0, 0)
        rules = options.rules or (everything,)
        each = item_bytes(self.source, options.choice)
        return Request(
            rules,
            options.exclude,
            options.seed,
            asked.round_to,
            choice=options.choice,
            item_bytes=each,
        )

    def _write(self, plan: Plan, target: Target) -> Made:
        if self.is_measured and plan.shrink:
            from prune_cli.shrink.live import measure_effect

            with _in_this_process():
                latency = measure_effect(self._code, plan.shrink)
            plan = replace(plan, shrink=replace(plan.shrink, latency=latency))
        report = carry_out(self.source, lambda: plan, target, Execution("cpu", self.workers))
        return Made(report, _achieved(report))


def _achieved(report: Report) -> Achieved:
    plan = report.shrink
    if plan is None:
        raise RequestError("the report says nothing of what was removed")
    channels = sum(group.channels for group in plan.groups)
    channels += sum(group.channels for group in plan.whole)
    gone = sum(len(group.removed) for group in plan.groups)
    latency = plan.latency.milliseconds["after"] / 1000 if plan.latency else None
    return Achieved(
        amount=gone / channels if channels else 0.0,
        parameters=plan.effect.parameters_after,
        elements_zero=0,
        bytes=report.output.bytes if report.output else None,
        flops=float(plan.effect.flops_after),
        latency=latency,
    )


def make_options(
    *,
    modules: tuple[str, ...],
    exclude: tuple[str, ...],
    round_to: int,
    model: str | None,
    model_arguments: Mapping[str, Any],
    examples: tuple[str, ...],
) -> Options:
    """Return the options of every trial, as their reports have them.

    Raises:
        UsageError: an argument of the model cannot be written down.
    """
    asked = ShrinkOptions(round_to, False, model, spell_arguments(model_arguments), examples)
    return Options(None, 0, modules=modules, exclude=exclude, shrink=asked)


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    """Yield where the user's code runs: it is found, and what it prints is not taken for data."""
    with _planning, contextlib.redirect_stdout(io.StringIO()):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        yield


def _spell(plan: Plan) -> str:
    decided = plan.shrink and asdict(plan.shrink)
    return json.dumps([plan.method, asdict(plan.options), decided], default=str)
