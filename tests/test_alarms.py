"""No alarm over right outputs; more of them by `python -m tests.alarms`."""

from tests.alarms import find_alarms


def test_right_outputs_are_verified() -> None:
    """Thirty random checkpoints, pruned, replayed or baked, with and without the source."""
    assert list(find_alarms(30, seed=0)) == []
