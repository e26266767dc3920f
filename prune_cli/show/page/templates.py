"""The HTML templates of the page, and how numbers look in them. Only this file knows Jinja2."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from prune_cli.amounts import Amount
from prune_cli.checkpoint.names import make_printable
from prune_cli.plan.choice import Choice
from prune_cli.plan.facts import Options
from prune_cli.report.numbers import format_bytes, format_count
from prune_cli.show.choices import describe_amount, describe_choice, name_choice

_SPACES = "\n\u00a0\u2009"
_LONGEST_TEXT = 300
"""Characters of a name or a reason; those of a hostile file may have megabytes."""


def fill_in(template: str, view: object) -> str:
    """Return the HTML of `template`, whose `view` is what it shows.

    Every text is escaped, and so is what does not print in it, or turns the order of what does.
    """
    return _environment().get_template(template).render(view=view)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        finalize=_make_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": lambda number: f"{number:,}",
        "percent": lambda part: f"{part:.1%}",
        "rounded": _round,
        "count": format_count,
        "size": format_bytes,
        "short": _shorten,
        "amount": _describe_amount,
        "short_amount": _shorten_amount,
        "chosen": _describe_choice,
        "how": name_choice,
        "clip": _clip,
    }
    environment.globals |= {"style": _read("page.css"), "script": _read("page.js")}
    return environment


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _make_printable(value: object) -> object:
    """Return a text that is no markup without control characters; lines and spaces stay."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(c if c in _SPACES else make_printable(c) for c in value)


def _shorten(number: float) -> str:
    """Return "457.6 M" for 457,577,472."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000 or prefix == "T":
            break
        number /= 1000
    return f"{number:,.0f} " if not prefix else f"{number:,.1f} {prefix}"


def _round(number: float) -> str:
    if number < 0.01:
        return "0" if number == 0 else "less than 0.01"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _describe_amount(amount: Amount | None) -> str:
    match amount:
        case None:
            return "by rules"
        case int():
            return f"{format_count(amount, 'channel')} of each tensor"
        case _:
            return f"{100 * amount:.4g}% of each tensor's live channels"


def _shorten_amount(amount: Amount | None, choice: Choice | None = None) -> str:
    if choice and choice.target:
        return _clip(choice.target)
    match amount:
        case None:
            return "by rules"
        case int():
            return f"{amount:,}"
        case _:
            return f"{100 * amount:.4g}%"


def _describe_choice(options: Options) -> str:
    return ", ".join(
        [
            describe_amount(options, "group" if options.shrink else "tensor"),
            *describe_choice(options.choice),
        ]
    )


def _clip(text: str, most: int = _LONGEST_TEXT) -> str:
    """Return `text`, or both ends of it if it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
