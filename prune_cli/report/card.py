"""The model card of an output, README.md: what it was made of and how, in the Hub's own form.

A card that is there already is kept and extended: that of the base, which the output's begins as,
or one that the output had before. See also: `front_matter`, the block that a card begins with.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import InputError
from prune_cli.plan.facts import CHOSEN, REMOVED, SHRUNK
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.report.command import spell_command
from prune_cli.report.front_matter import Card, Entry, read_card
from prune_cli.report.numbers import format_count
from prune_cli.report.report import Report
from prune_cli.stores.hub import find_model
from prune_cli.stores.paths import Location

CARD = "README.md"
"""What a model card is called."""

MOST_BYTES = 1 << 20
"""Of a card that is extended; a longer file is something else, and is copied as it is."""

_BEGIN = "<!-- prune-cli: from here to the end mark, each run writes this anew -->"
_END = "<!-- prune-cli: end -->"
_SECTION = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END) + r"\n?", re.DOTALL)

_TAGS = ("pruned", "prune-cli")
_OF_THE_BASE = (
    *("license", "license_name", "license_link", "pipeline_tag", "library_name", "language"),
)
"""What holds for the pruned model as it does for its base."""

_OF_THE_BASE_ALONE = ("model-index", "base_model_relation", "new_version")
"""What does not: its evaluations, what it is itself made of, and what came after it."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that was pruned.

    Attributes:
        model: what the Hub calls it, if it is from there.
        card: its own model card, if it has one.
    """

    model: str | None = None
    card: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is a model of the Hub, or has a model card: a README.md with front matter."""
        return self.model is not None or bool(self.card and read_card(self.card).entries)


def find_base(checkpoint: Checkpoint) -> Base:
    """Return the Base that `checkpoint` is, with its model card.

    Raises:
        InputError: its card cannot be read.
    """
    model = find_model(checkpoint.path)
    folder = checkpoint.path if checkpoint.is_folder else None
    if model and model.file:
        folder = checkpoint.path.parents[model.file.count("/")]
    card = _read_text(folder / CARD) if folder else None
    return Base(model.name if model else None, card)


def _read_text(path: Location) -> str | None:
    """Return a card; None if there is none, or what is called so cannot be one."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def write_card(report: Report, base: Base, *, report_file: str | None, there: str | None) -> str:
    """Return the model card of the output that `report` is about.

    Args:
        report: what was done; its output is not None.
        base: what it was done to.
        report_file: the report, seen from the card; None if it is elsewhere.
        there: the card that the output has already.
    """
    own = read_card(base.card or "").without(*_OF_THE_BASE_ALONE)
    section = "\n".join(_section(report, report_file))
    if there is None:
        card = Card(own.entries, _begin(report, section, own.body))
    else:
        card = _inherit(read_card(there), own)
        card = Card(card.entries, _replace(card.body, section))
    if base.model:
        card = card.put(Entry("base_model", (f"base_model: {base.model}",)))
    return card.with_items("tags", _TAGS).text


def is_card(path: Location) -> bool:
    """Return whether the file at `path` is a model card that write_card made or extended.

    Raises:
        InputError: it cannot be read.
    """
    return path.name == CARD and _SECTION.search(_read_text(path) or "") is not None


def _inherit(card: Card, base: Card) -> Card:
    """Return `card` with what it lacks of that which holds for its base."""
    for entry in base.entries:
        if entry.key in _OF_THE_BASE and card.find(entry.key) is None:
            card = card.put(entry)
    return card


def _begin(report: Report, section: str, of_base: str) -> str:
    """Return the text of a new card, which the base's, if there is one, goes on."""
    name = report.output.path if report.output else report.input.path
    text = f"\n# {_plain(name)}\n\n{_BEGIN}\n{section}\n{_END}\n"
    before = of_base.replace(f"{_BEGIN}\n", "").replace(f"{_END}\n", "").strip("\n")
    if before:
        text += f"\nThe card of the model that was pruned:\n\n---\n\n{before}\n"
    return text


def _replace(body: str, section: str) -> str:
    """Return `body` with the section in the place of an earlier one, or at its end."""
    marked = f"{_BEGIN}\n{section}\n{_END}\n"
    if _SECTION.search(body):
        return _SECTION.sub(lambda _: marked, body, count=1)
    return f"{body.rstrip()}\n\n{marked}"


# --- the section -----------------------------------------------------------------------------


def _section(report: Report, report_file: str | None) -> Iterator[str]:
    yield from (f"## {_TITLES.get(report.method, 'Pruned channels')}", "")
    yield from (_describe(report), "")
    yield from ("| | |", "|---|---|")
    for name, value in _rows(report, report_file):
        yield f"| {name} | {value} |"
    command = spell_command(report)
    if command:
        yield from ("", "```sh", " ".join(command), "```")
    elif report.options.rules:
        yield from ("", "It was pruned by a recipe, whose rules are in the report.")


_TITLES = {REMOVED: "Masks made permanent", SHRUNK: "Removed channels"}


def _describe(report: Report) -> str:
    source = _code(report.input.path)
    at = f" at commit {_code(report.input.revision)}" if report.input.revision else ""
    return (
        f"Made from {source}{at} with prune-cli {report.tool.version}: {describe_deed(report)}. "
        "It was not retrained after that."
    )


def describe_deed(report: Report) -> str:
    """Return what was done, in a few words.

    Example:
        >>> describe_deed(report)
        '128 of 512 channels in 4 tensors set to zero, drawn at random'
    """
    if report.shrink:
        return f"{_count_removed(report.shrink)} removed, with all that depends on them"
    if report.method == REMOVED:
        return f"the masks of {format_count(len(report.tensors), 'tensor')} made permanent"
    totals = report.totals
    end = "set to zero" if report.options.bake else "masked"
    channels = format_count(totals.channels, "channel")
    tensors = format_count(totals.tensors_pruned, "tensor")
    return f"{totals.channels_pruned:,} of {channels} in {tensors} {end}{_choice(report)}"


def _choice(report: Report) -> str:
    criterion = CHOSEN.get(report.method)
    if criterion == "random":
        return ", drawn at random"
    return f", chosen by {criterion}" if criterion else ""


def _count_removed(shrink: ShrinkPlan) -> str:
    gone = sum(len(group.removed) for group in shrink.groups)
    groups = format_count(sum(bool(group.removed) for group in shrink.groups), "group")
    return f"{format_count(gone, 'channel')} in {groups}"


def _rows(report: Report, report_file: str | None) -> Iterator[tuple[str, str]]:
    totals, shrink = report.totals, report.shrink
    if shrink:
        yield "Channels removed", _count_removed(shrink)
        before, after = shrink.effect.parameters_before, shrink.effect.parameters_after
        yield "Parameters", f"{after:,} of {before:,}"
    else:
        yield "Channels pruned", f"{totals.channels_pruned:,} of {totals.channels:,}"
        zeros = f"{totals.elements_zero:,} of {totals.elements:,} elements"
        yield "Zeros in the pruned tensors", f"{zeros} ({totals.sparsity:.2%})"
    if report.method != REMOVED:
        yield "Seed", str(report.options.seed)
    if report_file:
        yield "Report", f"[{_plain(report_file)}]({_plain(report_file)})"


def _plain(text: str) -> str:
    """Return `text` without what Markdown or HTML would take for markup."""
    return re.sub(r"[^\w./@:+ -]", "_", text)


def _code(text: str) -> str:
    return f"`{_plain(text)}`"
