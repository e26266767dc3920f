"""`prune-cli diff`: what two checkpoints do not have in common."""

from typing import Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.grouped import grouped
from prune_cli.cli.locations import Location, locate_checkpoint
from prune_cli.errors import VerificationError

First = Annotated[
    Location,
    typer.Argument(
        parser=locate_checkpoint,
        metavar="A",
        help="A checkpoint: a file or a folder of any format.",
    ),
]
Second = Annotated[
    Location,
    typer.Argument(
        parser=locate_checkpoint, metavar="B", help="Another, of the same format or of another one."
    ),
]


@grouped
def diff(
    first: First,
    second: Second,
    shown: groups.ShownInRows,
    messages: groups.Messages,
    loading: groups.Loading,
) -> None:
    """Compare two checkpoints, whoever made them: names, dtypes, shapes, channels, values.

    It exits with 5 if they are not the same.

    Examples:
        prune-cli diff model.pt model.pruned.safetensors
        prune-cli diff base/ finetuned/ --format csv
        prune-cli diff model.pt copy.pt --quiet --state-dict-key model
    """
    from prune_cli.cli.opening import open_input
    from prune_cli.inspection.diff import diff as compare
    from prune_cli.inspection.diff import difference_to_json
    from prune_cli.report.formats import Format
    from prune_cli.show.console import write_stdout
    from prune_cli.show.difference import print_difference
    from prune_cli.show.progress import progress

    form = shown.rendering()
    one, other = (open_input(path, loading, messages) for path in (first, second))
    showing = progress(one.nbytes, quiet=messages.quiet, doing="comparing", before="reading")
    with signals.Orderly(), showing as on_tensor:
        found = compare(one, other, on_tensor)
    if shown.as_json:
        write_stdout(difference_to_json(found))
    elif form or not messages.quiet:
        print_difference(found, form or Format.TABLE)
    if not found.is_none:
        raise VerificationError(f"{first} and {second} are not the same")
