"""How far judges agree who scored the same answers. Missing scores are NaN and left out.

Shapes: J judges, N answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats


class PairAgreement(NamedTuple):
    """Of two judges: answers that both scored, rank correlation, alpha, and the mean of the first minus the second."""

    first: int
    second: int
    n: int
    spearman: float | None
    alpha: float | None
    bias: float | None
    mean_distance: float | None


def krippendorff_alpha(scores_JN: np.ndarray) -> float | None:
    """Krippendorff's alpha at interval level (Hayes & Krippendorff 2007): 1 is full agreement, 0 that of chance.

    At that level it is 1 less the variance within answers, each weighed by its number of scores, over the variance of all scores
    (of answers with at least two). None where no answer has two scores or all scores are equal: there alpha is not defined.
    """
    scores_JN = np.asarray(scores_JN, dtype=float)
    shared_JN = scores_JN[:, (~np.isnan(scores_JN)).sum(axis=0) >= 2]
    if shared_JN.size == 0 or np.nanmax(shared_JN) == np.nanmin(shared_JN):
        return None
    count_N = (~np.isnan(shared_JN)).sum(axis=0)
    within = float((count_N * np.nanvar(shared_JN, axis=0, ddof=1)).sum() / count_N.sum())
    return 1 - within / float(np.nanvar(shared_JN, ddof=1))


def spearman(first_N: np.ndarray, second_N: np.ndarray) -> float | None:
    """Spearman's rank correlation over what both have; None below three answers or where one side is constant."""
    both = ~(np.isnan(first_N) | np.isnan(second_N))
    first_N, second_N = first_N[both], second_N[both]
    if first_N.size < 3 or np.ptp(first_N) == 0 or np.ptp(second_N) == 0:
        return None
    return float(stats.spearmanr(first_N, second_N).statistic)


def pair_agreements(scores_JN: np.ndarray) -> list[PairAgreement]:
    """Every pair of judges, the upper triangle of the agreement matrix row by row."""
    found = []
    for first in range(len(scores_JN)):
        for second in range(first + 1, len(scores_JN)):
            pair_2N = np.asarray(scores_JN[[first, second]], dtype=float)
            distance_N = pair_2N[0] - pair_2N[1]
            n = int((~np.isnan(distance_N)).sum())
            found.append(
                PairAgreement(
                    first=first,
                    second=second,
                    n=n,
                    spearman=spearman(pair_2N[0], pair_2N[1]),
                    alpha=krippendorff_alpha(pair_2N),
                    bias=float(np.nanmean(distance_N)) if n else None,
                    mean_distance=float(np.nanmean(np.abs(distance_N))) if n else None,
                )
            )
    return found


def widest_disagreements(scores_JN: np.ndarray, *, most: int) -> np.ndarray:
    """Rows (at most `most`, int64) with the largest range of scores, widest first; a row with one score is left out."""
    scores_JN = np.asarray(scores_JN, dtype=float)
    rated = np.flatnonzero((~np.isnan(scores_JN)).sum(axis=0) >= 2)
    range_N = np.nanmax(scores_JN[:, rated], axis=0) - np.nanmin(scores_JN[:, rated], axis=0) if rated.size else rated
    return rated[np.argsort(-range_N, kind="stable")[:most]]


def bootstrap_over(
    groups_N: np.ndarray,
    statistic: Callable[[np.ndarray], float | None],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of rows, drawing whole groups (answers to one question) anew.

    `statistic` gets the rows of a draw. None where it is not defined on more than one draw in twenty.
    """
    names, member_N = np.unique(groups_N, return_inverse=True)
    rows_of = [np.flatnonzero(member_N == number) for number in range(len(names))]
    found = []
    for _ in range(resamples):
        drawn = rng.integers(len(names), size=len(names))
        value = statistic(np.concatenate([rows_of[number] for number in drawn]))
        if value is not None:
            found.append(value)
    if len(found) < 0.95 * resamples:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(hits: int, n: int) -> tuple[float, float] | None:
    """Wilson's 95 % score interval of a share (Wilson 1927); None of nothing. It takes answers as independent."""
    if n == 0:
        return None
    found = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
