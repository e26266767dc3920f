"""The tour of the code stands in one place; everything else that gives an order follows it."""

import re
import tomllib
from pathlib import Path

import prune_cli

ROOT = Path(__file__).parents[1]
VERBS = [
    "REACH",
    "READ",
    "DECIDE",
    "WRITE",
    "TELL",
    "PROVE",
    "LOOK",
    "REPEAT",
    "REMOVE",
    "SHOW",
    "CLI",
]


def read_tour() -> list[str]:
    """Return the rooms that `help(prune_cli)` names, in its order: "plan/", "api.py"."""
    tour = (prune_cli.__doc__ or "").partition("The tour")[2]
    return re.findall(r"^    (\w+(?:\.py|/)) ", tour, re.MULTILINE)


def test_the_tour_has_every_room_and_nothing_else() -> None:
    """What is in the package's folder and what the tour names are the same."""
    package = ROOT / "prune_cli"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}

    assert sorted(read_tour()) == sorted(files | folders)


def test_the_tour_goes_up_the_layers_of_the_import_contract() -> None:
    """From its bottom to its top, siblings in any order."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    floors = {
        room: floor
        for floor, layer in enumerate(reversed(layers))
        for room in re.split(r" *[|:] *", layer)
    }
    tour = [room.removesuffix("/").removesuffix(".py") for room in read_tour()]

    assert set(tour) == set(floors)
    assert [floors[room] for room in tour] == sorted(floors.values())


def test_the_architecture_page_follows_the_tour() -> None:
    """docs/architecture.md has a row for each room, in the tour's order."""
    text = (ROOT / "docs" / "architecture.md").read_text()

    assert re.findall(r"^\| `(\w+(?:\.py|/))` ", text, re.MULTILINE) == read_tour()


def test_the_verbs_are_told_in_their_order() -> None:
    """The tour and the architecture page give each folder its verb."""
    for text in (prune_cli.__doc__ or "", (ROOT / "docs" / "architecture.md").read_text()):
        assert re.findall(rf"\b({'|'.join(VERBS)}):", text) == VERBS


def test_help_opens_with_what_a_user_needs() -> None:
    """Every public function stands in the first part, before the tour."""
    opening = (prune_cli.__doc__ or "").partition("The tour")[0]
    functions = {name for name in prune_cli.__all__ if name.islower()}

    assert functions - {"make_plan", "open_checkpoint"} <= set(re.findall(r"\w+", opening))
