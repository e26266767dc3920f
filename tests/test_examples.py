"""Every example runs, offline and in seconds, and shows what it says it shows."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune_cli import prune_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"}}


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where a module of an extra is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(example: str, *arguments: str, stdin: str | None = None) -> str:
    """Run an example as its first lines say, by this Python, and return what it printed."""
    program = sys.executable if example.endswith(".py") else "bash"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [program, str(EXAMPLES / example), *arguments],
        input=stdin,
        env={**os.environ, "PATH": path},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_of_examples_is_complete() -> None:
    """examples/README.md names every program that is there."""
    text = (EXAMPLES / "README.md").read_text()

    assert {name for name in PROGRAMS if f"[{name}]({name})" not in text} == set()


@needs("sklearn", "matplotlib")
def test_digits_are_pruned_fine_tuned_and_shrunk(tmp_path: Path) -> None:
    """Pruning hurts, training on with the masks kept heals, and shrinking loses nothing of it."""
    shown = run("digits.py", str(tmp_path), "--amounts", "0.5", "--seeds", "0", "1")

    before, _, *rows = shown.splitlines()[:4]
    healed, small = (line.split()[-1].rstrip("%") for line in (rows[0], shown.splitlines()[-1]))
    assert float(before.split()[-1].rstrip("%")) > 95
    for row in rows:
        _, _, pruned, tuned = (cell.rstrip("%") for cell in row.split())
        assert float(pruned) < 90 < float(tuned)
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert "38,282 parameters" in shown
    assert small == healed


@needs("sklearn", "matplotlib")
def test_the_fine_tune_keeps_the_masks(tmp_path: Path) -> None:
    """What it saves has the masks of the pruned file, and zeros under them."""
    masked, tuned = tmp_path / "masked.safetensors", tmp_path / "tuned.pt"
    prune_checkpoint(
        EXAMPLES / "digits.pt", masked, amount=0.25, dim=0, exclude=["digit"], bake=False
    )

    run("fine_tune.py", str(masked), str(tuned))

    after = torch.load(tuned)
    for name, mask in load_file(masked).items():
        if name.endswith("_mask"):
            assert torch.equal(after[name], mask)


def test_the_evaluation_needs_numpy_only(tmp_path: Path) -> None:
    """digits.pt as a file of safetensors gets what the network of digits.py gets."""
    file = tmp_path / "digits.safetensors"
    save_file(torch.load(EXAMPLES / "digits.pt"), file)

    shown = json.loads(run("evaluate_digits.py", str(file)))

    assert shown == {"accuracy": 98.33}


def test_iterative_pruning_in_a_pipeline_and_in_a_loop_is_the_same(tmp_path: Path) -> None:
    """Each step takes a fifth of what is left."""
    shown = run("iterative.sh", str(tmp_path))

    sparsity = [line.split()[-1] for line in shown.splitlines() if "sparsity" in line]
    assert sparsity == ["0.2", "0.36", "0.49"]
    assert "end at the same bytes" in shown


@needs("sklearn", "matplotlib")
def test_a_sweep_evaluates_every_draw_and_compares(tmp_path: Path) -> None:
    """Two sweeps of a real network, their page and their figure."""
    shown = run("sweep.sh", str(tmp_path))

    assert "rows" in shown
    assert "columns beats rows by" in shown
    assert len((tmp_path / "rows" / "trials.jsonl").read_text().splitlines()) == 21
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_a_recipe_prunes_each_layer_by_its_own_rule(tmp_path: Path) -> None:
    """The last rule that matches wins, and the command fills in what a rule leaves out."""
    run("per_layer.sh", str(tmp_path))

    report = (tmp_path / "pruned.report.json").read_text()
    shown = run("read_report.py", stdin=report)
    rows = dict(line.split() for line in shown.splitlines() if ".weight " in line)
    gone = {name: row.count(".") for name, row in rows.items()}
    assert gone == {"classifier.weight": 3, "features.0.weight": 3, "features.2.weight": 8}


def test_the_library_takes_the_channels_of_the_command_line() -> None:
    """A module that is pruned at the derived seed is as the pruned checkpoint."""
    shown = run("library.py")

    assert "0.weight_orig, 0.bias, 0.weight_mask" in shown
    assert "lost the same channels: True" in shown


@needs("transformers")
def test_a_folder_of_transformers_is_loaded_as_it_was(tmp_path: Path) -> None:
    """Only the channels that were pruned differ, and they are zero."""
    shown = run("transformers_folder.py", str(tmp_path))

    assert shown.count("16 channels changed, 16 are zero") == 4
    assert "it still generates" in shown


def test_a_pickled_model_is_pruned_in_kind(tmp_path: Path) -> None:
    """What stood beside the weights still stands there, the class included."""
    shown = run("yolo.py", str(tmp_path))

    assert "4 of 16 filters are zero" in shown
    assert "a Detector of {0: 'person', 1: 'bicycle'}, epoch 12" in shown
    assert "the optimizer is as it was: True" in shown


def test_training_goes_on_from_a_pruned_checkpoint(tmp_path: Path) -> None:
    """Epoch and optimizer are kept, and a prefix draws no other channels."""
    shown = run("lightning.py", str(tmp_path))

    assert "epoch 3, 1 step of the optimizer, 10 zero rows" in shown
    assert "the exported network lost the same channels: True" in shown
    assert "one step later: 0 zero rows" in shown


def test_a_distributed_checkpoint_becomes_one_file(tmp_path: Path) -> None:
    """A strict `load_state_dict` takes it."""
    shown = run("distributed.py", str(tmp_path))

    assert shown.splitlines() == [
        "0.weight: 8 of 32 rows are zero",
        "2.weight: 2 of 8 rows are zero",
    ]


def test_a_gate_lets_through_what_holds(tmp_path: Path) -> None:
    """The strict assertion ends with 7; the other one makes the release."""
    shown = run("gate.sh", str(tmp_path))

    assert "holds: `mean(accuracy)@0.1 >= base - 5`" in shown
    assert shown.endswith("exit code 7\n")
    assert (tmp_path / "release.report.json").exists()
    assert len((tmp_path / "gate" / "trials.jsonl").read_text().splitlines()) == 4


@needs("distributed")
def test_a_cluster_on_this_machine_prunes_a_folder(tmp_path: Path) -> None:
    """Its output is that of one process, and verified; what it started has ended."""
    shown = run("cluster.sh", str(tmp_path))

    assert shown.splitlines() == ["workers and one process write the same bytes", "verified"]


def test_the_jobs_of_an_array_prune_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop in the place of sbatch; one job fails and is run again by its number."""
    source = tmp_path / "model"
    prune_checkpoint(EXAMPLES / "digits.pt", source, amount=0, dim=0, max_shard_size=50_000)
    out = tmp_path / "there" / "out"
    out.parent.mkdir()

    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    for job in ("3", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", job)
        run("array.sh", str(source), str(out))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("PARTS", "3")
    run("array.sh", str(source), str(out))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    run("array.sh", str(source), str(out))

    prune_checkpoint(source, tmp_path / "here" / "out", amount=0.25, dim=0)
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "here" / "out").iterdir())
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "here" / "out" / name).read_bytes()


@needs("s3fs", "moto")
def test_a_folder_in_s3_is_pruned_into_another() -> None:
    """From its URL to another, in a store that the example starts itself; and it verifies."""
    shown = run("s3_folder.sh")

    assert "'channels_pruned': 28" in shown
