"""Shards of the output and what they are made of: compared byte for byte, here or elsewhere."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from prune_cli.checkpoint import Checkpoint, Shard
from prune_cli.checkpoint.source import open_source
from prune_cli.cluster.engine import Call, Engine, run_units
from prune_cli.verify.differences import ComparingSink
from prune_cli.verify.facts import Disagreement
from prune_cli.verify.output import list_differences
from prune_cli.write.narrow import bare, narrow_tensors
from prune_cli.write.progress import OnTensor, ToldSink, tell_all
from prune_cli.write.segments import Place
from prune_cli.write.stream import write_segments
from prune_cli.write.target import Execution


@dataclass(frozen=True)
class Pair:
    """A shard, and what should be at which of its bytes."""

    shard: Shard
    places: tuple[Place, ...]


@dataclass(frozen=True)
class PairUnit:
    """All that a worker needs to know to compare one shard; it can be pickled."""

    number: int
    pair: Pair
    source: Checkpoint
    threads: int


@dataclass(frozen=True)
class Compared:
    """What a unit found; of a tensor with very many differences the first ones."""

    number: int
    disagreements: tuple[Disagreement, ...]


def compare(
    pairs: Iterable[Pair], source: Checkpoint, execution: Execution
) -> Iterator[Disagreement]:
    """Yield where shards are not what `source` makes of them.

    Raises:
        InputError: a file cannot be read.
    """
    if execution.engine:
        yield from _compare_elsewhere(list(pairs), source, execution, execution.engine)
        return
    for pair in pairs:
        yield from compare_pair(pair, source, execution.threads, execution.on_tensor)


def _compare_elsewhere(
    pairs: list[Pair], source: Checkpoint, execution: Execution, engine: Engine
) -> list[Disagreement]:
    found: list[Disagreement] = []

    def on_end(compared: Compared) -> None:
        found.extend(compared.disagreements)
        if execution.on_tensor:
            tell_all(pairs[compared.number].places, execution.on_tensor)

    run_units(_units(pairs, source, execution.workers or 1), engine, on_end)
    return found


def _units(pairs: Iterable[Pair], source: Checkpoint, threads: int) -> Iterator[Call]:
    for number, pair in enumerate(pairs):
        tensors, part = narrow_tensors([place.tensor for place in pair.places], source)
        places = tuple(
            replace(place, tensor=tensor)
            for place, tensor in zip(pair.places, tensors, strict=True)
        )
        unit = PairUnit(number, Pair(bare(pair.shard), places), part, threads)
        yield Call(compare_unit, (unit,))


def compare_unit(unit: PairUnit) -> Compared:
    """Compare one shard; see compare."""
    return Compared(unit.number, tuple(compare_pair(unit.pair, unit.source, unit.threads)))


def compare_pair(
    pair: Pair, source: Checkpoint, threads: int, on_tensor: OnTensor | None = None
) -> Iterator[Disagreement]:
    """Yield where one shard is not what `source` makes of it."""
    with open_source(pair.shard.path) as there:
        sink = ComparingSink(there, pair.places)
        told = ToldSink(sink, pair.places, on_tensor) if on_tensor else sink
        write_segments(pair.places, source, told, workers=threads)
    for place in pair.places:
        if place.tensor.info.name in sink.first:
            yield from list_differences(place.tensor, sink.first[place.tensor.info.name])
