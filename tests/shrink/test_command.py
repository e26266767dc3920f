"""`prune-cli shrink` from the shell: what it writes, and what it never touches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.shrink.builders import NETS, build, plan

ASKED = ("--model", f"{NETS}:Plain", "--example", "1x3x16x16", "--amount", "0.25")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of the net `Plain`."""
    save_file(build("Plain").state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def shrink(*arguments: object, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "prune_cli", "shrink", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, timeout=120, **options)


@pytest.mark.parametrize("target", ["--export", "--output", "--report"])
def test_no_output_is_an_input(target: str, model: Path) -> None:
    """Whatever it is for, and whatever --force says."""
    before = model.read_bytes()

    done = shrink(model, *ASKED, target, model, "--force")

    assert done.returncode == 6, done.stderr.decode()
    assert b"is an input" in done.stderr
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


def test_the_code_of_the_model_is_an_input_too(model: Path) -> None:
    """It is read, so it is not replaced."""
    code = model.with_name("code.py")
    code.write_bytes(NETS.read_bytes())
    asked = ("--model", f"{code}:Plain", *ASKED[2:])

    done = shrink(model, *asked, "--report", code, "--force")

    assert done.returncode == 6
    assert code.read_bytes() == NETS.read_bytes()


def test_a_dry_run_of_stdin_needs_no_output(model: Path) -> None:
    """There is none."""
    done = shrink("-", *ASKED, "--dry-run", input=model.read_bytes())

    assert done.returncode == 0, done.stderr.decode()
    assert b"would remove" in done.stderr


def test_a_measured_report_on_stdout_is_one_document(model: Path) -> None:
    """With the latency in it."""
    done = shrink(
        model, *ASKED, "--measure", "--report", "-", "-o", model.with_name("small.safetensors")
    )

    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["shrink"]["latency"]["milliseconds"].keys() == {
        "before",
        "after",
    }


def test_an_export_is_an_output_like_any_other(model: Path) -> None:
    """Not replaced without --force, and whole with it; the output has to be a file to be read."""
    program, output = model.with_name("small.pt2"), model.with_name("small.safetensors")
    program.write_bytes(b"before")

    refused = shrink(model, *ASKED, "--export", program, "-o", output)
    streamed = shrink(model, *ASKED, "--export", program, "-o", "/dev/null", "--force")
    before = program.read_bytes()
    written = shrink(model, *ASKED, "--export", program, "-o", output, "--force")

    assert (refused.returncode, streamed.returncode, written.returncode) == (6, 2, 0)
    assert b"small.pt2 exists" in refused.stderr
    assert before == b"before"
    assert torch.export.load(program).module()(torch.ones(1, 3, 16, 16)).shape == (1, 10)
    assert not [path for path in model.parent.iterdir() if path.suffix == ".tmp"]


def test_what_the_model_prints_is_no_output_of_ours(model: Path) -> None:
    """Its code may print; stdout carries data only."""
    code = model.with_name("loud.py")
    code.write_text(f"{NETS.read_text()}\n\nprint('hello')\n")
    asked = ("--model", f"{code}:Plain", *ASKED[2:])

    done = shrink(model, *asked, "--dry-run", "--report", "-")

    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["method"] == "shrink"
    assert b"hello" not in done.stderr


def test_torch_is_not_imported_by_the_parent(model: Path) -> None:
    """It moves bytes; the child follows the model."""
    code = (
        "import sys; from prune_cli.cli.main import main; "
        f"status = main(['shrink', {str(model)!r}, *{ASKED!r}, '-q']); "
        "print(status, 'torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )

    assert done.stdout.split() == ["0", "False"]


def test_a_budget_that_no_model_meets_writes_nothing(model: Path) -> None:
    """Exit 4, with the least and the most that can remain."""
    done = shrink(model, *ASKED[:4], "--target", "flops=1")

    assert done.returncode == 4, done.stderr.decode()
    assert b"1 FLOPs cannot be what remains: the least is" in done.stderr
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


def test_a_choice_is_shown_with_the_part_of_each_group(model: Path) -> None:
    """Beside the budget, and how it was spread."""
    asked = ("--target", "params=60%", "--allocate", "erk", "--criterion", "l1", "--at-least", "2")

    done = shrink(model, *ASKED[:4], *asked, "--dry-run", "--report", "-")

    assert done.returncode == 0, done.stderr.decode()
    told = done.stderr.decode()
    assert "target params=0.6, allocated erk, the smallest by l1, at least 2 left in each" in told
    for group in json.loads(done.stdout)["shrink"]["groups"]:
        (row,) = [line for line in told.splitlines() if line.startswith(group["root"])]
        assert f"{len(group['removed']) / group['channels']:.1%}" in row


def test_inspect_tells_what_the_code_of_a_model_tells(model: Path) -> None:
    """Its parameters, its FLOPs, and the groups that shrink would take channels of."""
    command = [sys.executable, "-m", "prune_cli", "inspect", str(model), "--flops", *ASKED[:4]]

    done = subprocess.run([*command, "--json"], check=True, capture_output=True, timeout=120)
    shown = subprocess.run(command, check=True, capture_output=True, timeout=120)

    told, whole = json.loads(done.stdout)["model"], plan("Plain")
    assert told["parameters"] == whole.effect.parameters_before
    assert told["flops"] == whole.effect.flops_before
    groups = [(group["root"], group["channels"]) for group in told["groups"]]
    assert groups == [(group.root, group.channels) for group in whole.groups]
    assert f"{told['flops']:,} FLOPs of one forward pass" in shown.stdout.decode()
