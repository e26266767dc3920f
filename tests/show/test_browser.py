"""The page in a real browser: its script, and that nothing is wider than the window.

Skipped where there is no Chromium.
"""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from prune_cli.show.page import render_page
from tests.report.test_comparison import item, report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


def visit(folder: Path, html: str, script: str, width: int = 1400) -> str:
    """What `script`, run in the page in a window of that width, returns as text.

    A frame, since no window is narrower than 500 pixels.
    """
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "frame.html").write_text(
        f'<iframe id="f" src="page.html" style="width:{width}px;height:900px"></iframe><output></output>'
        "<script>addEventListener('load', () => {"
        "const window = document.querySelector('#f').contentWindow, page = window.document;"
        f"document.querySelector('output').textContent = (() => {{ {script} }})();"
        "})</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    ran = subprocess.run(
        [*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, check=True
    )
    return unescape(re.search(r"<output>(.*?)</output>", ran.stdout, re.DOTALL)[1])


@pytest.fixture
def html() -> str:
    """The page of a report of three layers, one of them large."""
    rows = [
        item("conv1.weight", (1, 2)),
        item("layer1.weight", (0, 65, 66), channels=130, before=(3,)),
        item("fc.weight", tuple(range(1025)), channels=4096),
    ]
    return render_page({"a": report(*rows)})


SQUARES = {
    (0, 1, 0): "channel 1: pruned",
    (0, 5, 0): "channel 5: kept",
    (1, 3, 0): "channel 3: pruned before",
    (1, 1, 1): "channel 65: pruned",
    (2, 0, 0): "channels 0 to 3: pruned",
    (2, 0, 4): "channels 1024 to 1027: some pruned",
    (2, 1, 4): "channels 1028 to 1031: kept",
}
"""By number of the picture, column and row: what is told of a square."""


def test_a_square_tells_its_channel(tmp_path: Path, html: str) -> None:
    """Which it is, and what became of it."""
    told = visit(
        tmp_path,
        html,
        f"return {[*map(list, SQUARES)]}.map(([picture, column, row]) => {{"
        "const svg = page.querySelectorAll('svg')[picture], box = svg.getBoundingClientRect();"
        "const [, , columns, rows] = svg.getAttribute('viewBox').split(' ').map(Number);"
        "svg.dispatchEvent(new window.PointerEvent('pointermove', { bubbles: true,"
        "  clientX: box.left + (column + .5) * box.width / columns,"
        "  clientY: box.top + (row + .5) * box.height / rows }));"
        "return page.querySelector('#tip').textContent; }).join('; ');",
    )

    assert told.split("; ") == [*SQUARES.values()]


def test_the_arrow_keys_move_over_the_squares(tmp_path: Path, html: str) -> None:
    """With the keyboard alone, and never off the picture."""
    told = visit(
        tmp_path,
        html,
        "const svg = page.querySelectorAll('svg')[1], told = []; svg.focus();"
        "for (const key of ['ArrowRight', 'ArrowDown', 'ArrowDown', 'ArrowDown', 'ArrowLeft']) {"
        "  svg.dispatchEvent(new window.KeyboardEvent('keydown', { key, bubbles: true }));"
        "  told.push(page.querySelector('#tip').textContent);"
        "} return told.join('; ');",
    )

    assert told == (
        "channel 1: kept; channel 65: pruned; channel 129: kept; channel 129: kept; "
        "channel 128: kept"
    )


def test_layers_are_sorted_and_searched(tmp_path: Path, html: str) -> None:
    """By parameters from the largest, back, and by what is typed."""
    told = visit(
        tmp_path,
        html,
        "const names = () => [...page.querySelectorAll('tr[data-name]')]"
        "  .filter((row) => !row.hidden).map((row) => row.dataset.name).join(' ');"
        "const heads = page.querySelectorAll('th button'), told = [names()];"
        "heads[1].click(); told.push(names()); heads[1].click(); told.push(names());"
        "heads[0].click(); told.push(names());"
        "const input = page.querySelector('input'); input.value = 'LAYER';"
        "input.dispatchEvent(new window.Event('input')); told.push(names());"
        "told.push(page.querySelectorAll('article:not([hidden])').length); return told.join('; ');",
    )

    assert told.split("; ") == [
        "conv1.weight layer1.weight fc.weight",
        "fc.weight layer1.weight conv1.weight",
        "conv1.weight layer1.weight fc.weight",
        "conv1.weight layer1.weight fc.weight",
        "layer1.weight",
        "1",
    ]


@pytest.mark.parametrize(("width", "runs"), [(400, 1), (400, 15), (1400, 15)])
def test_nothing_is_wider_than_the_window(tmp_path: Path, width: int, runs: int) -> None:
    """Only tables scroll, within themselves; and a picture's squares can be told apart."""
    name = "model.layers.10.self_attn.a_projection_of_a_rather_long_name.weight"
    rows = [item(name, (1, 2), channels=1000), item("v", (0,))]
    page = render_page({f"run-{n}.report.json": report(*rows, seed=n) for n in range(runs)})

    told = visit(
        tmp_path,
        page,
        "const svg = page.querySelector('svg');"
        "return [page.documentElement.scrollWidth - window.innerWidth,"
        " svg.getBoundingClientRect().width / 64].join(' ');",
        width,
    )

    overflow, square = map(float, told.split())
    assert overflow <= 0
    assert square >= 5


def test_pictures_of_others_keep_their_looks(tmp_path: Path, html: str) -> None:
    """A plot on the page is not drawn in squares, and tells no channels."""
    plot = '<figure class="plot"><svg width="9" height="9"><path d="M0 0h9v9"/></svg></figure>'

    told = visit(
        tmp_path,
        html.replace("</main>", f"{plot}</main>"),
        "const path = page.querySelector('.plot path'), looks = window.getComputedStyle(path);"
        "path.dispatchEvent(new window.PointerEvent('pointermove', { bubbles: true }));"
        "const { stroke, strokeDasharray, transform } = looks;"
        "return [stroke, strokeDasharray, transform, page.querySelector('#tip').hidden].join(' ');",
    )

    assert told == "none none none true"
