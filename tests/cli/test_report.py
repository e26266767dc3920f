"""`prune-cli report`: one report as a table, several compared, JSON and the page."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prune_cli.plan.choice import Choice
from tests import build
from tests.conftest import Run
from tests.report.test_comparison import item, report, write
from tests.show.test_page import shrunk


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def words(text: str) -> list[str]:
    """The lines of a table, their columns a space apart."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_one_report_is_the_table_of_the_run(run: Run, tmp_path: Path) -> None:
    """What random-structured said on stderr, report says on stdout."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    pruned = run("random-structured", path, "-a", 2, "-d", 0)

    ran = run("report", tmp_path / "model.pruned.report.json")

    assert (ran.code, ran.err) == (0, "")
    assert "fc.weight 10x24 0 2/10 \u2501\u2501" in words(ran.out)
    assert set(words(ran.out)) <= set(words(pruned.err))


def test_long_reports_are_cut(run: Run, tmp_path: Path) -> None:
    """A report of many unlike tensors shows the first, and says so."""
    rows = tuple(item(f"w{chr(97 + n % 26)}{n}", (1,)) for n in range(50))
    path = write(tmp_path / "a.json", report(*rows))

    ran = run("report", path)

    assert "... and 10 more rows; the report has every tensor" in ran.out


def test_several_reports_are_compared(run: Run, tmp_path: Path) -> None:
    """Each run has a line; each tensor its counts, what is shared and a bar; each pair its sum."""
    first = write(tmp_path / "a.json", report(item("w", (0, 1)), item("v", (1,))))
    second = write(tmp_path / "b.json", report(item("w", (1, 2)), seed=1, amount=None))

    ran = run("report", first, second)

    assert (ran.code, ran.err) == (0, "")
    assert words(ran.out) == [
        "report amount dim seed tensors pruned sparsity",
        "1 a.json 0.25 0 0 2 3/16 18.8%",
        "2 b.json - 0 1 1 2/8 25.0%",
        "",
        "tensor channels 1 2 shared alike",
        "v 8 1 - - -",
        "w 8 2 2 1 33.3% \u2501\u2501\u2501",
        "",
        "1 and 2: 33.3% alike, 1 of 3 channels in 1 tensor; 14.3% by chance",
    ]


def test_runs_of_one_amount_are_summed_beside_chance(run: Run, tmp_path: Path) -> None:
    """A line for each amount and dim, and for each other way to choose channels, with its name."""
    rows = [report(item("w", pruned), seed=n) for n, pruned in enumerate(((0, 1), (1, 2), (2, 3)))]
    ranked = replace(rows[0].options, choice=Choice(criterion="l1"))
    rows.append(replace(rows[0], options=ranked))
    paths = [write(tmp_path / f"{n}.json", row) for n, row in enumerate(rows)]

    ran = run("report", *paths)

    lines = words(ran.out)
    at = lines.index("amount dim runs pairs each two alike by chance chosen")
    assert lines[at + 1 : at + 3] == [
        "0.25 0 3 3 22.2% \u00b1 19.2 14.3%",
        "0.25 0 1 - - - the smallest by l1",
    ]


def test_reports_with_nothing_in_common_say_so(run: Run, tmp_path: Path) -> None:
    """Channels of different numbers are not compared."""
    first = write(tmp_path / "a.json", report(item("w", (0,), channels=4)))
    second = write(tmp_path / "b.json", report(item("w", (0,))))

    ran = run("report", first, second)

    assert "w - 1 1 - -" in words(ran.out)
    assert "1 and 2: no tensor in common that could be compared" in words(ran.out)


def test_many_reports_fit_in_80_columns(run: Run, tmp_path: Path) -> None:
    """Beyond four runs the counts have no room; how alike each two are is told beside chance."""
    rows = tuple(item(f"w{chr(97 + n % 26)}{n}", (1,)) for n in range(50))
    paths = [write(tmp_path / f"{n}.json", report(*rows)) for n in range(6)]

    ran = run("report", *paths)

    assert max(map(len, ran.out.splitlines())) <= 80
    assert "tensor channels each two alike by chance" in words(ran.out)
    assert "wa0 8 100.0% \u00b1 0.0 6.7% \u2501\u2501\u2501" in "\n".join(words(ran.out))
    assert "... and 10 more tensors; --json and --html have every one" in ran.out
    assert ran.out.count(" alike, ") == 15


def test_reports_of_shrink_are_shown_too(run: Run, tmp_path: Path) -> None:
    """One as its own table, several by the groups that lost channels."""
    path = write(tmp_path / "a.json", shrunk((1, 4)))
    other = write(tmp_path / "b.json", shrunk((4, 5)))

    one, two = run("report", path), run("report", path, other)

    assert "conv.weight 0 8 6 25.0% 2 \u2501\u2501" in "\n".join(words(one.out))
    assert "parameters 1,000 -> 750 (-25.0%)" in one.out
    assert "conv.weight 8 2 2 1 33.3% \u2501\u2501\u2501" in words(two.out)


def test_json_is_all_of_stdout(run: Run, tmp_path: Path) -> None:
    """--json writes the comparison, of one report too."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))

    one, two = run("report", path, "--json"), run("report", path, path, "--json")

    assert one.err == two.err == ""
    assert json.loads(one.out)["pairs"] == []
    assert json.loads(two.out)["pairs"][0]["overlap"]["jaccard"] == 1.0


def test_html_is_written_beside_the_table(run: Run, tmp_path: Path) -> None:
    """The page goes to its file, the table to stdout, and where it is to stderr."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))
    page = tmp_path / "page.html"

    ran = run("report", path, "--html", page)

    assert ran.code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert re.search(r"wrote \S*page\.html", ran.text) and "w 8x3 0 2/8" in words(ran.out)[1]


def test_existing_page_needs_force(run: Run, tmp_path: Path) -> None:
    """What is there stays, unless --force replaces it."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))
    page = tmp_path / "page.html"
    page.write_text("mine")

    refused = run("report", path, "--html", page)
    kept = page.read_text()
    forced = run("report", path, "--html", page, "--force", "--quiet")

    assert (refused.code, kept) == (6, "mine")
    assert "page.html exists; --force replaces it" in refused.text
    assert (forced.code, forced.out, forced.err) == (0, "", "")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_report_is_never_replaced_by_its_page(run: Run, tmp_path: Path) -> None:
    """--html that names the report itself is refused, even by force."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))
    before = path.read_bytes()

    ran = run("report", path, "--html", path, "--force")

    assert (ran.code, path.read_bytes()) == (6, before)


def test_page_on_stdout_is_all_of_it(run: Run, tmp_path: Path) -> None:
    """`--html -` writes the page and no table."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))

    ran = run("report", path, "--html", "-")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("<!DOCTYPE html>") and ran.out.endswith("</html>\n")


def test_json_and_page_cannot_share_stdout(run: Run, tmp_path: Path) -> None:
    """One of them needs a file."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))

    ran = run("report", path, "--json", "--html", "-")

    assert (ran.code, ran.out) == (2, "")


def test_report_comes_through_a_pipe(tmp_path: Path) -> None:
    """A dry run's report on stdout is what `report -` reads from stdin."""
    path = build.safetensors(tmp_path / "model.safetensors", build.tensors())
    command = [sys.executable, "-m", "prune_cli"]
    plan = ["random-structured", path, "-a", "2", "-d", "0", "--dry-run", "--report", "-"]

    planned = subprocess.run([*command, *plan], capture_output=True, check=True)
    shown = subprocess.run(
        [*command, "report", "-"], input=planned.stdout, capture_output=True, check=True
    )

    assert b"would prune 4 of 16 channels" in shown.stdout


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b"\xff\xfe", b""], ids=repr)
def test_what_is_no_report_ends_with_3(run: Run, tmp_path: Path, content: bytes) -> None:
    """The error names the file."""
    path = tmp_path / "a.json"
    path.write_bytes(content)

    ran = run("report", path)

    assert (ran.code, ran.out) == (3, "")
    assert "a.json is not a report of prune-cli" in ran.text


@pytest.mark.parametrize(
    ("spelt", "code"),
    [
        pytest.param("\\ud83d\\ude00", 0, id="whole character"),
        pytest.param("\\ud83d", 3, id="half a character"),
    ],
)
def test_names_that_are_no_text_are_refused(
    run: Run, tmp_path: Path, spelt: str, code: int
) -> None:
    """JSON can spell half a character, which nothing can be written with; a whole one is fine."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))
    path.write_text(path.read_text().replace('"w"', f'"{spelt}"'))

    ran = run("report", path, "--html", tmp_path / "page.html")

    assert ran.code == code
    assert (tmp_path / "page.html").exists() == (code == 0)
    assert "Traceback" not in ran.err


def test_closed_pipe_ends_it_without_a_word(tmp_path: Path) -> None:
    """Nobody reads on: no traceback, and not the exit code of a bug."""
    path = write(tmp_path / "a.json", report(item("w", (0, 1))))
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-m", "prune_cli", "report", path],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (6, b"")
