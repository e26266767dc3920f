"""Verify holds a shrunk checkpoint against its report and, to the byte, against its source."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from prune_cli.errors import InputError, RequestError
from prune_cli.shrink.shrink import shrink_checkpoint
from prune_cli.verify.verify import verify_checkpoint
from tests.shrink.builders import NETS, build

SCHEMA = json.loads((resources.files("prune_cli.report") / "report.schema.json").read_text())


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt, small.safetensors and its report."""
    folder = tmp_path_factory.mktemp("shrunk")
    torch.save(build("Residual").state_dict(), folder / "model.pt")
    shrink_checkpoint(
        folder / "model.pt",
        folder / "small.safetensors",
        model=f"{NETS}:Residual",
        examples=["1x3x16x16"],
        amount=0.25,
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Hugging Face folders `whole` and `small`."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("folders")
    numbers = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(intermediate_size=64, vocab_size=50, **numbers)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "whole")
    shrink_checkpoint(folder / "whole", folder / "small", amount=0.25)
    return folder


def edited(report: Path, edit: Callable[[dict[str, Any]], object], to: Path) -> Path:
    """A report, changed by hand."""
    facts = json.loads(report.read_text())
    edit(facts["shrink"])
    to.write_text(json.dumps(facts))
    return to


def test_a_shrunk_file_follows_from_its_source(shrunk: Path) -> None:
    """Every byte is compared, the metadata for load_shrunk included."""
    found = verify_checkpoint(shrunk / "small.safetensors", source=shrunk / "model.pt")

    assert found.is_verified
    assert found.with_source


def test_a_shrunk_folder_follows_from_its_source(folders: Path) -> None:
    """So does one whose config was edited."""
    found = verify_checkpoint(folders / "small", source=folders / "whole")

    assert found.disagreements == ()


def test_another_number_in_the_config_is_found(folders: Path) -> None:
    """It has to be the source's, with the numbers of the report."""
    config = folders / "small" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"vocab_size": 50', '"vocab_size": 51'))

    found = verify_checkpoint(folders / "small", source=folders / "whole")

    config.write_text(text)
    assert [problem.fact for problem in found.disagreements] == [
        "config.json is not the source's, edited as the report says"
    ]


def test_one_bit_is_found(shrunk: Path, tmp_path: Path) -> None:
    """In the last byte of the file."""
    content = bytearray((shrunk / "small.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(content)

    found = verify_checkpoint(
        tmp_path / "bent.safetensors",
        report=shrunk / "small.report.json",
        source=shrunk / "model.pt",
    )

    assert [problem.fact for problem in found.disagreements] == ["its bytes are not the source's"]


def test_the_report_of_every_kind_fits_the_schema(shrunk: Path, folders: Path) -> None:
    """Of a file and of a folder."""
    validator = jsonschema.Draft202012Validator(SCHEMA)

    for report in (shrunk / "small.report.json", folders / "small" / "prune-report.json"):
        validator.validate(json.loads(report.read_text()))


def swap_kept(facts: Mapping[str, Any]) -> None:
    """Keep another channel than the one that was kept."""
    kept = facts["kept"]["a1.weight"]["0"]
    kept[:] = sorted({*range(16)} - {kept[0]})[: len(kept)]


def shorten(facts: Mapping[str, Any]) -> None:
    """Name a smaller shape."""
    facts["shapes"]["a1.bias"][0] -= 1


def reseed(facts: Mapping[str, Any]) -> None:
    """Claim another seed."""
    facts["groups"][0]["seed"] += 1


def disorder(facts: Mapping[str, Any]) -> None:
    """Name the kept channels backwards."""
    facts["kept"]["a1.weight"]["0"].reverse()


def forget(facts: Mapping[str, Any]) -> None:
    """Leave out what a tensor keeps."""
    del facts["kept"]["a1.bias"]


def miscount(facts: Mapping[str, Any]) -> None:
    """Record another attribute."""
    facts["attributes"]["a1"]["out_channels"] += 1


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (swap_kept, "were removed, and that they stay"),
        (shorten, "the new shape of a1.bias in the report do not fit"),
        (reseed, "does not follow from the seed 0"),
        (disorder, "are not in order"),
        (forget, "does not say which channels a1.bias keeps"),
        (miscount, "the metadata 'prune_cli.shrink'"),
    ],
)
def test_a_report_that_contradicts_itself_or_the_file(
    edit: Callable[[dict[str, Any]], object], fact: str, shrunk: Path, tmp_path: Path
) -> None:
    """Is found without the source too."""
    report = edited(shrunk / "small.report.json", edit, tmp_path / "report.json")

    found = verify_checkpoint(shrunk / "small.safetensors", report=report)

    assert any(fact in problem.fact for problem in found.disagreements)


@pytest.fixture(scope="module")
def allocated(shrunk: Path) -> Path:
    """The same folder, with erk.safetensors and its report, and target.safetensors."""
    for name, options in {"erk": {"amount": 0.3}, "target": {"target": "flops=60%"}}.items():
        shrink_checkpoint(
            shrunk / "model.pt",
            shrunk / f"{name}.safetensors",
            model=f"{NETS}:Residual",
            examples=["1x3x16x16"],
            allocate="erk",
            **options,
        )
    return shrunk


@pytest.mark.parametrize("name", ["erk", "target"])
def test_an_allocation_follows_from_the_options(name: str, allocated: Path) -> None:
    """And its report fits the schema."""
    found = verify_checkpoint(allocated / f"{name}.safetensors", source=allocated / "model.pt")

    assert found.disagreements == ()
    facts = json.loads((allocated / f"{name}.report.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(facts)


def give_another_fraction(facts: Mapping[str, Any]) -> None:
    """To one group."""
    facts["groups"][-1]["amount"] += 0.01


def redraw(facts: Mapping[str, Any]) -> None:
    """Remove another channel of the last group than its seed gives."""
    group = next(group for group in facts["groups"] if group["removed"])
    kept = facts["kept"][group["root"]][str(group["dim"])]
    group["removed"][0], kept[0] = kept[0], group["removed"][0]
    group["removed"].sort()
    kept.sort()


@pytest.mark.parametrize(
    ("edit", "fact"),
    [(give_another_fraction, "as asked for"), (redraw, "not those that its seed gives")],
)
@pytest.mark.parametrize("name", ["erk", "target"])
def test_another_allocation_than_the_options_give_is_found(
    name: str,
    edit: Callable[[dict[str, Any]], object],
    fact: str,
    allocated: Path,
    tmp_path: Path,
) -> None:
    """With the source, which has the shapes."""
    report = edited(allocated / f"{name}.report.json", edit, tmp_path / "report.json")

    found = verify_checkpoint(
        allocated / f"{name}.safetensors", report=report, source=allocated / "model.pt"
    )

    assert any(fact in problem.fact for problem in found.disagreements)


def test_another_number_of_channels_than_the_amount_is_found(shrunk: Path, tmp_path: Path) -> None:
    """Without the source too."""

    def claim_less(facts: dict[str, Any]) -> None:
        facts["groups"][0]["amount"] = 0.5

    report = edited(shrunk / "small.report.json", claim_less, tmp_path / "report.json")

    found = verify_checkpoint(shrunk / "small.safetensors", report=report)

    assert any("as asked for" in problem.fact for problem in found.disagreements)


def far(facts: Mapping[str, Any]) -> None:
    """Keep a channel that was never there."""
    facts["kept"]["a1.weight"]["0"][-1] = 16


def rename(facts: Mapping[str, Any]) -> None:
    """Name a tensor that was never there."""
    facts["kept"]["a9.weight"] = facts["kept"].pop("a1.weight")


def deepen(facts: Mapping[str, Any]) -> None:
    """Shorten a dim along which nothing went."""
    facts["kept"]["a1.weight"]["2"] = [0]


def configure(facts: Mapping[str, Any]) -> None:
    """Edit a config of a file, which has none."""
    facts["config"]["hidden_size"] = 8


@pytest.mark.parametrize("edit", [far, rename, deepen, configure])
def test_a_report_of_something_else_is_a_disagreement(
    edit: Callable[[dict[str, Any]], object], shrunk: Path, tmp_path: Path
) -> None:
    """With the source too, and never a crash."""
    report = edited(shrunk / "small.report.json", edit, tmp_path / "report.json")

    found = verify_checkpoint(
        shrunk / "small.safetensors", report=report, source=shrunk / "model.pt"
    )

    assert any("does not fit the source" in problem.fact for problem in found.disagreements)


def test_a_report_without_its_plan_is_refused(shrunk: Path, tmp_path: Path) -> None:
    """There is nothing to hold the file against."""
    facts = json.loads((shrunk / "small.report.json").read_text())
    del facts["shrink"]
    (tmp_path / "report.json").write_text(json.dumps(facts))

    with pytest.raises((InputError, RequestError), match="shrink"):
        verify_checkpoint(shrunk / "small.safetensors", report=tmp_path / "report.json")
