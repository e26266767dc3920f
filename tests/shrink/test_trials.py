"""Sweeps whose trials are smaller models."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.shrink import shrink_checkpoint
from prune_cli.shrink.trials import ShrinkMaker, make_options
from prune_cli.sweep.evaluation import Evaluation
from prune_cli.sweep.grid import Grid
from prune_cli.sweep.request import Request
from prune_cli.sweep.stages import run_sweep
from tests.shrink.builders import NETS, build


def count_parameters(path: Path) -> float:
    """An evaluation: what the user's own code loads."""
    return float(sum(each.numel() for each in load_shrunk(build("Plain"), path).parameters()))


@pytest.fixture
def maker(tmp_path: Path) -> ShrinkMaker:
    """Makes smaller nets."""
    torch.save(build("Plain").state_dict(), tmp_path / "plain.pt")
    options = make_options(
        modules=("*",),
        exclude=(),
        round_to=1,
        model=f"{NETS}:Plain",
        model_arguments={},
        examples=("1x3x16x16",),
    )
    return ShrinkMaker(tmp_path / "plain.pt", options)


def request(maker: ShrinkMaker, **changes: object) -> Request:
    """A sweep of one amount and two seeds."""
    folder = maker.path.parent / "sweep"
    base = Request(maker, Grid((0.25,), (0, 1)), Evaluation(count_parameters), folder)
    return replace(base, is_shrunk=True, keep="all", **changes)


def test_each_trial_is_what_shrink_writes(maker: ShrinkMaker, tmp_path: Path) -> None:
    """The unpruned one, too, can be loaded as the others are."""
    results = run_sweep(request(maker))

    done = shrink_checkpoint(
        maker.path,
        tmp_path / "small.safetensors",
        model=f"{NETS}:Plain",
        examples=["1x3x16x16"],
        amount=0.25,
        seed=1,
    )
    whole, _, small = results.records
    trial = tmp_path / "sweep" / "trials" / "a0.25-s1" / "model.safetensors"
    written = load_file(tmp_path / "small.safetensors")
    assert all(torch.equal(load_file(trial)[name], tensor) for name, tensor in written.items())
    assert done.shrink is not None
    assert small.achieved.flops == done.shrink.effect.flops_after
    assert small.achieved.parameters == small.metric
    assert whole.achieved.parameters == whole.metric
    assert whole.achieved.flops == done.shrink.effect.flops_before


def test_one_coupled_group_at_a_time(maker: ShrinkMaker) -> None:
    """Named by the module of its root; the recipe is what shrink reads."""
    results = run_sweep(request(maker, is_each=True, grid=Grid((0.25,), (0,)), lose=1e9))

    assert [record.module for record in results.records[1:4]] == ["c1", "c2", "f1"]
    assert len({record.metric for record in results.records}) == 5
    assert "Loses" in (maker.path.parent / "sweep" / "recipe.toml").read_text()


def test_a_trial_is_chosen_as_shrink_chooses(maker: ShrinkMaker, tmp_path: Path) -> None:
    """With an allocation, a criterion and a target, in this process as in a child."""
    grid = Grid((), (0,), ("erk",), ("random", "l1"), ("flops=0.6",))

    results = run_sweep(request(maker, grid=grid))

    done = shrink_checkpoint(
        maker.path,
        tmp_path / "small.safetensors",
        model=f"{NETS}:Plain",
        examples=["1x3x16x16"],
        target="flops=60%",
        allocate="erk",
        criterion="l1",
    )
    (record,) = [each for each in results.records if each.criterion == "l1"]
    (made,) = (maker.path.parent / "sweep").rglob(f"{record.trial}/*.safetensors")
    assert made.read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    assert record.achieved.flops == done.shrink.effect.flops_after


def test_a_maker_can_be_sent_to_another_process(maker: ShrinkMaker) -> None:
    """Without what it opened."""
    assert maker.source.tensors

    assert pickle.loads(pickle.dumps(maker)).modules() == ("c1", "c2", "f1")
