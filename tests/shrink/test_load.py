"""A shrunk file alone, with the model's code, gives the shrunk model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prune_cli.errors import InputError, RequestError
from prune_cli.plan.shrink import METADATA_KEY, Resizing
from prune_cli.shrink.export import export_program
from prune_cli.shrink.load import load_shrunk
from tests.shrink.builders import build, inputs, plan, prune_live, slice_state


@pytest.fixture
def shrunk(tmp_path: Path) -> Path:
    """A shrunk Residual."""
    made = plan("Residual")
    path = tmp_path / "small.safetensors"
    metadata = {METADATA_KEY: made.resizing.to_json(), "format": "pt"}
    state = {
        key: tensor.contiguous() for key, tensor in slice_state(build("Residual"), made).items()
    }
    save_file(state, path, metadata)
    return path


def test_a_fresh_model_takes_the_shrunk_weights(shrunk: Path) -> None:
    """The outputs are those of the live model that was pruned."""
    (x,) = inputs("Residual")

    loaded = load_shrunk(build("Residual"), shrunk)

    assert torch.equal(loaded(x), prune_live(build("Residual"), (x,), plan("Residual"))(x))
    assert loaded.stem.out_channels == 12


def test_a_model_on_meta_gets_its_memory_from_the_file(shrunk: Path) -> None:
    """No weights need to be made before."""
    (x,) = inputs("Residual")

    loaded = load_shrunk(build("Residual").to("meta"), shrunk)

    # Kernels round by how the memory is aligned, so the outputs are close and the weights equal.
    other = load_shrunk(build("Residual"), shrunk)
    assert all(map(torch.equal, loaded.state_dict().values(), other.state_dict().values()))
    torch.testing.assert_close(loaded(x), other(x))


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    """One name in the file serves both, and they are still one parameter."""
    made = plan("TiedAndFrozen")
    state = slice_state(build("TiedAndFrozen"), made)
    del state["out.weight"]
    path = tmp_path / "small.safetensors"
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()},
        path,
        {METADATA_KEY: made.resizing.to_json()},
    )

    loaded = load_shrunk(build("TiedAndFrozen"), path)

    assert loaded.out.weight is loaded.e.weight
    assert torch.equal(loaded.e.weight, state["e.weight"])


def test_an_exported_program_runs_without_the_code(shrunk: Path, tmp_path: Path) -> None:
    """The .pt2 gives the same outputs, and nothing is left beside it."""
    (x,) = inputs("Residual")
    loaded = load_shrunk(build("Residual"), shrunk)

    export_program(loaded, (x,), tmp_path / "small.pt2")

    program = torch.export.load(tmp_path / "small.pt2").module()
    torch.testing.assert_close(program(x), loaded(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.pt2", "small.safetensors"]


def test_another_model_is_refused(shrunk: Path) -> None:
    """The message says what does not fit."""
    with pytest.raises(RequestError, match="does not fit the model: it has no tensor"):
        load_shrunk(nn.Linear(2, 2), shrunk)


def test_a_file_that_was_not_shrunk_is_refused(tmp_path: Path) -> None:
    """It has no record of the shapes."""
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "plain.safetensors")

    with pytest.raises(InputError, match="does not say what was shrunk"):
        load_shrunk(nn.Linear(2, 2), tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    "attributes",
    [{"fc": {"forward": 3}}, {"stem": {"weight": 3}}, {"nowhere": {"out_features": 3}}],
)
def test_only_counts_are_overwritten(attributes: dict[str, dict[str, int]]) -> None:
    """A file cannot replace a method, a tensor or a module."""
    from prune_cli.shrink.load import resize

    with pytest.raises(RequestError, match="has no count named"):
        resize(build("Residual"), Resizing({}, attributes))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema":2}', '{"schema":1,"shapes":{"a":[0]},"attributes":{}}',
     '{"schema":1,"shapes":{},"attributes":{"a":{"b":"c"}}}'],
)  # fmt: skip
def test_a_damaged_record_is_refused(text: str) -> None:
    """Never a traceback."""
    with pytest.raises(InputError):
        Resizing.from_json(text)
