"""The report by itself: do its rows follow from its options and its seed, and its totals from its rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.names import natural_key
from prune_cli.checkpoint.tensors import MASK_SUFFIX, ORIG_SUFFIX, TensorInfo
from prune_cli.errors import RequestError
from prune_cli.plan.biases import bias_name
from prune_cli.plan.draw import channels_to_prune, method_of
from prune_cli.plan.facts import (
    CHOSEN,
    RANDOM,
    Options,
    PlanItem,
)
from prune_cli.plan.prefixes import all_names
from prune_cli.plan.selection import (
    Fits,
    Rule,
    Selection,
    pair_matcher,
    patterns_of_whole_names,
    split_name,
)
from prune_cli.report.report import Report, sum_up
from prune_cli.verify.choice import quota_problems
from prune_cli.verify.facts import Disagreement
from prune_cli.verify.shrink import report_problems, size_problems

_NOT_ASKED_FOR = "the options of the report do not ask for its amount and dim"


def check_report(report: Report, written: Checkpoint) -> Iterator[Disagreement]:
    """Check that the rows follow from the options and the seed, and the totals from the rows."""
    rows = {item.name: item for item in report.tensors}
    asked = _find_asked(report.options, written)
    for name, count in Counter(item.name for item in report.tensors).items():
        if count > 1:
            yield Disagreement(f"the report has {count} rows of it", name)
    if list(rows) not in (sorted(rows, key=natural_key), sorted(rows)):  # 0.1.0 sorted text
        yield Disagreement("the rows of the report are not in the order of their names")
    for item in report.tensors:
        for fact in _row_problems(report, item, rows, written, asked):
            yield Disagreement(fact, item.name)
    if report.method in CHOSEN:
        yield from _choice_problems(report, written, asked)
    if report.shrink is not None:
        yield from map(Disagreement, report_problems(report.shrink, report.options.seed))
        yield from map(Disagreement, size_problems(report.shrink, report.options, {}))
    if not is_same(report.totals, sum_up(report.tensors)):
        yield Disagreement("the totals of the report are not the sums of its rows")


@dataclass(frozen=True)
class _Asked:
    """What the options ask for. A class, for their patterns are compiled once for all rows.

    Attributes:
        prefixes: without which names fit too.
        is_chosen: whether something else than its rule gives a row its amount.
        excluded: tells by a module and a parameter's own name what no rule may touch.
        rules: each with what tells the same way whether it is for a parameter.
    """

    prefixes: Sequence[str]
    is_chosen: bool
    excluded: Fits
    rules: Sequence[tuple[Rule, Fits]]

    def rule_for(self, item: PlanItem) -> Rule | None:
        """Return the last rule that matches the tensor, by any of its names."""
        names = all_names((item.name, *item.aliases), self.prefixes)
        pairs = [split_name(name) for name in names]
        if any(map(self.excluded, pairs)):
            return None
        fitting = (rule for rule, fits in reversed(self.rules) if any(map(fits, pairs)))
        return next(fitting, None)

    def has_row(self, item: PlanItem) -> bool:
        """Whether the rule for the tensor is what its row says."""
        rule = self.rule_for(item)
        if rule is None or rule.dim not in (item.dim, item.dim - len(item.shape)):
            return False
        return self.is_chosen or repr(rule.amount) == repr(item.amount)


def _find_asked(options: Options, written: Checkpoint) -> _Asked:
    """Return what the options ask for: a pattern can mean whole names, which the output has."""
    prefixes, rules = options.strip_prefixes or (), _rules(options)
    names = all_names((*written.parameter_of, *written.parameter_aliases), prefixes)
    pairs = [split_name(name) for name in names]
    whole = patterns_of_whole_names(pairs, Selection(rules, options.exclude))
    return _Asked(
        prefixes,
        options.choice is not None,
        pair_matcher(options.exclude, ("*",), whole),
        [(rule, pair_matcher(rule.modules, rule.params, whole)) for rule in rules],
    )


def _row_problems(
    report: Report,
    item: PlanItem,
    rows: Mapping[str, PlanItem],
    written: Checkpoint,
    asked: _Asked,
) -> Iterator[str]:
    if (item.module, item.param) != split_name(item.name):
        yield "the report's module and param are not the parts of its name"
    if not has_its_dim(item):
        yield "the report's shape, dim and channels do not fit each other"
        return
    channels = (*item.already_pruned, *item.pruned)
    if len(set(channels)) != len(channels) or not all(0 <= c < item.channels for c in channels):
        yield "the report names a channel twice, or one that is not there"
        return
    if item.follows is not None:
        yield from _follower_problems(item, rows.get(item.follows))
    elif report.method != RANDOM:
        if item.seed is not None:
            yield f"the report gives it a seed, but {report.method} draws nothing"
        if report.method in CHOSEN and not asked.has_row(item):
            yield _NOT_ASKED_FOR
    elif _is_there(report, item, written):
        yield from _draw_problems(report, item, asked)


def _is_there(report: Report, item: PlanItem, written: Checkpoint) -> bool:
    """Whether the output has a tensor of its shape; drawing for any other may take forever."""
    return any(info.shape == item.shape for info in tensors_of(report, item, written))


def has_its_dim(item: PlanItem) -> bool:
    """Return whether `dim` and `channels` are those of `shape`; one without dims is one channel."""
    shape = item.shape or (1,)
    return 0 <= item.dim < len(shape) and shape[item.dim] == item.channels


def _follower_problems(item: PlanItem, leader: PlanItem | None) -> Iterator[str]:
    biases = {bias_name(name) for name in (leader.name, *leader.aliases)} if leader else set()
    if (
        leader is None
        or leader.follows is not None
        or biases.isdisjoint((item.name, *item.aliases))
    ):
        yield f"the report says that it follows {item.follows}, which has no such bias"
        return
    expected = replace(
        leader,
        name=item.name,
        module=item.module,
        param=item.param,
        aliases=item.aliases,
        dtype=item.dtype,
        shape=(leader.channels,),
        dim=0,
        already_pruned=(),
        follows=leader.name,
    )
    if keys := differing_fields(item, expected):
        yield f"the report's {', '.join(keys)} are not those of {item.follows}, which it follows"


def _draw_problems(report: Report, item: PlanItem, asked: _Asked) -> Iterator[str]:
    options = report.options
    if not asked.has_row(item):
        yield _NOT_ASKED_FOR
    if item.seed != options.seed_of(item.name):
        yield f"its seed in the report does not follow from the seed {options.seed}"
        return
    try:
        drawn = channels_to_prune(item, options.choice)
    except RequestError as error:
        yield f"its amount in the report is impossible: {error}"
        return
    if drawn != item.pruned:
        yield "the pruned channels of the report are not those that its seed draws"


def _rules(options: Options) -> tuple[Rule, ...]:
    has_target = options.choice is not None and options.choice.target is not None
    if options.rules or (options.amount is None and not has_target):
        return options.rules
    if options.amount != options.amount:  # NaN, which an edited report can hold, asks for nothing
        return ()
    return (Rule(options.modules, options.params, options.amount or 0, options.dim),)


def _choice_problems(report: Report, written: Checkpoint, asked: _Asked) -> Iterator[Disagreement]:
    """Check that the method is that of the options, and each row loses what they give it."""
    options, choice = report.options, report.options.choice
    if report.method != method_of(options):
        yield Disagreement(f"the options of the report are not those of {report.method}")
    leading = [item for item in report.tensors if item.follows is None]
    rules = [rule for item in leading if (rule := asked.rule_for(item))]
    is_sound = all(has_its_dim(item) and _is_there(report, item, written) for item in leading)
    if choice is None or len(rules) < len(leading) or not is_sound:
        return
    for name, fact in quota_problems(options, choice, leading, rules):
        yield Disagreement(fact, name or None)


def is_same(one: object, other: object) -> bool:
    """Return whether both are equal in type too: the amounts 1 and 1.0 are not the same."""
    return repr(one) == repr(other)


def differing_fields(one: PlanItem, other: PlanItem) -> list[str]:
    """Return the fields in which two rows differ."""
    if one == other and type(one.amount) is type(other.amount):
        return []
    keys = [entry.name for entry in fields(PlanItem)]
    return [key for key in keys if not is_same(getattr(one, key), getattr(other, key))]


def tensors_of(report: Report, item: PlanItem, written: Checkpoint) -> list[TensorInfo]:
    """Return the tensors of the output that a row is about."""
    names = [item.name + suffix for suffix in suffixes(report)]
    return [written.tensors[name] for name in names if name in written.tensors]


def suffixes(report: Report) -> tuple[str, ...]:
    """Return what the output appends to the name of a row."""
    return ("",) if report.options.bake else (ORIG_SUFFIX, MASK_SUFFIX)
