"""Write a model as a torch.export program, which runs without the model's code."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from torch import nn

from prune_cli.errors import RequestError
from prune_cli.shrink.model import Inputs
from prune_cli.stores import Location
from prune_cli.write.atomic import write_file


def export_program(model: nn.Module, inputs: Inputs, path: Location) -> None:
    """Export `model` on its example and write the program to `path`, whole or not at all.

    Args:
        model: With its weights.
        inputs: The program accepts these shapes.
        path: Usually ends in .pt2.

    Raises:
        RequestError: torch.export cannot trace the model.
        OutputError: The file cannot be written.

    Example:
        `torch.export.load("small.pt2").module()(x)` runs it.
    """
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        program = torch.export.export(model.eval(), args, kwargs)
    except Exception as error:  # torch.export raises whatever the model's code meets
        raise RequestError(
            f"torch.export cannot trace the model ({type(error).__name__}: {_first_line(error)}); "
            "leave --export out"
        ) from error
    content = io.BytesIO()
    torch.export.save(program, content)
    write_file(path, content.getbuffer())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
