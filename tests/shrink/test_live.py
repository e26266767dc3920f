"""What is done with whole models in memory, only when asked for: --export and --measure."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from prune_cli.errors import OutputError, RequestError, UsageError
from prune_cli.plan.selection import Rule
from prune_cli.shrink.effect import measure_latency
from prune_cli.shrink.export import export_program
from prune_cli.shrink.load import load_shrunk
from prune_cli.shrink.shrink import shrink_checkpoint
from prune_cli.verify.verify import verify_checkpoint
from tests.shrink.builders import NETS, build, inputs


def test_a_file_is_exported_and_measured(tmp_path: Path) -> None:
    """The program gives the outputs of load_shrunk, without the model's code; the report has times."""
    torch.save(build("Residual").state_dict(), tmp_path / "model.pt")

    done = shrink_checkpoint(
        tmp_path / "model.pt",
        tmp_path / "small.safetensors",
        model=f"{NETS}:Residual",
        examples=["1x3x16x16"],
        rules=[Rule(("*",), ("weight",), 4, 0)],
        export=tmp_path / "small.pt2",
        measure=True,
    )

    program = torch.export.load(tmp_path / "small.pt2").module()
    loaded = load_shrunk(build("Residual"), tmp_path / "small.safetensors")
    (x,) = inputs("Residual")
    torch.testing.assert_close(program(x), loaded(x))
    assert done.shrink is not None
    assert set(done.shrink.latency.milliseconds) == {"before", "after"}
    assert (
        verify_checkpoint(
            tmp_path / "small.safetensors", source=tmp_path / "model.pt"
        ).disagreements
        == ()
    )


def test_a_masked_checkpoint_is_measured_as_it_computes(tmp_path: Path) -> None:
    """Stock masks are applied before the model is timed; zeros under them can go."""
    model = build("Plain")
    model.f1.bias.data[:8] = 0
    mask = torch.ones_like(model.f1.weight)
    mask[:8] = 0
    prune.custom_from_mask(model.f1, "weight", mask)
    torch.save(model.state_dict(), tmp_path / "masked.pt")

    done = shrink_checkpoint(
        tmp_path / "masked.pt",
        tmp_path / "small.safetensors",
        model=f"{NETS}:Plain",
        examples=["1x3x16x16"],
        from_zeros=True,
        measure=True,
    )

    small = load_shrunk(build("Plain"), tmp_path / "small.safetensors")
    (x,) = inputs("Plain")
    assert done.shrink is not None
    assert [group.removed for group in done.shrink.groups] == [tuple(range(8))]
    torch.testing.assert_close(small(x), model.eval()(x))


def test_a_folder_is_exported_and_measured(tmp_path: Path) -> None:
    """Loaded by transformers, with inputs of its kind."""
    transformers = pytest.importorskip("transformers")
    numbers = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32}
    config = transformers.ResNetConfig(layer_type="basic", **numbers)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "whole")

    done = shrink_checkpoint(
        tmp_path / "whole", tmp_path / "small", amount=0.25, export=tmp_path / "x.pt2", measure=True
    )

    assert (tmp_path / "x.pt2").stat().st_size > 0
    assert done.shrink is not None
    assert done.shrink.latency.rounds == 20


def test_latencies_are_medians_of_turns() -> None:
    """One for each model, with the threads that torch used."""
    found = measure_latency({"a": nn.Identity(), "b": nn.ReLU()}, (torch.ones(1),), rounds=3)

    assert set(found.milliseconds) == {"a", "b"}
    assert (found.rounds, found.threads) == (3, torch.get_num_threads())
    assert found.spread is not None
    assert set(found.spread) == {"a", "b"}


class Undecided(nn.Module):
    """Its path depends on a value, which torch.export cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x if x.sum() > 0 else -x


def test_what_torch_export_cannot_trace_is_refused(tmp_path: Path) -> None:
    """By an error that says so, and no file."""
    with pytest.raises(RequestError, match=r"torch\.export cannot trace the model"):
        export_program(Undecided(), (torch.ones(2),), tmp_path / "x.pt2")

    assert list(tmp_path.iterdir()) == []


def test_a_program_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Its folder is not there."""
    with pytest.raises(OutputError, match="cannot be written"):
        export_program(nn.ReLU(), (torch.ones(2),), tmp_path / "none" / "x.pt2")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0.25, "from_zeros": True}, "either an amount, a target or a recipe"),
        ({}, "either an amount, a target or a recipe"),
        ({"amount": 0.25, "dry_run": True, "measure": True}, "a dry run writes no model"),
    ],
)
def test_what_contradicts_itself_is_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match=message):
        shrink_checkpoint(tmp_path / "none.pt", **options)


def test_a_dry_run_writes_a_report_if_asked(tmp_path: Path) -> None:
    """And nothing else."""
    save_file(build("Plain").state_dict(), tmp_path / "model.safetensors")

    done = shrink_checkpoint(
        tmp_path / "model.safetensors",
        model=f"{NETS}:Plain",
        examples=["1x3x16x16"],
        amount=0.25,
        dry_run=True,
        report=tmp_path / "plan.json",
    )

    assert done.output is None
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "plan.json"}
