"""What of a config.json reaches transformers: numbers, plain words, and nothing that names code.

A folder is somebody's download. Its config.json can name code, kernels and packages that
transformers would fetch, import and run; so what is not known to be harmless is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from prune_cli.errors import RequestError
from prune_cli.plan.config import CONFIG_NAME

_IMPLEMENTATIONS = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"} | {
    "batched_mm",
    "grouped_mm",
}
_CHOOSES = {
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
}
"""How a model computes, which is ours to choose; it can also name a kernel to fetch."""

_SAYS_NOTHING = {
    "_commit_hash",
    "_name_or_path",
    "finetuning_task",
    "task_specific_params",
    "tokenizer_class",
    "transformers_version",
}
"""Where the model came from and what it was used for: no model is built from it."""

_LABELS = {"id2label", "label2id"}
_LEGACY = {"model_type", "architectures", "torch_dtype", "dtype", "rope_scaling", "layer_types"}
"""Words that transformers takes whether or not the class of the config has them today."""

_CODE = {
    "auto_map": "names code",
    "custom_pipelines": "names code",
    "quantization_config": "names a package to quantise with",
    "compression_config": "names a package to compress with",
    "backbone": "names another model",
    "use_timm_backbone": "names another package",
    "use_pretrained_backbone": "names another model",
}
_WORD = re.compile(r"[\w.+-]*(?: [\w.+-]+)*")
_FOREIGN_TYPES = re.compile(r"timm.*")


def allowed_config(raw: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return what of a config may be built from.

    Args:
        raw: what stands in config.json.
        known: the keys that the class of the config has.

    Raises:
        RequestError: something in it might name code; all of it is named.
    """
    problems = [*_problems(raw), *_unknown_words(raw, known)]
    if problems:
        raise RequestError(
            f"{CONFIG_NAME} may hold numbers and plain words only, for what it names could be "
            f"fetched and run: {'; '.join(problems)}; remove that, or name the code with --model"
        )
    return _without_choices(raw)


def _problems(raw: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key, value in raw.items():
        place = f"{at}{key}"
        if key in _CODE and value:
            yield f"{place!r} {_CODE[key]}"
        elif key in _CHOOSES:
            yield from _implementation_problems(place, value)
        elif key not in _SAYS_NOTHING | _LABELS:
            yield from _value_problems(place, value)
    if _FOREIGN_TYPES.fullmatch(str(raw.get("model_type"))):
        yield f"'{at}model_type' is {raw['model_type']!r}, which is another package's"


def _implementation_problems(place: str, value: Any) -> Iterator[str]:
    values = value.values() if isinstance(value, dict) else [value]
    for name in values:
        if name is not None and not (isinstance(name, str) and name in _IMPLEMENTATIONS):
            yield f"{place!r} is {name!r:.80}, which is none of {sorted(_IMPLEMENTATIONS)}"


def _value_problems(place: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _problems(value, f"{place}.")
    elif isinstance(value, list):
        for item in value:
            yield from _value_problems(place, item)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        yield f"{place!r} is {value!r:.80}"


def _unknown_words(raw: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    fine = {*known} | _SAYS_NOTHING | _LABELS | _LEGACY | _CHOOSES | _CODE.keys()
    for key, value in raw.items():
        if key not in fine and _has_words(value):
            yield f"{key!r} is unknown"


def _has_words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_words, value.values()))
    return any(map(_has_words, value)) if isinstance(value, list) else isinstance(value, str)


def _without_choices(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_choices(value) if isinstance(value, dict) and key not in _LABELS else value
        for key, value in raw.items()
        if key not in _SAYS_NOTHING | _CHOOSES
    }
