"""What a path on the Hugging Face Hub says: hf://ORG/MODEL@REVISION/FILE."""

import re
from dataclasses import dataclass

from prune_cli.errors import InputError

DEFAULT = "main"
"""The branch that is meant where none is named."""

MODEL = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
REVISION = r"refs/(?:convert/[\w.-]+|pr/\d+)|[^/]+"
_KEY = re.compile(
    rf"(?:models/)?(?P<model>{MODEL})(?:@(?P<revision>{REVISION}))?(?:/(?P<file>.*))?"
)
_NO_MODELS = ("datasets/", "spaces/", "buckets/", "kernels/")


@dataclass(frozen=True, slots=True)
class HubName:
    """What a path on the Hub says: which model, which revision if any, and which file in it."""

    model: str
    revision: str | None
    file: str


def parse_name(key: str) -> HubName:
    """Return what `key`, a URL without its hf://, says.

    Raises:
        InputError: it names no model.

    Example:
        >>> parse_name("org/model@v1/model.safetensors")
        HubName(model='org/model', revision='v1', file='model.safetensors')
    """
    found = _KEY.fullmatch(key)
    if not found or key.startswith(_NO_MODELS):
        raise InputError(f"hf://{key} names no model: hf://ORG/MODEL, hf://ORG/MODEL@REVISION/FILE")
    revision = found["revision"]
    return HubName(
        found["model"], revision and revision.replace("%2F", "/"), (found["file"] or "").strip("/")
    )
