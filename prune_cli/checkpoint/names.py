"""Names of tensors and modules: the order in which people count, and text that is safe to show."""

import re


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that compares numbers in names as numbers.

    Example:
        >>> sorted(["layers.10", "layers.2"], key=natural_key)
        ['layers.2', 'layers.10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts if p)


def make_printable(text: str) -> str:
    """Return `text` with a backslash escape for every character that does not print.

    Names come out of files, and a terminal obeys what it is sent.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
