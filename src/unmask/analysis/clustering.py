"""K-means over questions, and how good and how topical a clustering is. Descriptive: none of this tests separability.

Shapes: N questions, C coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OUTLIER_SHARE = 0.02
OUTLIER_SIZE = 5
"""A cluster of at most five questions, or of at most 2 % of them where that is fewer (but always one of two), is a handful."""


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
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    if len(points_NC) < k:
        raise ValueError(f"{len(points_NC)} points cannot make {k} clusters")
    with threadpool_limits(1):
        fitted = KMeans(n_clusters=k, n_init=restarts, random_state=seed).fit(points_NC)
        found = len(np.unique(fitted.labels_))
        silhouette = silhouette_score(points_NC, fitted.labels_) if 2 <= found < len(points_NC) else float("nan")
    return Clustering(labels_N=by_size(fitted.labels_), inertia=float(fitted.inertia_), silhouette=float(silhouette))


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
