"""Which trials a sweep has."""

import pytest

from prune_cli.errors import UsageError
from prune_cli.sweep.grid import (
    UNPRUNED,
    Grid,
    Point,
    Trial,
    parse_amounts,
    parse_names,
    parse_seeds,
)


def test_the_grid_is_the_product_of_its_lists_and_the_unpruned_checkpoint() -> None:
    """5 amounts, 5 seeds, 2 allocations: 50 trials, and the one that nothing is pruned in."""
    grid = Grid((0.1, 0.2, 0.3, 0.4, 0.5), (0, 1, 2, 3, 4), ("uniform", "erk"))

    trials = grid.trials

    assert len(trials) == len({trial.name for trial in trials}) == 51
    assert trials[0] == UNPRUNED
    assert [trial.seed for trial in trials[1:]] == [seed for seed in range(5) for _ in range(10)]


def test_an_amount_of_zero_is_the_unpruned_trial() -> None:
    """It is not drawn once more for each seed."""
    grid = Grid((0, 0.0, 0.5), (0, 1))

    assert [trial.name for trial in grid.trials] == ["unpruned", "a0.5-s0", "a0.5-s1"]


def test_targets_take_the_place_of_amounts() -> None:
    """Their points have no amount."""
    grid = Grid((), (0,), ("random",), targets=("flops=0.5",))

    (point,) = grid.points

    assert (point.amount, point.how_much) == (None, "flops=0.5")
    assert Trial(point, 4).name == "aflops=0.5-random-s4"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("5", (0, 1, 2, 3, 4)), ("3,7", (3, 7)), ("7,", (7,)), (" 1 ", (0,)), ("-1,2", (-1, 2))],
)
def test_seeds_are_a_number_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    """One number counts from 0."""
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "a", "1,,2", "1,1", ","])
def test_other_seeds_are_refused(text: str) -> None:
    """So is one that is given twice."""
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_amounts_are_spelt_as_for_one_run() -> None:
    """Fractions, percentages, numbers of channels."""
    assert parse_amounts("0.1, 25% ,3") == (0.1, 0.25, 3)
    assert [type(amount) for amount in parse_amounts("1,1.0")] == [int, float]


@pytest.mark.parametrize("text", ["", "0.1,", "0.25,25%", "2.5", "x"])
def test_other_amounts_are_refused(text: str) -> None:
    """So is one that is given twice in other words."""
    with pytest.raises(UsageError):
        parse_amounts(text)


def test_names_are_given_once() -> None:
    """The message names what is repeated."""
    assert parse_names("allocation", "uniform, erk") == ("uniform", "erk")
    with pytest.raises(UsageError, match="allocation 'erk' is given twice"):
        parse_names("allocation", "erk,erk")


@pytest.mark.parametrize("module", ["../../etc", "a/b", "a\0b", "x" * 300, ".", "\udc80"])
def test_a_module_of_a_hostile_checkpoint_names_a_plain_folder(module: str) -> None:
    """Nothing that is read from a file leads out of the sweep's folder."""
    name = Trial(Point(0.5, module=module), 0).name

    assert "/" not in name
    assert "\0" not in name
    assert name not in {".", ".."}
    assert len(name.encode()) <= 80


def test_modules_that_look_alike_have_folders_of_their_own() -> None:
    """What a file name cannot hold is told apart by a digest."""
    names = {Trial(Point(0.5, module=module), 0).name for module in ("a/b", "a_b", "a?b")}

    assert len(names) == 3
