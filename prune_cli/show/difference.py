"""What two checkpoints do not have in common, on stdout."""

from prune_cli.inspection.diff import Difference, list_differences
from prune_cli.report.formats import Format
from prune_cli.report.numbers import format_count
from prune_cli.show.listing import print_rows


def print_difference(difference: Difference, style: Format = Format.TABLE) -> None:
    """Print a row for each tensor that is not the same, and below the table the counts."""
    print_rows(list_differences(difference), style, footer=_sum_up(difference))


def _sum_up(difference: Difference) -> str:
    same = f"{format_count(difference.same, 'tensor')} the same, bit for bit"
    if difference.is_none:
        return same
    missing = len(difference.only_first) + len(difference.only_second)
    alone = f"{missing:,} in one checkpoint only; " if missing else ""
    differ = format_count(len(difference.tensors), "tensor")
    return f"[bold]{differ} not the same[/]; {alone}{same}"
