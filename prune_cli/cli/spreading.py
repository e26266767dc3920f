"""The options that spread the units of a run over machines: a scheduler, or parts."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from prune_cli.cli import groups
from prune_cli.errors import UsageError

if TYPE_CHECKING:
    from prune_cli.checkpoint import Checkpoint
    from prune_cli.cluster.engine import Engine
    from prune_cli.cluster.parts import Part
    from prune_cli.report.report import Report
    from prune_cli.stores import Location
    from prune_cli.sweep.request import Request
    from prune_cli.write.target import Target

SPREAD = "On several machines"


@dataclass(frozen=True)
class Scheduled:
    """Workers of a scheduler."""

    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS|FILE",
            help="Of dask.distributed, tcp://host:8786 or its scheduler file: its workers do the "
            "work. They need prune-cli and the same folders.",
            rich_help_panel=SPREAD,
        ),
    ] = None

    @contextlib.contextmanager
    def comparing(
        self, output: "Location", source: "Location | None", messages: groups.Messages
    ) -> "Iterator[Engine | None]":
        """Yield the engine that compares a folder with its source; None where this process does.

        Raises:
            SchedulerError: it is not there, or its workers lack something.
        """
        if self.scheduler and not (source and output.is_dir()):
            messages.tell("only a folder and its source are compared by a scheduler's workers")
        if self.scheduler is None or source is None or not output.is_dir():
            yield None
            return
        from prune_cli.cluster.scheduler import Needs, connect

        files = sorted(path for path in output.iterdir() if path.suffix == ".safetensors")
        reads: dict[Location, int] = {
            path.absolute(): path.stat().st_size for path in files[:1] + files[-1:]
        }
        is_here = isinstance(source, Path) and source.is_dir()
        folders = (source.absolute(),) if is_here else ()
        with connect(self.scheduler, Needs(reads, folders=folders), tell=messages.tell) as engine:
            yield engine


@dataclass(frozen=True)
class Spreading(Scheduled):
    """Workers of a scheduler, or the jobs of an array."""

    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="I/N",
            help="Do the I-th of N shares only, and leave the rest to other jobs; at last --finish.",
            show_default="in a SLURM job array, its own",
            rich_help_panel=SPREAD,
        ),
    ] = None
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="Check that all parts are there, and make one output of them.",
            rich_help_panel=SPREAD,
        ),
    ] = False

    def chosen(self, target: "Target", messages: groups.Messages) -> "Spread":
        """Return what of it applies to `target`; say what does not.

        Raises:
            UsageError: the options do not go together, or do not fit an output that is one file.
        """
        from prune_cli.stores import StorePath

        in_store = isinstance(target.output, StorePath)
        if in_store and (self.scheduler or self.part or self.finish):
            raise UsageError(
                f"{target.output} is in a store, where one run writes a folder: name a shared folder "
                "as --output, or leave out --scheduler and --part"
            )
        has_units = target.is_folder and target.output is not None and not in_store
        part = self.chosen_part(messages, has_units=has_units)
        if target.is_folder or target.output is None:
            return Spread(self.scheduler if target.output else None, part, self.finish)
        if self.part or self.finish:
            raise UsageError("one file is one unit, which has no parts: --max-shard-size splits it")
        if self.scheduler:
            messages.tell("one file is one unit: it is written here, and not by the scheduler")
        return Spread()

    def chosen_part(self, messages: groups.Messages, *, has_units: bool) -> "Part | None":
        """Return the part of --part, or of the array that this runs in if it `has_units`.

        Raises:
            UsageError: it is none, or other options leave no room for it.
        """
        from prune_cli.cluster.parts import find_array_part, parse_part

        others = [name for name, is_there in self._others if is_there]
        if self.part is not None and others:
            raise UsageError(f"--part and {others[0]} do not go together; leave out one of them")
        if len(others) > 1:
            raise UsageError("--finish only puts together what parts wrote: leave out --scheduler")
        if self.part is not None:
            return parse_part(self.part)
        part = None if others or not has_units else find_array_part(os.environ)
        if part:
            messages.tell(
                f"part {part} of SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT; --part 1/1 is all"
            )
        return part

    @property
    def _others(self) -> tuple[tuple[str, bool], ...]:
        return (("--finish", self.finish), ("--scheduler", self.scheduler is not None))


@dataclass(frozen=True)
class SpreadTrials(Spreading):
    """The same for trials, which may need what not every worker has."""

    resources: Annotated[
        list[str],
        typer.Option(
            "--resources",
            metavar="NAME=N",
            help="With --scheduler: what each trial takes of its worker, as the worker declares it "
            "(GPU=1). Repeatable.",
            rich_help_panel=SPREAD,
        ),
    ] = field(default_factory=list)

    @contextlib.contextmanager
    def trial_engine(self, request: "Request", messages: groups.Messages) -> "Iterator[Engine]":
        """Yield the engine that runs trials.

        Raises:
            UsageError: the resources are none.
            SchedulerError: it is not there, or its workers lack something.
        """
        from prune_cli.cluster.scheduler import Needs, connect

        if self.scheduler is None:
            raise UsageError("--resources are those of the workers of a --scheduler")
        source = request.maker.source
        needs = Needs(
            _ends(source),
            writes=nearest_folder(request.folder),
            folders=(Path.cwd(),),
            begins_in=Path.cwd() if request.is_shrunk else None,
        )
        resources = dict(map(_parse_resource, self.resources))
        with connect(self.scheduler, needs, resources, messages.tell) as engine:
            yield engine


def _parse_resource(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not name or not 0 < value < math.inf:
        raise UsageError(f"--resources {text!r} is no resource; write GPU=1")
    return name, value


class SpreadFacts(TypedDict):
    """What an Execution is told of it."""

    part: "Part | None"
    finishes: bool


@dataclass(frozen=True)
class Spread:
    """Over what the units of one run are spread: nothing, a scheduler, or parts."""

    scheduler: str | None = None
    part: "Part | None" = None
    finishes: bool = False

    @property
    def continues(self) -> bool:
        """Whether it goes on with what others have begun."""
        return self.part is not None or self.finishes

    @property
    def facts(self) -> SpreadFacts:
        """What an Execution is told."""
        return {"part": self.part, "finishes": self.finishes}

    def continuing(self, target: "Target") -> "Target":
        """Return `target` as it is for this."""
        return replace(target, resume=True) if self.continues else target

    @contextlib.contextmanager
    def engine(
        self, checkpoint: "Checkpoint", target: "Target", messages: groups.Messages
    ) -> "Iterator[Engine | None]":
        """Yield the engine that writes `target`; None where that is this process.

        Raises:
            SchedulerError: it is not there, or its workers lack something.
        """
        if self.scheduler is None or not isinstance(target.output, Path):
            yield None
            return
        from prune_cli.cluster.scheduler import Needs, connect
        from prune_cli.write.narrow import refuse_unreachable

        refuse_unreachable(checkpoint.files)
        needs = Needs(_ends(checkpoint), writes=nearest_folder(target.output))
        with connect(self.scheduler, needs, tell=messages.tell) as engine:
            yield engine

    def tell_part(self, report: "Report", target: "Target", messages: groups.Messages) -> None:
        """Say what a part has done, and what is left."""
        files = report.output.files if report.output else ()
        if self.part and target.output:
            count = len(self.part.of(files))
            messages.tell(
                f"part {self.part} is written: {count:,} of {len(files):,} shards; when every part "
                "is, run the same command with --finish in place of --part"
            )


def _ends(checkpoint: "Checkpoint") -> "dict[Location, int]":
    """Return the first and the last file of a checkpoint, which stand for all, and their bytes."""
    ends = (*checkpoint.files[:1], *checkpoint.files[-1:])
    return {file.path.absolute(): file.nbytes for file in ends}


def nearest_folder(path: Path) -> Path:
    """Return the folder that `path` is in, or will be, as far as it is there; absolute."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
