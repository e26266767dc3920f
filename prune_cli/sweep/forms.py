"""Finished sweeps, one or several, in the forms that `prune-cli report` writes.

See also: `tables`, one sweep; `comparison`, what several have in common.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace

from prune_cli.sweep import summary as summaries
from prune_cli.sweep import tables
from prune_cli.sweep.assertions import judge, parse_assertion
from prune_cli.sweep.comparison import Finished, Row, compare_sweeps, name_point, tell_apart
from prune_cli.sweep.record import Record
from prune_cli.sweep.settings import Settings
from prune_cli.sweep.statistics import Spread


def finish(name: str, settings: Settings, records: Sequence[Record]) -> Finished:
    """Return a sweep that was read, summed up anew, with its assertions."""
    summary = summaries.summarize(settings, records)
    found = summaries.results_of(summary, records)
    verdicts = tuple(judge(parse_assertion(text), found) for text in settings.assertions)
    return Finished(name, replace(summary, assertions=verdicts), records)


def to_csv(sweeps: Sequence[Finished]) -> str:
    """Return a row for each trial; of several sweeps, the first column says which."""
    if len(sweeps) == 1:
        return tables.to_csv(sweeps[0].records)
    parts = [[*csv.DictReader(io.StringIO(tables.to_csv(each.records)))] for each in sweeps]
    columns = dict.fromkeys(name for rows in parts for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["sweep", *columns], lineterminator="\n")
    writer.writeheader()
    for sweep, rows in zip(sweeps, parts, strict=True):
        writer.writerows({"sweep": sweep.name, **row} for row in rows)
    return text.getvalue()


def to_markdown(sweeps: Sequence[Finished]) -> str:
    """Return the summaries, after a table of several beside each other."""
    texts = [tables.to_markdown(each.summary) for each in sweeps]
    if len(sweeps) == 1:
        return texts[0]
    lines = ["# Sweeps compared", "", *tables.markdown_table(to_table(sweeps)), ""]
    lines += [f"- {tables.one_line(sentence)}" for sentence in tell_apart(sweeps)]
    return "\n".join(lines) + "\n\n" + "\n".join(texts)


def to_latex(sweeps: Sequence[Finished]) -> str:
    """Return a table for a paper: of one sweep its points, of several the means side by side."""
    if len(sweeps) == 1:
        return tables.to_latex(sweeps[0].summary)
    return tables.latex_table(to_table(sweeps))


def to_json(sweeps: Sequence[Finished]) -> str:
    """Return the summary of one sweep, or of several by their names, and how they compare."""
    texts = {each.name: json.loads(summaries.to_json(each.summary)) for each in sweeps}
    if len(sweeps) == 1:
        return summaries.to_json(sweeps[0].summary)
    facts = {"schema": 1, "sweeps": texts, "comparison": [*tell_apart(sweeps)]}
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def to_table(sweeps: Sequence[Finished]) -> list[list[str]]:
    """Return means and half-widths of several sweeps side by side as texts, the head first."""
    head = ["", *(sweep.name for sweep in sweeps)]
    return [head, *(_cells(row) for row in compare_sweeps(sweeps))]


def _cells(row: Row) -> list[str]:
    return [name_point(row.point), *map(_cell, row.spreads)]


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    width = f" ± {spread.interval.half_width:.2g}" if spread.interval else ""
    return f"{tables.number(spread.mean)}{width} (n={spread.n})"
