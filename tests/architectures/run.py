"""An architecture, built, saved, shrunk as a user would and checked, in a process of its own.

See also: what is checked (check.py).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prune_cli.errors import PruneError
from prune_cli.plan.shrink import Kept, ShrinkPlan
from prune_cli.shrink.huggingface import read_folder
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.model import Example, make_inputs
from prune_cli.shrink.plan import plan_shrink
from prune_cli.shrink.shrink import shrink_checkpoint
from tests.architectures.check import (
    Inputs,
    draw_weights,
    refuse_no_slices,
    refuse_other_outputs,
)
from tests.architectures.zoo import Architecture

AMOUNT = 0.25
TIME_LIMIT = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture: written, refused with a reason, or at fault.

    Attributes:
        architecture: which one.
        verdict: "written", "refused", or what is wrong.
        reason: of a refusal or a fault.
        parameters: the part that went.
        flops: the part that went.
        groups: how many lost channels, and how many could not.
        left: why groups were left whole.
        seconds: of the processor for planning and writing, without imports.
    """

    title: str
    verdict: str
    reason: str = ""
    parameters: float = 0.0
    flops: float = 0.0
    groups: tuple[int, int] = (0, 0)
    left: Mapping[str, str] | None = None
    seconds: float = 0.0


class Here:
    """Plans in this process, which is one of its own already: it has imported everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def plan(
        self, source: Any, wanted: Any, checkpoint: Any = None, *, score: Any, **_: Any
    ) -> ShrinkPlan:
        """Return the plan."""
        return plan_shrink(source, wanted, checkpoint, **({"score": score} if score else {}))


def try_architecture(architecture: Architecture, time_limit: float = TIME_LIMIT) -> Outcome:
    """Return what becomes of an architecture within `time_limit` seconds of the processor."""
    import_once()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(architecture, theirs, time_limit))
    process.start()
    theirs.close()
    try:
        outcome: Outcome = ours.recv()
        return outcome
    except EOFError:
        return Outcome(architecture.title, "at fault", "exited without a word")
    finally:
        process.kill()
        process.join()


@cache
def import_once() -> None:
    """Import what takes seconds before there are children."""
    for name in ("torch._dynamo", "torch_pruning", "transformers.modeling_utils"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _send(architecture: Architecture, connection: Connection, time_limit: float) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with limit_time(time_limit):
                outcome = shrink_and_check(architecture, Path(folder))
        except TimeoutError:
            outcome = Outcome(architecture.title, "at fault", f"took longer than {time_limit:g} s")
        connection.send(outcome)


@contextlib.contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after that many seconds of the processor, whoever else uses it."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def shrink_and_check(architecture: Architecture, folder: Path, amount: float = AMOUNT) -> Outcome:
    """Return what becomes of an architecture; its files go to `folder`."""
    try:
        whole = build(architecture)
    except Exception as error:
        if isinstance(error, TimeoutError):
            raise
        return Outcome(architecture.title, "not built", f"{type(error).__name__}: {error}"[:300])
    try:
        return _shrink(architecture, whole, folder, amount)
    except TimeoutError:
        raise
    except PruneError as error:
        return Outcome(architecture.title, "refused", str(error))
    except Exception as error:  # noqa: BLE001 - a finding of this script
        return Outcome(architecture.title, "at fault", f"{type(error).__name__}: {error}"[:600])


def build(architecture: Architecture) -> nn.Module:
    """Return the model of an architecture, with drawn weights."""
    torch.manual_seed(0)
    if architecture.is_factory:
        from prune_cli.shrink.model import build_model

        model = build_model(architecture.name, architecture.numbers, "cpu")
    else:
        model = _of_transformers(architecture)
    draw_weights(model)
    return model.eval()


def _of_transformers(architecture: Architecture) -> nn.Module:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, architecture.name)
    config_class = model_class.config_class
    known = {*inspect.signature(config_class.__init__).parameters}
    known |= {*getattr(config_class, "__annotations__", {})}
    known |= {*config_class().to_dict(), *getattr(config_class, "attribute_map", {})}
    mapped = getattr(config_class, "attribute_map", {})
    given = {
        key: value
        for key, value in architecture.numbers.items()
        if key in known and mapped.get(key) not in architecture.numbers
    }
    model: nn.Module = model_class(config_class(**given))
    return model


def _shrink(architecture: Architecture, whole: nn.Module, folder: Path, amount: float) -> Outcome:
    source, small = folder / "whole", folder / "small"
    options: dict[str, Any] = {}
    if architecture.is_factory:
        source, small = folder / "whole.safetensors", folder / "small.safetensors"
        save_file(whole.state_dict(), source)
        options = {
            "model": architecture.name,
            "model_arguments": architecture.numbers,
            "examples": ["x".join(map(str, architecture.shape))],
        }
    else:
        whole.save_pretrained(source)  # type: ignore[operator]
    begun = time.process_time()
    done = shrink_checkpoint(source, small, amount=amount, planner=Here(), **options)  # type: ignore[arg-type]
    seconds = time.process_time() - begun
    plan = done.shrink
    assert plan is not None
    outcome = Outcome(
        architecture.title,
        "written",
        parameters=1 - plan.effect.parameters_after / plan.effect.parameters_before,
        flops=1 - plan.effect.flops_after / max(plan.effect.flops_before, 1),
        groups=(len(plan.groups), len(plan.whole)),
        left={whole_.root: whole_.reason for whole_ in plan.whole},
        seconds=seconds,
    )
    try:
        _check(architecture, whole, source, small, plan)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - a finding of this script
        reason = f"{type(error).__name__}: {error}"[:600]
        return replace(outcome, verdict="at fault", reason=reason)
    return outcome


def _check(
    architecture: Architecture, whole: nn.Module, source: Path, small: Path, plan: ShrinkPlan
) -> None:
    refuse_no_slices(_tensors(source), _tensors(small), plan.kept)
    if architecture.is_factory:
        loaded = load_shrunk(build(architecture), small)
        inputs: Inputs = make_inputs([Example((2, *architecture.shape[1:]))], "cpu")
    else:
        whole, loaded = read_folder(source).load(), read_folder(small).load()
        inputs = inputs_of(source, whole)
    kept = plan.kept if architecture.is_factory else _by_names_of(source, whole, plan)
    for training in (False, True):
        refuse_other_outputs(whole, loaded, kept, inputs, training=training)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _by_names_of(source: Path, whole: nn.Module, plan: ShrinkPlan) -> Kept:
    """The channels that stay by the names of the model, where those of the checkpoint are others."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(source).items()}
    names = read_folder(source).model_names(whole, shapes)
    return {names[name]: dims for name, dims in plan.kept.items()}


def inputs_of(source: Path, model: nn.Module) -> Inputs:
    """Return two samples for the model of a folder, of text the second with padding."""
    folder = read_folder(source)
    made = make_inputs(
        [replace(e, shape=(2, *e.shape[1:])) for e in folder.examples(model)[0]], "cpu"
    )
    assert isinstance(made, Mapping)
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name, tensor in made.items():
        if name.endswith("mask"):
            tensor[1, 12:] = 0
        elif not tensor.is_floating_point():
            tensor = torch.randint(3, 99, tensor.shape, generator=generator)
        inputs[name] = tensor
    return inputs
