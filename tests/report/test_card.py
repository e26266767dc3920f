"""Model cards of outputs: true, in the Hub's form, and what was there is kept."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from prune_cli import prune_checkpoint, remove_masks
from prune_cli.errors import UsageError
from prune_cli.report.card import is_card
from tests import build
from tests.conftest import Run

PRUNE = ("-a", "0.5", "-d", "0", "-m", "fc", "-s", "7")
BASE = """---
license: apache-2.0
pipeline_tag: image-classification
tags:
- vision
base_model: org/older
model-index:
- name: net
---
# Net

It is good at pictures.
"""


def model(path: Path, card: str | None = BASE) -> Path:
    """A model's folder, with a card or without."""
    path.mkdir(parents=True)
    build.safetensors(path / "model.safetensors", build.tensors())
    if card is not None:
        (path / "README.md").write_text(card)
    return path


def front_matter(card: str) -> dict[str, object]:
    """What its front matter says."""
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_the_card_of_the_base_goes_on_with_what_was_done(run: Run, tmp_path: Path) -> None:
    """Licence, task and tags stay; what the base was made from and its evaluations do not hold."""
    done = run("random-structured", model(tmp_path / "net"), *PRUNE, "-o", tmp_path / "half")

    assert done.code == 0, done.err
    card = (tmp_path / "half" / "README.md").read_text()
    assert front_matter(card) == {
        "license": "apache-2.0",
        "pipeline_tag": "image-classification",
        "tags": ["vision", "pruned", "prune-cli"],
        "base_model": "org/older",
    }
    for line in (
        "# half\n",
        "Made from `net` with prune-cli ",
        "5 of 10 channels in 1 tensor set to zero, drawn at random. It was not retrained",
        "| Channels pruned | 5 of 10 |",
        "| Zeros in the pruned tensors | 120 of 240 elements (50.00%) |",
        "| Seed | 7 |",
        "| Report | [prune-report.json](prune-report.json) |",
        "prune-cli random-structured net --amount 0.5 --dim 0 --seed 7 --module fc\n",
        "The card of the model that was pruned:\n\n---\n\n# Net\n\nIt is good at pictures.\n",
    ):
        assert line in card


def test_a_folder_of_the_cache_is_a_base_with_a_name(run: Run, tmp_path: Path) -> None:
    """So the card says which model it is, and at which commit."""
    place = tmp_path / "models--org--net" / "snapshots" / ("0a" * 20)

    done = run("random-structured", model(place, card=None), *PRUNE, "-o", tmp_path / "half")

    assert done.code == 0, done.err
    card = (tmp_path / "half" / "README.md").read_text()
    assert front_matter(card) == {"base_model": "org/net", "tags": ["pruned", "prune-cli"]}
    assert f"Made from `org/net` at commit `{'0a' * 20}`" in card
    assert f"prune-cli random-structured hf://org/net@{'0a' * 20} --amount" in card


@pytest.mark.parametrize(
    ("card", "options", "expected"),
    [
        (None, [], None),
        (None, ["--card"], True),
        ("# Without front matter\n", [], False),
        ("# Without front matter\n", ["--card"], True),
        (BASE, ["--no-card"], False),
        (BASE, [], True),
    ],
    ids=["none", "asked for", "no card", "no card, asked for", "not wanted", "there"],
)
def test_when_there_is_a_card(
    run: Run, tmp_path: Path, card: str | None, options: Sequence[str], expected: bool | None
) -> None:
    """Where the base has one, or where it is asked for; else what is there is copied as it is."""
    folder = model(tmp_path / "net", card)

    done = run("random-structured", folder, *PRUNE, "-o", tmp_path / "half", *options)

    assert done.code == 0, done.err
    made = tmp_path / "half" / "README.md"
    assert made.exists() == (expected is not None)
    if expected is False:
        assert made.read_text() == card
    elif expected:
        assert is_card(made)
        assert (card or "").rpartition("---\n")[2].strip() in made.read_text()


def test_pruned_twice_it_tells_of_both(run: Run, tmp_path: Path) -> None:
    """The second run's section comes first; the first's is part of the base's card then."""
    run("random-structured", model(tmp_path / "net"), *PRUNE, "-o", tmp_path / "half")

    done = run("random-structured", tmp_path / "half", *PRUNE, "-o", tmp_path / "quarter")

    assert done.code == 0, done.err
    card = (tmp_path / "quarter" / "README.md").read_text()
    assert card.index("Made from `half`") < card.index("Made from `net`")
    assert card.count("<!-- prune-cli: end -->") == 1
    assert run("verify", tmp_path / "quarter", tmp_path / "half").code == 0


def test_removed_masks_are_told_as_such(tmp_path: Path) -> None:
    """There is no seed, and nothing that this run chose."""
    folder = model(tmp_path / "net")
    build.safetensors(folder / "model.safetensors", build.masked(build.tensors(), {"fc.weight": 3}))

    remove_masks(folder, tmp_path / "out")

    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Masks made permanent" in card
    assert "the masks of 1 tensor made permanent." in card
    assert "Seed" not in card


def test_a_file_has_no_card(tmp_path: Path) -> None:
    """It would stand among files of others."""
    build.safetensors(tmp_path / "net.safetensors", build.tensors())

    with pytest.raises(UsageError, match=r"a model card \(card=True\) goes into a folder"):
        prune_checkpoint(
            tmp_path / "net.safetensors", tmp_path / "o.safetensors", amount=1, dim=0, card=True
        )


def test_names_are_no_markup(run: Run, tmp_path: Path) -> None:
    """What the folders are called is neither HTML nor a link."""
    folder = model(tmp_path / "a`](x)<b>", card=BASE)

    done = run("random-structured", folder, *PRUNE, "-o", tmp_path / "<i>[o](x)")

    assert done.code == 0, done.err
    card = (tmp_path / "<i>[o](x)" / "README.md").read_text()
    text = card.partition("```sh")[0]
    assert "<b>" not in text
    assert "<i>" not in text
    assert "](x)" not in text


def test_what_is_called_like_a_card_and_is_none_is_copied(run: Run, tmp_path: Path) -> None:
    """Bytes that are no text, or too many for a card."""
    for number, content in enumerate((b"---\na: b\n---\n\xff", BASE.encode() + bytes(2 << 20))):
        folder = model(tmp_path / f"net{number}", card=None)
        (folder / "README.md").write_bytes(content)

        done = run("random-structured", folder, *PRUNE, "-o", tmp_path / f"out{number}")

        assert done.code == 0, done.err
        assert (tmp_path / f"out{number}" / "README.md").read_bytes() == content
