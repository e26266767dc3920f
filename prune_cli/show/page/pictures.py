"""Pictures of the channels of a tensor, as facts of an SVG: a grid of squares, row by row.

A square is a channel, or an equal number of them where there are more channels than squares; then
it is filled from its bottom as far as its channels went. Squares of one kind are one path: strokes
along the rows, whose dashes make the gaps. Every picture has the same number of columns, so that
the pictures of several runs have the same x.

See also: macros.html, which writes the SVG; page.css, which gives each kind its colour and shape.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

COLUMNS = 64
"""The squares of a row."""

LARGE, MEDIUM, SMALL = 12, 8, 6
"""Pixels from one square to the next: alone, in a stack of runs, and where there are many."""

MOST_SQUARES, FEWEST_SQUARES = 1024, 256

_FEW_SQUARES = 256  # that can be large
_SQUARES_OF_PAGE = 600_000
_LEVELS = 6  # how far a square can be filled
_SIDE = 5 / 6  # of a square; the rest is the gap to the next


@dataclass(frozen=True, slots=True)
class Layer:
    """The channels of one kind: the name of its CSS class, "" for pruned."""

    kind: str
    channels: Collection[int]


@dataclass(frozen=True, slots=True)
class Stroke:
    """A path of squares of one kind that are filled equally far; `classes` may be empty."""

    classes: str
    d: str


@dataclass(frozen=True, slots=True)
class Band:
    """A part of each square, from `top` down, in which one kind is drawn; in units of squares."""

    top: float
    height: float
    strokes: tuple[Stroke, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole square."""
        return self.height >= _SIDE


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG of `columns` x `rows` squares, `pitch` pixels apart, each of them `each` channels."""

    channels: int
    each: int
    pitch: int
    columns: int
    rows: int
    track: str
    bands: tuple[Band, ...]

    @property
    def nbytes(self) -> int:
        """About how much of a page it takes."""
        paths = sum(len(stroke.d) + 40 for band in self.bands for stroke in band.strokes)
        return 400 + len(self.track) + paths


def squares_each(pictures: int, most: int = MOST_SQUARES) -> int:
    """Return how many squares a picture may have where there are so many `pictures`."""
    squares = most
    while squares > FEWEST_SQUARES and squares * pictures > _SQUARES_OF_PAGE:
        squares //= 2
    return squares


def draw(
    channels: int, layers: Sequence[Layer], limit: int, largest: int = LARGE
) -> Picture | None:
    """Return the picture of a tensor of so many `channels`; None if it has none.

    Args:
        channels: how many there are.
        layers: the channels of each kind; what is no channel is left out.
        limit: the most squares.
        largest: the most pixels from one square to the next.
    """
    if channels < 1:
        return None
    drawn = [layer for layer in layers if layer.channels]
    if channels > limit and len(drawn) > 1:
        limit = FEWEST_SQUARES  # a square with several kinds in it has to be large
    each = _divide_up(channels, limit)
    count = _divide_up(channels, each)
    bands = _divide(len(drawn)) if each > 1 else repeat((-_SIDE / 2, _SIDE))
    return Picture(
        channels=channels,
        each=each,
        pitch=largest if count <= _FEW_SQUARES else SMALL,
        columns=min(count, COLUMNS),
        rows=_divide_up(count, COLUMNS),
        track=_stroke(range(count)),
        bands=tuple(
            Band(top, height, tuple(_strokes(layer, channels, each)))
            for layer, (top, height) in zip(drawn, bands, strict=False)
        ),
    )


def _divide_up(number: int, by: int) -> int:
    """Return the quotient, rounded up: exact for numbers that no float can hold."""
    return -(-number // by)


def _divide(count: int) -> list[tuple[float, float]]:
    """Return the top and height in a square for each of `count` kinds, so that none mix."""
    sixths = {2: (3, 2), 3: (2, 1.5, 1.5)}.get(count, (5,))
    tops = accumulate(sixths, initial=0.0)
    return [(top / 6 - _SIDE / 2, height / 6) for top, height in zip(tops, sixths, strict=False)]


def _strokes(layer: Layer, channels: int, each: int) -> Iterator[Stroke]:
    """Yield a stroke for each level to which squares are filled."""
    held: dict[int, int] = {}
    for channel in layer.channels:
        if 0 <= channel < channels:
            held[channel // each] = held.get(channel // each, 0) + 1
    levels: dict[int, list[int]] = {}
    for square, number in sorted(held.items()):
        of = min(each, channels - square * each)
        levels.setdefault(_divide_up(_LEVELS * number, of), []).append(square)
    for level, squares in sorted(levels.items()):
        classes = (layer.kind, f"l{level}" if level < _LEVELS else "")
        yield Stroke(" ".join(filter(None, classes)), _stroke(squares))


def _stroke(squares: Sequence[int]) -> str:
    """Return the path over ascending `squares`, a line for each run of them within a row.

    Example:
        >>> _stroke([0, 1, 2, 64])
        'M0 0h3M0 1h1'
    """
    lines: list[str] = []
    start = 0
    for at, square in enumerate(squares):
        following = squares[at + 1] if at + 1 < len(squares) else -1
        if following != square + 1 or following % COLUMNS == 0:
            first = squares[start]
            lines.append(f"M{first % COLUMNS} {first // COLUMNS}h{square + 1 - first}")
            start = at + 1
    return "".join(lines)
