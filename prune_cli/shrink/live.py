"""The model before and after, whole in memory: for --export and --measure, only when asked for.

See also: effect.py, the clock; export.py, the file.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from prune_cli.plan.shrink import Latency, ShrinkPlan
from prune_cli.shrink.effect import measure_latency
from prune_cli.shrink.export import export_program
from prune_cli.shrink.huggingface import read_folder
from prune_cli.shrink.load import is_shrunk, load_shrunk, resize, shorten
from prune_cli.shrink.model import Inputs, build_model, make_inputs, parse_example
from prune_cli.shrink.request import Source
from prune_cli.stores import Location


def export_shrunk(source: Source, output: Path, program: Location) -> None:
    """Write the shrunk model at `output` as a torch.export program.

    Raises:
        RequestError: torch.export cannot trace the model.
        OutputError: The program cannot be written.
    """
    model, inputs = _shrunk(source, output)
    export_program(model, inputs, program)


def measure_effect(source: Source, plan: ShrinkPlan, *, is_thorough: bool = False) -> Latency:
    """Time the model before and after, in turns.

    Both have the weights that the model's code gives them, not the checkpoint's: the plan alone
    says how much is computed, so this comes before anything is written.
    """
    if source.is_folder:
        folder = read_folder(source.model)
        whole = folder.build_to_run()
        small = folder.build_to_run(plan.config) if plan.config else _without_channels(whole, plan)
        inputs = _folder_inputs(source.model, source, whole)
    else:
        whole = build_model(source.model, source.arguments, "cpu")
        small = _without_channels(whole, plan)
        inputs = make_inputs([parse_example(text) for text in source.examples], "cpu")
    return measure_latency({"before": whole, "after": small}, inputs, is_thorough=is_thorough)


def _without_channels(whole: nn.Module, plan: ShrinkPlan) -> nn.Module:
    small = copy.deepcopy(whole)
    shorten(small, plan.lists or {})
    resize(small, plan.resizing)
    tensors, given = small.state_dict(), whole.state_dict()
    for name, dims in plan.kept.items():
        after, values = plan.name_after(name), given[name]
        for dim, kept in dims.items():
            values = values.index_select(dim, torch.tensor(kept))
        if after is not None:
            tensors[after].copy_(values)
    return small


def _shrunk(source: Source, output: Path) -> tuple[nn.Module, Inputs]:
    if source.is_folder:
        model = _load(output)
        return model, _folder_inputs(output, source, model)
    model = load_shrunk(build_model(source.model, source.arguments, "cpu"), output)
    return model, make_inputs([parse_example(text) for text in source.examples], "cpu")


def _load(path: Path) -> nn.Module:
    """Return the model of a shrunk folder, whether its config says what went or its weights do."""
    folder = read_folder(path)
    return load_shrunk(folder.build_to_run(), path) if is_shrunk(path) else folder.load()


def _folder_inputs(folder: str | Path, source: Source, model: nn.Module) -> Inputs:
    examples = [parse_example(text) for text in source.examples]
    return make_inputs(examples or read_folder(folder).examples(model)[0], "cpu")
