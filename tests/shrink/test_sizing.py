"""How many channels of each group go, and which: budgets and criteria, held against the live model."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

from prune_cli.channels import uniform_draws
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import AmountError, ParameterError, UsageError
from prune_cli.plan.choice import make_choice
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.load import resize
from prune_cli.shrink.request import Site
from prune_cli.shrink.scores import score_sites
from prune_cli.shrink.shrink import shrink_checkpoint
from prune_cli.shrink.trace import call_model, tensors_in
from tests.shrink.builders import NETS, build, inputs, plan

TEN = (
    "Plain",
    "Residual",
    "Groups",
    "Depthwise",
    "Concatenated",
    "JoinedAndAdded",
    "Attention",
    "TiedAndFrozen",
    "Experts",
    "Mixed",
)


def parameters_of(name: str, made: ShrinkPlan) -> float:
    """The part of a model's parameters that remains; tied ones count once."""
    sizes = {key: tuple(value.shape) for key, value in build(name).named_parameters()}
    left = {key: made.shapes.get(key, shape) for key, shape in sizes.items()}
    return sum(map(math.prod, left.values())) / sum(map(math.prod, sizes.values()))


def flops_of(name: str, made: ShrinkPlan) -> float:
    """The part of a model's FLOPs that remains, as torch counts them on the live model."""
    model, small = build(name), build(name)
    resize(small, made.resizing)
    return _flops(small, inputs(name)) / _flops(model, inputs(name))


def _flops(model: nn.Module, example: tuple[torch.Tensor, ...]) -> float:
    """On meta, where attention is the plain one."""
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(*(tensor.to("meta") for tensor in example))
    return counter.get_total_flops()


def largest_channel(name: str, made: ShrinkPlan, part_of: Callable[..., float]) -> float:
    """How much less remains of a model with one channel more of some group gone, at most."""
    reached = part_of(name, made)
    parts = []
    for more in made.groups:
        numbers = {
            group.root.rpartition(".")[0]: len(group.removed) + group.blocks * (group is more)
            for group in made.groups
        }
        rules = tuple(Rule((module,), ("weight",), k, 0) for module, k in numbers.items() if k)
        parts.append(part_of(name, plan(name, rules=rules)))
    return max(abs(reached - part) for part in parts)


def scorer(model: nn.Module, folder: Path, criterion: str) -> Callable[..., Any]:
    """Ranks the channels of a model by its weights in a file."""
    torch.save(model.state_dict(), folder / "model.pt")
    return partial(score_sites, open_checkpoint(folder / "model.pt"), criterion, None, 1)


def lost(made: ShrinkPlan) -> dict[str, int]:
    """How many channels each group lost."""
    return {group.root: len(group.removed) for group in made.groups}


@pytest.mark.parametrize("name", TEN)
@pytest.mark.parametrize(
    ("target", "part_of", "wanted"),
    [("params=60%", parameters_of, 0.6), ("flops=0.55", flops_of, 0.55)],
    ids=["params", "flops"],
)
def test_a_budget_is_met_by_what_really_remains(
    name: str, target: str, part_of: Callable[[str, ShrinkPlan], float], wanted: float
) -> None:
    """Within 1 % of the target, or one channel where that is more, as in nets so small."""
    made = plan(name, choice=make_choice(target=target))

    miss = abs(part_of(name, made) - wanted)
    assert miss <= 0.01 * wanted or miss <= largest_channel(name, made, part_of)


@pytest.mark.parametrize("allocate", ["er", "erk", "random", "uniform-keep-ends"])
def test_every_allocation_meets_a_budget(allocate: str) -> None:
    """Of a net that is large enough to."""
    made = plan("Residual", choice=make_choice(target="params=0.8", allocate=allocate))

    effect = made.effect
    assert effect.parameters_after / effect.parameters_before == pytest.approx(0.8, rel=0.01)


def test_an_absolute_budget_is_one_of_the_whole_model() -> None:
    """The layers that are not selected count too."""
    made = plan("Plain", choice=make_choice(target="params=3k"))

    assert made.effect.parameters_after == pytest.approx(3000, rel=0.02)


def test_a_budget_out_of_reach_says_what_is_in_reach() -> None:
    """What is left with one channel of each group is the least."""
    with pytest.raises(
        AmountError, match=r"15 parameters cannot be .* the least is \d+ and the most"
    ):
        plan("Plain", choice=make_choice(target="params=15"))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("name", ["Plain", "Residual", "Concatenated", "JoinedAndAdded"])
def test_norms_rank_channels_as_torch_pruning_ranks_groups(
    name: str, criterion: str, power: int, reduction: str, tmp_path: Path
) -> None:
    """Its GroupMagnitudeImportance on the live model, channel by channel."""
    import torch_pruning

    model = build(name).requires_grad_(True)
    made = plan(
        name, 0.5, choice=make_choice(criterion=criterion), score=scorer(model, tmp_path, criterion)
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(
            model,
            inputs(name),
            forward_fn=call_model,
            output_transform=lambda out: list(tensors_in(out)),
            verbose=False,
        )
    importance = torch_pruning.importance.GroupMagnitudeImportance(
        p=power, group_reduction=reduction, normalizer=None
    )
    for group in made.groups:
        root = model.get_submodule(group.root.rpartition(".")[0])
        pruner = graph.get_pruner_of_module(root)
        coupled = graph.get_pruning_group(root, pruner.prune_out_channels, [*range(group.channels)])
        smallest = importance(coupled).argsort(stable=True)[: len(group.removed)]
        assert group.removed == tuple(sorted(smallest.tolist()))
        assert group.seed is None


@pytest.mark.parametrize(("criterion", "n"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("dim", [0, 1])
def test_the_score_of_one_weight_is_the_one_of_ln_structured(
    criterion: str, n: int, dim: int, tmp_path: Path
) -> None:
    """The k smallest are those whose mask is zero."""
    model = build("Residual")
    (found,) = scorer(model, tmp_path, criterion)([Site("a1.weight", dim, dim == 0)])

    torch_prune.ln_structured(model.a1, "weight", amount=5, n=n, dim=dim)

    other = tuple(axis for axis in range(4) if axis != dim)
    gone = (model.a1.weight_mask.sum(other) == 0).nonzero().flatten().tolist()
    assert sorted(np.argsort(found, kind="stable")[:5].tolist()) == gone


def test_what_a_mask_took_away_is_the_first_to_go(tmp_path: Path) -> None:
    """Its elements are still in the file."""
    model = build("Residual")
    torch_prune.ln_structured(model.a1, "weight", amount=3, n=1, dim=0)
    gone = (model.a1.weight_mask.sum((1, 2, 3)) == 0).nonzero().flatten().tolist()

    (found,) = scorer(model, tmp_path, "l1")([Site("a1.weight", 0, True)])

    assert np.flatnonzero(found == 0).tolist() == gone


def test_one_draw_over_all_groups_takes_the_smallest_numbers() -> None:
    """A generator for each group, as ever; the smallest of all go."""
    made = plan("Plain", 0.25, choice=make_choice(is_global=True))

    draws = {g.root: uniform_draws(g.channels, derive_seed(0, g.root)) for g in made.groups}
    ranked = sorted((int(draw), root) for root, own in draws.items() for draw in own)
    first = [root for _, root in ranked[: round(0.25 * len(ranked))]]
    assert lost(made) == {root: first.count(root) for root in draws}


def test_a_choice_draws_the_channels_that_the_usual_way_draws() -> None:
    """So fractions are nested, and an option that does not matter changes nothing."""
    usual, chosen = plan("Residual"), plan("Residual", choice=make_choice(at_least=2))

    assert [g.removed for g in usual.groups] == [g.removed for g in chosen.groups]
    assert usual.kept == chosen.kept


def test_at_least_so_many_stay() -> None:
    """One of each group where nothing is said."""
    few = plan("Plain", 1.0, choice=make_choice(at_least=5))
    one = plan("Plain", choice=make_choice(allocate="er", target="params=4.5%"))

    assert {g.channels - len(g.removed) for g in few.groups} == {5}
    assert all(len(g.removed) < g.channels for g in one.groups)


def test_blocks_and_steps_hold_whatever_the_criterion_is(tmp_path: Path) -> None:
    """A block loses the same positions as the others."""
    score = scorer(build("Groups"), tmp_path, "l1")
    choice = make_choice(criterion="l1", is_global=True)

    made = plan("Groups", 0.4, choice=choice, round_to=2, score=score)

    for group in made.groups:
        width = group.channels // group.blocks
        positions = [c % width for c in group.removed]
        assert sorted(positions) == sorted([*dict.fromkeys(positions)] * group.blocks)
        assert (group.channels - len(group.removed)) % 2 == 0


def shrink(folder: Path, name: str = "small", **options: Any) -> Any:
    """Shrink the Residual of tests in a folder."""
    if not (folder / "model.pt").exists():
        torch.save(build("Residual").state_dict(), folder / "model.pt")
    return shrink_checkpoint(
        folder / "model.pt",
        folder / f"{name}.safetensors",
        model=f"{NETS}:Residual",
        examples=["1x3x16x16"],
        **options,
    )


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    """Scores are added up in one order."""
    for workers in (1, 8):
        shrink(tmp_path, f"w{workers}", amount=0.5, criterion="l2", workers=workers, is_global=True)

    assert (tmp_path / "w1.safetensors").read_bytes() == (tmp_path / "w8.safetensors").read_bytes()


def test_a_target_in_bytes_is_one_of_the_file(tmp_path: Path) -> None:
    """But for its header."""
    report = shrink(tmp_path, target="bytes=50%")

    stored = open_checkpoint(tmp_path / "model.pt"), open_checkpoint(tmp_path / "small.safetensors")
    before, after = (sum(i.nbytes for i in each.tensors.values()) for each in stored)
    assert after / before == pytest.approx(0.5, rel=0.01)
    assert report.options.choice.target == "bytes=0.5"


def test_a_latency_is_measured(tmp_path: Path) -> None:
    """One that no model has is refused with those that there are."""
    with pytest.raises(AmountError, match="100,000 ms cannot be what remains: the least is"):
        shrink(tmp_path, target="latency=100s", dry_run=True)


def test_a_score_file_decides(tmp_path: Path) -> None:
    """A number for each channel of a root is enough."""
    own = torch.arange(16.0).roll(4)
    names = {"stem.weight": 16, "a1.weight": 16, "d.weight": 32, "e1.weight": 32}
    scores = {name: torch.arange(float(size)) for name, size in names.items()}
    save_file({**scores, "a1.weight": own}, tmp_path / "scores.safetensors")

    report = shrink(tmp_path, amount=0.25, scores=tmp_path / "scores.safetensors")

    groups = {group.root: group.removed for group in report.shrink.groups}
    assert groups["stem.weight"] == (0, 1, 2, 3)
    assert groups["a1.weight"] == (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ({"nowhere.weight": torch.ones(3)}, "the checkpoint has no such tensor"),
        ({"a1.weight": torch.ones(3)}, r"have the shape \[3\]"),
        ({"a1.weight": torch.full((16,), torch.nan)}, "NaN"),
    ],
    ids=["name", "shape", "nan"],
)
def test_a_score_file_that_does_not_fit_is_named(
    scores: dict[str, torch.Tensor], problem: str, tmp_path: Path
) -> None:
    """And nothing is written."""
    save_file(scores, tmp_path / "scores.safetensors")

    with pytest.raises(ParameterError, match=problem):
        shrink(tmp_path, amount=0.25, scores=tmp_path / "scores.safetensors")

    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "scores.safetensors"}


@pytest.mark.parametrize(
    "options",
    [
        {"amount": 0.5, "target": "params=0.5"},
        {"from_zeros": True, "criterion": "l1"},
        {"from_zeros": True, "target": "params=0.5"},
        {"amount": 0.5, "allocate": "erk", "is_global": True},
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Before anything is done."""
    with pytest.raises(UsageError):
        shrink(tmp_path, **options)


def test_the_numbers_of_a_config_are_solved_for(tmp_path: Path) -> None:
    """All layers that one number stands for lose the same, by the weights of each."""
    transformers = pytest.importorskip("transformers")
    numbers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(intermediate_size=64, vocab_size=50, **numbers)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "whole")

    report = shrink_checkpoint(
        tmp_path / "whole", tmp_path / "small", target="params=80%", criterion="l1"
    )

    effect = report.shrink.effect
    small = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == effect.parameters_after
    assert effect.parameters_after / effect.parameters_before == pytest.approx(0.8, rel=0.03)
