"""Which channels go, held against Torch-Pruning and the masked model, where Torch-Pruning can follow."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prune_cli.errors import AmountError, RequestError, SelectionError
from prune_cli.jsontext import decode
from prune_cli.plan.facts import derive_seed
from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.load import resize
from prune_cli.torch_channels import draw_channels
from tests.architectures.check import refuse_other_outputs
from tests.shrink.builders import build, inputs, plan, prune_live, slice_state

SHRUNK = {
    "Plain": {"c1.weight": 6, "c2.weight": 12, "f1.weight": 24},
    "Residual": {"stem.weight": 12, "a1.weight": 12, "d.weight": 24, "e1.weight": 24},
    "Groups": {"c1.weight": 12, "g.weight": 24, "c2.weight": 6},
    "Depthwise": {"c1.weight": 12, "pw.weight": 18, "s1.weight": 4},
    "Concatenated": {"a.weight": 6, "b.weight": 9, "c.weight": 12, "d.weight": 6},
    "JoinedAndAdded": {"a.weight": 6, "b.weight": 9, "d.weight": 6},
    "Shuffled": {"a.weight": 12, "b.weight": 12},
    "Attention": {"e.weight": 24, "m1.weight": 48},
    "Encoder": {f"encoder.layers.{n}.linear1.weight": 24 for n in (0, 1)},
    "TiedAndFrozen": {"e.weight": 12, "l.weight": 18},
    "Recurrent": {"l.weight": 9, "r.weight_ih_l0": 48, "o.weight": 15},
    "Various": {"b.weight": 9, "c.weight": 4, "d.weight": 3},
    "Gated": {"a.weight": 24},
    "Mixed": {"a.weight": 9, "d.weight": 12},
    "GroupedHeads": {"m1.weight": 18},
    "Doubled": {"b.weight": 8},
    "Experts": {"a.weight": 18} | {f"up.{n}.weight": 24 for n in range(4)},
    "Mixer": {"a.weight": 18, "t1.weight": 15},
    "Picked": {"b.weight": 12},
    "Gram": {"a.weight": 6, "b.weight": 4},
    "Helped": {"a.weight": 12, "b.weight": 12},
    "BothWays": {"r.weight_ih_l0": 27},
    "Halves": {"a.weight": 12, "b.weight": 6, "c.weight": 9},
    "Upscaled": {"a.weight": 24, "b.weight": 6},
    "Summed": {"w": 6, "a.weight": 9},
}

BEYOND = {"Shuffled", "Recurrent", "Experts", "Mixer", "Gram", "Helped"} | {
    *("BothWays", "Halves", "Upscaled", "Summed")
}
"""What Torch-Pruning cannot follow, or not all of it."""


@pytest.mark.parametrize("name", sorted(SHRUNK.keys() - BEYOND))
@pytest.mark.parametrize("seed", [0, 7])
def test_the_slices_are_the_live_model_that_torch_pruning_prunes(name: str, seed: int) -> None:
    """Every tensor equals, bit for bit, that of the live model without the same channels."""
    model = build(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}

    made = plan(name, checkpoint=shapes, seed=seed)

    live = prune_live(model, inputs(name), made)
    sliced = slice_state(model, made)
    assert all(torch.equal(tensor, sliced[key]) for key, tensor in live.state_dict().items())
    assert {key: tuple(sliced[key].shape) for key in made.shapes} == made.shapes


@pytest.mark.parametrize("name", SHRUNK)
def test_a_shrunk_model_computes_what_the_masked_one_does(name: str) -> None:
    """In evaluation and in training: the whole one with zeros in all that makes and reads what went."""
    model, small = build(name), build(name)

    made = plan(name)

    resize(small, made.resizing)
    small.load_state_dict(slice_state(model, made), strict=True)
    assert {g.root: g.channels - len(g.removed) for g in made.groups} == SHRUNK[name]
    for training in (False, True):
        refuse_other_outputs(model, small, made.kept, inputs(name), training=training)


@pytest.mark.parametrize("name", sorted(SHRUNK.keys() - BEYOND))
def test_a_resized_model_computes_what_the_live_one_does(name: str) -> None:
    """The attributes and shapes of the plan make a fresh model that gives the same outputs."""
    model, example = build(name), inputs(name)
    made = plan(name)
    fresh = build(name)

    resize(fresh, made.resizing)
    fresh.load_state_dict(slice_state(model, made), strict=True)

    assert torch.equal(fresh(*example), prune_live(model, example, made)(*example))
    assert sum(p.numel() for p in fresh.parameters()) == made.effect.parameters_after
    assert made.effect.flops_after < made.effect.flops_before


@pytest.mark.parametrize("name", SHRUNK)
def test_the_flops_are_those_that_torch_counts(name: str) -> None:
    """Of one forward pass on the example, with autograd, which keeps encoders on the plain path."""
    model, example = build(name).to("meta"), tuple(x.to("meta") for x in inputs(name))

    with FlopCounterMode(display=False) as counter:
        model(*example)

    assert plan(name).effect.flops_before == counter.get_total_flops()


def test_the_draw_is_keyed_by_the_root() -> None:
    """A group loses the k smallest draws of a generator seeded by seed and root tensor."""
    made = plan("Plain", seed=3)

    group = made.groups[1]

    generator = torch.Generator().manual_seed(derive_seed(3, "c2.weight"))
    expected = draw_channels(torch.arange(16), 4, generator=generator)
    assert group.root == "c2.weight"
    assert group.seed == derive_seed(3, "c2.weight")
    assert list(group.removed) == expected.tolist()


def test_a_plan_survives_json() -> None:
    """What is written into a report is read back equal, and twice the same plan is the same text."""
    made = plan("Concatenated")

    text = json.dumps(asdict(made))

    assert decode(ShrinkPlan, json.loads(text)) == made
    assert json.dumps(asdict(plan("Concatenated"))) == text


@pytest.mark.parametrize("seed", range(6))
def test_a_layer_behind_what_cannot_be_followed_still_loses_its_own(seed: int) -> None:
    """Whoever is blamed together with others is tried again alone."""
    made = plan("Picked", seed=seed)

    assert [group.root for group in made.groups] == ["b.weight"]


def test_what_lies_across_tokens_is_no_channel() -> None:
    """Columns across tokens are no channels of the layer before."""
    made = plan("Mixer", 0.5)

    gone = {group.root: len(group.removed) for group in made.groups}
    assert gone == {"a.weight": 12, "t1.weight": 10}


@pytest.mark.parametrize(
    ("name", "root", "reason"),
    [
        ("Plain", "f2.weight", "the shape of the model's output would change"),
        ("Attention", "qkv.weight", "the shrunk model fails there"),
        ("Mixed", "c.weight", "it normalises over the channels"),
        ("Encoder", "i.weight", "in encoder.layers.0.self_attn: the shrunk model"),
    ],
)
def test_what_stays_says_why(name: str, root: str, reason: str) -> None:
    """A group that cannot be pruned is listed with the reason."""
    made = plan(name)

    reasons = {whole.root: whole.reason for whole in made.whole}

    assert reason in reasons[root]


def test_a_scale_by_the_root_of_a_width_stays_what_it_is() -> None:
    """Without some channels of it the model would divide by another number: nothing goes."""
    with pytest.raises(
        RequestError, match=r"a\.weight: div in .*a number in it depends on how many"
    ):
        plan("Scaled")


def test_what_runs_only_in_training_still_runs() -> None:
    """A head that evaluation never sees keeps the channels that it reads."""
    model = build("Helped").train()
    made = plan("Helped")

    resize(model, made.resizing)

    assert [output.shape[1] for output in model(*inputs("Helped"))] == [4, 4]


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_a_shrunk_encoder_computes_what_the_masked_one_does(
    is_fast: bool, is_training: bool
) -> None:
    """On the fused path of nn.TransformerEncoder and on the plain one; two samples, no dropout."""
    model, small = build("Encoder").train(is_training), build("Encoder").train(is_training)
    made = plan("Encoder")
    resize(small, made.resizing)
    small.load_state_dict(slice_state(model, made))
    for module in (*model.modules(), *small.modules()):
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.p = module.dropout = 0.0
    with torch.no_grad():
        for group in made.groups:
            module = group.root.rpartition(".")[0]
            for root in (group.root, f"{module}.bias"):
                model.get_parameter(root)[list(group.removed)] = 0

    with torch.set_grad_enabled(not is_fast):
        outputs = [net(*inputs("Encoder")) for net in (model, small)]

    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


def test_channels_are_left_in_multiples() -> None:
    """`round_to` rounds what is left up, and a group that would lose nothing is left whole."""
    made = plan("Plain", 0.3, round_to=8)

    assert {g.root: g.channels - len(g.removed) for g in made.groups} == {"f1.weight": 24}
    assert {w.root for w in made.whole} == {"c1.weight", "c2.weight", "f2.weight"}


def test_only_what_is_selected_goes() -> None:
    """A group goes if all layers that make its channels are selected, by the rule of its root."""
    rules = (Rule(("*",), ("weight",), 0.25, 0), Rule(("a2", "e1"), ("weight",), 0.5, 0))

    made = plan("Residual", rules=rules, exclude=("d",))
    only = plan("Residual", rules=(Rule(("a*",), ("weight",), 2, 0),))

    assert {g.root: len(g.removed) for g in made.groups} == {
        "stem.weight": 4, "a1.weight": 4, "e1.weight": 16,
    }  # fmt: skip
    assert {g.root: len(g.removed) for g in only.groups} == {"a1.weight": 2}
    assert "it is coupled with stem.weight" not in {w.reason for w in only.whole}


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        (0.0, RequestError, "nothing can be removed"),
        (1.0, AmountError, "would remove all of its 8 channels"),
        (9, AmountError, "c1.weight: amount=9 is too large"),
    ],
)
def test_an_impossible_amount_is_refused(
    amount: float, error: type[Exception], message: str
) -> None:
    """A plan removes something, and leaves something."""
    with pytest.raises(error, match=message):
        plan("Plain", amount)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    """The message shows the nearest name."""
    with pytest.raises(SelectionError, match="no module matches 'c7'; the nearest"):
        plan("Plain", rules=(Rule(("c7",), ("weight",), 0.5, 0),))


def test_the_checkpoint_must_be_that_of_the_model() -> None:
    """Missing, superfluous and differently shaped tensors are named at once."""
    shapes = {key: tuple(value.shape) for key, value in build("Gated").state_dict().items()}
    del shapes["a.bias"]
    shapes["b.weight"], shapes["other"] = (9, 9), (1,)

    with pytest.raises(RequestError) as caught:
        plan("Gated", checkpoint=shapes)

    assert "it lacks a.bias" in str(caught.value)
    assert "b.weight is [9, 9] and not [8, 16]" in str(caught.value)
    assert "the model lacks other" in str(caught.value)
