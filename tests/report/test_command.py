"""The command of a report, run again: it makes the same report."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prune_cli.plan.shrink import ShrinkOptions
from prune_cli.report.command import spell_command
from prune_cli.report.report import read_report
from tests import build
from tests.conftest import Run
from tests.report.test_comparison import item, report

RUNS = {
    "amount": ["random-structured", "-a", "0.25", "-d", "0"],
    "count": ["random-structured", "-a", "2", "-d", "-1", "-s", "7", "--with-bias", "-d", "0"],
    "patterns": ["random-structured", "-a", "1", "-m", "c*", "-m", "fc", "-x", "conv", "-p", "we*"],
    "prefix": ["random-structured", "-a", "1", "-d", "0", "--strip-prefix", "conv.", "-x", "fc"],
    "masks": ["random-structured", "-a", "50%", "-d", "0", "--keep-masks"],
    "allocation": [
        "random-structured",
        "-a",
        "0.3",
        "-d",
        "0",
        "--allocate",
        "erk",
        "--at-least",
        "1",
    ],
    "criterion": ["structured", "-a", "0.3", "-d", "0", "--criterion", "l2", "--global"],
    "target": ["random-structured", "-d", "0", "--target", "params=0.8"],
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_the_command_repeats_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str]
) -> None:
    """Typed where the checkpoint is, it gives the report again, byte for byte."""
    monkeypatch.chdir(tmp_path)
    build.safetensors(tmp_path / "a model.safetensors", build.tensors())
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert run(words[0], "a model.safetensors", *words[1:], "-n", "-r", first).code == 0

    program, *spelt = shlex.split(" ".join(spell_command(read_report(first))))
    again = run(*spelt, "-n", "-r", second)

    assert (program, again.code) == ("prune-cli", 0)
    assert second.read_bytes() == first.read_bytes()


def test_masks_are_removed_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for remove, which has no options."""
    monkeypatch.chdir(tmp_path)
    build.torch_zip(tmp_path / "m.pt", build.masked(build.tensors(), {"fc.weight": 3}))
    run("remove", "m.pt", "-n", "-r", "1.json")

    assert spell_command(read_report(tmp_path / "1.json")) == ("prune-cli", "remove", "m.pt")


def test_shrink_is_spelt_with_its_model() -> None:
    """The factory, its arguments, the examples, and what was drawn or found."""
    shrink = ShrinkOptions(8, False, "nets.py:net", {"width": "64"}, ("1x3x8x8", "y=1:int64"))
    content = report(item("w", (1,)))
    content = replace(content, method="shrink", options=replace(content.options, shrink=shrink))
    zeros = replace(
        content.options, amount=None, shrink=replace(shrink, from_zeros=True, model=None)
    )

    drawn, found = spell_command(content), spell_command(replace(content, options=zeros))

    assert " ".join(drawn) == (
        "prune-cli shrink model.pt --model nets.py:net --model-arg width=64 --example 1x3x8x8 "
        "--example y=1:int64 --amount 0.25 --seed 0 --round-to 8"
    )
    assert "--from-zeros" in found and "--amount" not in found and "--model" not in found


@pytest.mark.parametrize("method", ["apply", "random_structured"])
def test_what_needs_another_file_has_no_command(run: Run, tmp_path: Path, method: str) -> None:
    """A report to apply or a recipe is not in the report."""
    model = build.safetensors(tmp_path / "m.safetensors", build.tensors())
    recipe, written = tmp_path / "recipe.toml", tmp_path / "1.json"
    recipe.write_text('[[rules]]\nmodule = "conv"\namount = 1\ndim = 0\n')
    run("random-structured", model, "--recipe", recipe, "-n", "-r", written)
    if method == "apply":
        run("apply", written, model, "-n", "-r", tmp_path / "2.json")
        written = tmp_path / "2.json"

    content = read_report(written)

    assert content.method == method
    assert spell_command(content) == ()
