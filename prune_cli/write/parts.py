"""What the parts of a run leave for each other in a folder, and which of them lack something."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from prune_cli.cluster.parts import Part
from prune_cli.errors import OutputError
from prune_cli.write.atomic import write_file

_NOTE = re.compile(r"\.part-(\d+)-of-(\d+)", re.ASCII)
_MOST_NAMED = 5


def note_part(folder: Path, part: Part) -> None:
    """Note in `folder` that a part has begun: its units tell whether it has ended."""
    write_file(folder / f".part-{part.number}-of-{part.count}", b"")


def forget_parts(folder: Path) -> None:
    """Remove the notes of all parts."""
    for path in folder.iterdir():
        if _NOTE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def refuse_missing(folder: Path, units: Sequence[str], missing: Collection[str], what: str) -> None:
    """Refuse to finish a run of which units are missing; say which parts they are of.

    Args:
        folder: where the parts have left their notes.
        units: the names of all units, in their order.
        missing: the names of those that are not there.
        what: they are: "shards".

    Raises:
        OutputError: some are missing.
    """
    if not missing:
        return
    begun = sorted(_begun(folder))
    counts = {part.count for part in begun}
    left = [name for name in units if name in missing]
    names = ", ".join(left[:_MOST_NAMED]) + (", ..." if len(left) > _MOST_NAMED else "")
    verb = "is" if len(left) == 1 else "are"
    fact = f"{len(left):,} of {len(units):,} {what} {verb} missing ({names})"
    if not begun:
        raise OutputError(f"{fact}: no part of this run has begun; run --part 1/N to N/N first")
    if len(counts) > 1:
        spelt = ", ".join(map(str, begun))
        raise OutputError(f"{fact}: the parts {spelt} are of several divisions; run all of one")
    [count] = counts
    parts = [Part(number, count) for number in range(1, count + 1)]
    lacking = [part for part in parts if {*missing} & {*part.of(units)}]
    raise OutputError("\n".join([f"{fact}:", *(_tell(part, begun) for part in lacking)]))


def _begun(folder: Path) -> list[Part]:
    found = (_NOTE.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return [Part(int(each[1]), int(each[2])) for each in found if each]


def _tell(part: Part, begun: Sequence[Part]) -> str:
    fact = "has begun and not ended" if part in begun else "has not begun"
    return f"part {part} {fact}; run it with --part {part}"
