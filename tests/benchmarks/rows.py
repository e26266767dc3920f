"""Row: one figure beside what it has to be. Result: the rows of one subject, and their runs."""

from dataclasses import dataclass

from tests.benchmarks.timing import Runs


@dataclass(frozen=True)
class Row:
    """One figure beside what it has to be: at least the target, or at most; None: no target."""

    name: str
    figure: float
    target: float | None = None
    unit: str = "x"
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure is what it has to be, to two digits."""
        if self.target is None:
            return None
        figure = round(self.figure, 2)
        return figure >= self.target if self.at_least else figure <= self.target

    @property
    def bound(self) -> str:
        """The target in words: "at most 1.3 x"."""
        if self.target is None:
            return ""
        return f"{'at least' if self.at_least else 'at most'} {self.target:g} {self.unit}"


@dataclass(frozen=True)
class Result:
    """One subject: what was measured, and the figures that follow."""

    title: str
    rows: tuple[Row, ...]
    runs: tuple[Runs, ...] = ()
