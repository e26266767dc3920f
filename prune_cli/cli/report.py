"""`prune-cli report`: what reports say, one or several side by side."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.cli.completion import complete_report
from prune_cli.cli.finished import Forms, report_sweeps
from prune_cli.cli.grouped import grouped
from prune_cli.cli.locations import Location, locate
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.report.report import Report

Reports = Annotated[
    list[Location],
    typer.Argument(
        parser=locate,
        metavar="REPORTS",
        help="Reports of prune-cli, or pruned files and folders that have one, - for stdin, or "
        "folders of sweeps.",
        show_default=False,
        autocompletion=complete_report,
    ),
]


@dataclass(frozen=True)
class Page:
    """A page to look at."""

    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with a picture of the channels of each tensor, or - for stdout.",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option(
            "--force", "-f", help="Replace an existing page.", rich_help_panel=groups.SHOWN
        ),
    ] = False


@grouped
def report(
    reports: Reports,
    page: Page,
    forms: Forms,
    shown: groups.ShownInRows,
    messages: groups.Messages,
) -> None:
    """Show what a report says; compare several: amounts, seeds, and the channels they share.

    Folders of finished sweeps are shown and compared as well.

    Examples:
        prune-cli report model.pruned.report.json
        prune-cli report seed0.report.json seed1.report.json --html page.html
        prune-cli report runs/*.report.json --json
    """
    form = shown.rendering()
    if _are_sweeps(reports, forms):
        report_sweeps(
            [folder for folder in reports if isinstance(folder, Path)],
            forms.including(form),
            as_json=shown.as_json or form == "json",
            html=page.html,
            force=page.force,
            quiet=messages.quiet,
        )
        return
    _report(reports, page, shown, messages)


def _are_sweeps(paths: list[Location], forms: Forms) -> bool:
    found = [isinstance(path, Path) and (path / "sweep.json").is_file() for path in paths]
    if any(found) and not all(found):
        raise UsageError("sweeps and reports of single runs cannot be compared with each other")
    if forms.is_asked() and not any(found):
        raise UsageError("--csv, --markdown, --latex, --plot and --compare are for sweeps")
    return any(found)


def _report(
    reports: list[Location], page: Page, shown: groups.ShownInRows, messages: groups.Messages
) -> None:
    from prune_cli.report.comparison import compare_reports, comparison_to_json
    from prune_cli.report.finding import read_reports
    from prune_cli.report.groups import show_groups_as_tensors
    from prune_cli.report.rows import list_runs
    from prune_cli.report.tensors import list_tensors
    from prune_cli.show import console
    from prune_cli.show.comparison import print_comparison, print_report
    from prune_cli.show.listing import print_rows
    from prune_cli.write.checks import check_can_write
    from prune_cli.write.paths import STDOUT

    form = shown.rendering()
    if (shown.as_json or form) and page.html == STDOUT:
        raise UsageError(f"--{'format' if form else 'json'} and --html cannot both go to stdout")
    if page.html:
        check_can_write([page.html], reports, force=page.force)
    began = time.perf_counter()
    found = read_reports(reports)
    if messages.verbose:
        messages.tell(f"read {', '.join(map(str, reports))}", since=began)
    rows = {name: show_groups_as_tensors(each) for name, each in found.items()}
    if page.html:
        _write_page(page.html, found)
    if shown.as_json:
        console.write_stdout(comparison_to_json(compare_reports(rows)))
    elif form:
        one = len(found) == 1
        print_rows(
            list_tensors(next(iter(rows.values())).tensors)
            if one
            else list_runs(compare_reports(rows)),
            form,
        )
    elif page.html != STDOUT and not messages.quiet:
        if len(found) > 1:
            print_comparison(compare_reports(rows))
        else:
            print_report(*found.values())
    if not messages.quiet:
        console.show_written([page.html])


def _write_page(path: Path, reports: "Mapping[str, Report]") -> None:
    from prune_cli.show.page import render_page
    from prune_cli.write.atomic import write_file

    with signals.Orderly():
        write_file(path, render_page(reports).encode())
