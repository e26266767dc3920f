"""What several draws say together: mean and spread, differences in pairs, agreement of ranks.

Numbers only, and NumPy. Every interval is reproducible: its resampling is seeded, with the one
generator of NumPy whose stream never changes (`RandomState`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
"""How often an interval resamples."""

COVERAGE = 95.0
"""Of an interval, in percent."""

FEW = 3
"""With fewer values a spread is not worth much; nothing is claimed from them."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the mean lies, as the resampled values have it."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The number behind the plus-minus sign."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Spread:
    """n values: their mean, and how far they lie apart.

    Attributes:
        n: at least 1.
        mean, min, max: of the values.
        sd: with n - 1 in the denominator (ddof 1); None for one value, which has no spread.
        interval: 95 % percentile bootstrap of the mean; None for one value.
    """

    n: int
    mean: float
    sd: float | None
    min: float
    max: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Ranks:
    """Spearman's rho of pairs, and its bootstrap interval; None where it is not defined."""

    n: int
    rho: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Noise:
    """What of the spread is the evaluation's, and what the draw's, as standard deviations.

    Attributes:
        evaluation: of repeated evaluations of one checkpoint, pooled over the checkpoints.
        draw: what is left between checkpoints; 0 where the evaluation explains all.
    """

    evaluation: float
    draw: float | None


def describe(values: Sequence[float]) -> Spread:
    """Return the Spread of `values`, at least one.

    Example:
        >>> describe([1.0, 2.0, 3.0]).sd
        1.0
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    several = len(array) > 1
    if low == high:  # what is constant has no rounding errors
        return Spread(
            len(array), low, 0.0 if several else None, low, high, _point(low, several=several)
        )
    return Spread(
        n=len(array),
        mean=float(array.mean()),
        sd=float(array.std(ddof=1)),
        min=low,
        max=high,
        interval=bootstrap_mean(values),
    )


def _point(value: float, *, several: bool) -> Interval | None:
    return Interval(value, value) if several else None


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the percentile bootstrap interval of the mean of `values`, in the order they are in.

    The resamples are `RandomState(seed).randint(n, size=(10000, n))`, row by row; the interval is
    `numpy.percentile` of their means, at 2.5 and 97.5.
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    return _percentiles(array[_resamples(len(array), seed)].mean(axis=1))


def differences(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, ...]:
    """`values` minus `reference` for each seed that both have, by ascending seed."""
    return tuple(
        values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())
    )


def rank_correlation(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Ranks:
    """Spearman's rho: Pearson's r of the ranks, ties having the mean of theirs.

    The interval resamples the pairs as `bootstrap_mean` resamples values, and leaves out the
    resamples in which one side is constant.
    """
    import numpy as np

    n = len(pairs)
    columns = np.asarray(pairs, dtype=np.float64).reshape(n, 2)
    rho = _rho(columns[None])[0] if n > 1 else math.nan
    if not math.isfinite(rho):
        return Ranks(n, None, None)
    resampled = _rho(columns[_resamples(n, seed)])
    defined = resampled[np.isfinite(resampled)]
    return Ranks(n, float(rho), _percentiles(defined) if n >= FEW else None)


def separate_noise(repeats: Sequence[Sequence[float]]) -> Noise | None:
    """What `repeats`, the evaluations of each checkpoint, tell of the evaluation's own noise.

    One-way analysis of variance with a random effect: the variance within checkpoints is the
    evaluation's; that between their means, less its share of the former, is the draw's.
    None: no checkpoint was evaluated twice.
    """
    import numpy as np

    several = [np.asarray(row, dtype=np.float64) for row in repeats if len(row) > 1]
    if not several:
        return None
    freedom = sum(len(row) - 1 for row in several)
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in several) / freedom
    if len(several) < 2:
        return Noise(math.sqrt(within), None)
    means = np.asarray([row.mean() for row in several])
    share = within * float(np.mean([1 / len(row) for row in several]))
    return Noise(math.sqrt(within), math.sqrt(max(float(means.var(ddof=1)) - share, 0.0)))


# --- resampling ------------------------------------------------------------------------------


def _resamples(n: int, seed: int) -> "NDArray[np.int64]":
    import numpy as np

    return np.random.RandomState(seed).randint(n, size=(RESAMPLES, n))


def _percentiles(values: "NDArray[np.float64]") -> Interval:
    import numpy as np

    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _rho(samples: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Spearman's rho of each of `samples`, of shape (samples, n, 2); NaN where one is constant."""
    import numpy as np

    ranks = _mean_ranks(samples)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    covariance = (centred[..., 0] * centred[..., 1]).sum(axis=1)
    scale = np.sqrt((centred**2).sum(axis=1).prod(axis=1))
    rho = np.full(len(samples), math.nan)
    np.divide(covariance, scale, out=rho, where=scale > 0)
    return rho


def _mean_ranks(samples: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The rank of each value in its column: how many are smaller, and half of the others alike."""
    import numpy as np

    below = np.zeros(samples.shape)
    for number in range(samples.shape[1]):
        other = samples[:, number : number + 1]
        below += (other < samples) + 0.5 * (other == samples)
    return below
