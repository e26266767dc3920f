"""Commands with placeholders: `python eval.py {model}`, filled in for each trial.

See also: `command`, which runs them.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from prune_cli.errors import UsageError

_PLACEHOLDER = re.compile(r"\{\{(?P<literal>[A-Za-z_]\w*)\}\}|(?<!\$)\{(?P<name>[A-Za-z_]\w*)\}")
"""`{name}`, and `{{name}}` for one that is meant literally. `${name}` is the shell's own."""


@dataclass(frozen=True, slots=True)
class Values:
    """What the placeholders of one trial stand for; paths are absolute.

    Attributes:
        model: the checkpoint to evaluate: pruned, or after the fine-tune the tuned one.
        tuned: where the fine-tune writes.
        report: of the trial, what was pruned.
        seed, amount, allocation: of the trial; the amount may be a target ("flops=0.5").
        trial: its name, which is also its folder's.
        dir: its folder, for whatever the command wants to leave there.
    """

    model: str
    tuned: str
    report: str
    seed: str
    amount: str
    allocation: str
    trial: str
    dir: str


PLACEHOLDERS = tuple(entry.name for entry in fields(Values))


def check_templates(templates: Mapping[str, str]) -> None:
    """Raise UsageError where a template has an unknown placeholder; keys name the options."""
    problems = [
        f"{option}: there is no placeholder {{{name}}}; there are "
        f"{', '.join(f'{{{known}}}' for known in PLACEHOLDERS)} "
        f"(write {{{{{name}}}}} where the braces are meant literally)"
        for option, template in templates.items()
        for name in dict.fromkeys(placeholders_in(template))
        if name not in PLACEHOLDERS
    ]
    if problems:
        raise UsageError("\n".join(problems))


def placeholders_in(template: str) -> Iterable[str]:
    """Return the names of the placeholders in `template`, known or not."""
    return [found["name"] for found in _PLACEHOLDER.finditer(template) if found["name"]]


def fill(template: str, values: Values) -> str:
    """Return the command: each placeholder replaced by its value, quoted for the shell.

    Example:
        >>> fill("python eval.py {model}", values)
        "python eval.py '/tmp/my sweep/trials/a0.25-s0/model.safetensors'"
    """
    known = asdict(values)
    return _substitute(template, {name: shlex.quote(value) for name, value in known.items()})


def fill_path(template: str, values: Values) -> str:
    """`template` with the same placeholders, as a path: not quoted, since no shell reads it."""
    return _substitute(template, asdict(values))


def environment_of(values: Values) -> dict[str, str]:
    """Return the same values as environment variables: PRUNE_MODEL, PRUNE_SEED, ..."""
    return {f"PRUNE_{name.upper()}": value for name, value in asdict(values).items()}


def _substitute(template: str, known: Mapping[str, str]) -> str:
    def replacement(found: re.Match[str]) -> str:
        literal, name = found["literal"], found["name"]
        return f"{{{literal}}}" if literal else known[name]

    return _PLACEHOLDER.sub(replacement, template)
