"""The prefixes of wrappers: the same model draws the same channels with and without them."""

from pathlib import Path

import pytest
import torch

from prune_cli import apply_report, prune_checkpoint, verify_checkpoint
from prune_cli.errors import RequestError
from prune_cli.plan.prefixes import find_prefixes, strip_prefixes
from tests import build

CONTENT = {
    "fc.weight": torch.randn(10, 6),
    "fc.bias": torch.randn(10),
    "out.weight": torch.randn(4, 10),
}


def wrapped(folder: Path, prefix: str) -> Path:
    """The model with a prefix before every name."""
    content = {prefix + name: tensor for name, tensor in CONTENT.items()}
    return build.torch_zip(folder / f"{prefix or 'plain'}pt", content)


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["module.a.w", "module.b.w"], ["auto"], ("module.",)),
        (["module._orig_mod.a.w"], ["auto"], ("module.", "_orig_mod.")),
        (["model.a.w", "head.w"], ["auto"], ()),
        (["net.a.w"], ["auto"], ()),
        (["net.a.w"], ["net."], ("net.",)),
        (["net.module.a.w"], ["net.", "auto"], ("net.", "module.")),
        ([], ["auto"], ()),
    ],
)
def test_wrappers_are_found_where_every_name_has_them(
    names: list[str], asked: list[str], found: tuple[str, ...]
) -> None:
    """What is asked for by name is taken as it is."""
    assert find_prefixes(names, asked) == found


def test_prefixes_are_stripped_one_after_the_other() -> None:
    """In whatever order they are wrapped; an empty one is none."""
    prefixes = ("a.", "b.", "")

    assert strip_prefixes("b.a.a.weight", prefixes) == "weight"
    assert strip_prefixes("c.a.weight", prefixes) == "c.a.weight"


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod.", "net."])
@pytest.mark.parametrize(
    "options", [{}, {"allocate": "random"}, {"is_global": True}], ids=["own", "spread", "global"]
)
def test_a_wrapper_does_not_change_the_draw(
    tmp_path: Path, prefix: str, options: dict[str, object]
) -> None:
    """The names that are written stay the source's, patterns may leave the prefix out."""
    asked = "net." if prefix == "net." else "auto"
    plain = prune_checkpoint(wrapped(tmp_path, ""), tmp_path / "a", amount=0.5, dim=0, **options)  # type: ignore[arg-type]

    report = prune_checkpoint(
        wrapped(tmp_path, prefix),
        tmp_path / "b",
        amount=0.5,
        dim=0,
        modules=["fc", "out"],
        strip_prefixes=asked,
        with_bias=True,
        **options,  # type: ignore[arg-type]
    )

    drawn = {item.name: item.pruned for item in report.tensors if item.follows is None}
    assert drawn == {prefix + item.name: item.pruned for item in plain.tensors}
    verification = verify_checkpoint(tmp_path / "b", source=wrapped(tmp_path, prefix))
    assert verification.disagreements == ()


def test_without_stripping_other_channels_go(tmp_path: Path) -> None:
    """A name is part of the seed."""
    plain = prune_checkpoint(wrapped(tmp_path, ""), dry_run=True, amount=0.5, dim=0)
    other = prune_checkpoint(wrapped(tmp_path, "module."), dry_run=True, amount=0.5, dim=0)

    assert [item.pruned for item in plain.tensors] != [item.pruned for item in other.tensors]


@pytest.mark.parametrize(
    ("reported", "other"), [("", "module."), ("module.", ""), ("module.", "model.")]
)
def test_a_report_fits_across_wrappers(tmp_path: Path, reported: str, other: str) -> None:
    """The same channels go, under the names of the checkpoint; biases follow under theirs."""
    report = prune_checkpoint(
        wrapped(tmp_path, reported), dry_run=True, amount=0.5, dim=0, with_bias=True
    )
    source = wrapped(tmp_path, other)

    applied = apply_report(report, source, tmp_path / "out", strip_prefixes="auto")

    wanted = {other + item.name.removeprefix(reported): item.pruned for item in report.tensors}
    assert {item.name: item.pruned for item in applied.tensors} == wanted
    assert verify_checkpoint(tmp_path / "out", source=source).disagreements == ()


def test_a_report_does_not_fit_by_chance(tmp_path: Path) -> None:
    """Prefixes are stripped only where that is asked for."""
    report = prune_checkpoint(wrapped(tmp_path, ""), dry_run=True, amount=0.5, dim=0)

    with pytest.raises(RequestError, match="the checkpoint has no such tensor"):
        apply_report(report, wrapped(tmp_path, "module."), dry_run=True)
