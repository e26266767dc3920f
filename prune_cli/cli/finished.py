"""`prune-cli report SWEEP ...`: finished sweeps, shown, compared, and in forms for a paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune_cli.cli import groups, signals
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.report.formats import Format
    from prune_cli.show.figure import Drawn
    from prune_cli.sweep.comparison import Finished
    from prune_cli.sweep.series import Series


@dataclass(frozen=True)
class Forms:
    """Forms of the results of a sweep."""

    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Of sweeps: a row for each trial.", rich_help_panel=groups.SHOWN
        ),
    ] = False
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Of sweeps: the summary.", rich_help_panel=groups.SHOWN),
    ] = False
    as_latex: Annotated[
        bool,
        typer.Option(
            "--latex", help="Of sweeps: a table (booktabs).", rich_help_panel=groups.SHOWN
        ),
    ] = False
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Of sweeps: the figure, as .pdf, .svg or .png (needs matplotlib).",
            rich_help_panel=groups.SHOWN,
        ),
    ] = None
    compare: Annotated[
        list[Path],
        typer.Option(
            "--compare",
            metavar="CSV",
            help="Of sweeps: draw another method beside it: columns amount, metric (and label).",
            rich_help_panel=groups.SHOWN,
        ),
    ] = field(default_factory=list)

    def is_asked(self) -> bool:
        """Return whether any of them is asked for."""
        return self != Forms()

    def including(self, form: "Format | None") -> "Forms":
        """Return these forms and that of --format, which is another name for them."""
        return replace(
            self,
            as_csv=self.as_csv or form == "csv",
            as_markdown=self.as_markdown or form == "markdown",
            as_latex=self.as_latex or form == "latex",
        )


def report_sweeps(
    folders: Sequence[Path],
    forms: Forms,
    *,
    as_json: bool,
    html: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Show finished sweeps, in one form on stdout; a page and a figure go to files.

    Raises:
        UsageError: several forms are asked for.
        InputError: a folder is not of a sweep.
    """
    from prune_cli.show import console
    from prune_cli.show.trials import print_sweeps
    from prune_cli.sweep.series import read_series
    from prune_cli.write.checks import check_can_write
    from prune_cli.write.paths import STDOUT

    form = _form(forms, as_json=as_json, html=html)
    _check(forms)
    check_can_write([*filter(None, [html, forms.plot])], folders, force=force)
    sweeps = _read(folders)
    others = [each for path in forms.compare for each in read_series(path, None)]
    with signals.Orderly():
        _write(html, forms.plot, [*map(_drawn, sweeps)], others)
    if form:
        console.write_stdout(form(sweeps))
    elif html != STDOUT and not quiet:
        print_sweeps(sweeps)
    if not quiet:
        console.show_written([html, forms.plot])


def _check(forms: Forms) -> None:
    if forms.plot:
        from prune_cli.show.figure import check_format

        check_format(forms.plot)


def _form(
    forms: Forms, *, as_json: bool, html: Path | None
) -> "Callable[[Sequence[Finished]], str] | None":
    from prune_cli.sweep import forms as written
    from prune_cli.write.paths import STDOUT

    asked = {
        "--json": (as_json, written.to_json),
        "--csv": (forms.as_csv, written.to_csv),
        "--markdown": (forms.as_markdown, written.to_markdown),
        "--latex": (forms.as_latex, written.to_latex),
        "--html -": (html == STDOUT, None),
    }
    chosen = [option for option, (is_asked, _) in asked.items() if is_asked]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} cannot both go to stdout")
    return asked[chosen[0]][1] if chosen else None


def _read(folders: Sequence[Path]) -> "list[Finished]":
    from prune_cli.sweep.folder import read_sweep
    from prune_cli.sweep.forms import finish

    names = _names(folders)
    return [finish(name, *read_sweep(folder)) for name, folder in zip(names, folders, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or their paths where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]


def _drawn(sweep: "Finished") -> "Drawn":
    from prune_cli.show.figure import Drawn

    return Drawn(sweep.summary, sweep.records, sweep.name)


def _write(
    html: Path | None, plot: Path | None, drawn: "Sequence[Drawn]", others: "Sequence[Series]"
) -> None:
    from prune_cli.show.figure import draw_file
    from prune_cli.show.page.trials import render_sweeps
    from prune_cli.write.atomic import write_file

    if len(drawn) == 1:
        drawn = [replace(each, name="") for each in drawn]
    if html:
        write_file(html, render_sweeps(drawn, others).encode("utf-8", "replace"))
    if plot:
        kind = plot.suffix.removeprefix(".").lower()
        write_file(plot, draw_file(drawn, others, kind))
