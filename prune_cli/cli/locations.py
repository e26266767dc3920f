"""Paths on the command line that can be URLs too: `Annotated[Location, typer.Option(parser=locate)]`.

Typer takes no union of types, so to it a Location is a Path, and the parser makes what it is.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from prune_cli.stores import locate, locate_checkpoint

if TYPE_CHECKING:
    from prune_cli.stores import Location
else:
    Location = Path

__all__ = ["Location", "locate", "locate_checkpoint"]
