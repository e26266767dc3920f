"""`prune-cli diff`: two checkpoints beside each other."""

import json
from pathlib import Path

import pytest

from tests import build
from tests.conftest import Run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint."""
    return build.safetensors(tmp_path / "model.safetensors", build.tensors())


def test_the_same_tensors_are_the_same_in_any_format(run: Run, model: Path) -> None:
    """A file of torch.save beside one of safetensors."""
    other = build.torch_zip(model.with_name("other.pt"), build.tensors())

    ran = run("diff", model, other)

    assert (ran.code, ran.err) == (0, "")
    assert "6 tensors the same, bit for bit" in ran.out


def test_what_pruning_changed_is_exit_code_5(run: Run, model: Path) -> None:
    """The table is what was asked for, so it is on stdout; the verdict is an error."""
    run("random-structured", model, "-a", "2", "-d", "0", "-m", "fc", "-q")

    ran = run("diff", model, model.with_name("model.pruned.safetensors"))

    assert ran.code == 5
    assert "fc.weight values 0 2/10" in " ".join(ran.out.split())
    assert ran.text.endswith("are not the same")


@pytest.mark.parametrize("options", [("--json",), ("--format", "json"), ("--json", "-q")])
def test_json_is_all_of_stdout(run: Run, model: Path, options: tuple[str, ...]) -> None:
    """Whatever was found."""
    content = build.tensors()
    del content["fc.bias"]
    other = build.safetensors(model.with_name("other.safetensors"), content)

    ran = run("diff", model, other, *options)

    assert ran.code == 5
    assert "fc.bias" in json.dumps(json.loads(ran.out))


def test_quiet_leaves_the_exit_code(run: Run, model: Path) -> None:
    """For scripts."""
    ran = run("diff", model, model, "-q")

    assert (ran.code, ran.out, ran.err) == (0, "", "")
