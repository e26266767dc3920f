"""Makes the pictures of the README from real output: docs/terminal.svg and docs/sweep.svg.

    python docs/pictures.py

Every command runs in a temporary folder, beside a copy of examples/. What it prints, colours
included, is what the picture shows; only the pauses are made up. It needs the extras `shrink`,
`plot` and `examples`.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WIDTH = 90
TYPING, READING = 1.0, 0.12
"""Seconds before the output of a command appears, and from one line of it to the next."""

RECORDED = (
    "prune-cli random-structured model.pt --amount 0.25 --dim 0 --exclude digit",
    "prune-cli verify model.pruned.safetensors model.pt",
    """prune-cli shrink model.pt --amount 0.25 --exclude digit \\
    --model examples/digits.py:Net --example 1x1x8x8 -o small.safetensors""",
)
SWEPT = (
    "prune-cli sweep model.pt -a 0.1,0.25,0.5,0.75 --seeds 5 -d 0 -x digit --criterion random,l1"
    " --eval 'python examples/evaluate_digits.py {model}' -j 2 --plot sweep.svg -o sweep --quiet"
)

SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
@keyframes appear {{ from {{ visibility: hidden; }} }}
{styles}
{timing}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def main() -> None:
    """Make both pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "examples", folder / "examples")
        shutil.copy(ROOT / "examples" / "digits.pt", folder / "model.pt")
        (DOCS / "terminal.svg").write_text(record(folder))
        run(SWEPT, folder)
        (DOCS / "sweep.svg").write_text(stripped((folder / "sweep.svg").read_text()))


def record(folder: Path) -> str:
    """Return a recording of the commands as an SVG whose lines appear one after the other."""
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    delays: list[float] = []
    now = 0.0
    for command in RECORDED:
        typed = Text.assemble(("$ ", "bold green"), (command, "bold"))
        printed = Text.from_ansi(run(command, folder).rstrip())
        now += TYPING
        delays += [now] * (command.count("\n") + 1)
        now += TYPING
        delays += [now + READING * n for n in range(len(printed.split(allow_blank=True)) + 1)]
        now = delays[-1]
        console.print(typed, printed, "", sep="\n")
    timing = "\n".join(
        f'text[clip-path="url(#shot-line-{line})"] {{ animation: appear {delay:.2f}s step-end; }}'
        for line, delay in enumerate(delays)
    )
    code_format = SVG.replace("{timing}", timing.replace("{", "{{").replace("}", "}}"))
    svg = console.export_svg(
        title="prune-cli", theme=DIMMED_MONOKAI, unique_id="shot", code_format=code_format
    )
    return stripped(svg)


def run(command: str, folder: Path) -> str:
    """Run a command in the folder and return what it printed, as on a terminal of `WIDTH`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    colors = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    environment = {**os.environ, **colors, "PATH": path, "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        ["bash", "-c", command],
        check=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def stripped(svg: str) -> str:
    """Return the SVG without blanks at the ends of its lines."""
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE).rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
