"""The pipeline on the command line: random-structured, verify, apply, remove, one after another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import build
from tests.conftest import Run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint of stock torch."""
    return build.torch_zip(tmp_path / "model.pt", build.tensors())


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """One that stock torch pruned, with its masks."""
    content = build.masked(build.tensors(), {"conv.weight": 2, "fc.weight": 3})
    return build.torch_zip(tmp_path / "masked.pt", content)


def left_in(folder: Path) -> set[str]:
    """What is in the folder, hidden files too."""
    return {path.name for path in folder.iterdir()}


# --- verify ----------------------------------------------------------------------------------


def test_what_was_written_verifies(tmp_path: Path, run: Run, model: Path) -> None:
    """Beside its report, and against its source; nothing is on stdout."""
    run("random-structured", model, "-a", "0.5", "-d", "0")
    output = tmp_path / "model.pruned.safetensors"

    alone, whole = run("verify", output), run("verify", output, "--source", model)

    assert (alone.code, whole.code) == (0, 0), alone.err + whole.err
    assert alone.out == whole.out == ""
    assert "all that can be told without the source; --source compares every byte" in alone.text
    assert whole.text.startswith("verified 6 tensors")
    assert whole.text.endswith("every byte")


def test_a_disagreement_is_exit_code_5(tmp_path: Path, run: Run, model: Path) -> None:
    """The tensor, the channel and the offset are named on stderr, quiet or not."""
    run("random-structured", model, "-a", "1", "-d", "0", "-m", "fc", "-q")
    output = tmp_path / "model.pruned.safetensors"
    [row] = json.loads((tmp_path / "model.pruned.report.json").read_text())["tensors"]
    content = bytearray(output.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little") + header["fc.weight"]["data_offsets"][0]
    at = start + row["pruned"][0] * 48
    content[at + 1] = 0x80
    output.write_bytes(content)

    ran = run("verify", output, "-q")

    assert (ran.code, ran.out) == (5, "")
    where = f"fc.weight, channel {row['pruned'][0]}: a pruned channel is not +0 (byte {at:,} of"
    assert ran.text.startswith(where)
    assert ran.text.endswith(f"error: {output}: 1 disagreement(s)")


@pytest.mark.parametrize("is_wrong", [False, True])
def test_json_is_on_stdout_alone(tmp_path: Path, run: Run, model: Path, is_wrong: bool) -> None:
    """And everything else on stderr, whatever was found."""
    run("random-structured", model, "-a", "1", "-d", "0", "-m", "fc", "-q")
    if is_wrong:
        report = tmp_path / "model.pruned.report.json"
        report.write_text(report.read_text().replace('"seed": 0', '"seed": 1'))

    ran = run("verify", tmp_path / "model.pruned.safetensors", "--json")

    found = json.loads(ran.out)
    assert found["verified"] is not is_wrong
    assert ran.code == (5 if is_wrong else 0)
    assert found["disagreements"] == is_wrong * [
        {
            "fact": "its seed in the report does not follow from the seed 1",
            "tensor": "fc.weight",
            "channel": None,
            "offset": None,
        }
    ]


BROKEN = {
    "truncated output": ("out", lambda content: content[:-1]),
    "no output": ("out", lambda _: b""),
    "no report": ("report", lambda _: b""),
    "cut report": ("report", lambda content: content[:-40]),
    "dry run": (
        "report",
        lambda content: json.dumps({**json.loads(content), "output": None}).encode(),
    ),
}


@pytest.mark.parametrize(("which", "change"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read_is_exit_code_3(
    tmp_path: Path, run: Run, model: Path, which: str, change: object
) -> None:
    """That is not a finding, so no JSON either."""
    run("random-structured", model, "-a", "1", "-q", "-o", tmp_path / "out.safetensors")
    path = tmp_path / {"out": "out.safetensors", "report": "out.report.json"}[which]
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))

    ran = run("verify", tmp_path / "out.safetensors", "--json", "--source", model)

    assert (ran.code, ran.out) == (3, "")


def test_an_output_can_come_from_a_pipe(tmp_path: Path, model: Path) -> None:
    """random-structured | verify, with the report in a file."""
    report = tmp_path / "r.json"
    prune = [sys.executable, "-m", "prune_cli", "random-structured", model, "-a", "0.5", "-q"]
    verify = [sys.executable, "-m", "prune_cli", "verify", "-", "--source", model, "--report"]

    with subprocess.Popen([*prune, "-o", "-", "-r", report], stdout=subprocess.PIPE) as first:
        second = subprocess.run(
            [*verify, report], stdin=first.stdout, capture_output=True, text=True, check=False
        )

    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), second.stderr


def test_a_folder_is_verified_by_its_index_too(tmp_path: Path, run: Run) -> None:
    """A folder, or the index in it, is the same."""
    names = build.shard_names(2)
    source = build.write_folder(tmp_path / "model", build.split(build.tensors(), names))
    run("random-structured", source, "-a", "0.5", "-q")
    output = tmp_path / "model.pruned"

    for path in (output, output / "model.safetensors.index.json"):
        assert run("verify", path, "--source", source).code == 0

    (output / "config.json").write_text("{}")
    ran = run("verify", output, "--source", source)
    assert (ran.code, "config.json is not the source's" in ran.text) == (5, True)


# --- apply -----------------------------------------------------------------------------------


def test_an_edited_dry_run_is_applied_to_the_letter(tmp_path: Path, run: Run, model: Path) -> None:
    """Exactly the channels that the hand wrote, in any order; and that verifies."""
    planned = tmp_path / "plan.json"
    run("random-structured", model, "-a", "1", "-d", "0", "-n", "-r", planned, "-m", "fc")
    plan = json.loads(planned.read_text())
    plan["tensors"][0]["pruned"] = [7, 0]
    planned.write_text(json.dumps(plan))

    ran = run("apply", planned, model, "-o", tmp_path / "out.safetensors")

    assert ran.code == 0, ran.err
    wanted = build.tensors()
    wanted["fc.weight"][[0, 7]] = 0
    written = load_file(tmp_path / "out.safetensors")
    assert all(build.same_bits(written[name], tensor) for name, tensor in wanted.items())
    assert run("verify", tmp_path / "out.safetensors", "--source", model).code == 0


def test_every_misfit_is_exit_code_4_and_leaves_nothing(
    tmp_path: Path, run: Run, model: Path
) -> None:
    """All of them at once."""
    planned = tmp_path / "plan.json"
    run("random-structured", model, "-a", "1", "-d", "0", "-n", "-r", planned)
    (tmp_path / "other").mkdir()
    content = {"fc.weight": torch.ones(10, 25), "bn.weight": torch.ones(6)}
    other = build.torch_zip(tmp_path / "other" / "m.pt", content)

    ran = run("apply", planned, other)

    assert (ran.code, ran.out) == (4, "")
    assert "conv.weight: the checkpoint has no such tensor" in ran.text
    assert "fc.weight: its shape is [10, 25] in the checkpoint and [10, 24]" in ran.text
    assert left_in(tmp_path / "other") == {"m.pt"}


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", '{"schema": 1}', '{"schema": 2}'])
def test_a_corrupt_report_is_exit_code_3(tmp_path: Path, run: Run, model: Path, text: str) -> None:
    """Whatever is wrong with it."""
    (tmp_path / "r.json").write_text(text)

    ran = run("apply", tmp_path / "r.json", model)

    assert (ran.code, ran.out) == (3, "")
    assert "is not a report of prune-cli" in ran.text
    assert left_in(tmp_path) == {"r.json", "model.pt"}


def test_apply_has_the_output_options_of_the_main_command(
    tmp_path: Path, run: Run, model: Path
) -> None:
    """Masks, shards, stdout, force, dry runs and the place of the report."""
    run("random-structured", model, "-a", "2", "-d", "0", "-q", "-o", tmp_path / "a.safetensors")
    told = tmp_path / "a.report.json"

    masks = run("apply", told, model, "--keep-masks", "-o", tmp_path / "b.safetensors")
    shards = run("apply", told, model, "--max-shard-size", "500", "-o", tmp_path / "c")
    dry = run("apply", told, model, "-n", "-r", "-", "-q")
    again = run("apply", told, model, "-o", tmp_path / "a.safetensors", "-r", tmp_path / "n.json")
    forced = run(
        "apply", told, model, "-f", "-o", tmp_path / "a.safetensors", "-r", tmp_path / "n.json"
    )

    assert [ran.code for ran in (masks, shards, dry, again, forced)] == [0, 0, 0, 6, 0]
    assert {"fc.weight_orig", "fc.weight_mask"} <= load_file(tmp_path / "b.safetensors").keys()
    assert len([*(tmp_path / "c").glob("*.safetensors")]) > 1
    assert json.loads(dry.out)["output"] is None
    for name in ("b.safetensors", "c"):
        assert run("verify", tmp_path / name, "--source", model).code == 0
    verified = run(
        "verify", tmp_path / "a.safetensors", "-r", tmp_path / "n.json", "--source", model
    )
    assert verified.code == 0


def test_a_plan_can_come_from_a_pipe(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """random-structured --dry-run --report - | apply -."""
    plan = run("random-structured", model, "-a", "1", "-n", "-r", "-", "-q").out
    reading, writing = os.pipe()
    os.write(writing, plan.encode())
    os.close(writing)

    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ran = run("apply", "-", model, "-o", tmp_path / "out.safetensors")

    assert ran.code == 0, ran.err
    assert (tmp_path / "out.safetensors").exists()


# --- remove ----------------------------------------------------------------------------------


def test_masks_are_removed_and_verify(tmp_path: Path, run: Run, masked: Path) -> None:
    """And a module without hooks loads what is left."""
    ran = run("remove", masked)

    output = tmp_path / "masked.pruned.safetensors"
    assert ran.code == 0, ran.err
    assert load_file(output).keys() == build.tensors().keys()
    build.Net().load_state_dict(load_file(output), strict=False)
    assert run("verify", output, "--source", masked).code == 0


def test_no_masks_are_exit_code_4(tmp_path: Path, run: Run, model: Path) -> None:
    """Nothing is copied then."""
    ran = run("remove", model)

    assert (ran.code, ran.out) == (4, "")
    assert "nothing to remove" in ran.text
    assert left_in(tmp_path) == {"model.pt"}


@pytest.mark.parametrize("command", [("remove",), ("random-structured", "-a", "1", "-m", "conv")])
def test_odd_masks_are_left_as_they_are_and_named(
    tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    """What holds other values than 0 and 1 is no mask; what is one is made permanent."""
    content = build.masked(build.tensors(), {"fc.weight": 3, "conv.weight": 1})
    content["fc.weight_mask"][4] = 0.5
    path = build.torch_zip(tmp_path / "m.pt", content)

    ran = run(*command, path)

    assert (ran.code, ran.out) == (0, "")
    assert "fc.weight_orig is left as it is" in ran.text
    written = load_file(tmp_path / "m.pruned.safetensors")
    assert build.same_bits(written["fc.weight_mask"], content["fc.weight_mask"])


def test_the_whole_pipeline(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prune with masks, go on from there, remove them, prune the copy alike: all steps verify."""
    ema = build.safetensors(tmp_path / "ema.safetensors", build.tensors(5))
    steps = [
        ("random-structured", model, "-a", "2", "-d", "0", "--keep-masks", "-o", "1.safetensors"),
        (
            "random-structured",
            "1.safetensors",
            "-a",
            "1",
            "-d",
            "0",
            "--keep-masks",
            "-o",
            "2.safetensors",
        ),
        ("remove", "2.safetensors", "-o", "3.safetensors"),
        ("apply", "1.report.json", ema, "--bake", "-o", "4.safetensors"),
        ("apply", "2.report.json", "4.safetensors", "--bake", "-o", "5.safetensors"),
    ]
    sources = [model, "1.safetensors", "2.safetensors", ema, "4.safetensors"]
    monkeypatch.chdir(tmp_path)

    for number, (step, source) in enumerate(zip(steps, sources, strict=True), 1):
        assert run(*step).code == 0, step
        ran = run("verify", f"{number}.safetensors", "--source", source)
        assert ran.code == 0, (step, ran.err)

    one, other = load_file("3.safetensors"), load_file("5.safetensors")
    for name in ("conv.weight", "fc.weight"):
        assert torch.equal(one[name].flatten(1).any(1), other[name].flatten(1).any(1))
        assert int((~other[name].flatten(1).any(1)).sum()) == 3
