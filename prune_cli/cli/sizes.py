"""Sizes as people write them: 5GB, 500MiB."""

import re

from prune_cli.errors import UsageError


def parse_size(text: str) -> int:
    """Return a size in bytes as people spell it: "5GB" is 5 * 10**9, "500MiB" 500 * 2**20.

    Raises:
        UsageError: it is not a size, or is zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([kmgt]?)(i?)b?)?", text.strip(), re.IGNORECASE)
    if found:
        base = 1024 if found[3] else 1000
        size = int(float(found[1]) * base ** " kmgt".index((found[2] or " ").lower()))
        if size > 0:
            return size
    raise UsageError(f"{text!r} is not a size; write it like 5GB or 500MiB")
