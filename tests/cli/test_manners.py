"""What every command does alike: --json, --format, -q, -v, and arguments as people type them."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import build
from tests.conftest import Run


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint in the current folder, pruned once: model.pruned.safetensors."""
    monkeypatch.chdir(tmp_path)
    return build.safetensors(tmp_path / "model.safetensors", build.tensors())


@pytest.fixture
def pruned(model: Path, run: Run) -> Path:
    """What came of pruning `model`, with its report."""
    assert run("random-structured", model, "-a", "2", "-d", "0", "-q").code == 0
    return model.with_name("model.pruned.safetensors")


@pytest.fixture
def masked(model: Path, run: Run) -> Path:
    """The same with its masks."""
    path = model.with_name("masked.safetensors")
    line = ("-a", "2", "-d", "0", "--keep-masks", "-q", "-o", path)
    assert run("random-structured", model, *line).code == 0
    return path


SHOWING: dict[str, Sequence[str]] = {
    "random-structured": ("model.safetensors", "-a", "1", "-o", "out"),
    "apply": ("model.pruned.report.json", "model.safetensors", "-o", "out"),
    "remove": ("masked.safetensors", "-o", "out"),
    "verify": ("model.pruned.safetensors",),
    "inspect": ("model.safetensors",),
    "report": ("model.pruned.report.json",),
}


@pytest.mark.usefixtures("pruned", "masked")
@pytest.mark.parametrize("name", SHOWING)
def test_json_is_all_of_stdout(run: Run, name: str) -> None:
    """And with -q it is all that is said."""
    loud = run(name, *SHOWING[name], "--json")
    quiet = run(
        name, *SHOWING[name], "--json", "--quiet", *(["-f"] if "-o" in SHOWING[name] else [])
    )

    assert (loud.code, quiet.code, quiet.err) == (0, 0, "")
    assert json.loads(loud.out) == json.loads(quiet.out)
    assert isinstance(json.loads(quiet.out), dict)


@pytest.mark.usefixtures("pruned", "masked")
@pytest.mark.parametrize("name", SHOWING)
def test_quiet_says_nothing_where_all_is_well(run: Run, name: str) -> None:
    """Not on stdout either: nothing asks for it."""
    ran = run(name, *SHOWING[name], "-q")

    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.usefixtures("pruned", "masked")
@pytest.mark.parametrize("name", ["inspect", "report"])
def test_rows_come_in_the_form_that_is_asked_for(run: Run, name: str) -> None:
    """CSV has a row for each tensor."""
    ran = run(name, *SHOWING[name], "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert ran.code == 0
    assert {"conv.weight", "fc.weight"} <= {row["name"] for row in rows}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--format", "yaml"), "there is no format 'yaml'; there is table, json, csv, markdown"),
        (("--format", "csv", "--json"), "--json and --format cannot both go to stdout"),
    ],
)
def test_one_form_is_shown_at_a_time(
    run: Run, model: Path, options: Sequence[str], told: str
) -> None:
    """And one that there is."""
    ran = run("inspect", model, *options)

    assert (ran.code, ran.out) == (2, "")
    assert told in ran.text


@pytest.mark.parametrize("options", [("-r", "-"), ("-o", "-")])
def test_two_things_cannot_go_to_stdout(run: Run, model: Path, options: Sequence[str]) -> None:
    """It is refused before anything is written."""
    ran = run("random-structured", model, "-a", "1", "--json", *options)

    assert (ran.code, ran.out) == (2, "")
    assert "--json and an output or a report cannot both go to stdout" in ran.text
    assert os.listdir() == [model.name]  # noqa: PTH208 - of the current folder


def test_verbose_says_what_is_read_and_how_long_it_took(run: Run, model: Path) -> None:
    """From where, how much, and the seconds."""
    ran = run("random-structured", model, "-a", "1", "-n", "-v")

    assert re.search(
        rf"read {re.escape(str(model))}: safetensors, 6 tensors, 1\.\d kB \(\d+\.\d\d s\)", ran.text
    )
    assert re.search(r"planned \(\d+\.\d\d s\)", ran.text)


def test_of_a_folder_the_file_is_named(run: Run, model: Path) -> None:
    """`.` may hold more than the eye sees."""
    assert f"read {model.name}" in run("random-structured", ".", "-a", "1", "-n").text


# --- arguments as people type them -----------------------------------------------------------


@pytest.mark.parametrize("patterns", [("-m", "conv,fc"), ("-m", "conv", "-m", "fc"), ("-x", "bn,")])
def test_patterns_can_stand_in_one_word(run: Run, model: Path, patterns: Sequence[str]) -> None:
    """With commas between them."""
    ran = run("random-structured", model, "-a", "1", "-n", "--json", *patterns)

    rows = json.loads(ran.out)["tensors"]
    assert [row["name"] for row in rows] == ["conv.weight", "fc.weight"]


def test_an_option_can_come_from_the_environment(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line wins."""
    monkeypatch.setenv("PRUNE_CLI_SEED", "5")
    monkeypatch.setenv("PRUNE_CLI_AMOUNT", "1")
    monkeypatch.setenv("PRUNE_CLI_MODULE", "fc")

    found = [
        json.loads(run("random-structured", model, "-n", "--json", *line).out)["options"]
        for line in ((), ("-s", "6", "-m", "conv"))
    ]

    assert [(each["seed"], each["modules"]) for each in found] == [(5, ["fc"]), (6, ["conv"])]


@pytest.mark.parametrize("named", ["model.pruned.safetensors", "model.pruned.report.json"])
@pytest.mark.parametrize("swapped", [False, True])
def test_apply_finds_the_report(run: Run, pruned: Path, named: str, swapped: bool) -> None:
    """Of the pruned file, and in the second place too."""
    other = build.safetensors(pruned.with_name("ema.safetensors"), build.tensors(5))
    line = [other.name, named] if swapped else [named, other.name]

    ran = run("apply", *line)

    assert ran.code == 0, ran.err
    assert ("REPORT comes before CHECKPOINT" in ran.text) is swapped
    written = load_file("ema.pruned.safetensors")
    assert int((~written["fc.weight"].any(1)).sum()) == 2
    assert torch.equal(written["conv.bias"], build.tensors(5)["conv.bias"])


@pytest.mark.parametrize(
    "line", ["{pruned} {model}", "{model} {pruned}", "{pruned} --source {model}"]
)
def test_verify_takes_the_source_as_it_comes(
    run: Run, model: Path, pruned: Path, line: str
) -> None:
    """Every byte is compared."""
    ran = run("verify", *line.format(model=model.name, pruned=pruned.name).split())

    assert ran.code == 0, ran.err
    assert ran.text.endswith("every byte")


def test_verify_does_not_take_two_sources(run: Run, model: Path, pruned: Path) -> None:
    """Nobody knows which is meant."""
    ran = run("verify", pruned, model, "--source", "other.safetensors")

    assert ran.code == 2
    assert "the source is named twice" in ran.text


def test_a_pruned_checkpoint_can_be_a_source(run: Run, pruned: Path) -> None:
    """Both have a report then, and they stay in the order that they have."""
    assert run("random-structured", pruned, "-a", "1", "-d", "0", "-o", "2.safetensors").code == 0

    ran = run("verify", "2.safetensors", pruned)

    assert ran.code == 0, ran.err
    assert "other way round" not in ran.text


@pytest.mark.parametrize("named", ["model.pruned", "model.pruned/prune-report.json"])
def test_the_report_of_a_folder_is_found(run: Run, model: Path, named: str) -> None:
    """By its folder."""
    assert run("random-structured", model, "-a", "1", "--max-shard-size", "500", "-q").code == 0

    ran = run("report", named, "--json")

    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["runs"][0]["channels_pruned"] == 2


@pytest.mark.parametrize("spelt", ["out", "out/"])
def test_a_folder_as_output_gets_a_file(run: Run, model: Path, spelt: str) -> None:
    """Called as it would be beside the input, with its report."""
    Path("out").mkdir()

    assert run("random-structured", model, "-a", "1", "-o", spelt, "-q").code == 0

    names = {path.name for path in Path("out").iterdir()}
    assert names == {"model.pruned.safetensors", "model.pruned.report.json"}


def test_a_folder_that_is_not_there_is_told(run: Run, model: Path) -> None:
    """It is not made: `-o ouptut/` is a typing error."""
    ran = run("random-structured", model, "-a", "1", "-o", "ouptut/")

    assert ran.code == 6
    assert "folder ouptut does not exist" in ran.text


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("memory://bucket/none.pt", 3, "memory://bucket/none.pt cannot be read: there is no such"),
        ("nowhere://bucket/none.pt", 2, "nowhere:// is no store that fsspec knows"),
    ],
)
def test_a_url_is_named_as_one(run: Run, url: str, code: int, said: str) -> None:
    """Not as a path with one slash."""
    ran = run("inspect", url)

    assert ran.code == code
    assert said in ran.text


def test_a_report_in_the_place_of_a_checkpoint_is_told(run: Run, pruned: Path) -> None:
    """With the command that shows it."""
    report = pruned.with_name("model.pruned.report.json")

    ran = run("inspect", report)

    assert ran.code == 3
    assert ran.text.endswith(f"is a report, not a checkpoint: prune-cli report {report}")


def test_the_report_of_a_folder_can_be_named_to_verify(run: Run, model: Path) -> None:
    """As its folder, as everywhere."""
    assert run("random-structured", model, "-a", "1", "--max-shard-size", "500", "-q").code == 0

    assert run("verify", "model.pruned", model, "--report", "model.pruned").code == 0


# --- inspect ---------------------------------------------------------------------------------


def test_the_largest_tensors_come_first(run: Run, model: Path) -> None:
    """--top alone means the largest; the line below says what there is in all."""
    ran = run("inspect", model, "--top", "2")

    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert [line.split()[0] for line in lines[1:3]] == ["conv.weight", "fc.weight"]
    assert lines[-1].startswith("425 parameters in all")


def test_modules_of_a_depth_are_summed_up(run: Run, model: Path) -> None:
    """With the part that each has of all parameters."""
    ran = run("inspect", model, "--depth", "1", "--format", "csv", "--sort", "size")

    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(row["name"], row["parameters"]) for row in rows] == [
        ("conv", "168"),
        ("fc", "250"),
        ("bn", "7"),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sort", "age"), "--sort is name or size, not 'age'"),
        (("--globs", "--top", "3"), "--globs proposes patterns"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    run: Run, model: Path, options: Sequence[str], told: str
) -> None:
    """It would have no effect."""
    ran = run("inspect", model, *options)

    assert (ran.code, ran.out) == (2, "")
    assert told in ran.text


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_example_with_a_pipe_runs(model: Path) -> None:
    """A plan on stdout is a report that apply takes."""
    program = f"{sys.executable} -m prune_cli"
    line = (
        f"{program} random-structured {model.name} -a 2 -n -q -r - | {program} apply - {model.name}"
    )

    ran = subprocess.run(["bash", "-o", "pipefail", "-c", line], check=False, capture_output=True)

    assert ran.returncode == 0, ran.stderr
    assert Path("model.pruned.safetensors").exists()
