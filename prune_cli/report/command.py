"""The command line that repeats the run of a report."""

import shlex
from collections.abc import Iterator

from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import CHOSEN, RANDOM, REMOVED, SHRUNK, Options
from prune_cli.plan.shrink import ShrinkOptions
from prune_cli.report.report import Input, Report


def spell_command(report: Report) -> tuple[str, ...]:
    """Return the command of a run, word by word as one would type it; () if it needs a recipe.

    Example:
        >>> spell_command(read_report("model.pruned.report.json"))
        ('prune-cli', 'random-structured', 'model.pt', '--amount', '0.25', '--dim', '0', ...)
    """
    options, source = report.options, _source(report.input)
    if report.method == REMOVED:
        words = ["remove", source]
    elif report.method in CHOSEN and not options.rules:
        name = "random-structured" if report.method == RANDOM else "structured"
        words = [name, source, *_draw(options), *_choice(options.choice), *_patterns(options)]
    elif report.method == SHRUNK and options.shrink and not options.rules:
        words = ["shrink", source, *_model(options.shrink), *_removal(options, options.shrink)]
    else:
        return ()
    return ("prune-cli", *map(shlex.quote, words))


def _source(given: Input) -> str:
    """Return the input as one would name it; a model of the Hub at its commit."""
    if given.revision is None:
        return given.path
    organisation, model, *file = given.path.split("/")
    return "/".join(["hf:/", organisation, f"{model}@{given.revision}", *file])


def _draw(options: Options) -> Iterator[str]:
    if options.amount is not None:
        yield from ("--amount", str(options.amount))
    yield from ("--dim", str(options.dim), "--seed", str(options.seed))
    if options.with_bias:
        yield "--with-bias"
    if not options.bake:
        yield "--keep-masks"


def _choice(choice: Choice | None) -> Iterator[str]:
    if choice is None:
        return
    usual = Choice()
    if choice.target:
        yield from ("--target", choice.target)
    if choice.allocate != usual.allocate:
        yield from ("--allocate", choice.allocate)
    if choice.between:
        yield from ("--between", f"{choice.between[0]},{choice.between[1]}")
    if choice.is_global:
        yield "--global"
    if choice.scores:
        yield from ("--scores", choice.scores)
    elif choice.criterion != usual.criterion:
        yield from ("--criterion", choice.criterion)
    if choice.round_to != usual.round_to:
        yield from ("--round-to", str(choice.round_to))
    if choice.at_least != usual.at_least:
        yield from ("--at-least", str(choice.at_least))


def _patterns(options: Options) -> Iterator[str]:
    if options.modules != ("*",):
        yield from (word for glob in options.modules for word in ("--module", glob))
    if options.params != ("weight",):
        yield from (word for glob in options.params for word in ("--param", glob))
    yield from (word for glob in options.exclude for word in ("--exclude", glob))
    for prefix in options.strip_prefixes or ():
        yield from ("--strip-prefix", prefix)


def _model(shrink: ShrinkOptions) -> Iterator[str]:
    if shrink.model is not None:
        yield from ("--model", shrink.model)
    for name, value in shrink.model_arguments.items():
        yield from ("--model-arg", f"{name}={value}")
    yield from (word for example in shrink.examples for word in ("--example", example))


def _removal(options: Options, shrink: ShrinkOptions) -> Iterator[str]:
    if shrink.from_zeros:
        yield "--from-zeros"
    else:
        if options.amount is not None:
            yield from ("--amount", str(options.amount))
        yield from ("--seed", str(options.seed))
    yield from _choice(options.choice)
    if shrink.round_to != 1:
        yield from ("--round-to", str(shrink.round_to))
    yield from _patterns(options)
