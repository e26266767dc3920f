"""Numbers as people read them: thousands with commas, bytes in powers of 1000, nouns that agree."""

from collections.abc import Sequence


def format_bytes(nbytes: float) -> str:
    """Return a size in powers of 1000.

    Example:
        >>> format_bytes(1_963_008)
        '2.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"


def format_count(number: int, noun: str) -> str:
    """Return `number` with its noun, in the plural unless it is one.

    Example:
        >>> format_count(1, "tensor"), format_count(1200, "tensor")
        ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_change(before: int, after: int) -> str:
    """Return "before -> after" and the relative change."""
    return f"{before:,} -> {after:,} ({(after - before) / max(before, 1):+.1%})"


def format_shape(shape: Sequence[int]) -> str:
    """Return "64x3x7x7", or "scalar"."""
    return "x".join(map(str, shape)) or "scalar"


def list_some(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
