"""Rows as text, held against the readers of other programs."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.report.comparison import compare_reports
from prune_cli.report.formats import Column, Format, Kind, Rows, render_rows
from prune_cli.report.rows import list_groups, list_runs
from prune_cli.report.tensors import list_tensors
from tests.report.test_comparison import item, report

COLUMNS = (Column("name", Kind.TEXT), Column("elements"), Column("zero_part", Kind.PART))
ROWS = Rows(COLUMNS, (("fc.weight", 2_359_296, 0.25), ("conv_1|x", 64, None)))

GOLDEN = {
    Format.TABLE: (
        "name        elements  zero part\n"
        "fc.weight  2,359,296      25.0%\n"
        "conv_1|x          64          -\n"
    ),
    Format.JSON: (
        "{\n"
        '  "schema": 1,\n'
        '  "rows": [\n'
        '    {"name": "fc.weight", "elements": 2359296, "zero_part": 0.25},\n'
        '    {"name": "conv_1|x", "elements": 64, "zero_part": null}\n'
        "  ]\n"
        "}\n"
    ),
    Format.CSV: "name,elements,zero_part\nfc.weight,2359296,0.25\nconv_1|x,64,\n",
    Format.MARKDOWN: (
        "| name | elements | zero part |\n"
        "| --- | ---: | ---: |\n"
        "| fc.weight | 2,359,296 | 25.0% |\n"
        "| conv\\_1\\|x | 64 | - |\n"
    ),
    Format.LATEX: (
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "name & elements & zero part \\\\\n"
        "\\midrule\n"
        "fc.weight & 2,359,296 & 25.0\\% \\\\\n"
        "conv\\_1|x & 64 & - \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    ),
}


@pytest.mark.parametrize("style", Format, ids=str)
def test_text_is_golden(style: Format) -> None:
    """Every format, byte for byte."""
    assert render_rows(ROWS, style) == GOLDEN[style]


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.integers(), st.floats())))
def test_values_come_back(rows: list[tuple[str, int, float]]) -> None:
    """CSV and JSON lose nothing, whatever is in a name; JSON has no NaN and no infinity."""
    given_rows = Rows(COLUMNS, tuple(rows))

    read = list(csv.reader(io.StringIO(render_rows(given_rows, Format.CSV), newline="")))
    found = json.loads(render_rows(given_rows, Format.JSON), parse_constant=pytest.fail)["rows"]

    assert [(row[0], int(row[1]), repr(float(row[2]))) for row in read[1:]] == [
        (name, number, repr(part)) for name, number, part in rows
    ]
    assert [(row["name"], row["elements"]) for row in found] == [row[:2] for row in rows]


@given(st.text(st.characters(codec="utf-8")), st.sampled_from([Format.MARKDOWN, Format.TABLE]))
def test_a_name_is_one_line_and_cannot_act(name: str, style: Format) -> None:
    """No name adds a line or a control character."""
    text = render_rows(Rows((Column("name", Kind.TEXT), Column("n")), ((name, 1),)), style)

    assert len(text.split("\n")) == (4 if style is Format.MARKDOWN else 3)
    assert all(c.isprintable() or c == "\n" for c in text)


def test_no_rows_are_a_heading() -> None:
    """Nothing to show is still a table."""
    assert render_rows(Rows(COLUMNS, ()), Format.TABLE) == "name  elements  zero part\n"


def test_tensors_of_a_report_are_rows() -> None:
    """In natural order, with what went of each."""
    rows = list_tensors(report(item("l.10.w", (1,)), item("l.2.w", (0, 1), before=(7,))).tensors)

    assert render_rows(rows, Format.CSV) == (
        "name,dtype,shape,dim,channels,already_pruned,pruned,pruned_part\n"
        "l.2.w,F32,8x3,0,8,1,2,0.25\n"
        "l.10.w,F32,8x3,0,8,0,1,0.125\n"
    )


def test_runs_and_groups_are_rows() -> None:
    """A row for each report, and one for each amount and dim."""
    reports = {"a": report(item("w", (0, 1))), "b": report(item("w", (1, 2)), seed=1)}
    comparison = compare_reports({**reports, "c": report(item("w", (1,)), amount=None)})

    runs = render_rows(list_runs(comparison), Format.CSV).splitlines()
    groups = render_rows(list_groups(comparison), Format.TABLE).splitlines()

    assert runs[1] == "a,model.pt,0.25,0,0,1,8,2,0.25"
    assert groups[1].split() == ["0.25", "0", "2", "1", "33.3%", "-", "14.3%"]
    assert groups[2].split() == ["-", "0", "1", "0", "-", "-", "-"]
