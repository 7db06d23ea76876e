"""What an intervention does over its coefficients: where answers stay coherent, dose and effect, chance, two read-outs compared.

Shapes: N items (questions), K coefficients, D directions, R random directions, C cells, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unmask.analysis.agreement import bootstrap_over
from unmask.analysis.intervals import FEW, Interval

LEVEL = 0.90
LEAST_CELLS = 4
"""Pairs of cells that a rank correlation needs."""

NOTHING = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Window:
    """Which coefficients leave answers coherent (K), and the largest positive one of them; None where there is none."""

    coherent_K: np.ndarray
    chosen: float | None


@dataclass(frozen=True, slots=True)
class Dose:
    """Mean effect at one coefficient on the items of the direction's own group, on the others, and on all; 90 % intervals.

    An interval is of NaN where there is no item (`own`, `others`: no own group either).
    """

    coefficient: float
    own: Interval
    others: Interval
    every: Interval
    items: int
    own_items: int
    missing: int
    """Items left out at this coefficient."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Spearman correlation of two read-outs over cells with its 95 % interval; NaN where it is not defined."""

    spearman: float
    low: float
    high: float
    cells: int


def coherent_window(loss_DK: np.ndarray, coefficients_K: Sequence[float] | np.ndarray, *, most_loss: float) -> Window:
    """A coefficient is coherent when no direction's mean loss exceeds `most_loss` there, nor at a smaller one of its sign.

    `loss_DK` holds the mean loss (nats per token) of each direction that counts. A missing loss (NaN) shows no coherence. Raises
    ValueError for no direction, another number of coefficients, or one that is not finite.
    """
    loss_DK, coefficients_K = np.asarray(loss_DK, dtype=float), np.asarray(coefficients_K, dtype=float)
    if loss_DK.ndim != 2 or not len(loss_DK) or coefficients_K.shape != loss_DK.shape[1:]:
        raise ValueError(f"losses of shape {loss_DK.shape} do not fit {coefficients_K.size} coefficients")
    if not np.isfinite(coefficients_K).all():
        raise ValueError("coefficients must be finite")
    kept_K = np.all(loss_DK <= most_loss, axis=0)
    coherent_K = np.array(
        [
            kept_K[(np.sign(coefficients_K) == np.sign(one)) & (np.abs(coefficients_K) <= abs(one))].all()
            for one in coefficients_K
        ],
        dtype=bool,
    )
    positive = coefficients_K[coherent_K & (coefficients_K > 0)]
    return Window(coherent_K, float(positive.max()) if positive.size else None)


def dose_curve(
    effects_NK: np.ndarray,
    groups_N: np.ndarray,
    own_group: str | None,
    coefficients_K: Sequence[float] | np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> list[Dose]:
    """Mean effect of one direction at each coefficient, with 90 % intervals over items.

    Every item counts alike (unlike `others` of `CrossTalk`, in which every group does). Intervals are percentiles of a bootstrap
    of items, the same ones at every coefficient; Student's t below 20 items, where percentiles are too narrow. A missing effect
    (NaN) is left out at its coefficient and counted. Raises ValueError for shapes that do not fit or infinite effects.
    """
    effects_NK, coefficients_K = np.asarray(effects_NK, dtype=float), np.asarray(coefficients_K, dtype=float)
    groups_N = np.asarray(groups_N)
    if effects_NK.shape != (len(groups_N), len(coefficients_K)):
        raise ValueError(
            f"effects of shape {effects_NK.shape} do not fit {len(groups_N)} items and {len(coefficients_K)} coefficients"
        )
    if np.isinf(effects_NK).any():
        raise ValueError("effects must be finite; a missing one is NaN")
    own_N = groups_N == own_group if own_group is not None else np.zeros(len(groups_N), dtype=bool)
    other_N = ~own_N if own_group is not None else own_N
    own, others, every = (
        _mean_intervals(effects_NK[rows_N], rng=rng, resamples=resamples)
        for rows_N in (own_N, other_N, np.ones(len(groups_N), dtype=bool))
    )
    there_NK = ~np.isnan(effects_NK)
    return [
        Dose(
            coefficient=float(coefficient),
            own=own[place],
            others=others[place],
            every=every[place],
            items=int(there_NK[:, place].sum()),
            own_items=int(there_NK[own_N, place].sum()),
            missing=int((~there_NK[:, place]).sum()),
        )
        for place, coefficient in enumerate(coefficients_K)
    ]


def _mean_intervals(values_NK: np.ndarray, *, rng: np.random.Generator, resamples: int) -> list[Interval]:
    """Mean of each column with its 90 % interval; NaN entries left out."""
    size = len(values_NK)
    if not size:
        return [NOTHING] * values_NK.shape[1]
    there_NK = ~np.isnan(values_NK)
    drawn_BN = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    times_BN = np.bincount(drawn_BN.ravel(), minlength=resamples * size).reshape(resamples, size).astype(float)
    held_BK = times_BN @ there_NK.astype(float)
    sums_BK = times_BN @ np.where(there_NK, values_NK, 0.0)
    means_BK = np.divide(sums_BK, held_BK, out=np.full(sums_BK.shape, np.nan), where=held_BK > 0)
    found = []
    for column_N, there_N, means_B in zip(values_NK.T, there_NK.T, means_BK.T, strict=True):
        present = column_N[there_N]
        if not present.size:
            found.append(NOTHING)
            continue
        mean = float(present.mean())
        if present.size == 1:
            low = high = float("nan")
        elif present.size < FEW:
            reach = float(stats.t.ppf((1 + LEVEL) / 2, present.size - 1) * present.std(ddof=1) / np.sqrt(present.size))
            low, high = mean - reach, mean + reach
        else:
            low, high = (float(end) for end in np.nanquantile(means_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        found.append(Interval(mean, low, high))
    return found


def readouts_agree(
    one_C: np.ndarray,
    other_C: np.ndarray,
    clusters_C: np.ndarray | None,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Agreement:
    """Do two read-outs (log-odds and judged answers) rank the cells alike?

    Cells are drawn anew for the interval, or whole clusters of them (cells of one direction). A pair with a missing value (NaN)
    is left out. All is NaN below 4 pairs or where one side is constant, the interval also where that befalls more than one draw
    in twenty. Raises ValueError for lengths that differ.
    """
    one_C, other_C = np.asarray(one_C, dtype=float), np.asarray(other_C, dtype=float)
    clusters_C = np.arange(len(one_C)) if clusters_C is None else np.asarray(clusters_C)
    if one_C.ndim != 1 or not one_C.shape == other_C.shape == clusters_C.shape:
        raise ValueError(f"read-outs differ in length: {one_C.shape}, {other_C.shape}, clusters {clusters_C.shape}")
    both_C = ~(np.isnan(one_C) | np.isnan(other_C))
    one_C, other_C, clusters_C = one_C[both_C], other_C[both_C], clusters_C[both_C]
    value = _spearman(one_C, other_C) if one_C.size >= LEAST_CELLS else None
    if value is None:
        return Agreement(float("nan"), float("nan"), float("nan"), one_C.size)
    ends = None
    if len(np.unique(clusters_C)) > 1:
        ends = bootstrap_over(
            clusters_C, lambda rows: _spearman(one_C[rows], other_C[rows]), rng=rng, resamples=resamples
        )
    low, high = ends if ends is not None else (float("nan"), float("nan"))
    return Agreement(value, low, high, one_C.size)


def _spearman(one_C: np.ndarray, other_C: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side is constant. SciPy's takes ten times as long."""
    ranks_2C = [_ranks(values_C) for values_C in (one_C, other_C)]
    sizes = [float(np.linalg.norm(ranks_C)) for ranks_C in ranks_2C]
    return float(ranks_2C[0] @ ranks_2C[1]) / (sizes[0] * sizes[1]) if min(sizes) > 0 else None


def _ranks(values_C: np.ndarray) -> np.ndarray:
    """Centred ranks."""
    _, place_C, counts = np.unique(values_C, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2 - (len(values_C) + 1) / 2)[place_C]


def beaten_by(effect: float, random_R: np.ndarray) -> float:
    """Share of random directions whose |mean effect| is at least |effect|, the tested one counted in: (1 + hits) / (1 + R).

    The p-value of a test by random directions (Phipson & Smyth 2010): never 0. NaN random effects are left out. NaN where the
    effect is missing or no random direction is left.
    """
    random_R = np.asarray(random_R, dtype=float)
    random_R = random_R[~np.isnan(random_R)]
    if np.isnan(effect) or not random_R.size:
        return float("nan")
    return float((1 + (np.abs(random_R) >= abs(effect)).sum()) / (1 + random_R.size))
