"""Choices end to end: allocations, targets and criteria, in the plan, the report and verify."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

import prune_cli
from prune_cli import apply_report, prune_checkpoint, verify_checkpoint
from prune_cli.errors import AmountError, ParameterError, RequestError, UsageError
from prune_cli.plan.choice import Choice, make_choice, parse_between
from prune_cli.plan.facts import PlanItem, derive_seed
from prune_cli.report.comparison import compare_reports
from prune_cli.report.report import Report, from_json, read_report, to_json
from tests import build
from tests.plan.test_allocation import published, raw_er, raw_erk
from tests.shrink import nets

SHAPES = {
    "conv1.weight": (16, 3, 3, 3),
    "conv2.weight": (24, 16, 3, 3),
    "fc.weight": (10, 40),
    "fc0.weight": (40, 24),
}


def weights(seed: int = 0) -> build.Tensors:
    """A small net, and a bias that nothing asks for."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return made | {"fc.bias": torch.randn(10, generator=generator)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The net in a file."""
    return build.safetensors(tmp_path / "net.safetensors", weights())


def scores_file(folder: Path, change: Callable[[build.Tensors], object] = lambda _: None) -> Path:
    """Scores of each channel of dim 0, but for fc: of each element."""
    made = {name: torch.rand(shape[0]).log() for name, shape in SHAPES.items()}
    made["fc.weight"] = torch.randn(SHAPES["fc.weight"], dtype=torch.float64)
    change(made)
    return build.safetensors(folder / "scores.safetensors", made)


def rows(report: Report) -> dict[str, PlanItem]:
    """The rows by name."""
    return {item.name: item for item in report.tensors}


CHOICES: dict[str, dict[str, Any]] = {
    "keep-ends": {"amount": 0.5, "allocate": "uniform-keep-ends"},
    "er": {"amount": 0.6, "allocate": "er"},
    "erk": {"amount": 0.6, "allocate": "erk"},
    "random": {"amount": 0.5, "allocate": "random", "between": (0.3, 0.7)},
    "target": {"target": "params=40%"},
    "absolute": {"target": "params=3000"},
    "erk-target": {"target": "params=0.3", "allocate": "erk"},
    "global": {"amount": 0.5, "is_global": True},
    "global-number": {"amount": 20, "is_global": True, "at_least": 6},
    "global-target": {"target": "params=0.5", "is_global": True, "round_to": 2},
    "global-l2": {"amount": 0.3, "is_global": True, "criterion": "l2"},
    "l1": {"amount": 0.5, "criterion": "l1"},
    "l2": {"amount": 3, "criterion": "l2"},
    "fpgm": {"amount": 0.25, "criterion": "fpgm", "allocate": "erk"},
    "steps": {"amount": 0.4, "round_to": 4, "at_least": 5},
    "scores": {"amount": 0.5, "scores": True},
    "with-bias": {"amount": 0.5, "criterion": "l1", "with_bias": True, "allocate": "er"},
    "masks": {"amount": 0.5, "criterion": "l1", "bake": False},
    "split": {"amount": 0.5, "allocate": "erk", "max_shard_size": 5000},
}


def run(source: Path, output: Path, asked: dict[str, Any]) -> tuple[Report, dict[str, Any]]:
    """Prune dim 0 as asked; and what verify needs for it."""
    options = {"dim": 0, **asked}
    extra: dict[str, Any] = {}
    if options.get("scores") is True:
        extra["scores"] = options["scores"] = scores_file(source.parent)
    return prune_checkpoint(source, output, **options), extra


@pytest.mark.parametrize("asked", CHOICES.values(), ids=CHOICES)
def test_every_choice_is_reported_proved_and_replayed(
    tmp_path: Path, source: Path, asked: dict[str, Any]
) -> None:
    """The report follows its schema and comes back; verify and apply find the same channels."""
    output = tmp_path / ("out" if "max_shard_size" in asked else "out.safetensors")

    report, extra = run(source, output, asked)

    assert report.totals.channels_pruned > 0
    assert from_json(to_json(report)) == report
    schema = Path(prune_cli.__file__).with_name("report") / "report.schema.json"
    jsonschema.validate(json.loads(to_json(report)), json.loads(schema.read_text()))
    assert verify_checkpoint(output).disagreements == ()
    assert verify_checkpoint(output, source=source, **extra).disagreements == ()
    again = tmp_path / f"again{output.suffix}"
    applied = apply_report(report, source, again)
    assert [item.pruned for item in applied.tensors] == [item.pruned for item in report.tensors]
    assert verify_checkpoint(again, source=source).disagreements == ()


@pytest.mark.parametrize("asked", CHOICES.values(), ids=CHOICES)
def test_a_moved_channel_is_caught(tmp_path: Path, source: Path, asked: dict[str, Any]) -> None:
    """A report that prunes a channel more here and one less there is not what its options give."""
    if asked.get("criterion") == "l2" and asked.get("is_global"):
        pytest.skip("without the source nothing tells how many channels of which layer are small")
    output = tmp_path / "out.safetensors"
    run(source, output, {k: v for k, v in asked.items() if k != "max_shard_size"})
    path = output.with_suffix(".report.json")
    facts = json.loads(path.read_text())
    leading = [row for row in facts["tensors"] if "follows" not in row]
    less = next(row for row in leading if row["pruned"])
    more = next(row for row in leading if row is not less and len(row["pruned"]) < row["channels"])
    less["pruned"].pop()
    more["pruned"] = sorted({*more["pruned"], min({*range(more["channels"])} - {*more["pruned"]})})
    path.write_text(json.dumps(facts))

    found = {problem.tensor for problem in verify_checkpoint(output).disagreements}

    assert {less["name"], more["name"]} <= found


@pytest.mark.parametrize(("key", "value"), [("amount", 0.123), ("seed", 5), ("pruned", None)])
def test_a_changed_row_is_caught(tmp_path: Path, source: Path, key: str, value: object) -> None:
    """Its amount, its seed and its channels follow from the options."""
    output = tmp_path / "out.safetensors"
    prune_checkpoint(source, output, amount=0.6, dim=0, allocate="erk")
    path = output.with_suffix(".report.json")
    facts = json.loads(path.read_text())
    row = next(row for row in facts["tensors"] if row["pruned"])
    unlike = [channel for channel in range(row["channels"]) if channel not in row["pruned"]]
    row[key] = [*row["pruned"][:-1], unlike[-1]] if key == "pruned" else value
    row["pruned"].sort()
    path.write_text(json.dumps(facts))

    assert row["name"] in {found.tensor for found in verify_checkpoint(output).disagreements}


def test_changed_options_are_caught(tmp_path: Path, source: Path) -> None:
    """Another allocation, a target out of reach, another criterion: none gives these rows."""
    output = tmp_path / "out.safetensors"
    prune_checkpoint(source, output, amount=0.6, dim=0, allocate="erk")
    path = output.with_suffix(".report.json")
    facts = json.loads(path.read_text())

    for change in (
        {"allocate": "er"},
        {"target": "params=2"},
        {"criterion": "l1"},
        {"target": "x"},
    ):
        changed = facts | {
            "options": facts["options"] | {"choice": facts["options"]["choice"] | change}
        }
        path.write_text(json.dumps(changed))
        assert verify_checkpoint(output).disagreements != ()


# --- how many --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "raw"), [("er", raw_er), ("erk", raw_erk)], ids=["er", "erk"])
@pytest.mark.parametrize("amount", [0.2, 0.5, 0.8])
def test_rows_have_the_published_densities(
    source: Path, kind: str, raw: Callable[..., float], amount: float
) -> None:
    """To 1e-6; and what really goes is within half a channel of the budget."""
    report = prune_checkpoint(source, amount=amount, dim=0, allocate=kind, dry_run=True)

    found = rows(report)
    expected = published([SHAPES[name] for name in found], 1 - amount, raw)
    assert [1 - row.amount for row in found.values()] == pytest.approx(expected, abs=1e-6)
    total = sum(map(math.prod, SHAPES.values()))
    widest = max(row.elements_per_channel for row in found.values())
    assert abs(report.totals.elements_zero - amount * total) <= widest / 2


@pytest.mark.parametrize("wanted", ["0.9", "0.5", "12%", "4000"])
@pytest.mark.parametrize("choice", [{}, {"allocate": "erk"}, {"is_global": True}], ids=str)
def test_a_target_is_what_remains(
    tmp_path: Path, source: Path, wanted: str, choice: dict[str, Any]
) -> None:
    """Counted in the output: within 1 % or a channel."""
    output = tmp_path / "out.safetensors"

    report = prune_checkpoint(source, output, dim=0, target=f"params={wanted}", **choice)

    pruned = load_file(output)
    remains = sum(int((pruned[name] != 0).sum()) for name in SHAPES)
    total = sum(map(math.prod, SHAPES.values()))
    budget = {"0.9": 0.9 * total, "0.5": 0.5 * total, "12%": 0.12 * total, "4000": 4000}[wanted]
    widest = max(item.elements_per_channel for item in report.tensors)
    assert abs(remains - budget) <= max(0.01 * budget, widest)


NETS = [nets.Plain, nets.Residual, nets.Groups, nets.Depthwise, nets.Concatenated, nets.Shuffled]
NETS += [nets.Attention, nets.Encoder, nets.TiedAndFrozen, nets.Recurrent, nets.Gated, nets.Mixer]


@pytest.mark.parametrize("allocate", ["uniform", "er", "erk"])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_nets_meet_their_budgets(
    tmp_path: Path, net: Callable[[], nn.Module], allocate: str
) -> None:
    """A budget of 60 % is met within 1 %, or half a channel of the widest layer."""
    path = build.torch_zip(tmp_path / "net.pt", net().state_dict())
    asked = {"target": "params=0.6", "params": "weight*", "allocate": allocate}

    report = prune_checkpoint(path, dim=0, dry_run=True, **asked)

    remains = report.totals.elements - report.totals.elements_zero
    widest = max(item.elements_per_channel for item in report.tensors)
    off = abs(remains - 0.6 * report.totals.elements)
    assert off <= max(0.01 * report.totals.elements, widest / 2)


def test_a_target_counts_what_was_pruned_before(tmp_path: Path, source: Path) -> None:
    """Half, and then a quarter of the whole; more than is left cannot be had."""
    half, quarter = tmp_path / "half.safetensors", tmp_path / "quarter.safetensors"
    prune_checkpoint(source, half, dim=0, target="params=0.5")

    report = prune_checkpoint(half, quarter, dim=0, target="params=0.25")

    assert 1 - report.totals.sparsity == pytest.approx(0.25, abs=0.02)
    with pytest.raises(AmountError, match="the most is"):
        prune_checkpoint(half, dim=0, target="params=0.75", dry_run=True)


def test_one_draw_over_all_channels(source: Path) -> None:
    """The k smallest of the numbers that torch draws for all tensors, each by its own seed."""
    draws = []
    for name in sorted(SHAPES):
        generator = torch.Generator().manual_seed(derive_seed(7, name))
        numbers = torch.rand(SHAPES[name][0], generator=generator).tolist()
        draws += [(number, name, channel) for channel, number in enumerate(numbers)]

    report = prune_checkpoint(source, dim=0, amount=0.4, seed=7, is_global=True, dry_run=True)

    k = round(0.4 * len(draws))
    expected = {(name, channel) for _, name, channel in sorted(draws)[:k]}
    assert {(row.name, c) for row in report.tensors for c in row.pruned} == expected


def test_ends_lose_nothing(source: Path) -> None:
    """The first and the last layer, by name; the others what --amount says."""
    report = prune_checkpoint(source, dim=0, amount=0.5, allocate="uniform-keep-ends", dry_run=True)

    lost = {row.name: len(row.pruned) for row in report.tensors}
    assert lost == {"conv1.weight": 0, "conv2.weight": 12, "fc0.weight": 20, "fc.weight": 0}


@pytest.mark.parametrize("criterion", ["random", "l1", "l2", "fpgm"])
def test_a_smaller_amount_is_a_subset(source: Path, criterion: str) -> None:
    """By any criterion, for one seed."""
    drawn = [
        {
            (row.name, channel)
            for row in prune_checkpoint(
                source, dim=0, amount=amount, criterion=criterion, dry_run=True
            ).tensors
            for channel in row.pruned
        }
        for amount in (0.1, 0.3, 0.5, 0.9)
    ]

    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]


def test_the_usual_choice_leaves_no_trace(source: Path) -> None:
    """Spelt out, the defaults give the report that saying nothing gives."""
    plain = prune_checkpoint(source, dim=0, amount=0.5, dry_run=True)

    spelt = prune_checkpoint(
        source,
        dim=0,
        amount=0.5,
        allocate="uniform",
        criterion="random",
        round_to=1,
        at_least=0,
        dry_run=True,
    )

    assert to_json(spelt) == to_json(plain)
    assert "choice" not in json.loads(to_json(plain))["options"]


# --- which -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saver", build.SAVERS)
@pytest.mark.parametrize(("criterion", "n"), [("l1", 1), ("l2", 2)], ids=["l1", "l2"])
@pytest.mark.parametrize("dim", [0, 1])
def test_norms_prune_what_ln_structured_prunes(
    tmp_path: Path, saver: str, criterion: str, n: int, dim: int
) -> None:
    """In every format: the channels of stock torch, layer by layer."""
    path = build.SAVERS[saver](tmp_path / "net.pt", weights())

    report = prune_checkpoint(path, amount=0.5, dim=dim, criterion=criterion, dry_run=True)

    assert report.method == f"{criterion}_structured"
    for row in report.tensors:
        module = build.oracle_module(weights()[row.name])
        prune.ln_structured(module, "weight", 0.5, n, dim)
        kept = module.weight_mask.transpose(0, dim).flatten(1).any(1)
        assert list(row.pruned) == (~kept).nonzero().flatten().tolist()
        assert row.seed is None


@pytest.mark.parametrize("bake", [True, False], ids=["baked", "masks"])
def test_pruning_goes_on_among_the_live_channels(tmp_path: Path, source: Path, bake: bool) -> None:
    """Twice a third by l1 is what torch gives, whose second step sees the first one's mask."""
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    prune_checkpoint(source, once, amount=1 / 3, dim=0, criterion="l1", bake=bake)

    report = prune_checkpoint(once, twice, amount=1 / 3, dim=0, criterion="l1")

    for row in report.tensors:
        module = build.oracle_module(weights()[row.name])
        for _ in range(2):
            prune.ln_structured(module, "weight", 1 / 3, 1, 0)
        gone = (~module.weight_mask.flatten(1).any(1)).nonzero().flatten().tolist()
        assert sorted((*row.pruned, *row.already_pruned)) == gone
    assert verify_checkpoint(twice, source=once).disagreements == ()


def test_shards_and_workers_do_not_matter(tmp_path: Path) -> None:
    """The same rows from one file and from shards, on one worker or eight."""
    whole = build.safetensors(tmp_path / "net.safetensors", weights())
    shards = build.split(weights(), build.shard_names(3))
    folder = build.write_folder(tmp_path / "net", shards)
    asked = {"amount": 0.5, "dim": 0, "criterion": "fpgm", "allocate": "erk", "dry_run": True}

    reports = [
        prune_checkpoint(path, workers=n, **asked) for path in (whole, folder) for n in (1, 8)
    ]

    assert all(report.tensors == reports[0].tensors for report in reports)


def test_scores_of_a_file_decide(tmp_path: Path, source: Path) -> None:
    """The smallest go, equal ones in order; those of elements are summed up."""
    path = scores_file(tmp_path, lambda made: made.update({"conv1.weight": torch.zeros(16)}))
    made = load_file(path)

    report = prune_checkpoint(source, amount=0.5, dim=0, scores=path, dry_run=True)

    assert report.method == "scores_structured"
    assert report.options.choice == Choice(criterion="scores", scores=path.name)
    found = rows(report)
    assert found["conv1.weight"].pruned == tuple(range(8))
    for name, values in made.items():
        sums = values.flatten(1).sum(1) if values.dim() > 1 else values
        expected = sums.sort(stable=True).indices[: len(sums) // 2].sort().values.tolist()
        assert list(found[name].pruned) == expected


# --- what cannot be had ----------------------------------------------------------------------

WRONG_SCORES: dict[str, tuple[Callable[[build.Tensors], object], str]] = {
    "stranger": (lambda made: made.update(other=torch.ones(3)), "the checkpoint has no such tens"),
    "missing": (lambda made: made.pop("conv2.weight"), "has no scores of it"),
    "shape": (lambda made: made.update({"conv1.weight": torch.ones(5)}), r"\[5\].*or \[16\]"),
    "nan": (lambda made: made["fc0.weight"].fill_(math.nan), "NaN in channels 0, 1, 2, 3, 4, ..."),
}
if "F8_E8M0" in build.TORCH_DTYPES:
    WRONG_SCORES["dtype"] = (
        lambda made: made.update(
            {"conv1.weight": torch.zeros(16, dtype=torch.uint8).view(torch.float8_e8m0fnu)}
        ),
        "F8_E8M0, which has no order",
    )


@pytest.mark.parametrize(("change", "message"), WRONG_SCORES.values(), ids=WRONG_SCORES)
def test_scores_that_do_not_fit_are_named(
    tmp_path: Path, source: Path, change: Callable[[build.Tensors], object], message: str
) -> None:
    """And nothing is written."""
    path = scores_file(tmp_path, change)

    with pytest.raises(ParameterError, match=message):
        prune_checkpoint(source, tmp_path / "out.safetensors", amount=0.5, dim=0, scores=path)

    assert {file.name for file in tmp_path.iterdir()} == {"net.safetensors", "scores.safetensors"}


def test_all_that_is_wrong_with_scores_is_named_at_once(tmp_path: Path, source: Path) -> None:
    """One line for each."""
    path = scores_file(tmp_path, lambda made: [change(made) for change, _ in WRONG_SCORES.values()])

    with pytest.raises(ParameterError) as caught:
        prune_checkpoint(source, amount=0.5, dim=0, scores=path, dry_run=True)

    assert len(str(caught.value).splitlines()) == 4  # of conv1 the last change


OUT_OF_REACH: dict[str, tuple[dict[str, Any], str]] = {
    "too many": ({"target": "params=1M"}, "1,000,000 of 5,248 .* the most is 5,248"),
    "minimum": ({"target": "params=0.1", "at_least": 9}, r"the least is 2,\d+ \(\d"),
    "bounds": ({"amount": 0.9, "allocate": "random"}, "allocation random the least"),
    "number": ({"amount": 3, "allocate": "erk"}, "3 is a number of channels; give a fraction"),
    "global": ({"amount": 100, "is_global": True}, "at most 90 channels"),
    "global minimum": ({"amount": 1.0, "is_global": True, "at_least": 4}, "the most is 74"),
    "global target": (
        {"target": "params=1M", "is_global": True},
        "the least is 0 and the most is 5,248",
    ),
    "flops": ({"target": "flops=0.5"}, "zeroing channels changes no flops"),
    "too large": ({"amount": 11, "round_to": 2}, "at most 10 channels"),
}


@pytest.mark.parametrize(("asked", "message"), OUT_OF_REACH.values(), ids=OUT_OF_REACH)
def test_what_is_out_of_reach_says_what_is_not(
    source: Path, asked: dict[str, Any], message: str
) -> None:
    """With the least and the most, or what to give instead."""
    if "between" not in asked and asked.get("allocate") == "random":
        asked = asked | {"between": (0.1, 0.8)}

    with pytest.raises(RequestError, match=message):
        prune_checkpoint(source, dim=0, dry_run=True, **asked)


def test_amounts_of_a_recipe_that_differ_cannot_be_spread(source: Path) -> None:
    """Equal ones can."""
    from prune_cli.plan.selection import Rule

    def rules(other: float) -> list[Rule]:
        return [Rule(("*",), ("weight",), 0.5, 0), Rule(("fc",), ("weight",), other, 1)]

    with pytest.raises(AmountError, match=r"the recipe has 0\.25, 0\.5"):
        prune_checkpoint(source, rules=rules(0.25), allocate="erk", dry_run=True)
    report = prune_checkpoint(source, rules=rules(0.5), allocate="erk", dry_run=True)
    assert rows(report)["fc.weight"].dim == 1


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"allocate": "even"}, "no allocation 'even': uniform,"),
    "criterion": ({"criterion": "taylor"}, "no criterion 'taylor': random,"),
    "between": ({"between": (0.1, 0.2)}, "--between is for the allocation random only"),
    "bounds": ({"allocate": "random", "between": (0.5, 0.2)}, "no bounds"),
    "global": ({"is_global": True, "allocate": "erk"}, "takes no allocation .erk"),
    "no file": ({"criterion": "scores"}, "needs a file: --scores"),
    "file": ({"criterion": "l1", "scores": "x"}, "the criterion l1 takes no --scores"),
    "step": ({"round_to": 0}, "--round-to 0 is less than 1"),
    "minimum": ({"at_least": -1}, "--at-least -1 is less than 0"),
    "target": ({"target": "half"}, "write it like"),
}


@pytest.mark.parametrize(("asked", "message"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit_each_other(asked: dict[str, Any], message: str) -> None:
    """Whatever the input."""
    with pytest.raises(UsageError, match=message):
        make_choice(**asked)


def test_all_misfits_are_named_at_once() -> None:
    """One line for each."""
    with pytest.raises(UsageError) as caught:
        make_choice(allocate="even", criterion="taylor", round_to=0)

    assert len(str(caught.value).splitlines()) == 3


def test_an_amount_and_a_target_are_one_too_many(source: Path) -> None:
    """One of the two says how much."""
    with pytest.raises(UsageError, match="`target` takes the place of `amount`"):
        prune_checkpoint(source, amount=0.5, target="params=0.5", dry_run=True)


def test_verify_wants_the_score_file(tmp_path: Path, source: Path) -> None:
    """With the source it plans again, and that takes the scores."""
    output = tmp_path / "out.safetensors"
    run(source, output, CHOICES["scores"])

    with pytest.raises(UsageError, match="name it: `scores`"):
        verify_checkpoint(output, source=source)


def test_bounds_are_two_fractions() -> None:
    """As numbers or percentages."""
    assert parse_between("0.1, 90%") == (0.1, 0.9)
    with pytest.raises(UsageError, match="write it like"):
        parse_between("0.1")


def test_reports_of_older_versions_have_no_choice(tmp_path: Path, source: Path) -> None:
    """And are read as before."""
    report = prune_checkpoint(source, tmp_path / "out.safetensors", amount=0.5, dim=0)

    assert read_report(tmp_path / "out.report.json").options.choice is None
    assert report.options.choice is None


def test_runs_by_another_criterion_are_another_group(source: Path) -> None:
    """What l1 chooses says nothing of how alike random runs are."""
    asked = [{"seed": 0}, {"seed": 1}, {"criterion": "l1"}, {"allocate": "erk"}]
    reports = {
        str(number): prune_checkpoint(source, amount=0.5, dim=0, dry_run=True, **options)
        for number, options in enumerate(asked)
    }

    groups = compare_reports(reports).groups

    assert [group.runs for group in groups] == [(0, 1), (2,), (3,)]
