"""The order in which names are shown."""

from prune_cli.checkpoint.names import natural_key, network_key


def test_numbers_in_names_sort_as_numbers() -> None:
    """Layer 2 comes before layer 10."""
    names = ["l.10.w", "l.2.w", "l.a", "k"]

    assert sorted(names, key=natural_key) == ["k", "l.2.w", "l.10.w", "l.a"]


def test_names_are_compared_part_by_part() -> None:
    """`head` comes before `head2`, whatever follows."""
    names = ["head.weight", "head2.weight", "head10.weight", "heads.0.weight"]

    shuffled = [names[n] for n in (2, 0, 3, 1)]
    assert sorted(shuffled, key=natural_key) == names


def test_names_that_differ_in_leading_zeros_have_an_order() -> None:
    """Whatever order they come in."""
    assert sorted(["l.1", "l.01"], key=natural_key) == sorted(["l.01", "l.1"], key=natural_key)


def test_numbers_of_thousands_of_digits_are_sorted() -> None:
    """A hostile name is no reason to end."""
    names = [f"l.{'9' * 5000}", "l.3"]

    assert sorted(names, key=natural_key) == ["l.3", names[0]]


def test_stem_comes_before_the_body_and_head_after_it() -> None:
    """Where names tell it; what is inside of a block stays where it is."""
    names = [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.10.fc.weight",
        "model.layers.2.fc.weight",
        "model.embed_tokens.weight",
    ]

    assert sorted(names, key=network_key) == list(reversed(names))
    assert network_key("head.weight") > network_key("layer4.weight") > network_key("conv1.weight")
    assert network_key("weight")[0] == network_key("model.weight")[0] == 1
