"""What a run of random-structured should make its user think twice about; nothing is refused."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prune_cli.report.numbers import format_shape, list_some

if TYPE_CHECKING:
    from prune_cli.plan.facts import PlanItem

_LAST_LAYERS = {"fc", "head", "heads", "classifier", "lm_head", "score", "logits", "output"}
"""What libraries call the layer whose channels are classes or tokens."""

_WRAPPERS = {"module", "model", "state_dict", "_orig_mod", "base_model"}


def list_notes(items: Iterable["PlanItem"], *, is_dim_given: bool) -> Iterator[str]:
    """Yield a note on kernels pruned along their width, and one on outputs that are classes."""
    pruned = [item for item in items if item.pruned]
    widths = [item for item in pruned if len(item.shape) > 2 and _is_last_dim(item)]
    if widths and not is_dim_given:
        first = widths[0]
        yield (
            f"dim -1 of {list_some([item.name for item in widths])} is the width of a kernel "
            f"({format_shape(first.shape)}); --dim 0 prunes output channels"
        )
    for item in pruned:
        if item.dim % max(len(item.shape), 1) == 0 and _is_last_layer(item):
            module = item.name.rpartition(".")[0]
            yield (
                f"the channels of {item.name} are what the model tells apart (classes, tokens); "
                f"--exclude {module} leaves them alone"
            )


def _is_last_dim(item: "PlanItem") -> bool:
    return item.dim in (-1, len(item.shape) - 1)


def _is_last_layer(item: "PlanItem") -> bool:
    """Return whether the name says so: one of the usual ones at the top of the model."""
    parts = [part for part in item.name.split(".")[:-1] if part not in _WRAPPERS]
    return len(parts) == 1 and parts[0] in _LAST_LAYERS
