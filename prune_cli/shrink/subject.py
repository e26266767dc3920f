"""The model that is shrunk: whole, on meta, recorded, its tensors known by all their names.

See also: what goes (proposals.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prune_cli.errors import RequestError
from prune_cli.shrink.huggingface import ModelFolder
from prune_cli.shrink.model import Inputs, build_model, make_inputs, parse_example
from prune_cli.shrink.request import Source, Zeros
from prune_cli.shrink.trace import Trace, named_tensors, trace

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Subject:
    """The whole model on meta, its example, a recording of both, and the names of its tensors.

    `first_names` maps each name to the first name of the same tensor, so tied ones meet there;
    `theirs` maps it to the name in the checkpoint, where from_pretrained renames. `training` is a
    recording of the model while it trains, on `training_inputs`, where parameters are read only then.
    """

    model: nn.Module
    inputs: Inputs
    recording: Trace
    first_names: Mapping[str, str]
    theirs: Mapping[str, str] = field(default_factory=dict)
    training: Trace | None = None
    training_inputs: Inputs | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a named tensor."""
        return self.recording.shapes[self.recording.named[name].index]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every named tensor."""
        return {name: self.shape(name) for name in self.first_names}

    def outside(self, name: str) -> str:
        """Return what the checkpoint calls a tensor: users select by it, draws are keyed by it."""
        return self.theirs.get(name) or self.theirs.get(self.first_names.get(name, name), name)


def make_subject(source: Source, folder: ModelFolder | None) -> Subject:
    """Build the model of `source` on meta and record it on its example.

    Raises:
        RequestError: It does not run without values.
    """
    model = folder.build() if folder else build_model(source.model, source.arguments)
    given = [parse_example(text) for text in source.examples]
    examples = folder.examples(model) if folder and not given else [given]
    return record_subject(model, map(make_inputs, examples))


def record_subject(model: nn.Module, alternatives: Iterable[Inputs]) -> Subject:
    """Record a model on meta on the first of the inputs that it runs on.

    Raises:
        RequestError: It does not run without values.
    """
    thaw(model)
    inputs, recording = _record(model, alternatives)
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model)}
    found = _record_training(model, inputs, recording)
    training, given = found or (None, None)
    return Subject(model, inputs, recording, names, training=training, training_inputs=given)


def thaw(model: nn.Module) -> None:
    """Let all parameters be trained: what is frozen runs other operations, such as fused ones."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def _record_training(
    model: nn.Module, inputs: Inputs, recording: Trace
) -> tuple[Trace, Inputs] | None:
    """Return a recording in training and its inputs, if that in evaluation does not read all parameters.

    A norm over the batch cannot train on one sample, so two are tried as well.
    """
    read = {ref for call in recording.calls for ref in call.operands}
    if all(recording.named[name] in read for name, _ in model.named_parameters()):
        return None
    for given in (inputs, tree_map(_twice, inputs)):
        training = trace(model.train(), given)
        model.eval()
        if training.failure is None:
            return training, given
    return None


def _twice(leaf: Any) -> Any:
    is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0
    return torch.cat([leaf, leaf]) if is_batch else leaf


def _record(model: nn.Module, alternatives: Iterable[Inputs]) -> tuple[Inputs, Trace]:
    for inputs in alternatives:
        recording = trace(model, inputs)
        if recording.failure is None:
            return inputs, recording
    error = recording.failure
    raise RequestError(
        f"the model does not run on its example ({type(error).__name__}: {error}); it runs "
        "without values, on torch's meta device, so it may not look at any; give inputs "
        "that fit with --example"
    ) from error


def checkpoint_names(
    subject: Subject,
    checkpoint: Shapes | None,
    folder: ModelFolder | None,
    made: Collection[str] = (),
) -> dict[str, str]:
    """Return each tensor of the model by its name in the checkpoint, which is checked to fit.

    Args:
        subject: The model.
        checkpoint: The shape of each of its tensors.
        folder: Whose config describes the model.
        made: Tensors of the model that from_pretrained makes of several stored ones.

    Raises:
        RequestError: The checkpoint is that of another model.
    """
    ours = list(subject.model.state_dict())
    if checkpoint is None:
        return {name: name for name in ours}
    renamed = (
        folder.model_names(subject.model, checkpoint) if folder else {n: n for n in checkpoint}
    )
    names = {ours_: theirs for theirs, ours_ in renamed.items() if ours_ in subject.first_names}
    there = {subject.first_names[name] for name in (*names, *made)}
    remade = _remade(subject.model)
    problems = [
        f"it lacks {name}"
        for name in ours
        if subject.first_names[name] not in there and not any(p.search(name) for p in remade)
    ]
    problems += [
        f"{theirs} is {list(checkpoint[theirs])} and not {list(subject.shape(name))}"
        for name, theirs in names.items()
        if tuple(checkpoint[theirs]) != subject.shape(name)
    ]
    if folder is None:
        problems += [f"the model lacks {name}" for name in checkpoint if name not in names]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise RequestError(
            f"the checkpoint is not that of the model: {'; '.join(problems[:8])}{more}; "
            "build the model with the sizes that it was trained with (--model-arg)"
        )
    return names


def _remade(model: nn.Module) -> list[re.Pattern[str]]:
    """Return patterns of what transformers does not store, since the class of the model makes it."""
    return [
        re.compile(pattern)
        for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    ]


def renamed_zeros(zeros: Zeros | None, names: Mapping[str, str], subject: Subject) -> Zeros | None:
    """The zeros by the first names of the model's tensors, instead of the checkpoint's names."""
    if zeros is None:
        return None
    return {
        subject.first_names[ours]: zeros[theirs]
        for ours, theirs in names.items()
        if theirs in zeros
    }
