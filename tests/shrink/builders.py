"""Builders for these tests: a model with weights of its own, its plan, and the three ways to the shrunk model."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

NETS = Path(__file__).parent / "nets.py"


def build(name: str) -> nn.Module:
    """A model of nets.py whose every tensor is drawn, so that no two channels are alike."""
    from prune_cli.shrink.model import build_model

    torch.manual_seed(0)
    model = build_model(f"{NETS}:{name}", {}, "cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.copy_(torch.rand_like(tensor) + 0.1)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
    return model


def inputs(name: str) -> tuple[Tensor, ...]:
    """Inputs with values for a model of nets.py."""
    from prune_cli.shrink.model import find_factory, make_inputs, parse_example

    examples = find_factory(f"{NETS}:example").__globals__["EXAMPLES"][name]
    made = make_inputs([parse_example(text) for text in examples], "cpu")
    assert isinstance(made, tuple)
    return made


def plan(name: str, amount: float = 0.25, checkpoint=None, score=None, **options):
    """The plan for a model of nets.py, made in this process."""
    from prune_cli.plan.selection import Rule
    from prune_cli.shrink.model import find_factory
    from prune_cli.shrink.plan import plan_shrink
    from prune_cli.shrink.planning import no_scores
    from prune_cli.shrink.request import Request, Source

    examples = find_factory(f"{NETS}:example").__globals__["EXAMPLES"][name]
    rules = options.pop("rules", (Rule(("*",), ("weight",), amount, 0),))
    return plan_shrink(
        Source(f"{NETS}:{name}", examples=examples),
        Request(rules, **options),
        checkpoint,
        score=score or no_scores,
    )


def slice_state(model: nn.Module, plan) -> dict[str, Tensor]:
    """What streaming writes: each tensor with the kept indices of each axis."""
    state = {}
    for name, tensor in model.state_dict().items():
        for dim, kept in plan.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(kept))
        state[name] = tensor
    return state


def prune_live(model: nn.Module, example: tuple[Tensor, ...], plan) -> nn.Module:
    """The oracle: Torch-Pruning removes the same channels from a copy of the live model."""
    import torch_pruning

    from prune_cli.shrink.trace import call_model, tensors_in

    live = copy.deepcopy(model).requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(
            live,
            example,
            forward_fn=call_model,
            output_transform=lambda out: list(tensors_in(out)),
            verbose=False,
        )
    for group in plan.groups:
        root = live.get_submodule(group.root.rpartition(".")[0])
        pruner = graph.get_pruner_of_module(root)
        graph.get_pruning_group(root, pruner.prune_out_channels, list(group.removed)).prune()
    return live


def zeros_of(state: Mapping[str, Tensor]) -> dict[str, dict[int, list[int]]]:
    """For each tensor and axis the indices at which it is all zero."""
    return {
        name: {
            dim: [i for i in range(size) if not tensor.select(dim, i).any()]
            for dim, size in enumerate(tensor.shape)
        }
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
