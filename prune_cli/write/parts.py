"""What the parts of a run leave for each other in the staging folder, and whether all is there."""

import re
from collections.abc import Sequence
from pathlib import Path

from prune_cli.cluster.parts import Part
from prune_cli.errors import OutputError
from prune_cli.write.atomic import write_file
from prune_cli.write.filling import missing, refresh
from prune_cli.write.layout import OutputFile

_NOTE = re.compile(r"part-(\d+)-of-(\d+)", re.ASCII)
_MOST_NAMED = 5


def note_part(staging: Path, part: Part) -> None:
    """Note that a part has begun: its shards tell whether it has ended."""
    write_file(staging / f"part-{part.number}-of-{part.count}", b"")


def refuse_missing(staging: Path, shards: Sequence[OutputFile], files: Path) -> None:
    """Refuse to finish a run of which shards are missing; say which parts they are of.

    Raises:
        OutputError: some are missing.
    """
    refresh(shards, files)
    left = {shard.name for shard in missing(shards, files)}
    if not left:
        return
    begun = sorted(_begun(staging))
    counts = {part.count for part in begun}
    names = ", ".join(sorted(left)[:_MOST_NAMED]) + (", ..." if len(left) > _MOST_NAMED else "")
    fact = f"{len(left):,} of {len(shards):,} shards are missing ({names})"
    if not begun:
        raise OutputError(f"{fact}: no part of this run has begun; run --part 1/N to N/N first")
    if len(counts) > 1:
        spelt = ", ".join(map(str, begun))
        raise OutputError(f"{fact}: the parts {spelt} are not of one division; run all I of one N")
    [count] = counts
    lacking = [
        part
        for part in (Part(number, count) for number in range(1, count + 1))
        if left & {shard.name for shard in part.of(shards)}
    ]
    raise OutputError("\n".join([f"{fact}:", *(_tell(part, begun) for part in lacking)]))


def _begun(staging: Path) -> list[Part]:
    found = (_NOTE.fullmatch(path.name) for path in staging.iterdir()) if staging.is_dir() else ()
    return [Part(int(each[1]), int(each[2])) for each in found if each]


def _tell(part: Part, begun: Sequence[Part]) -> str:
    fact = "has begun and not ended" if part in begun else "has not begun"
    return f"part {part} {fact}; run it with --part {part}"
