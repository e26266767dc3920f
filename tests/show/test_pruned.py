"""The table of a run, its totals, and what was left out."""

import io
from dataclasses import replace

from rich.console import Console

from prune_cli.checkpoint import Dropped
from prune_cli.plan.facts import Skipped
from prune_cli.report.report import Report
from prune_cli.show.pruned import Row, collapse, print_pruned
from tests.report.test_comparison import item, report


def printed(content: Report) -> list[str]:
    """The lines that a run shows, their columns a space apart."""
    console = Console(file=io.StringIO(), width=1000)
    print_pruned(content, console)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_collapse_joins_what_differs_in_numbers_only() -> None:
    """Beyond the limit, rows of one shape and dim whose names differ in a number become one."""
    rows = [Row(f"layers.{n}.fc.weight", (4, 2), 0, 4, 1, 0) for n in range(3)]
    rows.append(Row("head.weight", (4, 2), 0, 4, 2, 1))

    shown = collapse(rows, limit=2)

    assert shown == [
        Row("layers.*.fc.weight", (4, 2), 0, 12, 3, 0, tensors=3),
        Row("head.weight", (4, 2), 0, 4, 2, 1, tensors=1),
    ]
    assert collapse(rows, limit=4) == rows


def test_tensors_are_in_the_order_of_their_numbers() -> None:
    """Layer 2 stands before layer 10, as in inspect."""
    lines = printed(report(item("l.10.w", (1,)), item("l.2.w", (1,))))

    assert [line.split()[0] for line in lines[1:3]] == ["l.2.w", "l.10.w"]


def test_thousands_have_commas() -> None:
    """In every column."""
    lines = printed(
        report(item("w", tuple(range(1500)), channels=4000, before=tuple(range(2000, 3500))))
    )

    assert lines[1].startswith("w 4000x3 0 1,500 1,500/4,000")


def test_what_was_skipped_is_told_by_its_reason() -> None:
    """No name stands beside a reason that is another's; the most frequent comes first."""
    skipped = [
        Skipped("n.10.b", "1-D"),
        Skipped("s", "a scale"),
        Skipped("n.2.b", "1-D"),
        Skipped("p", "packed"),
        Skipped("q", "quantised"),
    ]

    lines = printed(replace(report(item("w", (1,))), skipped=tuple(skipped)))

    assert [line for line in lines if "skipped" in line] == [
        "skipped n.2.b, n.10.b: 1-D",
        "skipped p: packed",
        "skipped q: quantised",
        "skipped 1 more, for other reasons; the report has them",
    ]


def test_what_was_dropped_is_told_with_its_reason() -> None:
    """It is not in the output, so it is named."""
    lines = printed(
        replace(report(item("w", (1,))), dropped=(Dropped("epoch", "not a tensor: an int"),))
    )

    assert "dropped epoch: not a tensor: an int" in lines
