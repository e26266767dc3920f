"""Plans that draw nothing: a report on another checkpoint, and masks made permanent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn
from torch.nn.utils import prune

from prune_cli import apply_report, prune_checkpoint, remove_masks, verify_checkpoint
from prune_cli.checkpoint import Checkpoint, open_checkpoint
from prune_cli.errors import ParameterError, RequestError, SelectionError
from prune_cli.plan.draw import make_plan
from prune_cli.plan.facts import REMOVED, Options, Plan, PlanItem
from prune_cli.plan.replay import plan_removal, replay
from tests import build

# --- replay ----------------------------------------------------------------------------------


def row(name: str, shape: tuple[int, ...], pruned: tuple[int, ...], **facts: Any) -> PlanItem:
    """A row as a report has it."""
    module, _, param = name.rpartition(".")
    item = PlanItem(name, module, param, (), "F32", shape, 0, 1, 7, (*shape, 1)[0], (), pruned)
    return replace(item, **facts)


def plan_of(*rows: PlanItem, **options: Any) -> Plan:
    """A plan of these rows."""
    return Plan("random_structured", Options(amount=1, **options), rows)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """The usual tensors."""
    return open_checkpoint(build.torch_zip(tmp_path / "m.pt", build.tensors()))


def test_the_channels_are_those_of_the_row(checkpoint: Checkpoint) -> None:
    """Sorted; the rest of the row is what the checkpoint says, and no seed is claimed."""
    told = row("fc.weight", (10, 24), (9, 2), already_pruned=(3,))

    plan = replay(plan_of(told), checkpoint)

    [item] = plan.items
    assert (plan.method, item.pruned, item.already_pruned) == ("apply", (2, 9), ())
    assert (item.dtype, item.seed, item.channels) == ("BF16", None, 10)


def test_what_is_zero_there_is_told(tmp_path: Path) -> None:
    """`already_pruned` is what the row does not prune and is zero before."""
    content = build.tensors()
    content["fc.weight"][[2, 5]] = 0
    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "m.pt", content))

    [item] = replay(plan_of(row("fc.weight", (10, 24), (2, 9))), checkpoint).items

    assert (item.pruned, item.already_pruned) == ((2, 9), (5,))


@pytest.mark.parametrize(
    ("told", "asked", "bake"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_masks_are_as_asked_or_as_the_report_has_them(
    checkpoint: Checkpoint, told: bool, asked: bool | None, bake: bool
) -> None:
    """None keeps what the report says."""
    plan = plan_of(row("fc.weight", (10, 24), (2,)), bake=told)

    assert replay(plan, checkpoint, bake=asked).options.bake is bake


def test_every_misfit_is_named_at_once(checkpoint: Checkpoint) -> None:
    """With the name, what is there, and what the report says."""
    plan = plan_of(
        row("ghost.weight", (10, 24), (0,)),
        row("fc.weight", (10, 25), (0,)),
        row("conv.weight", (6, 3, 3, 3), (0, 6)),
        row("bn.weight", (6,), (0,)),
        row("fc.bias", (10,), (0,), follows="fc.weight"),
    )

    with pytest.raises(ParameterError) as caught:
        replay(plan, checkpoint)

    assert str(caught.value).splitlines() == [
        "ghost.weight: the checkpoint has no such tensor",
        "fc.weight: its shape is [10, 24] in the checkpoint and [10, 25] in the report",
        "conv.weight: the report prunes channels outside 0 to 5",
        "bn.weight is 1-D, so it has no channels to prune; exclude it (-x)",
    ]


MISFITS: dict[str, tuple[PlanItem, str]] = {
    "negative": (row("fc.weight", (10, 24), (-1,)), "channels outside 0 to 9"),
    "twice": (row("fc.weight", (10, 24), (1, 1)), "prunes a channel twice"),
    "dim": (row("fc.weight", (10, 24), (1,), dim=2), r"prunes dim 2, but its shape is \[10, 24\]"),
    "negative-dim": (row("fc.weight", (10, 24), (1,), dim=-1), "dim -1"),
    "0-d": (row("bn.num_batches_tracked", (), (0,)), "dim 0"),
    "leaderless": (
        row("fc.bias", (10,), (1,), follows="fc.weight"),
        "are not those of fc.weight, which it follows",
    ),
}


@pytest.mark.parametrize(("item", "message"), MISFITS.values(), ids=MISFITS)
def test_a_row_that_does_not_fit_is_refused(
    checkpoint: Checkpoint, item: PlanItem, message: str
) -> None:
    """By what is wrong with it."""
    with pytest.raises(ParameterError, match=message):
        replay(plan_of(item), checkpoint)


def test_two_rows_of_one_tensor_are_refused(checkpoint: Checkpoint) -> None:
    """Whichever was meant."""
    item = row("fc.weight", (10, 24), (1,))

    with pytest.raises(ParameterError, match=r"fc\.weight: the report has 2 rows of it"):
        replay(plan_of(item, item), checkpoint)


@pytest.mark.parametrize("method", ["remove", "shrink"])
def test_a_report_that_pruned_nothing_at_random_is_refused(
    checkpoint: Checkpoint, method: str
) -> None:
    """It has no channels to prune again."""
    with pytest.raises(RequestError, match=method):
        replay(replace(plan_of(), method=method), checkpoint)


def test_a_bias_goes_with_its_weight(checkpoint: Checkpoint) -> None:
    """A follower is one-dimensional, and needs no live channel of its own."""
    weight = row("fc.weight", (10, 24), (9, 2))
    bias = row("fc.bias", (10,), (2, 9), follows="fc.weight")

    items = replay(plan_of(weight, bias), checkpoint).items

    assert [(item.name, item.pruned) for item in items] == [
        ("fc.bias", (2, 9)),
        ("fc.weight", (2, 9)),
    ]


def test_a_bias_that_was_not_edited_with_its_weight_is_refused(checkpoint: Checkpoint) -> None:
    """The two are one decision."""
    weight = row("fc.weight", (10, 24), (2,))
    bias = row("fc.bias", (10,), (3,), follows="fc.weight")

    with pytest.raises(ParameterError, match=r"fc\.bias: its channels .* edit both"):
        replay(plan_of(weight, bias), checkpoint)


@pytest.mark.parametrize("told", ["a.weight", "b.weight"])
def test_a_tied_tensor_is_found_by_any_name(tmp_path: Path, told: str) -> None:
    """And its row then has the name under which it is stored."""
    weight = torch.randn(4, 3)
    path = build.torch_zip(tmp_path / "m.pt", {"a.weight": weight, "b.weight": weight})

    [item] = replay(plan_of(row(told, (4, 3), (1,))), open_checkpoint(path)).items

    assert (item.name, item.aliases, item.module) == ("a.weight", ("b.weight",), "a")


def test_names_that_were_tied_and_are_not_any_more_all_lose_the_channels(tmp_path: Path) -> None:
    """The report says that they were one tensor."""
    content = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(4, 3)}
    path = build.torch_zip(tmp_path / "m.pt", content)
    told = row("a.weight", (4, 3), (1,), aliases=("b.weight", "gone.weight"))

    items = replay(plan_of(told), open_checkpoint(path)).items

    assert [(item.name, item.aliases, item.pruned) for item in items] == [
        ("a.weight", (), (1,)),
        ("b.weight", (), (1,)),
    ]


def test_names_that_were_not_tied_and_are_now_are_refused(tmp_path: Path) -> None:
    """One tensor cannot follow two rows."""
    weight = torch.randn(4, 3)
    path = build.torch_zip(tmp_path / "m.pt", {"a.weight": weight, "b.weight": weight})
    rows = row("a.weight", (4, 3), (1,)), row("b.weight", (4, 3), (2,))

    with pytest.raises(ParameterError, match=r"a\.weight: the report has 2 rows of it"):
        replay(plan_of(*rows), open_checkpoint(path))


# --- apply -----------------------------------------------------------------------------------


def other_dtype(folder: Path) -> Path:
    """The same names and shapes, as float16."""
    content = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in build.tensors(1).items()
    }
    return build.safetensors(folder / "half.safetensors", content)


def other_shards(folder: Path) -> Path:
    """Another split, and pickled."""
    names = build.shard_names(3, "pytorch_model-{:05d}-of-{:05d}.bin")
    shards = build.split(build.tensors(1), names)
    return build.write_folder(folder / "ema", shards, index="pytorch_model.bin.index.json")


def other_masks(folder: Path) -> Path:
    """A copy that stock torch pruned, with its masks."""
    return build.torch_legacy(folder / "m.pt", build.masked(build.tensors(1), {"conv.weight": 2}))


OTHERS: dict[str, Callable[[Path], Path]] = {
    "dtype": other_dtype,
    "shards": other_shards,
    "masks": other_masks,
    "nested": lambda f: build.torch_zip(f / "n.pt", {"ema": build.tensors(1), "step": 7}),
}


@pytest.mark.parametrize("bake", [None, False], ids=["baked", "masks"])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_the_same_channels_go_in_another_checkpoint(
    tmp_path: Path, make: Callable[[Path], Path], bake: bool | None
) -> None:
    """Whatever its dtype, format, shards and masks; the rest of it stays."""
    first = build.torch_zip(tmp_path / "first.pt", build.tensors())
    told = prune_checkpoint(first, dry_run=True, amount=0.5, dim=0, with_bias=True)
    other = make(tmp_path)
    output = tmp_path / ("out" if other.is_dir() else "out.safetensors")

    report = apply_report(told, other, output, bake=bake)

    pruned = {item.name: item.pruned for item in told.tensors}
    assert {item.name: item.pruned for item in report.tensors} == pruned
    assert verify_checkpoint(output, source=other).disagreements == ()
    written, source = open_checkpoint(output), open_checkpoint(other)
    for name, parameter in source.parameter_of.items():
        wanted = build.tensor(source, parameter.tensor).clone()
        if parameter.mask and (bake is None):
            wanted[build.tensor(source, parameter.mask) == 0] = 0
        there = written.parameter_of[name]
        if there.mask is None:
            zero_rows(wanted, pruned.get(name, ()))
        else:
            assert not any(build.tensor(written, there.mask)[c].any() for c in pruned.get(name, ()))
        assert build.same_bits(build.tensor(written, there.tensor), wanted)


def zero_rows(tensor: torch.Tensor, channels: Sequence[int]) -> None:
    """Zeroes channels of dim 0; a tensor without dims has none."""
    for channel in channels:
        tensor[channel] = 0


def test_a_file_of_a_report_will_do(tmp_path: Path) -> None:
    """A path, or the Report itself."""
    path = build.torch_zip(tmp_path / "m.pt", build.tensors())
    told = tmp_path / "dry.json"
    prune_checkpoint(path, amount=0.5, dry_run=True, report=told)

    planned = apply_report(told, path, dry_run=True)

    assert planned.output is None
    assert planned.totals.channels_pruned > 0


def test_a_misfit_writes_nothing(tmp_path: Path) -> None:
    """Neither an output nor a report."""
    path = build.torch_zip(tmp_path / "m.pt", build.tensors())
    other = build.torch_zip(tmp_path / "o.pt", {"conv.weight": torch.ones(6, 3, 3, 4)})
    told = prune_checkpoint(path, dry_run=True, amount=0.5)

    with pytest.raises(RequestError):
        apply_report(told, other, tmp_path / "out.safetensors")

    assert {found.name for found in tmp_path.iterdir()} == {"m.pt", "o.pt"}


# --- remove ----------------------------------------------------------------------------------


class Everything(nn.Module):
    """Layers for each of torch's methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(24, 10)
        self.rnn = nn.LSTM(4, 3)


def container(net: Everything) -> None:
    """One method after another on the same parameter."""
    prune.random_structured(net.conv, "weight", 2, 0)
    prune.l1_unstructured(net.conv, "weight", 0.3)
    prune.ln_structured(net.conv, "weight", 1, n=2, dim=1)


def everywhere(net: Everything) -> None:
    """The smallest of all parameters together."""
    pairs = [(net.conv, "weight"), (net.fc, "weight"), (net.fc, "bias"), (net.rnn, "weight_ih_l0")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.6)


METHODS: dict[str, Callable[[Everything], object]] = {
    "identity": lambda net: prune.identity(net.fc, "weight"),
    "random-unstructured": lambda net: prune.random_unstructured(net.fc, "weight", 0.5),
    "l1-unstructured": lambda net: prune.l1_unstructured(net.fc, "weight", 0.5),
    "random-structured": lambda net: prune.random_structured(net.fc, "weight", 3, 0),
    "ln-structured": lambda net: prune.ln_structured(net.fc, "weight", 0.5, 1, 1),
    "custom": lambda net: prune.custom_from_mask(net.fc, "weight", torch.eye(10, 24)),
    "weight-and-bias": lambda net: (
        prune.l1_unstructured(net.fc, "weight", 0.5),
        prune.l1_unstructured(net.fc, "bias", 0.5),
    ),
    "container": container,
    "global": everywhere,
}


def strip(net: Everything) -> None:
    """Stock torch's own remove, of everything that is pruned."""
    for module in [*net.modules()]:
        for name in [
            key.removesuffix("_mask") for key in dict(module.named_buffers(recurse=False))
        ]:
            prune.remove(module, name)


@pytest.mark.parametrize("saver", build.SAVERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_masks_of_each_method_are_removed_as_torch_does(
    tmp_path: Path, method: Callable[[Everything], object], saver: str
) -> None:
    """Equal to torch.nn.utils.prune.remove, but that its -0 are +0."""
    torch.manual_seed(0)
    net = Everything()
    method(net)
    source = build.SAVERS[saver](
        tmp_path / "m", {k: v.clone() for k, v in net.state_dict().items()}
    )

    report = remove_masks(source, tmp_path / "out.safetensors")

    pruned = [key.removesuffix("_mask") for key in net.state_dict() if key.endswith("_mask")]
    assert [item.name for item in report.tensors] == sorted(pruned)
    strip(net)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        plus = torch.where(tensor == 0, torch.zeros(()), tensor)
        assert build.same_bits(written[name], plus if name in pruned else tensor)
    net.load_state_dict(written)
    assert verify_checkpoint(tmp_path / "out.safetensors", source=source).disagreements == ()


def test_a_row_shows_the_dim_that_lost_most_channels(tmp_path: Path) -> None:
    """And the channels of it whose mask is all zero."""
    mask = torch.ones(4, 5)
    mask[2], mask[:, 1], mask[:, 3] = 0, 0, 0
    content = {"a.weight_orig": torch.randn(4, 5), "a.weight_mask": mask}
    checkpoint = open_checkpoint(build.torch_zip(tmp_path / "m.pt", content))

    plan = plan_removal(checkpoint)

    [item] = plan.items
    assert (plan.method, item.dim, item.already_pruned, item.pruned) == (REMOVED, 1, (1, 3), ())


MASK_DTYPES = [kind for kind in build.TORCH_DTYPES if kind not in ("F4", "F8_E8M0")]


@pytest.mark.parametrize("dtype", MASK_DTYPES)
@pytest.mark.parametrize(
    "weight",
    [
        *("F32", "BF16", "F8_E4M3", "I64", "BOOL"),
        pytest.param("C64", marks=build.needs_dtype("C64")),
    ],
)
def test_a_mask_can_have_any_dtype(tmp_path: Path, dtype: str, weight: str) -> None:
    """Bits stay where it is 1, and are zero where it is 0, NaN and inf included."""
    values = build.random_bits(weight, 6, 5)
    keep = torch.tensor([True, False, True]).repeat(10).view(6, 5)
    content = {"a_orig": values, "a_mask": keep.to(build.TORCH_DTYPES[dtype])}
    source = build.torch_zip(tmp_path / "m.pt", content)

    remove_masks(source, tmp_path / "out.safetensors")

    written = load_file(tmp_path / "out.safetensors")["a"]
    octets = (
        torch.frombuffer(bytearray(build.octets(values)), dtype=torch.uint8).view(30, -1).clone()
    )
    octets[~keep.view(-1)] = 0
    assert bytes(build.octets(written)) == bytes(octets.numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0, -0.0])
def test_whatever_is_under_a_zero_becomes_plus_zero(tmp_path: Path, value: float) -> None:
    """Stock torch multiplies, so it leaves NaN and -0; and -0 in a mask is 0."""
    weight, mask = torch.full((3, 2), value), torch.ones(3, 2)
    mask[1] = torch.tensor([0.0, -0.0])
    source = build.torch_zip(tmp_path / "m.pt", {"a.weight_orig": weight, "a.weight_mask": mask})

    remove_masks(source, tmp_path / "out.safetensors")

    weight[1] = 0.0
    assert build.same_bits(load_file(tmp_path / "out.safetensors")["a.weight"], weight)


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (4, 0)])
def test_masks_of_any_shape_are_removed_and_verify(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Of a scalar, of a vector, and of nothing."""
    content = {"a_orig": torch.randn(shape), "a_mask": torch.zeros(shape), "b": torch.ones(2)}
    source = build.torch_zip(tmp_path / "m.pt", content)

    remove_masks(source, tmp_path / "out.safetensors")

    assert load_file(tmp_path / "out.safetensors")["a"].tolist() == torch.zeros(shape).tolist()
    assert verify_checkpoint(tmp_path / "out.safetensors").disagreements == ()
    assert verify_checkpoint(tmp_path / "out.safetensors", source=source).disagreements == ()


def test_no_masks_are_nothing_to_remove(checkpoint: Checkpoint) -> None:
    """That is an error, not a copy."""
    with pytest.raises(SelectionError, match="nothing to remove"):
        plan_removal(checkpoint)


# --- tied and pruned -------------------------------------------------------------------------


class Tied(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6, bias=False)
        self.b = self.a
        self.c = nn.Linear(6, 2)


@pytest.mark.parametrize("saver", ["save_model", "zip", "legacy"])
def test_a_tied_module_that_is_pruned_stays_tied(tmp_path: Path, saver: str) -> None:
    """One decision, one tensor, and an alias that safetensors' load_model restores."""
    torch.manual_seed(0)
    net = Tied()
    prune.random_structured(net.a, "weight", 2, 0)
    source = tmp_path / "m"
    if saver == "save_model":
        save_model(net, str(source))
    else:
        build.SAVERS[saver](source, net.state_dict())
    checkpoint = open_checkpoint(source)
    assert [item.name for item in make_plan(checkpoint, Options(0.5, 0)).items] == [
        "a.weight",
        "c.weight",
    ]
    assert checkpoint.parameter_aliases == {"b.weight": "a.weight"}

    remove_masks(source, tmp_path / "out.safetensors")

    prune.remove(net.a, "weight")
    fresh = Tied()
    load_model(fresh, str(tmp_path / "out.safetensors"))
    assert torch.equal(fresh.b.weight, net.a.weight)
    assert verify_checkpoint(tmp_path / "out.safetensors", source=source).disagreements == ()


@pytest.mark.parametrize("saver", ["save_model", "zip"])
def test_a_shared_weight_with_two_masks_is_two_when_baked(tmp_path: Path, saver: str) -> None:
    """Two modules that share a parameter and were pruned apart."""
    net = nn.ModuleDict({"a": nn.Linear(4, 6, bias=False), "b": nn.Linear(4, 6, bias=False)})
    net["b"].weight = net["a"].weight
    for seed, module in enumerate(net.values()):
        torch.manual_seed(seed)
        prune.random_structured(module, "weight", 3, 0)
    source = tmp_path / "m"
    if saver == "save_model":
        save_model(net, str(source))
    else:
        build.torch_zip(source, net.state_dict())

    remove_masks(source, tmp_path / "out.safetensors")

    written = load_file(tmp_path / "out.safetensors")
    for name, module in net.items():
        assert torch.equal(written[f"{name}.weight"], module.weight)
    assert not torch.equal(written["a.weight"], written["b.weight"])


def test_a_shard_of_masks_alone_leaves_no_file(tmp_path: Path) -> None:
    """Baked, nothing of it is left, and an index cannot name an empty file."""
    names = build.shard_names(2)
    shards = {
        names[0]: {"a.weight_orig": torch.randn(4, 3), "c.weight": torch.randn(2, 2)},
        names[1]: {"a.weight_mask": torch.eye(4, 3)},
    }
    source = build.write_folder(tmp_path / "in", shards)

    report = remove_masks(source, tmp_path / "out")

    assert report.output is not None
    assert report.output.files == (names[0],)
    assert not (tmp_path / "out" / names[1]).exists()
    assert verify_checkpoint(tmp_path / "out", source=source).disagreements == ()
