"""The front matter of a model card, a block of YAML, changed line by line.

Whatever is not changed stays as it was written, comments and quotes too; so no YAML library is
needed, and none can lose what it does not know. A value that is spelt in an unusual way is left.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CARD = re.compile(
    r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)(.*)", re.DOTALL | re.MULTILINE
)
_KEY = re.compile(
    r"""(?:(?P<quote>["'])(?P<quoted>.*?)(?P=quote)|(?P<plain>[^\s#"'&*!|>%@`{}\[\],:-][^:#]*?))"""
    r"[ \t]*:(?=\s|$)(?P<value>.*)"
)
_ITEM = re.compile(r"[ \t]*-[ \t]+(?P<value>\S.*)")
_IDLE = re.compile(r"[ \t]*(#.*)?")
_COMMENT = re.compile(r"[ \t]#.*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key at the top of the block, with the lines that it takes; "" for what is before any."""

    key: str
    lines: tuple[str, ...]

    @property
    def items(self) -> tuple[str, ...] | None:
        """The value as a list, each item as it is spelt; None if it is spelt in an unusual way."""
        found = _KEY.match(self.lines[0])
        first = _COMMENT.sub("", found["value"]).strip() if found else ""
        if not first:
            return _block_items(self.lines[1:])
        if any(not _IDLE.fullmatch(line) for line in self.lines[1:]):
            return None
        return _flow_items(first)


def _block_items(lines: Sequence[str]) -> tuple[str, ...] | None:
    """Return the items of a list that has each on a line of its own."""
    wanted = [line for line in lines if not _IDLE.fullmatch(line)]
    found = [_ITEM.fullmatch(line) for line in wanted]
    return None if None in found else tuple(item["value"].strip() for item in found if item)


def _flow_items(value: str) -> tuple[str, ...] | None:
    """Return the items of "[a, b]", or a value that stands for a list of one."""
    if not value.startswith("["):
        return None if value[0] in "{&*!|>" else (value,)
    inner = value.removeprefix("[").removesuffix("]")
    if not value.endswith("]") or re.search(r"[\[\]{}\"']", inner):
        return None
    return tuple(item.strip() for item in inner.split(",") if item.strip())


@dataclass(frozen=True, slots=True)
class Card:
    """A model card: the entries of its front matter, and the Markdown after it."""

    entries: tuple[Entry, ...] = ()
    body: str = ""

    def find(self, key: str) -> Entry | None:
        """Return the entry of `key`, if there is one."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def without(self, *keys: str) -> "Card":
        """Return the card without these entries."""
        return Card(tuple(entry for entry in self.entries if entry.key not in keys), self.body)

    def put(self, entry: Entry) -> "Card":
        """Return the card with `entry` where its key was, or at the end."""
        if self.find(entry.key) is None:
            return Card((*self.entries, entry), self.body)
        replaced = (entry if one.key == entry.key else one for one in self.entries)
        return Card(tuple(replaced), self.body)

    def with_items(self, key: str, items: Sequence[str]) -> "Card":
        """Return the card with `items` in the list of `key`; a list that is spelt oddly is left."""
        entry = self.find(key)
        there = () if entry is None else entry.items
        if there is None:
            return self
        bare = {item.strip("\"'") for item in there}
        every = [*there, *(item for item in items if item not in bare)]
        return self.put(Entry(key, (f"{key}:", *(f"- {item}" for item in every))))

    @property
    def text(self) -> str:
        """The card as it is written."""
        lines = [line for entry in self.entries for line in entry.lines]
        return "\n".join(["---", *lines, "---", self.body]) if lines else self.body


def read_card(text: str) -> Card:
    r"""Return the Card that `text` is; without front matter all of it is the body.

    Example:
        >>> read_card("---\nlicense: mit\n---\n# A model").find("license").lines
        ('license: mit',)
    """
    found = _CARD.match(text)
    if not found:
        return Card((), text)
    entries = tuple(_entries(found[1].splitlines()))
    return Card(entries, found[2]) if _is_mapping(entries) else Card((), text)


def _is_mapping(entries: Sequence[Entry]) -> bool:
    """Return whether nothing but comments comes before the first key."""
    before = entries[0].lines if entries and not entries[0].key else ()
    return all(_IDLE.fullmatch(line) for line in before)


def _entries(lines: Sequence[str]) -> Iterator[Entry]:
    key, taken = "", list[str]()
    for line in lines:
        found = _KEY.match(line)
        if found:
            if taken:
                yield Entry(key, tuple(taken))
            key, taken = found["quoted"] or found["plain"] or "", []
        taken.append(line)
    if taken:
        yield Entry(key, tuple(taken))
