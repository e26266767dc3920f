"""Writes docs/architectures.md: each architecture, shrunk by a quarter and checked.

    python docs/make_architectures.py

It needs transformers, and has rows of torchvision and diffusers where those are installed. It takes
some minutes; `python -m tests.architectures NAME` tries one.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.architectures.run import AMOUNT, Outcome, try_architecture
from tests.architectures.zoo import ARCHITECTURES, Architecture

PAGE = Path(__file__).parent / "architectures.md"

_ABOUT = f"""# Architectures

What `prune-cli shrink --amount {AMOUNT}` does to architectures, by tiny models with random weights: two layers, or as few as the class
takes. `python docs/make_architectures.py` writes this page. Of every written file it was checked that each tensor is a slice of
the source's, that `from_pretrained` or `load_shrunk` loads it, and that its outputs are, to 1e-5, those of the whole model with zeros in
all that makes and reads the removed channels: in evaluation and in training without dropout, for two samples, of text one with padding. (A norm
over channels normalises over those that are left.)

Of a Hugging Face folder only what numbers of its `config.json` can say is removed, so that plain `from_pretrained` loads the result;
with `--as-code` the rest goes too, and `load_shrunk` loads it. `shrink` says of each group that stays whole why it does.
"""


def main() -> None:
    """Try all and write the page."""
    chosen = [each for each in ARCHITECTURES if _is_installed(each)]
    outcomes = []
    with ThreadPoolExecutor(2) as pool:
        for outcome in pool.map(try_architecture, chosen):
            outcomes.append(outcome)
            PAGE.write_text("\n".join(write_page(outcomes)) + "\n")


def _is_installed(architecture: Architecture) -> bool:
    package = architecture.name.partition(":")[0].partition(".")[0]
    return not architecture.is_factory or find_spec(package) is not None


def write_page(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the page."""
    written = sum(outcome.verdict == "written" for outcome in outcomes)
    yield _ABOUT
    yield (
        f"{written} of {len(outcomes)} were written, by transformers {version('transformers')} and torch "
        f"{version('torch').partition('+')[0]}. Seconds are those of the processor for planning and writing, without imports.\n"
    )
    yield "| architecture | | parameters removed | FLOPs removed | groups that lost channels | groups left whole | seconds |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    yield from map(_row, outcomes)


def _row(outcome: Outcome) -> str:
    if outcome.verdict != "written":
        reason = outcome.reason.replace("|", "/").partition("; choose other")[0]
        return f"| {outcome.title} | {outcome.verdict}: {reason[:300]} | | | | | |"
    lost, left = outcome.groups
    return (
        f"| {outcome.title} | written | {outcome.parameters:.1%} | {outcome.flops:.1%} | {lost} | {left} "
        f"| {outcome.seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
