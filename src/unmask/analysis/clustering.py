"""K-means over questions, and how good and how topical a clustering is. Descriptive: none of this tests separability.

Shapes: N questions, C coordinates, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.threads import one_thread

OUTLIER_SHARE = 0.02
OUTLIER_SIZE = 5
"""A cluster of at most five questions, or of at most 2 % of them where that is fewer (but always one of two), is a handful."""

NOISE = -1
"""The label of a point that belongs to no cluster."""

BLOCK = 2048
"""Rows whose distances to all points are held at once."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """Labels 0..k-1 by falling size, with what K-means minimised and the mean silhouette (NaN where undefined)."""

    labels_N: np.ndarray
    inertia: float
    silhouette: float

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.labels_N)


def kmeans(points_NC: np.ndarray, *, k: int, seed: int, restarts: int = 10) -> Clustering:
    """K-means (scikit-learn, k-means++), one thread, labels renumbered by falling size.

    Raises ValueError when there are fewer points than clusters.
    """
    return kmeans_sweep(points_NC, ks=(k,), seed=seed, restarts=restarts)[0]


def kmeans_sweep(points_NC: np.ndarray, *, ks: Sequence[int], seed: int, restarts: int = 10) -> tuple[Clustering, ...]:
    """`kmeans` for every k; the distances that silhouettes need are computed once. Raises ValueError as `kmeans` does."""
    if ks and len(points_NC) < max(ks):
        raise ValueError(f"{len(points_NC)} points cannot make {max(ks)} clusters")
    with one_thread():
        found = [kmeans_labels(points_NC, k=k, seed=seed, restarts=restarts) for k in ks]
        widths = silhouettes(points_NC, [labels_N for labels_N, _ in found])
    return tuple(
        Clustering(labels_N=labels_N, inertia=inertia, silhouette=mean_silhouette(values_N))
        for (labels_N, inertia), values_N in zip(found, widths, strict=True)
    )


def kmeans_labels(
    points_NC: np.ndarray, *, k: int, seed: int, restarts: int | Literal["auto"]
) -> tuple[np.ndarray, float]:
    """Labels by falling size, and the inertia: K-means alone; `restarts` "auto" is scikit-learn's own default."""
    from sklearn import config_context
    from sklearn.cluster import KMeans

    # Checking parameters takes as long as clustering a hundred points; the points themselves are still checked.
    with one_thread(), config_context(skip_parameter_validation=True):
        fitted = KMeans(n_clusters=k, n_init=restarts, random_state=seed).fit(points_NC)
    return by_size(fitted.labels_), float(fitted.inertia_)


def distances(points_NC: np.ndarray, others_MC: np.ndarray | None = None) -> np.ndarray:
    """Euclidean distances (N x M), of a set to itself zero on the diagonal; by |x|^2 - 2 x y + |y|^2 around their mean."""
    centre_C = points_NC.mean(axis=0)
    centred_NC = points_NC - centre_C
    centred_MC = centred_NC if others_MC is None else others_MC - centre_C
    with one_thread():
        squared_NM = centred_NC @ (-2 * centred_MC.T)
    squared_NM += (centred_NC**2).sum(axis=1)[:, None]
    squared_NM += (centred_MC**2).sum(axis=1)
    np.maximum(squared_NM, 0, out=squared_NM)
    if others_MC is None:
        np.fill_diagonal(squared_NM, 0)
    return np.sqrt(squared_NM, out=squared_NM)


def silhouettes(points_NC: np.ndarray, partitions: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """(b - a) / max(a, b) of every point (Rousseeuw 1987) for each partition: 0 in a cluster of one, NaN for noise (-1).

    a: mean distance to the rest of its cluster, b: to the nearest other one. None unless 2 <= clusters < points in clusters.
    One pass over blocks of rows serves all partitions, and no N x N array is held: tokens may be as many as memory holds rows.
    """
    n = len(points_NC)
    members = [_members(labels_N) for labels_N in partitions]
    sums = [np.zeros(member_NK.shape) for member_NK in members]
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        block_BN = distances(points_NC) if n <= BLOCK else distances(points_NC[rows], points_NC)
        if n > BLOCK:
            block_BN[np.arange(len(block_BN)), np.arange(rows.start, rows.stop)] = 0
        with one_thread():
            for sums_NK, member_NK in zip(sums, members, strict=True):
                sums_NK[rows] = block_BN @ member_NK
    return [_silhouettes(sums_NK, member_NK) for sums_NK, member_NK in zip(sums, members, strict=True)]


def mean_silhouette(values_N: np.ndarray | None) -> float:
    """NaN where there is none."""
    return float("nan") if values_N is None else float(np.nanmean(values_N))


def _members(labels_N: np.ndarray) -> np.ndarray:
    """One column a cluster (N x K), 1 for its members; noise has none."""
    values = np.unique(labels_N)
    return (labels_N[:, None] == values[values != NOISE]).astype(np.float64)


def _silhouettes(sums_NK: np.ndarray, member_NK: np.ndarray) -> np.ndarray | None:
    """From the sums of each point's distances to the members of each cluster."""
    sizes_K = member_NK.sum(axis=0)
    if not 2 <= len(sizes_K) < sizes_K.sum():
        return None
    inside_N = member_NK.any(axis=1)
    own_M, rows = member_NK[inside_N].argmax(axis=1), np.arange(int(inside_N.sum()))
    within_M = sums_NK[inside_N, own_M] / np.maximum(sizes_K[own_M] - 1, 1)
    outside_MK = sums_NK[inside_N] / sizes_K
    outside_MK[rows, own_M] = np.inf
    nearest_M = outside_MK.min(axis=1)
    largest_M = np.maximum(within_M, nearest_M)
    values_M = np.divide(nearest_M - within_M, largest_M, out=np.zeros(len(rows)), where=largest_M > 0)
    values_N = np.full(len(member_NK), np.nan)
    values_N[inside_N] = np.where(sizes_K[own_M] > 1, values_M, 0.0)
    return values_N


def by_size(labels_N: np.ndarray) -> np.ndarray:
    """Renumber labels so that 0 is the largest cluster; ties go by first appearance."""
    values, first, counts = np.unique(labels_N, return_index=True, return_counts=True)
    order = sorted(range(len(values)), key=lambda index: (-counts[index], first[index]))
    rank = {values[index]: position for position, index in enumerate(order)}
    return np.array([rank[label] for label in labels_N], dtype=np.int64)


def adjusted_mutual_information(
    labels_N: Sequence[object] | np.ndarray, groups_N: Sequence[object] | np.ndarray
) -> float:
    """AMI with arithmetic normalisation (Vinh, Epps & Bailey 2010): 0 by chance, 1 for identical partitions."""
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(np.asarray(groups_N).astype(str), np.asarray(labels_N)))


def is_outlier_group(size: int, *, total: int) -> bool:
    """True for a cluster of a handful of questions, which should be named as such and never be read as a sub-persona."""
    return size <= max(2, min(OUTLIER_SIZE, round(OUTLIER_SHARE * total)))
