"""What several reports have in common, as plain numbers."""

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from prune_cli.amounts import Amount
from prune_cli.plan.facts import Options, PlanItem, Skipped
from prune_cli.report.comparison import (
    Pair,
    Run,
    RunGroup,
    TensorComparison,
    compare_reports,
    comparison_to_json,
)
from prune_cli.report.overlap import Likeness, Overlap
from prune_cli.report.report import Input, Output, Report, Tool, sum_up
from prune_cli.report.report import to_json as report_to_json


def item(
    name: str,
    pruned: tuple[int, ...],
    *,
    channels: int = 8,
    dim: int = 0,
    before: tuple[int, ...] = (),
    follows: str | None = None,
) -> PlanItem:
    """A row of a report: of `channels` rows (or columns) of three, `pruned` go."""
    module, _, param = name.rpartition(".")
    return PlanItem(
        name=name,
        module=module,
        param=param,
        aliases=(),
        dtype="F32",
        shape=(channels, 3) if dim == 0 else (3, channels),
        dim=dim,
        amount=0.25,
        seed=1,
        channels=channels,
        already_pruned=before,
        pruned=pruned,
        follows=follows,
    )


def report(*items: PlanItem, amount: Amount | None = 0.25, seed: int = 0) -> Report:
    """A report of `items`, of a run that wrote a file."""
    return Report(
        tool=Tool("prune-cli", "0.1.0", "2.13.0"),
        method="random_structured",
        options=Options(amount, dim=0, seed=seed),
        input=Input("model.pt", "torch", 4, 1000),
        output=Output("model.pruned.safetensors", "safetensors", ("m.safetensors",), 4, 900),
        totals=sum_up(items),
        tensors=items,
        skipped=(Skipped("bn.weight", "1-D: it has no channels to prune"),),
        dropped=(),
    )


def write(path: Path, content: Report) -> Path:
    """`content` as the file that the main command would write."""
    path.write_text(report_to_json(content))
    return path


def test_run_has_what_was_asked_for_and_what_came_of_it() -> None:
    """A run names its report, its input and output, its options and its totals."""
    only = report(item("fc.weight", (1, 2)), seed=7)

    found = compare_reports({"a.json": only})

    assert found.runs == (
        Run(
            report="a.json",
            method="random_structured",
            input="model.pt",
            output="model.pruned.safetensors",
            amount=0.25,
            dim=0,
            seed=7,
            tensors=1,
            channels=8,
            channels_pruned=2,
            sparsity=0.25,
        ),
    )
    assert found.pairs == ()


def test_dry_run_has_no_output() -> None:
    """What was only planned has no name for its output."""
    dry = replace(report(item("fc.weight", (1,))), output=None)

    assert compare_reports({"a": dry}).runs[0].output is None


def test_overlap_counts_shared_channels() -> None:
    """Two of the four channels that either pruned went in both."""
    first, second = report(item("fc.weight", (0, 1, 2))), report(item("fc.weight", (1, 2, 5)))

    found = compare_reports({"a": first, "b": second})

    assert found.tensors == (
        TensorComparison(
            name="fc.weight",
            follows=None,
            channels=8,
            pruned=(3, 3),
            overlap=Overlap(2, 4, 0.5),
            by_chance=9 / 8,
            likeness=Likeness(1, 0.5, None, pytest.approx((9 / 8) / (6 - 9 / 8))),
            reason=None,
        ),
    )
    chance = pytest.approx((9 / 8) / (6 - 9 / 8))
    assert found.pairs == (Pair(0, 1, 1, Overlap(2, 4, 0.5), chance, is_nested=False),)


def test_same_report_twice_is_alike_throughout() -> None:
    """A report and itself share all of their channels."""
    same = report(item("a.weight", (0, 3)), item("b.weight", (1,)))

    found = compare_reports({"a": same, "b": same})

    assert found.pairs[0].overlap == Overlap(3, 3, 1.0)


def test_nothing_pruned_on_both_sides_is_alike() -> None:
    """Two empty sets are the same set."""
    none = report(item("fc.weight", ()))

    found = compare_reports({"a": none, "b": none})

    assert found.tensors[0].overlap == Overlap(0, 0, 1.0)
    assert found.pairs[0].overlap == Overlap(0, 0, 1.0)


def test_tensor_of_one_report_is_not_compared() -> None:
    """It is listed, with a None for the report that lacks it, and counts in no pair."""
    found = compare_reports(
        {"a": report(item("fc.weight", (1,))), "b": report(item("out.weight", (1,)))}
    )

    assert [facts.pruned for facts in found.tensors] == [(1, None), (None, 1)]
    assert {facts.reason for facts in found.tensors} == {"only one report has it"}
    assert found.pairs == (Pair(0, 1, 0, None, None, is_nested=False),)


@pytest.mark.parametrize(
    ("other", "channels", "reason"),
    [
        pytest.param(item("w", (1,), dim=1), 8, "pruned along different dims: 0, 1", id="dims"),
        pytest.param(
            item("w", (1,), channels=4),
            None,
            "different numbers of channels: 8, 4",
            id="channels",
        ),
    ],
)
def test_channels_that_do_not_fit_are_not_compared(
    other: PlanItem, channels: int | None, reason: str
) -> None:
    """Channels of another dim or number are other channels, and the reason says so."""
    found = compare_reports({"a": report(item("w", (1,))), "b": report(other)})

    (facts,) = found.tensors
    assert (facts.overlap, facts.by_chance) == (None, None)
    assert (facts.channels, facts.reason) == (channels, reason)
    assert found.pairs[0].overlap is None


def test_three_reports_share_what_all_of_them_pruned() -> None:
    """A tensor's overlap is over all reports that have it; pairs are of two each."""
    reports = {
        "a": report(item("w", (0, 1, 2))),
        "b": report(item("w", (1, 2, 3))),
        "c": report(item("w", (2, 3, 4))),
    }

    found = compare_reports(reports)

    assert found.tensors[0].overlap == Overlap(1, 5, 0.2)
    assert found.tensors[0].by_chance == pytest.approx(27 / 64)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [pair.overlap.shared for pair in found.pairs] == [2, 1, 2]


def test_chance_is_that_of_the_live_channels() -> None:
    """Channels that were gone before cannot be drawn; where these differ there is no one chance."""
    one = report(item("w", (4, 5), before=(0, 1, 2, 3)))
    other = report(item("w", (4, 5), before=()))
    all_gone = report(item("w", (), before=tuple(range(8))))

    same = compare_reports({"a": one, "b": one}).tensors[0].by_chance
    different = compare_reports({"a": one, "b": other}).tensors[0].by_chance
    none_left = compare_reports({"a": all_gone, "b": all_gone}).tensors[0].by_chance

    assert (same, different, none_left) == (1.0, None, 0.0)


def test_bias_that_follows_is_listed_but_not_counted_again() -> None:
    """A bias repeats the channels of its weight, so a pair leaves it out."""
    rows = (item("fc.weight", (1,)), item("fc.bias", (1,), follows="fc.weight"))

    found = compare_reports({"a": report(*rows), "b": report(*rows)})

    assert [facts.follows for facts in found.tensors] == ["fc.weight", None]
    chance = pytest.approx((1 / 8) / (2 - 1 / 8))
    assert found.pairs == (Pair(0, 1, 1, Overlap(1, 1, 1.0), chance, is_nested=True),)


def test_tensors_are_in_the_order_of_their_numbers() -> None:
    """Layer 2 stands before layer 10."""
    rows = [item(f"l.{number}.weight", ()) for number in (10, 2)]

    found = compare_reports({"a": report(*rows)})

    assert [facts.name for facts in found.tensors] == ["l.2.weight", "l.10.weight"]


def test_runs_of_one_amount_and_dim_are_a_group() -> None:
    """Their pairs have a mean and a deviation beside what chance gives; others are not in it."""
    reports = {
        "a": report(item("w", (0, 1)), amount=0.25),
        "b": report(item("w", (0, 2)), amount=0.25, seed=1),
        "c": report(item("w", (2, 3)), amount=0.25, seed=2),
        "d": report(item("w", (0, 1, 2, 3)), amount=0.5),
    }

    found = compare_reports(reports)

    indices = [1 / 3, 0, 1 / 3]
    chance = 0.5 / (4 - 0.5)
    likeness = Likeness(
        3,
        pytest.approx(mean(indices)),
        pytest.approx(stdev(indices)),
        pytest.approx(chance),
    )
    assert found.groups == (
        RunGroup(0.25, 0, (0, 1, 2), likeness),
        RunGroup(0.5, 0, (3,), None),
    )


def test_an_amount_of_1_is_no_fraction() -> None:
    """One channel and all of them are different amounts, though Python holds them equal."""
    found = compare_reports({"a": report(amount=1), "b": report(amount=1.0)})

    assert [group.runs for group in found.groups] == [(0,), (1,)]


def test_a_smaller_amount_of_one_seed_is_nested_in_a_larger() -> None:
    """All that one run pruned, in every tensor, the other pruned too; the reverse is enough."""
    small = report(item("v", (1,)), item("w", (0, 1)))
    large = report(item("v", (1, 5)), item("w", (0, 1, 2)))
    crossed = report(item("v", ()), item("w", (0, 1, 2)))

    found = compare_reports({"small": small, "large": large, "crossed": crossed})

    nested = {(pair.first, pair.second): pair.is_nested for pair in found.pairs}
    assert nested == {(0, 1): True, (0, 2): False, (1, 2): True}


def test_likeness_of_a_tensor_is_over_each_two_runs() -> None:
    """Where three runs share nothing in all, any two may."""
    rows = [item("w", pruned) for pruned in ((0, 1), (1, 2), (2, 0))]

    (facts,) = compare_reports({str(n): report(row) for n, row in enumerate(rows)}).tensors

    assert facts.overlap == Overlap(0, 3, 0.0)
    assert facts.likeness is not None
    assert (facts.likeness.pairs, facts.likeness.mean) == (3, pytest.approx(1 / 3))


def test_many_runs_are_compared_in_time() -> None:
    """A hundred runs, nearly five thousand pairs, take seconds at most."""
    rows = [
        [item(f"l{n}.w", tuple(range(run, 512, 4)), channels=512) for n in range(20)]
        for run in range(100)
    ]

    start = time.perf_counter()
    found = compare_reports({str(n): report(*row) for n, row in enumerate(rows)})

    assert len(found.pairs) == 4950
    assert time.perf_counter() - start < 10


def test_json_is_golden() -> None:
    """Keys in one order, and a line for each run, pair and tensor."""
    text = comparison_to_json(
        compare_reports({"a": report(item("w", (0, 1))), "b": report(item("w", (1,)), seed=1)})
    )

    run = (
        '"method": "random_structured", "input": "model.pt", '
        '"output": "model.pruned.safetensors", "amount": 0.25, "dim": 0'
    )
    likeness = '{"pairs": 1, "mean": 0.5, "sigma": null, "by_chance": 0.09090909090909091}'
    assert text == (
        "{\n"
        '  "schema": 2,\n'
        '  "runs": [\n'
        f'    {{"report": "a", {run}, "seed": 0, "tensors": 1, "channels": 8, '
        '"channels_pruned": 2, "sparsity": 0.25, "choice": null},\n'
        f'    {{"report": "b", {run}, "seed": 1, "tensors": 1, "channels": 8, '
        '"channels_pruned": 1, "sparsity": 0.125, "choice": null}\n'
        "  ],\n"
        '  "groups": [\n'
        f'    {{"amount": 0.25, "dim": 0, "runs": [0, 1], "likeness": {likeness}, '
        '"choice": null}\n'
        "  ],\n"
        '  "pairs": [\n'
        '    {"first": 0, "second": 1, "tensors": 1, '
        '"overlap": {"shared": 1, "union": 2, "jaccard": 0.5}, '
        '"by_chance": 0.09090909090909091, "is_nested": true}\n'
        "  ],\n"
        '  "tensors": [\n'
        '    {"name": "w", "follows": null, "channels": 8, "pruned": [2, 1], '
        '"overlap": {"shared": 1, "union": 2, "jaccard": 0.5}, "by_chance": 0.25, '
        f'"likeness": {likeness}, "reason": null}}\n'
        "  ]\n"
        "}\n"
    )
    assert json.loads(text)["schema"] == 2
