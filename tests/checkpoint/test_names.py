"""The order in which names are shown."""

from prune_cli.checkpoint.names import natural_key


def test_numbers_in_names_sort_as_numbers() -> None:
    """Layer 2 comes before layer 10."""
    names = ["l.10.w", "l.2.w", "l.a", "k"]

    assert sorted(names, key=natural_key) == ["k", "l.2.w", "l.10.w", "l.a"]
