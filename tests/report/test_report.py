"""Reports: valid by the schema that ships, the same each time, and read back as they were."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from prune_cli import Rule, apply_report, prune_checkpoint, read_report, remove_masks
from prune_cli.errors import InputError
from prune_cli.plan.shrink import Effect, Group, Latency, ShrinkPlan
from prune_cli.report.report import Report, from_json, sum_up, to_json
from tests import build

SCHEMA = json.loads((resources.files("prune_cli.report") / "report.schema.json").read_text())
ORDER = (
    *("schema", "tool", "method", "options", "input", "output"),
    *("totals", "tensors", "skipped", "dropped"),
)


def validate(text: str) -> None:
    """Holds a report against the schema."""
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


def nested(folder: Path) -> Path:
    """A training checkpoint with entries that are dropped."""
    return build.torch_zip(folder / "x", {"model": build.tensors(), "epoch": 3})


def test_the_schema_is_one_and_describes_every_field() -> None:
    """It is valid, and no property is without a sentence."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def undescribed(schema: Any, path: str) -> Iterator[str]:
        if not isinstance(schema, dict):
            return
        for name, inner in schema.get("properties", {}).items():
            if not inner.get("description", "").endswith("."):
                yield f"{path}.{name}"
            yield from undescribed(inner, f"{path}.{name}")
        for part in (
            schema.get("items"),
            *schema.get("anyOf", ()),
            *schema.get("$defs", {}).values(),
        ):
            yield from undescribed(part, path)

    assert list(undescribed(SCHEMA, "")) == []


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"amount": 0.25},
    "count": {"amount": 1, "dim": 0},
    "everything": {"amount": 1.0, "dim": 0, "seed": -7},
    "nothing": {"amount": 0},
    "bias": {"amount": 2, "dim": 0, "with_bias": True},
    "masks": {"amount": 2, "dim": 0, "bake": False},
    "dry": {"amount": 2, "dry_run": True},
    "split": {"amount": 2, "max_shard_size": 700},
    "recipe": {"rules": [Rule(("fc",), ("weight",), 0.5, 0), Rule(("conv",), ("w*",), 1, 1)]},
    "patterns": {"amount": 2, "modules": ["fc", "b*"], "exclude": ["bn"], "params": ["weight"]},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_reports_are_valid_and_come_back(tmp_path: Path, options: dict[str, Any]) -> None:
    """What was written is valid, in its order, and reads back as the report that was returned."""
    path = nested(tmp_path)

    report = prune_checkpoint(path, tmp_path / "out", report=tmp_path / "r", **options)

    text = (tmp_path / "r").read_text()
    validate(text)
    assert tuple(json.loads(text)) == ORDER
    assert read_report(tmp_path / "r") == report
    assert to_json(from_json(text)) == text


def test_reports_of_the_other_methods_are_valid(tmp_path: Path) -> None:
    """A replayed report, and one of masks made permanent."""
    path = nested(tmp_path)
    first = prune_checkpoint(path, tmp_path / "a", amount=2, dim=0, bake=False)

    replayed = apply_report(first, path, tmp_path / "b")
    removed = remove_masks(tmp_path / "a", tmp_path / "c")

    assert (replayed.method, removed.method) == ("apply", "remove")
    for report in (replayed, removed):
        validate(to_json(report))
        assert from_json(to_json(report)) == replace(report, notes=())


def test_the_report_is_reproducible(tmp_path: Path) -> None:
    """The same run in another folder writes the same bytes: no time, no path above the name."""
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b" / "c"):
        folder.mkdir(parents=True)
        prune_checkpoint(nested(folder), folder / "out", amount=0.5, workers=len(texts) + 1)
        texts.append((folder / "out.report.json").read_text())

    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]


def test_amounts_keep_their_kind(tmp_path: Path) -> None:
    """1 is not 1.0, and both come back as they were."""
    path = nested(tmp_path)

    for amount, spelt in ((1, '"amount": 1,'), (1.0, '"amount": 1.0,')):
        report = prune_checkpoint(path, amount=amount, dry_run=True)
        assert spelt in to_json(report)
        assert type(from_json(to_json(report)).options.amount) is type(amount)


def test_odd_names_can_be_reported(tmp_path: Path) -> None:
    """Unicode stays readable; the bytes of a file name that are no text are replaced."""
    path = tmp_path / os.fsdecode(b"\xffm\xc3\xa4.safetensors")
    build.safetensors(path, {"重み.weight": torch.ones(2, 2), 'a"b\\.weight': torch.ones(2, 2)})

    prune_checkpoint(path, report=tmp_path / "r", amount=1)

    text = (tmp_path / "r").read_text()
    validate(text)
    assert "重み.weight" in text
    assert json.loads(text)["input"]["path"] == "\N{REPLACEMENT CHARACTER}mä.safetensors"
    assert json.loads(text)["output"]["path"].startswith("\N{REPLACEMENT CHARACTER}mä.pruned")


def test_totals_leave_out_what_follows(tmp_path: Path) -> None:
    """A bias counts by its elements, and not again by its channels."""
    path = build.safetensors(tmp_path / "x", build.tensors())

    report = prune_checkpoint(path, amount=0.5, dim=0, with_bias=True, modules=["fc"], dry_run=True)

    totals = sum_up(report.tensors)
    assert (totals.tensors_pruned, totals.channels, totals.channels_pruned) == (2, 10, 5)
    assert (totals.elements, totals.elements_zero, totals.sparsity) == (250, 125, 0.5)
    assert sum_up([]).sparsity == 0.0


def broken(**changes: object) -> str:
    """A good report with other values at some of its keys."""
    report: dict[str, Any] = json.loads(GOOD)
    for path, value in changes.items():
        *way, last = path.split("__")
        inner: Any = report
        for key in way:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
    return json.dumps(report)


GOOD = """{"schema": 1, "tool": {"name": "prune-cli", "version": "0", "torch": "2"},
"method": "random_structured",
"options": {"amount": 1, "dim": 0, "seed": 0, "modules": ["*"], "exclude": [], "params": ["w"],
  "bake": true, "with_bias": false, "rules": [{"modules": ["*"], "params": ["w"], "amount": 1, "dim": 0}]},
"input": {"path": "x", "format": "torch", "tensors": 1, "bytes": 4}, "output": null,
"totals": {"tensors_pruned": 1, "channels": 2, "channels_pruned": 1, "elements": 4,
  "elements_zero": 2, "sparsity": 0.5},
"tensors": [{"name": "a.w", "module": "a", "param": "w", "aliases": [], "dtype": "F32",
  "shape": [2, 2], "dim": 0, "amount": 1, "seed": 3, "channels": 2, "already_pruned": [], "pruned": [1]}],
"skipped": [], "dropped": []}"""

SHRUNK = """{"kept": {"a.w": {"0": [0]}}, "shapes": {"a.w": [1, 2]}, "attributes": {"a": {"out_features": 1}},
"config": {}, "groups": [{"root": "a.w", "dim": 0, "amount": 1, "seed": 3, "channels": 2, "blocks": 1,
  "removed": [1], "members": [["a.w", 0]]}], "whole": [],
"effect": {"parameters_before": 4, "parameters_after": 2, "flops_before": 4, "flops_after": 2}}"""

BAD_REPORTS = {
    "not-json": "{",
    "too-deep": "[" * 100_000,
    "list": "[]",
    "empty": "{}",
    "newer": broken(schema=3),
    "schema-text": broken(schema="1"),
    "method": broken(method=3),
    "tool": broken(tool=[]),
    "unknown-key": broken(tool__more=1),
    "missing-key": broken(tensors=[{"name": "a"}]),
    "amount-text": broken(options__amount="1"),
    "amount-bool": broken(options__amount=True),
    "rule": broken(options__rules=[3]),
    "rules": broken(options__rules=3),
    "modules": broken(options__modules=[1]),
    "row": broken(tensors=[3]),
    "shape": broken(tensors__0__shape="2"),
    "dims": broken(tensors__0__shape=[1] * 65),
    "elements": broken(tensors__0__shape=[10**400] * 20),
    "pruned": broken(tensors__0__pruned=[1.5]),
    "output": broken(output=3),
    "skipped": broken(skipped=[{"name": "a"}]),
    "dropped": broken(dropped=None),
    "shrink-null": broken(shrink=None),
    "shrink-options": broken(options__shrink={"round_to": 1}),
} | {
    f"shrink-{name}": broken(shrink={**json.loads(SHRUNK), **changes})
    for name, changes in {
        "unknown": {"more": 1},
        "key": {"kept": {"a.w": {"first": [0]}}},
        "negative": {"kept": {"a.w": {"-1": [0]}}},
        "zeros": {"kept": {"a.w": {"00": [0]}}},
        "huge": {"kept": {"a.w": {"9" * 5000: [0]}}},
        "float": {"kept": {"a.w": {"0": [0.0]}}},
        "shape": {"shapes": {"a.w": [1, "2"]}},
        "elements": {"shapes": {"a.w": [1 << 32, 1 << 31]}},
        "attribute": {"attributes": {"a": {"in_features": None}}},
        "config": {"config": {"hidden_size": "8"}},
        "group": {"groups": [{"root": "a.w"}]},
        "effect": {"effect": None},
        "latency": {"latency": {"milliseconds": {"before": "1"}, "rounds": 1, "threads": 1}},
    }.items()
}


def test_a_good_report_is_read() -> None:
    """The one that the bad ones are made of is good."""
    validate(GOOD)

    assert isinstance(from_json(GOOD), Report)


def test_a_report_of_shrink_is_read_and_written_again() -> None:
    """As a ShrinkPlan; of version 1, which did not say what it was asked for, and of this one."""
    asked = {"round_to": 8, "from_zeros": False, "model": "m.py:f", "model_arguments": {"n": "[1]"}}
    old_latency = {"milliseconds": {"before": 2.5, "after": 1.0}, "rounds": 20, "threads": 1}
    latency = {**old_latency, "spread": {"before": 0.5, "after": 0.25}}
    old = broken(method="shrink", shrink={**json.loads(SHRUNK), "latency": old_latency})
    new = broken(
        schema=2,
        method="shrink",
        options__shrink={**asked, "examples": ["1x3"]},
        shrink={**json.loads(SHRUNK), "latency": latency},
    )

    for text in (old, new):
        validate(text)
        assert json.loads(to_json(from_json(text))) == json.loads(text)
    assert from_json(old).options.shrink is None
    assert from_json(new).shrink == ShrinkPlan(
        kept={"a.w": {0: (0,)}},
        shapes={"a.w": (1, 2)},
        attributes={"a": {"out_features": 1}},
        config={},
        groups=(Group("a.w", 0, 1, 3, 2, 1, (1,), (("a.w", 0),)),),
        whole=(),
        effect=Effect(4, 2, 4, 2),
        latency=Latency({"before": 2.5, "after": 1.0}, 20, 1, {"before": 0.5, "after": 0.25}),
    )


@pytest.mark.parametrize("text", BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_a_bad_report_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with it, it is an InputError that names the file."""
    (tmp_path / "r").write_text(text)

    with pytest.raises(InputError, match="is not a report of prune-cli"):
        read_report(tmp_path / "r")


def test_a_missing_report_is_an_input_error(tmp_path: Path) -> None:
    """The system's reason is in the message."""
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_report(tmp_path / "none")
