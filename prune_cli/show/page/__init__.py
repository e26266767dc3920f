"""Reports as one self-contained HTML page: what went of each layer, and a picture of its channels.

Text in, text out: no file is written here (cli), and nothing is compared (report/comparison.py).
The page needs no other file, is readable without its script, and is never over 5 MB.

Reading order: `one` and `several` (what stands on the page), `sections`, `bars`, `pictures`,
`command`;
`templates` fills in the HTML, which escapes every name.
"""

from collections.abc import Mapping

from prune_cli.report.report import Report
from prune_cli.show.page.sections import MAX_TENSORS

__all__ = ["MAX_TENSORS", "render_page"]


def render_page(reports: Mapping[str, Report]) -> str:
    """Return the page of `reports` by name: of one, or of several compared.

    Example:
        >>> html = render_page({"model.report.json": read_report(path)})
        >>> html.startswith("<!DOCTYPE html>")
        True
    """
    from prune_cli.show.page.one import view_report
    from prune_cli.show.page.several import view_reports
    from prune_cli.show.page.templates import fill_in

    if len(reports) == 1:
        (report,) = reports.values()
        return fill_in("one.html", view_report(report))
    return fill_in("several.html", view_reports(reports))
