"""The user's model and its inputs, from what the command line says."""

from pathlib import Path

import pytest
import torch

from prune_cli.errors import RequestError, UsageError
from prune_cli.shrink.model import (
    Example,
    build_model,
    find_factory,
    make_inputs,
    parse_example,
)
from prune_cli.shrink.request import parse_model_arguments
from tests.shrink.builders import NETS


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("1x3x8x8", Example((1, 3, 8, 8))),
        ("ids=1x16:int64", Example((1, 16), "int64", "ids")),
        ("7:bfloat16", Example((7,), "bfloat16")),
    ],
)
def test_examples_are_read(text: str, example: Example) -> None:
    """A shape, a name before, a dtype behind."""
    assert parse_example(text) == example


@pytest.mark.parametrize("text", ["", "1x", "ax3", "1x3:nn", "=1x3"])
def test_what_is_no_example_is_refused(text: str) -> None:
    """The message shows what one looks like."""
    with pytest.raises(UsageError, match="1x3x224x224"):
        parse_example(text)


def test_inputs_have_values_that_are_valid() -> None:
    """Noise that is the same each time, indices of zero, a mask of ones."""
    examples = [
        parse_example(text) for text in ("x=2x3", "ids=1x4:int64", "attention_mask=1x4:int64")
    ]

    made, again = make_inputs(examples, "cpu"), make_inputs(examples, "cpu")

    assert torch.equal(made["x"], again["x"])
    assert made["ids"].tolist() == [[0, 0, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_names_for_some_inputs_are_refused() -> None:
    """All have one, or none."""
    with pytest.raises(UsageError, match="either all with a name or all without"):
        make_inputs([Example((1,)), Example((1,), name="x")])


def test_model_arguments_are_literals_or_text() -> None:
    """As Python spells them."""
    found = parse_model_arguments(["width=64", "norm=batch", "sizes=[1, 2]"])

    assert found == {"width": 64, "norm": "batch", "sizes": [1, 2]}


@pytest.mark.parametrize("pair", ["width", "=3", "a b=3"])
def test_what_is_no_model_argument_is_refused(pair: str) -> None:
    """Without a name or an equals sign."""
    with pytest.raises(UsageError, match="write NAME=VALUE"):
        parse_model_arguments([pair])


CODE = """
import torch
from torch import nn

def reads_values(width=4):
    assert torch.linspace(0, 1, 3).tolist()[2] == 1
    return nn.Linear(width, width)

def gives_text():
    return "model"

def fails_twice():
    raise RuntimeError("no meta, no anything")
"""


def test_a_factory_that_reads_values_is_built_on_the_cpu(tmp_path: Path) -> None:
    """And moved to meta then."""
    (tmp_path / "mine.py").write_text(CODE)

    model = build_model(f"{tmp_path / 'mine.py'}:reads_values", {"width": 5})

    assert model.weight.is_meta
    assert model.weight.shape == (5, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gives_text", "gives a str"), ("fails_twice", r"RuntimeError: no meta.*--model-arg")],
)
def test_a_factory_that_builds_no_model_is_refused(name: str, message: str, tmp_path: Path) -> None:
    """Whatever it raises or gives."""
    (tmp_path / "mine.py").write_text(CODE)

    with pytest.raises(RequestError, match=message):
        build_model(f"{tmp_path / 'mine.py'}:{name}", {})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nets", "names no factory"),
        ("no/such.py:f", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        (f"{NETS}:Nope", "has no factory 'Nope'"),
    ],
)
def test_a_factory_that_is_not_there_is_refused(reference: str, message: str) -> None:
    """The message says what is missing."""
    with pytest.raises(UsageError, match=message):
        find_factory(reference)


def test_a_module_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m` finds it."""
    (tmp_path / "mine_here.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])

    assert find_factory("mine_here:gives_text")() == "model"
