"""Hugging Face folders: the model that config.json describes, and the numbers in it.

No code of the folder is run. See also: which numbers may change (planning.py).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prune_cli.errors import InputError, RequestError, UsageError
from prune_cli.plan.config import CONFIG_NAME, Changes, edit_config, read_config
from prune_cli.shrink.allowed import allowed_config
from prune_cli.shrink.model import Example
from prune_cli.stores import Location, locate

_PLAIN = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a config.json; `raw` is what stands in it."""

    path: Location
    raw: Mapping[str, Any]

    def build(self, changes: Changes | None = None) -> nn.Module:
        """Return the model on meta, with some numbers of the config changed.

        Attention and experts are plain implementations, which show every operation.

        Raises:
            RequestError: transformers cannot build it.
        """
        return self._build(changes or {}, "meta", **_PLAIN)

    def is_possible(self, changes: Changes) -> bool:
        """Return whether transformers takes the config with some numbers changed."""
        try:
            self._config(changes)
        except RequestError:
            return False
        return True

    def build_to_run(self, changes: Changes | None = None) -> nn.Module:
        """Return the model on the CPU, as it runs, with the weights that its code gives it.

        Raises:
            RequestError: transformers cannot build it.
        """
        return self._build(changes or {}, "cpu")

    def _build(self, changes: Changes, device: str, **options: str) -> nn.Module:
        config, model_class = self._config(changes, **options), self._architecture()
        config.use_cache = False
        try:
            with torch.device(device), _RealNumbers():
                model: nn.Module = model_class(config)
            return model.eval()
        except Exception as error:  # configs check themselves, with whatever exceptions
            raise RequestError(
                f"transformers cannot build {model_class.__name__} "
                f"({type(error).__name__}: {error}); it does not describe a model"
            ) from error

    def load(self) -> nn.Module:
        """Return the model with the weights of the folder, on the CPU, for evaluation.

        Raises:
            RequestError: transformers cannot load it.
        """
        if not isinstance(self.path, Path):
            raise RequestError(
                f"{self.path} is in a store, and transformers runs what is on this machine; shrink "
                "it to a local folder first, and measure that"
            )
        try:
            model: nn.Module = self._architecture().from_pretrained(
                self.path, config=self._config({}), local_files_only=True, use_safetensors=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestError(f"transformers cannot load {self.path}: {error}") from error
        return model.eval()

    def values(self) -> dict[str, Any]:
        """Everything in the config, its defaults too."""
        values: dict[str, Any] = self._config({}).to_dict()
        return values

    def numbers(self) -> dict[str, int | float | None]:
        """The numbers of the config and what is not set, by key: "mlp_ratio", "hidden_sizes.0".

        A key that has two names has the one that stands in config.json.
        """
        config = self._config({})
        other_names = {
            name: other
            for other, name in config.attribute_map.items()
            if other in self.raw and name not in self.raw
        }
        numbers = dict(_numbers(config.to_dict(), ""))
        return {other_names.get(key, key): number for key, number in numbers.items()}

    def examples(self, model: nn.Module) -> list[list[Example]]:
        """Inputs of the kind that the model's class names as its main one, in the order to try them.

        Text with a mask comes first; where transformers looks into the mask, text without one.

        Raises:
            RequestError: It is neither text nor images nor sound.
        """
        config, kind = self._config({}), getattr(model, "main_input_name", "")
        if kind == "pixel_values":
            seen = getattr(config, "vision_config", config)
            size = getattr(config, "image_size", None) or getattr(seen, "image_size", None) or 224
            height, width = (size, size) if isinstance(size, int) else size
            return [[Example((1, getattr(config, "num_channels", 3), height, width), name=kind)]]
        if kind == "input_features" and hasattr(config, "num_mel_bins"):
            frames = 2 * getattr(config, "max_source_positions", 1500)
            sound = Example((1, config.num_mel_bins, frames), name=kind)
            said = Example((1, 16), "int64", "decoder_input_ids")
            return [[sound, said, Example((1, 16), "int64", "decoder_attention_mask")]]
        if kind == "input_ids":
            text = [Example((1, 16), "int64", kind)]
            if getattr(config, "is_encoder_decoder", False):
                text.append(Example((1, 16), "int64", "decoder_input_ids"))
            return [[*text, Example((1, 16), "int64", "attention_mask")], text]
        raise RequestError(
            f"{type(model).__name__} takes {kind or 'inputs of an unknown kind'}; "
            "give an example of each: --example NAME=SHAPE:DTYPE"
        )

    def model_names(
        self, model: nn.Module, checkpoint: Mapping[str, tuple[int, ...]]
    ) -> dict[str, str]:
        """The names of the checkpoint's tensors in the model, where from_pretrained renames them."""
        ours = model.state_dict()
        if all(name in ours for name in checkpoint):
            return {name: name for name in checkpoint}
        found = _renamed(model, ours, checkpoint)
        return {name: renamed for name, renamed, is_converted in found if not is_converted}

    def converted(
        self, model: nn.Module, checkpoint: Mapping[str, tuple[int, ...]]
    ) -> dict[str, str]:
        """For each tensor of the checkpoint that from_pretrained makes others of: the first such."""
        ours = model.state_dict()
        if all(name in ours for name in checkpoint):
            return {}
        found = _renamed(model, ours, checkpoint)
        return {
            name: renamed
            for name, renamed, is_converted in found
            if is_converted and renamed in ours
        }

    def _architecture(self) -> Any:
        """Return the class of the model: one of transformers' own, whatever the folder says."""
        names = self.raw.get("architectures") or []
        transformers = _transformers()
        found = getattr(transformers, str(names[0]), None) if len(names) == 1 else None
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise RequestError(
                f"{self.path / CONFIG_NAME} names the architectures {names}; it must name one class "
                "of transformers (code in the folder is not run)"
            )
        return found

    def _config(self, changes: Changes, **options: str) -> Any:
        """Return the config as an object of transformers, made of what is allowed of it."""
        transformers, kind = _transformers(), self.raw.get("model_type")
        if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
            raise InputError(
                f"{self.path / CONFIG_NAME} describes no model that transformers knows: its "
                f"model_type is {kind!r}; name the code with --model"
            )
        config_class = transformers.CONFIG_MAPPING[kind]
        allowed = allowed_config(edit_config(self.raw, changes), _known_keys(config_class))
        try:
            return config_class.from_dict(allowed, **options)
        except Exception as error:  # configs check themselves, with whatever exceptions
            raise RequestError(
                f"transformers cannot read {self.path / CONFIG_NAME} "
                f"({type(error).__name__}: {error}); it does not describe a model"
            ) from error


def _known_keys(config_class: Any) -> set[str]:
    """Return the keys that a class of configs has, by any of their names."""
    named = {*inspect.signature(config_class.__init__).parameters}
    named.update(getattr(config_class, "attribute_map", {}))
    with contextlib.suppress(Exception):  # some cannot be made of nothing
        named.update(config_class().to_dict())
    return named


class _RealNumbers(TorchFunctionMode):
    """Keep tensors of one number off meta, so that both models can be seen to hold the same one.

    Gemma scales its embeddings by the square root of their width, which is such a buffer.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.tensor and args and isinstance(args[0], float):
            return func(*args, **{**(kwargs or {}), "device": "cpu"})
        return func(*args, **(kwargs or {}))


def read_folder(path: str | Location) -> ModelFolder:
    """Read the config of a folder.

    Raises:
        InputError: It has none, or it is no JSON object.
    """
    folder = locate(path)
    return ModelFolder(folder, read_config(folder))


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int | float | None]]:
    if value is None or type(value) in (int, float):
        yield key, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        yield from _numbers(item, f"{key}.{name}" if key else str(name))


def _renamed(
    model: Any, ours: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> Iterator[tuple[str, str, bool]]:
    """As from_pretrained of transformers 5 does, and whether it would convert the tensor."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError as error:
        raise RequestError(
            "the checkpoint's names are not the model's, and this version of transformers does not "
            "say how they correspond; save it once with save_pretrained, or upgrade transformers"
        ) from error
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = getattr(model, "base_model_prefix", None)
    for name in checkpoint:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, dict(ours))
        yield name, renamed, converter is not None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "a Hugging Face folder needs transformers, which is not installed; "
            "pip install 'prune-cli[transformers]', or name the model's code with --model"
        ) from error
    return transformers
