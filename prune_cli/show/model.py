"""What inspect found out from a model's code, on stdout: its size, and which channels go together.

See also: tree.py, what the checkpoint alone tells.
"""

from collections.abc import Iterator

from prune_cli.inspection.facts import ModelFacts
from prune_cli.inspection.listing import list_groups
from prune_cli.report.numbers import format_count, list_some
from prune_cli.show.console import escape, say, stdout_page
from prune_cli.show.tables import tabulate


def print_model(model: ModelFacts) -> None:
    """Print the groups of a model, its parameters and FLOPs, and what cannot lose channels."""
    with stdout_page() as page:
        if model.groups:
            page.print(tabulate(list_groups(model)))
            page.print()
        for line in _lines(model):
            say(line, page)


def _lines(model: ModelFacts) -> Iterator[str]:
    yield f"[bold]{format_count(model.parameters, 'parameter')}[/]"
    yield f"[bold]{model.flops:,} FLOPs[/] of one forward pass"
    channels = sum(group.channels for group in model.groups)
    yield f"{format_count(channels, 'channel')} in {format_count(len(model.groups), 'group')} can go"
    reasons: dict[str, list[str]] = {}
    for whole in model.whole:
        reasons.setdefault(whole.reason, []).append(whole.root)
    for reason, roots in reasons.items():
        yield f"left whole {escape(list_some(roots))}: {escape(reason)}"
