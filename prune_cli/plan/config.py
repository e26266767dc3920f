"""The config.json of a Hugging Face folder, as JSON: read, edited, written.

See also: shrink/huggingface.py, which builds the model that it describes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from prune_cli.errors import InputError, RequestError
from prune_cli.stores import Location

CONFIG_NAME = "config.json"

Value = int | float | tuple[Any, ...]
"""What is new in a config: a number, or a list that has something for each layer."""

Changes = Mapping[str, Value]
"""Dotted key to new value."""


def read_config(folder: Location) -> dict[str, Any]:
    """Read the config of a folder.

    Raises:
        InputError: it has none, or it is no JSON object.
    """
    config = folder / CONFIG_NAME
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{config} cannot be read: {error.strerror}; name the code with --model"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{config} is no JSON object")
    return raw


def edit_config(raw: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return a copy of a config with some values replaced, or added where it has a default.

    Example:
        `edit_config({"hidden_sizes": [64, 128]}, {"hidden_sizes.0": 48})` gives
        `{"hidden_sizes": [48, 128]}`.

    Raises:
        RequestError: a list or an object that the key goes into is not there.
    """
    edited = copy.deepcopy(dict(raw))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place: Any = edited
        for parent in parents:
            place = _inside(place, parent, key)
        new: Any = list(value) if isinstance(value, tuple) else value
        if isinstance(place, list):
            _inside(place, last, key)
            place[int(last)] = new
        elif isinstance(place, dict):
            place[last] = new
        else:
            raise _no_place(key, last)
    return edited


def config_text(edited: Mapping[str, Any]) -> str:
    """Return a config as transformers writes it."""
    return json.dumps(edited, indent=2, ensure_ascii=False) + "\n"


def _inside(place: Any, name: str, key: str) -> Any:
    if isinstance(place, dict) and name in place:
        return place[name]
    if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
        return place[int(name)]
    raise _no_place(key, name)


def _no_place(key: str, name: str) -> RequestError:
    return RequestError(f"{CONFIG_NAME} does not spell out {name!r} of {key!r}; add it there first")
