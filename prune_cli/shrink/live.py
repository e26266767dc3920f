"""The models with their weights, as they were and as they are: for --export and --measure.

Unlike everything else here this holds whole models in memory, so it is done only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_cli.checkpoint import Checkpoint
from prune_cli.errors import RequestError
from prune_cli.shrink.effect import measure_latency
from prune_cli.shrink.export import export_program
from prune_cli.shrink.huggingface import read_folder
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.model import Inputs, build_model, make_inputs, parse_example
from prune_cli.shrink.plan import Source


def export_shrunk(source: Source, output: Path, program: Path) -> None:
    """Write the shrunk model at `output` as a torch.export program.

    Raises:
        RequestError: torch.export cannot trace the model.
        OutputError: The program cannot be written.
    """
    model, inputs = _shrunk(source, output)
    export_program(model, inputs, program)


def measure_effect(source: Source, checkpoint: Checkpoint, output: Path) -> dict[str, Any]:
    """The latency of the model before and after, timed in turns: the facts for the report."""
    small, inputs = _shrunk(source, output)
    return asdict(measure_latency({"before": _whole(source, checkpoint), "after": small}, inputs))


def _shrunk(source: Source, output: Path) -> tuple[nn.Module, Inputs]:
    if source.is_folder:
        model = read_folder(output).load()
        return model, _folder_inputs(output, source, model)
    model = load_shrunk(build_model(source.model, source.arguments, "cpu"), output)
    return model, make_inputs([parse_example(text) for text in source.examples], "cpu")


def _whole(source: Source, checkpoint: Checkpoint) -> nn.Module:
    if source.is_folder:
        return read_folder(source.model).load()
    model = build_model(source.model, source.arguments, "cpu")
    try:
        model.load_state_dict(_state_dict(checkpoint))
    except RuntimeError as error:
        raise RequestError(
            f"{checkpoint.path} does not load into {source.model}: {error}"
        ) from error
    return model


def _state_dict(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    tensors = {}
    for parameter in checkpoint.parameters:
        values = checkpoint.tensor(parameter.tensor)
        if parameter.mask:
            mask = checkpoint.tensor(parameter.mask)
            values = torch.where(mask != 0, values, torch.zeros_like(values))
        for name in (parameter.name, *checkpoint.names_of.get(parameter.tensor.name, ())):
            tensors[name] = values
    return tensors


def _folder_inputs(folder: Path, source: Source, model: nn.Module) -> Inputs:
    examples = [parse_example(text) for text in source.examples]
    return make_inputs(examples or read_folder(folder).examples(model)[0], "cpu")
