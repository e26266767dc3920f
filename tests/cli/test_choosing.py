"""The options of a choice on the command line."""

import json
from pathlib import Path

import pytest

from prune_cli.cli.choosing import complete_allocation, complete_criterion
from tests import build
from tests.conftest import Run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint."""
    return build.safetensors(tmp_path / "model.safetensors", build.tensors())


def test_structured_is_random_structured_by_another_name(run: Run, model: Path) -> None:
    """Byte for byte, report included."""
    first, second = model.with_name("a.safetensors"), model.with_name("a2.safetensors")

    assert run("random-structured", model, "-a", "0.5", "-o", first).code == 0
    assert run("structured", model, "-a", "0.5", "-o", second).code == 0

    assert first.read_bytes() == second.read_bytes()
    reports = [path.with_suffix(".report.json").read_text() for path in (first, second)]
    assert reports[0] == reports[1].replace("a2.safetensors", "a.safetensors")


def test_a_choice_is_understood_and_shown(run: Run, model: Path) -> None:
    """Each option reaches the report; the table has the part of each layer, the line the budget."""
    line = "--target params=50% -d 0 --allocate random --between 10%,0.8 --criterion l1"

    ran = run("structured", model, *line.split(), "--round-to", 2, "--at-least", 2, "-r", "-", "-n")

    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["options"]["choice"] == {
        "allocate": "random",
        "between": [0.1, 0.8],
        "target": "params=0.5",
        "is_global": False,
        "criterion": "l1",
        "scores": None,
        "round_to": 2,
        "at_least": 2,
    }
    assert "of live" in ran.text
    for part in ("target params=0.5", "allocated random between 0.1 and 0.8", "smallest by l1"):
        assert part in ran.text


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--target params=2M", 4, "the most is"),
        ("--target half", 2, "write it like params=0.5"),
        ("-a 0.5 --allocate evenly", 2, "no allocation 'evenly'"),
        ("-a 0.5 --between 0.1", 2, "write it like 0.1,0.9"),
        ("-a 0.5 --target params=0.5", 2, "--target takes the place of --amount"),
        ("-a 3 --allocate er", 4, "give a fraction"),
        ("-a 0.5 --scores nowhere.safetensors", 3, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
) -> None:
    """With its exit code, and nothing is written."""
    monkeypatch.chdir(model.parent)

    ran = run("structured", model, "-d", 0, *line.split())

    assert ran.code == code
    assert message in ran.text
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_the_score_file_is_never_written(run: Run, model: Path) -> None:
    """It is an input like the checkpoint."""
    scores = build.safetensors(
        model.with_name("scores.safetensors"),
        {name: tensor for name, tensor in build.tensors().items() if tensor.dim() > 1},
    )
    before = scores.read_bytes()

    ran = run("structured", model, "-a", "0.5", "--scores", scores, "-o", scores, "--force")

    assert ran.code in (2, 6)
    assert scores.read_bytes() == before


def test_verify_takes_the_score_file(run: Run, model: Path) -> None:
    """With it the source is planned again."""
    weights = {name: tensor for name, tensor in build.tensors().items() if tensor.dim() > 1}
    scores = build.safetensors(model.with_name("scores.safetensors"), weights)
    output = model.with_name("out.safetensors")
    assert run("structured", model, "-a", "0.5", "--scores", scores, "-o", output).code == 0

    ran = run("verify", output, "--source", model, "--scores", scores)

    assert ran.code == 0, ran.err


def test_the_shell_offers_allocations_and_criteria() -> None:
    """Those that begin as what is typed."""
    assert complete_allocation("er") == ["er", "erk"]
    assert complete_criterion("l") == ["l1", "l2"]
