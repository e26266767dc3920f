"""Heads and layers of models that code describes: load_shrunk brings them back."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_cli.api import carry_out
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import RequestError, UsageError
from prune_cli.plan.facts import SHRUNK, Options, Plan
from prune_cli.plan.lists import name_after
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import Resizing, ShrinkOptions
from prune_cli.plan.units import parse_units
from prune_cli.shrink.fewer_heads import let_lose_heads
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.model import build_model
from prune_cli.shrink.plan import plan_shrink
from prune_cli.shrink.request import Request, Source
from prune_cli.shrink.shrink import shapes_of, shrink_checkpoint
from prune_cli.verify.verify import verify_checkpoint
from prune_cli.write.target import Execution, find_target
from tests.shrink.builders import NETS
from tests.shrink.units import draw, mask, pass_over


def build(name: str) -> nn.Module:
    """A net of nets.py with drawn weights."""
    return draw(build_model(f"{NETS}:{name}", {}, "cpu"))


def shrink(name: str, folder: Path, **units: Any) -> Any:
    """Shrink the net's checkpoint to small.safetensors; planned in this process."""
    torch.save(build(name).state_dict(), folder / "whole.pt")
    checkpoint = open_checkpoint(folder / "whole.pt")
    source = Source(f"{NETS}:{name}", examples=("1x6x8",))
    rules = (Rule(("*",), ("weight",), 0, 0),)
    asked = ShrinkOptions(1, False, source.model, {}, source.examples, units=units)

    def decide() -> Plan:
        plan = plan_shrink(source, Request(rules, units=units), shapes_of(checkpoint))
        return Plan(SHRUNK, Options(None, 0, shrink=asked), (), shrink=plan)

    target = find_target(checkpoint, folder / "small.safetensors", suffix="shrunk")
    return carry_out(checkpoint, decide, target, Execution("cpu"))


def masked(name: str, plan: Any) -> nn.Module:
    """The whole net with the units of a plan masked."""
    model = build(name)
    state = model.state_dict()
    mask(model, state, plan)
    model.load_state_dict(state)
    pass_over(model, plan)
    return model


UNITS: list[tuple[str, dict[str, Any]]] = [
    ("Blocks", {"heads": 1}),
    ("Blocks", {"head-dim": 2}),
    ("Blocks", {"layers": 1, "heads": 0.5}),
    ("TorchLayers", {"heads": 1}),
    ("TorchLayers", {"layers": 1, "heads": 0.5}),
]


@pytest.mark.parametrize(("name", "units"), UNITS)
def test_load_shrunk_gives_the_masked_model(
    name: str, units: dict[str, Any], tmp_path: Path
) -> None:
    """In evaluation and training, and where torch would take its fast path."""
    done = shrink(name, tmp_path, **units)

    small = load_shrunk(build(name), tmp_path / "small.safetensors")
    expected, x = masked(name, done.shrink), torch.randn(2, 6, 8)
    for is_training in (False, True):
        small.train(is_training)
        expected.train(is_training)
        torch.testing.assert_close(small(x), expected(x), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(small.eval()(x), expected.eval()(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(small(x), build(name)(x), atol=1e-2)
    found = verify_checkpoint(tmp_path / "small.safetensors", source=tmp_path / "whole.pt")
    assert found.is_verified


def test_layers_know_their_new_places(tmp_path: Path) -> None:
    """What numbers a layer is counted anew, and so is what counts them."""
    done = shrink("Blocks", tmp_path, layers=1)

    small = load_shrunk(build("Blocks"), tmp_path / "small.safetensors")

    assert [block.layer_idx for block in small.blocks] == [0, 1]
    assert small.n_layer == 2
    assert done.shrink.groups[0].root == "blocks"
    assert len(done.shrink.lists["blocks"]) == 2


def test_layers_that_are_no_residual_blocks_stay(tmp_path: Path) -> None:
    """Nothing says what the net is without one."""
    with pytest.raises(RequestError, match="they have to be residual blocks"):
        shrink("Deep", tmp_path, layers=1)


MASKS: dict[str, Tensor | None] = {
    "none": None,
    "bool": torch.ones(5, 6).triu(1).bool(),
    "float": torch.randn(5, 6),
    "a head": torch.randn(2 * 4, 5, 6),
}


@pytest.mark.parametrize(
    ("attention", "is_first", "padding", "weights"),
    list(itertools.product(MASKS, [True, False], [True, False], ["none", "mean", "each"])),
)
def test_attention_that_can_lose_heads_is_torchs(
    attention: str, is_first: bool, padding: bool, weights: str
) -> None:
    """With all of its heads it gives what torch's own gives."""
    module = draw(nn.MultiheadAttention(24, 4, batch_first=is_first)).train()
    shapes = (2, 5, 24), (2, 6, 24), (2, 6, 24)
    given = [torch.randn(shape).transpose(0, 1 - is_first) for shape in shapes]
    hidden = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    if attention in ("float", "a head"):  # torch wants both masks of one kind
        hidden = torch.zeros(2, 6).masked_fill(hidden, -1e4)
    how = {
        "attn_mask": MASKS[attention],
        "key_padding_mask": hidden if padding else None,
        "need_weights": weights != "none",
        "average_attn_weights": weights == "mean",
    }
    expected = module(*given, **how)

    let_lose_heads(module)
    found = module(*given, **how)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_attention_of_one_sequence_is_torchs() -> None:
    """Without a batch, too."""
    module, x = draw(nn.MultiheadAttention(24, 4)), torch.randn(5, 24)
    expected = module(x, x, x)

    let_lose_heads(module)

    torch.testing.assert_close(module(x, x, x), expected, atol=1e-5, rtol=1e-5)


def test_units_are_read_as_they_are_written() -> None:
    """Their own amount or the common one, in the order in which they go."""
    assert parse_units(["heads", "layers=2", "channels=25%"], 0.5) == {
        "layers": 2,
        "heads": 0.5,
        "channels": 0.25,
    }


@pytest.mark.parametrize("texts", [["heads"], ["head=1"], ["heads=1", "heads=2"], ["heads=x"]])
def test_units_that_mean_nothing_are_refused(texts: list[str]) -> None:
    """No amount, an unknown kind, twice the same, no number."""
    with pytest.raises(UsageError):
        parse_units(texts, None)


@pytest.mark.parametrize("other", [{"from_zeros": True}, {"target": "params=0.5"}, {"round_to": 8}])
def test_what_is_for_channels_alone_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    """Heads are not chosen by a target, and not found by zeros."""
    torch.save(build("Blocks").state_dict(), tmp_path / "whole.pt")

    with pytest.raises(UsageError, match=r"channels|either an amount"):
        shrink_checkpoint(tmp_path / "whole.pt", model="x:y", units={"heads": 1}, **other)


def test_names_are_counted_anew_at_every_depth() -> None:
    """By the names that they had before."""
    lists = {"layers": (1, 2), "layers.2.experts": (0, 3), "": (0,)}

    assert name_after(lists, "layers.2.experts.3.w1.weight") == "layers.1.experts.1.w1.weight"
    assert name_after(lists, "layers.2.experts.1.w1.weight") is None
    assert name_after(lists, "layers.0.norm.weight") is None
    assert name_after(lists, "1.weight") is None
    assert name_after(lists, "head.weight") == "head.weight"


def test_a_record_of_lists_is_not_taken_for_an_older_one() -> None:
    """What knows no lists must refuse the file, and does by its version."""
    record = Resizing({}, {}, {"layers": (0, 2)})

    assert '"schema":2' in record.to_json()
    assert Resizing.from_json(record.to_json()) == record
    assert '"schema":1' in Resizing({}, {}).to_json()
