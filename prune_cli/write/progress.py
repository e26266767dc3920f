"""Progress: a sink around a sink that tells which tensor the bytes belong to."""

from bisect import bisect_right
from collections.abc import Callable, Iterable

from prune_cli.checkpoint.source import Source
from prune_cli.write.segments import Place, Segment, Verbatim, Zeroed
from prune_cli.write.sinks import Sink

OnTensor = Callable[[str, int], None]
"""Called, from any thread, with a tensor's name and how many more of its bytes are done."""


class ToldSink:
    """Hands everything on to another sink, and tells of it when that is done."""

    def __init__(self, sink: Sink, segments: Iterable[Segment], on_tensor: OnTensor) -> None:
        self._sink, self._on_tensor = sink, on_tensor
        held = sorted((one.at, _name(one)) for one in segments if one.nbytes)
        self._starts = [start for start, _ in held]
        self._names = [name for _, name in held]

    @property
    def seekable(self) -> bool:
        """Whether bytes may come in any order and from any thread."""
        return self._sink.seekable

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put `data` at byte `at`."""
        self._sink.write(data, at)
        self._tell(len(data), at)

    def copy(self, source: Source, start: int, nbytes: int, at: int) -> None:
        """Put `nbytes` of `source`, from its byte `start`, at byte `at`."""
        self._sink.copy(source, start, nbytes, at)
        self._tell(nbytes, at)

    def zero(self, nbytes: int, at: int) -> None:
        """Put `nbytes` zeros at byte `at`."""
        self._sink.zero(nbytes, at)
        self._tell(nbytes, at)

    def _tell(self, nbytes: int, at: int) -> None:
        name = self._names[bisect_right(self._starts, at) - 1]
        if name:  # a header is no tensor
            self._on_tensor(name, nbytes)


def tell_all(segments: Iterable[Segment], on_tensor: OnTensor) -> None:
    """Tell of a file that was written elsewhere, as a ToldSink would have."""
    for segment in segments:
        if name := _name(segment):
            on_tensor(name, segment.nbytes)


def _name(segment: Segment) -> str:
    """Return the tensor that a segment is of; of an input file as it is, the file."""
    match segment:
        case Place(tensor=tensor):
            return tensor.info.name
        case Zeroed(cuts=cuts):
            return cuts[0].name
        case Verbatim(file=file):
            return file.name
    return ""
