"""The command line that repeats the run of a report."""

import shlex
from collections.abc import Iterator

from prune_cli.plan.facts import Options
from prune_cli.report.report import Report


def spell_command(report: Report) -> tuple[str, ...]:
    """Return the command of a run, word by word as one would type it; () if it needs a recipe.

    Example:
        >>> spell_command(read_report("model.pruned.report.json"))
        ('prune-cli', 'random-structured', 'model.pt', '--amount', '0.25', '--dim', '0', ...)
    """
    options, source = report.options, report.input.path
    if report.method == "remove":
        words = ["remove", source]
    elif report.method == "random_structured" and not options.rules:
        words = ["random-structured", source, *_draw(options), *_patterns(options)]
    else:
        return ()
    return ("prune-cli", *map(shlex.quote, words))


def _draw(options: Options) -> Iterator[str]:
    yield from ("--amount", str(options.amount), "--dim", str(options.dim))
    yield from ("--seed", str(options.seed))
    if options.with_bias:
        yield "--with-bias"
    if not options.bake:
        yield "--keep-masks"


def _patterns(options: Options) -> Iterator[str]:
    if options.modules != ("*",):
        yield from (word for glob in options.modules for word in ("--module", glob))
    if options.params != ("weight",):
        yield from (word for glob in options.params for word in ("--param", glob))
    yield from (word for glob in options.exclude for word in ("--exclude", glob))
