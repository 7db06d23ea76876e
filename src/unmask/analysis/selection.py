"""How many clusters: internal criteria over k. Descriptive: in simulation none of them finds real sub-personas reliably.

Shapes: N questions, C coordinates, K numbers of clusters tried, B reference data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.clusterers import Partition
from unmask.analysis.clustering import NOISE, distances, kmeans_labels, mean_silhouette, silhouettes
from unmask.analysis.threads import one_thread

Criterion = Literal["silhouette", "elbow", "gap", "bic", "calinski_harabasz", "davies_bouldin", "prediction_strength"]
BEST: dict[Criterion, Literal["largest", "smallest"]] = {
    "silhouette": "largest",
    "calinski_harabasz": "largest",
    "davies_bouldin": "smallest",
    "bic": "smallest",
}
"""Criteria that choose the k of their extreme; the others have a rule of their own."""


@dataclass(frozen=True, slots=True)
class Indices:
    """Internal indices of one partition, noise left out; NaN where undefined (fewer than 2 clusters, or all of one)."""

    silhouette: float
    calinski_harabasz: float
    davies_bouldin: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A criterion over k, its standard error (NaN where it has none), and the k that its rule chooses; None where none."""

    criterion: Criterion
    ks: tuple[int, ...]
    values_K: np.ndarray
    se_K: np.ndarray
    chosen: int | None


def indices(points_NC: np.ndarray, partitions: Sequence[np.ndarray]) -> tuple[Indices, ...]:
    """Silhouette (Rousseeuw 1987), Calinski & Harabasz (1974) and Davies & Bouldin (1979) of each partition's labels."""
    widths = silhouettes(points_NC, partitions)
    return tuple(
        Indices(float("nan"), float("nan"), float("nan"))
        if values_N is None
        else Indices(mean_silhouette(values_N), *_ratios(points_NC[labels_N != NOISE], labels_N[labels_N != NOISE]))
        for labels_N, values_N in zip(partitions, widths, strict=True)
    )


def _ratios(points_MC: np.ndarray, labels_M: np.ndarray) -> tuple[float, float]:
    """Calinski-Harabasz and Davies-Bouldin of at least 2 clusters, with scikit-learn's conventions for clusters of no width."""
    values, own_M, sizes_K = np.unique(labels_M, return_inverse=True, return_counts=True)
    m, k = len(points_MC), len(values)
    with one_thread():
        centres_KC = (np.eye(k)[own_M].T @ points_MC) / sizes_K[:, None]
    away_M = np.linalg.norm(points_MC - centres_KC[own_M], axis=1)
    inside = float((away_M**2).sum())
    outside = float((sizes_K * ((centres_KC - points_MC.mean(axis=0)) ** 2).sum(axis=1)).sum())
    width_K = np.bincount(own_M, weights=away_M, minlength=k) / sizes_K
    apart_KK = distances(centres_KC)
    apart_KK[apart_KK == 0] = np.inf
    worst_K = ((width_K[:, None] + width_K) / apart_KK).max(axis=1)
    return outside * (m - k) / (inside * (k - 1)) if inside > 0 else 1.0, float(worst_K.mean())


def internal_curves(points_NC: np.ndarray, partitions: Sequence[Partition]) -> tuple[Curve, ...]:
    """Silhouette, Calinski-Harabasz and Davies-Bouldin over the partitions' k; k = 1 has no value.

    Raises ValueError for a partition without k.
    """
    ks = _ks_of(partitions)
    found = indices(points_NC, [partition.labels_N for partition in partitions])
    names: tuple[Criterion, ...] = ("silhouette", "calinski_harabasz", "davies_bouldin")
    return tuple(_extreme(name, ks, np.array([getattr(one, name) for one in found])) for name in names)


def bic_curve(partitions: Sequence[Partition]) -> Curve:
    """BIC of Gaussian mixtures over k (Schwarz 1978), -2 log L + p log N: the smallest is chosen, k = 1 allowed."""
    return _extreme("bic", _ks_of(partitions), np.array([partition.bic for partition in partitions]))


def elbow_curve(points_NC: np.ndarray, *, ks: Sequence[int], seed: int, restarts: int = 10) -> Curve:
    """Inertia of K-means over k; chosen is the k farthest below the chord from the first to the last (Satopaa et al. 2011).

    The rule always names some k, on data without clusters too. Raises ValueError for
    fewer than 3 numbers of clusters or more clusters than points.
    """
    ks = _rising(ks, len(points_NC))
    if len(ks) < 3:
        raise ValueError("an elbow needs at least 3 numbers of clusters")
    with one_thread():
        inertia_K = np.array([kmeans_labels(points_NC, k=k, seed=seed, restarts=restarts)[1] for k in ks])
    chord = inertia_K[0] + (inertia_K[-1] - inertia_K[0]) * (np.asarray(ks) - ks[0]) / (ks[-1] - ks[0])
    below = chord - inertia_K
    chosen = int(ks[int(np.argmax(below))]) if below.max() > 0 else None
    return Curve("elbow", ks, inertia_K, np.full(len(ks), np.nan), chosen)


def gap_curve(
    points_NC: np.ndarray,
    *,
    ks: Sequence[int],
    seed: int,
    references: int = 20,
    restarts: int = 3,
    power: Literal[1, 2] = 2,
) -> Curve:
    """Gap statistic of K-means (Tibshirani, Walther & Hastie 2001): Gap(k) = mean_b log W*_kb - log W_k.

    W_k = sum over clusters of (sum of pairwise distances ** power) / (2 size); the references are uniform in the box of the
    centred data's principal components. s_k = sd_b sqrt(1 + 1 / B). Chosen: the smallest k with Gap(k) >= Gap(k + 1) -
    s_(k + 1), so `ks` run from 1 without a hole; None where no k satisfies it. Power 2 is the paper's, 1 the default of R's
    cluster::clusGap. NaN where a clustering leaves no spread. Raises ValueError for another run of `ks`, fewer than 2
    references, more clusters than points, or values that are not finite.
    """
    ks = _rising(ks, len(points_NC))
    if ks != tuple(range(1, len(ks) + 1)) or len(ks) < 2:
        raise ValueError(f"the gap statistic compares every k with the next one: give 1, 2, ... instead of {ks}")
    if references < 2:
        raise ValueError("the gap statistic needs at least 2 references")
    if not np.isfinite(points_NC).all():
        raise ValueError("the gap statistic needs finite values")
    rng = np.random.default_rng(seed)
    with one_thread():
        centred_NC = points_NC - points_NC.mean(axis=0)
        axes_CC = np.linalg.svd(centred_NC, full_matrices=False)[2]
        turned_NC = centred_NC @ axes_CC.T
        low_C, high_C = turned_NC.min(axis=0), turned_NC.max(axis=0)
        log_w_K = _log_spread(centred_NC, ks, seed=seed, restarts=restarts, power=power)
        null_BK = np.stack(
            [
                _log_spread(rng.uniform(low_C, high_C, turned_NC.shape), ks, seed=seed, restarts=restarts, power=power)
                for _ in range(references)
            ]
        )
    gap_K = null_BK.mean(axis=0) - log_w_K
    se_K = null_BK.std(axis=0) * np.sqrt(1 + 1 / references)
    enough = np.flatnonzero(gap_K[:-1] >= gap_K[1:] - se_K[1:])
    return Curve("gap", ks, gap_K, se_K, int(ks[enough[0]]) if len(enough) else None)


def _log_spread(
    points_NC: np.ndarray, ks: tuple[int, ...], *, seed: int, restarts: int, power: Literal[1, 2]
) -> np.ndarray:
    """log W_k of K-means for every k; NaN where W_k is 0."""
    spread = []
    for k in ks:
        labels_N, inertia = kmeans_labels(points_NC, k=k, seed=seed, restarts=restarts)
        spread.append(inertia if power == 2 else _distance_spread(points_NC, labels_N))
    spread_K = np.array(spread)
    tiny = 1e-12 * max(float((points_NC**2).sum()), np.finfo(float).tiny)
    return np.log(spread_K, out=np.full(len(ks), np.nan), where=spread_K > tiny)


def _distance_spread(points_NC: np.ndarray, labels_N: np.ndarray) -> float:
    from scipy.spatial.distance import pdist

    parts = [points_NC[labels_N == label] for label in np.unique(labels_N)]
    return float(sum(pdist(part).sum() / len(part) for part in parts))


def _extreme(criterion: Criterion, ks: tuple[int, ...], values_K: np.ndarray) -> Curve:
    chosen = None
    if np.isfinite(values_K).any():
        best = np.nanargmax(values_K) if BEST[criterion] == "largest" else np.nanargmin(values_K)
        chosen = ks[int(best)]
    return Curve(criterion, ks, values_K, np.full(len(ks), np.nan), chosen)


def _ks_of(partitions: Sequence[Partition]) -> tuple[int, ...]:
    ks = tuple(partition.k for partition in partitions if partition.k is not None)
    if len(ks) != len(partitions):
        raise ValueError("a curve over k needs partitions that were asked for with a k")
    return ks


def _rising(ks: Sequence[int], n: int) -> tuple[int, ...]:
    rising = tuple(sorted(set(ks)))
    if not rising or rising[0] < 1 or rising[-1] > n:
        raise ValueError(f"numbers of clusters must be from 1 to {n}, not {list(ks)}")
    return rising
