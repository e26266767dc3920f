"""The user's model, built without weights, and an example of its inputs.

`--model pkg.mod:factory` and `path/file.py:factory` run the user's own code, trusted by naming it.
See also: Hugging Face folders (huggingface.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_cli.errors import RequestError, UsageError

Inputs = Mapping[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Example:
    """One input of the model, by its shape; by position where it has no name."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None


def parse_example(text: str) -> Example:
    """Read `[NAME=]SHAPE[:DTYPE]`, the dtype as torch names it.

    Example:
        "1x3x224x224", "input_ids=1x16:int64"

    Raises:
        UsageError: It reads otherwise.
    """
    match = re.fullmatch(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?", text.strip())
    if match is None or not isinstance(getattr(torch, match[3] or "float32", None), torch.dtype):
        raise UsageError(
            f"{text!r} is no example input; write a shape such as 1x3x224x224, where needed with "
            "a name before and a dtype behind: input_ids=1x16:int64"
        )
    shape = tuple(int(size) for size in match[2].split("x"))
    return Example(shape, match[3] or "float32", match[1])


def make_inputs(examples: Sequence[Example], device: str = "meta") -> Inputs:
    """Tensors for the examples: normal noise, or zeros for integers, which are valid indices.

    Returns:
        A mapping if they have names, a tuple if they have none.

    Raises:
        UsageError: There are none, or some have names and some have not.
    """
    named = [example for example in examples if example.name]
    if not examples or 0 < len(named) < len(examples):
        raise UsageError(
            "the model needs an example of its inputs, either all with a name or all without: "
            "--example 1x3x224x224"
        )
    tensors = tuple(_tensor(example, device) for example in examples)
    if named:
        return {str(e.name): tensor for e, tensor in zip(examples, tensors, strict=True)}
    return tensors


def _tensor(example: Example, device: str) -> Tensor:
    dtype = getattr(torch, example.dtype)
    if not dtype.is_floating_point:
        # A mask of zeros would hide everything.
        fill = torch.ones if "mask" in (example.name or "") else torch.zeros
        return fill(example.shape, dtype=dtype, device=device)
    noise = torch.empty(example.shape, dtype=torch.float32, device=device)
    return noise.normal_(generator=_generator(device)).to(dtype)


def _generator(device: str) -> torch.Generator | None:
    """The global state is not touched; on meta nothing is drawn."""
    return None if device == "meta" else torch.Generator(device).manual_seed(0)


def build_model(reference: str, arguments: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """Call the factory that `reference` names, under `device`, and switch to evaluation.

    A factory that reads values while it builds cannot run on meta; it is built on the CPU then.

    Raises:
        UsageError: There is no such factory.
        RequestError: It fails, or gives no torch.nn.Module.
    """
    factory = find_factory(reference)
    try:
        model = _call(factory, arguments, device)
    except MemoryError:
        raise
    except Exception as error:
        if device != "meta" or "meta" not in str(error):
            raise _failed(reference, error) from error
        try:
            model = _call(factory, arguments, "cpu")
        except Exception as second:
            raise _failed(reference, second) from second
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{reference} gives a {type(model).__name__}; it must give a torch.nn.Module"
        )
    return model.to(device).eval()


def _call(factory: Callable[..., Any], arguments: Mapping[str, Any], device: str) -> Any:
    with torch.device(device):
        return factory(**arguments)


def _failed(reference: str, error: Exception) -> RequestError:
    return RequestError(
        f"{reference} cannot build the model ({type(error).__name__}: {error}); "
        "give its arguments with --model-arg NAME=VALUE"
    )


def find_factory(reference: str) -> Callable[..., Any]:
    """Import what `pkg.mod:factory` or `path/file.py:factory` names.

    Raises:
        UsageError: The file, module or name is not there, or the import fails.
    """
    place, separator, name = reference.rpartition(":")
    if not separator or not place or not name:
        raise UsageError(
            f"{reference!r} names no factory; write pkg.mod:factory or path/file.py:factory"
        )
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except Exception as error:  # whatever the user's code raises while it is imported
        raise UsageError(f"{place} cannot be imported ({type(error).__name__}: {error})") from error
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        near = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:8])
        raise UsageError(f"{place} has no factory {name!r}; it has {near or 'no names'}")
    found: Callable[..., Any] = factory
    return found


def _import_module(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does; the console script does not
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _import_file(path: Path) -> Any:
    name = re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # pickle and dataclasses look it up there
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def count_parameters(model: nn.Module) -> int:
    """Return the elements of all parameters, tied ones once."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
