"""Bootstrap intervals that resample questions, since answers to one question are not independent.

Shapes: Q questions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


FEW = 20
"""Below so many values a percentile bootstrap is too narrow (about 80 % coverage at 4 values); Student's t is used."""


def mean_interval(
    values_Q: np.ndarray, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """A mean over questions with its interval: Student's t below 20 values, the percentile bootstrap from there.

    NaN (missing) is left out. Raises ValueError when every value is missing.
    """
    present = np.asarray(values_Q, dtype=float)
    present = present[~np.isnan(present)]
    if not 2 <= present.size < FEW:
        return bootstrap_mean(present, rng=rng, resamples=resamples, level=level)
    mean, error = float(present.mean()), float(present.std(ddof=1) / np.sqrt(present.size))
    reach = float(stats.t.ppf((1 + level) / 2, present.size - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def bootstrap_mean(
    values_Q: np.ndarray, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap of a mean over questions (Efron & Tibshirani 1993, ch. 13).

    `values_Q` holds one number per question; NaN (missing) is left out. One value gives an interval of NaN.
    Raises ValueError when every value is missing: the mean of nothing is not a number.
    """
    present = np.asarray(values_Q, dtype=float)
    present = present[~np.isnan(present)]
    if present.size == 0:
        raise ValueError("the mean of no values is not defined")
    mean = float(present.mean())
    if present.size == 1:
        return Interval(mean, float("nan"), float("nan"))
    draws = rng.integers(present.size, size=(resamples, present.size))
    means = present[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
