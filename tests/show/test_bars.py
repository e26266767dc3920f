"""What each layer had and lost, held against models whose channels really went."""

from dataclasses import replace

import pytest

from prune_cli.checkpoint.names import network_key
from prune_cli.show.page.bars import list_sizes, make_bars, sizes_of_tensors
from tests.report.test_comparison import item, report
from tests.shrink.builders import build, plan

MODELS = ["Plain", "Groups", "Concatenated", "Encoder", "Gated"]


@pytest.mark.parametrize("name", MODELS)
def test_elements_before_are_those_of_the_model(name: str) -> None:
    """The report has only the shapes that are left; flattened, grouped and joined axes too."""
    state = build(name).state_dict()
    made = plan(name)

    found = {tensor: (elements, gone) for tensor, elements, gone in sizes_of_tensors(made)}

    assert found.keys() == made.shapes.keys()
    for tensor, (elements, gone) in found.items():
        kept = made.kept[tensor]
        left = [len(kept.get(dim, range(size))) for dim, size in enumerate(state[tensor].shape)]
        assert elements == state[tensor].numel()
        assert elements - gone == state[tensor].new_empty(left).numel()


def test_layers_of_shrink_are_modules() -> None:
    """A weight, its bias and its norm's statistics are summed by module, in the order of names."""
    made = plan("Plain")
    content = replace(report(), method="shrink", shrink=made)

    names = [name for name, _, _ in list_sizes(content)]

    assert names == sorted({name.rpartition(".")[0] for name in made.shapes}, key=network_key)


def test_bars_are_as_long_as_their_part_of_the_largest() -> None:
    """And filled as far as elements went; nothing is no division."""
    sizes = list_sizes(
        report(item("a", (0, 1)), item("b", (), channels=16), item("c", (), channels=0))
    )

    bars = list(make_bars(sizes))

    assert [(bar.name, bar.length, bar.part) for bar in bars] == [
        ("a", 0.5, 0.25),
        ("b", 1.0, 0.0),
        ("c", 0.0, 0.0),
    ]
