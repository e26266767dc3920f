"""Names of tensors and modules: the order in which people count, and text that is safe to show."""

import re
from functools import lru_cache

_WRAPPERS = frozenset(
    ["model", "module", "net", "network", "backbone", "transformer", "bert", "roberta", "vit"]
)
_STEMS = frozenset(
    [
        "embed",
        "embeddings",
        "embed_tokens",
        "tok_embeddings",
        "wte",
        "wpe",
        "patch_embed",
        "stem",
        "conv1",
        "conv_in",
        "conv_stem",
    ]
)
_ENDS = frozenset(["norm", "ln_f", "final_layer_norm", "norm_f", "conv_norm_out", "pooler"])
_HEADS = frozenset(
    [
        "head",
        "heads",
        "lm_head",
        "fc",
        "classifier",
        "cls",
        "score",
        "output",
        "out",
        "conv_out",
        "proj_out",
    ]
)


_NUMBER = re.compile(r"\d+")


def natural_key(name: str) -> tuple[str, str]:
    """Return a sort key that compares numbers in names as numbers, and names part by part.

    Example:
        >>> sorted(["layers.10", "layers.2", "layers2.0"], key=natural_key)
        ['layers.2', 'layers.10', 'layers2.0']
    """
    return "\0".join(map(_comparable, name.split("."))), name


@lru_cache(1 << 13)  # the parts of a hundred thousand names are a thousand
def _comparable(part: str) -> str:
    return _NUMBER.sub(_with_length, part)


def _with_length(number: re.Match[str]) -> str:
    """Return digits after their count, so that texts compare as the numbers do."""
    digits = number[0].lstrip("0")
    return f"{len(digits):04}{digits}"


def network_key(name: str) -> tuple[int, tuple[str, str]]:
    """Return a sort key for the order of a network, as far as names tell: stem, body, head.

    Example:
        >>> sorted(["fc.weight", "layer1.0.weight", "conv1.weight"], key=network_key)
        ['conv1.weight', 'layer1.0.weight', 'fc.weight']
    """
    first, _, rest = name.partition(".")
    part = rest.partition(".")[0] if first in _WRAPPERS and "." in rest else first
    rank = next((n for n, known in enumerate((_STEMS, (), _ENDS, _HEADS)) if part in known), 1)
    return rank, natural_key(name)


def make_printable(text: str) -> str:
    """Return `text` with a backslash escape for every character that does not print.

    Names come out of files, and a terminal obeys what it is sent.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
