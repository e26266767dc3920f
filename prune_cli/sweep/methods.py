"""How a paper may describe a sweep: one paragraph with the facts of this run."""

from collections.abc import Iterator, Sequence

from prune_cli.sweep.grid import RANDOM, UNIFORM, Point
from prune_cli.sweep.statistics import RESAMPLES
from prune_cli.sweep.summary import Summary, spell_amount

_PUBLISHED = {
    "er": "Erdős–Rényi (Mocanu et al., 2018)",
    "erk": "Erdős–Rényi-Kernel (Evci et al., 2020)",
}
_CRITERIA = {
    "l1": "the smallest L1 norm",
    "l2": "the smallest L2 norm",
    "fpgm": "the smallest distance to the geometric median (FPGM)",
    "scores": "the smallest given score",
}


def describe_protocol(summary: Summary) -> str:
    """Return the Methods paragraph of a sweep."""
    return " ".join(_sentences(summary))


def _sentences(summary: Summary) -> Iterator[str]:
    settings = summary.settings
    yield (
        f"We pruned {settings.input} (sha256 {settings.sha256[:12]}) with prune-cli "
        f"{settings.versions.get('prune-cli', '')} at {_how_much(summary)}."
    )
    yield _what(summary)
    yield _draws(summary)
    yield _evaluated(summary)
    yield (
        "We report the mean, the standard deviation (n - 1) and the 95 % percentile bootstrap "
        f"interval of the mean ({RESAMPLES:,} resamples) over the draws; draws of one seed are "
        "nested over amounts, so differences are taken in pairs."
    )
    if summary.failed or summary.skipped:
        yield (
            f"Of {summary.trials} trials, {summary.failed} failed and {summary.skipped} were "
            "skipped; they are in no mean."
        )


def _how_much(summary: Summary) -> str:
    settings = summary.settings
    amounts = [spell_amount(Point(amount)) for amount in settings.amounts if amount != 0]
    return _list([*amounts, *settings.targets]) or "no amount"


def _what(summary: Summary) -> str:
    settings = summary.settings
    scope = " of one module at a time" if settings.is_each else ""
    goes = "removed, with all that depends on them" if settings.is_shrunk else "set to zero"
    others = [_CRITERIA.get(name, name) for name in settings.criteria if name != RANDOM]
    text = f"Whole channels{scope} were {goes}"
    if RANDOM in settings.criteria:
        text += ", chosen uniformly at random"
    if others:
        text += f"{', or' if RANDOM in settings.criteria else ', chosen'} by {_list(others)}"
    spread = [_PUBLISHED.get(name, name) for name in settings.allocations]
    if tuple(settings.allocations) != (UNIFORM,):
        text += f"; the amount was spread over the layers by {_list(spread)}"
    return f"{text}."


def _draws(summary: Summary) -> str:
    seeds = summary.settings.seeds
    count = len(seeds)
    named = f"{seeds[0]}–{seeds[-1]}" if seeds == tuple(range(count)) else _list(map(str, seeds))
    return (
        f"Each point was drawn {count} time{'s' * (count != 1)} (seed{'s' * (count != 1)} {named})."
    )


def _evaluated(summary: Summary) -> str:
    settings = summary.settings
    better = "lower" if settings.is_minimized else "higher"
    base = "" if summary.base is None else f"; the unpruned checkpoint has {summary.base:.4g}"
    repeats = f", {settings.repeats} times each" if settings.repeats > 1 else ""
    tuned = " after a fine-tune" if settings.finetune else ""
    name = summary.metric or settings.metric or "the metric"
    return f"Each checkpoint was evaluated{tuned} by {name}{repeats} ({better} is better){base}."


def _list(words: "Sequence[str] | Iterator[str] | map[str]") -> str:
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last
