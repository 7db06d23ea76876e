"""Every way of clustering that the field uses, in one table. Descriptive: none of them tests separability.

Shapes: N questions, C coordinates, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.clustering import NOISE, OUTLIER_SHARE, OUTLIER_SIZE, by_size, kmeans_labels
from unmask.analysis.threads import one_thread

ClustererName = Literal["kmeans", "gaussian_diag", "gaussian_tied", "ward", "average", "dbscan", "hdbscan", "spectral"]
Covariance = Literal["diag", "tied"]

NEIGHBOURS = 10
"""Of a question in the graph of spectral clustering (von Luxburg 2007: of the order of log N, connected is better)."""

DENSE = 5
"""Points within reach that make a core point of DBSCAN, the point itself included (scikit-learn's default)."""

RIDGE = 1e-3
"""Added to every variance of a mixture, as a share of the mean variance: no component may close in on a few points."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Labels by falling size, `NOISE` for none; the k asked for (None where the method finds its own); BIC (NaN if none)."""

    k: int | None
    labels_N: np.ndarray
    bic: float = float("nan")

    @property
    def found(self) -> int:
        """Number of clusters; noise is none."""
        return int(self.labels_N.max(initial=NOISE)) + 1

    @property
    def noise(self) -> int:
        return int((self.labels_N == NOISE).sum())


Clusterer = Callable[[np.ndarray, tuple[int, ...], int, int], tuple[Partition, ...]]
"""Points (N x C), numbers of clusters, seed, restarts -> a partition for each k, or one where the method finds its own."""


def cluster(
    points_NC: np.ndarray, *, by: ClustererName, ks: Sequence[int], seed: int, restarts: int = 10
) -> tuple[Partition, ...]:
    """One partition for each k, or the one that a method without k finds; the same seed gives the same labels.

    Raises ValueError for fewer than 3 points, fewer points than clusters, or values that are not finite.
    """
    points_NC = np.asarray(points_NC, dtype=np.float64)
    if not np.isfinite(points_NC).all():
        raise ValueError(f"clustering needs finite values, {by} was given NaN or infinity")
    most = max((3, *ks))
    if len(points_NC) < most:
        raise ValueError(f"{len(points_NC)} points cannot make {most} clusters")
    with one_thread():
        return CLUSTERERS[by](points_NC, tuple(ks), seed, restarts)


def numbered(labels_N: np.ndarray) -> np.ndarray:
    """`by_size` of what is not noise; noise stays `NOISE`."""
    labels_N = np.asarray(labels_N)
    out_N = np.full(len(labels_N), NOISE, dtype=np.int64)
    kept_N = labels_N != NOISE
    out_N[kept_N] = by_size(labels_N[kept_N])
    return out_N


def knee(rising: np.ndarray) -> int:
    """Index of the point farthest below the chord from the first to the last value of a rising curve (Satopaa et al. 2011)."""
    span = rising[-1] - rising[0]
    if len(rising) < 3 or span <= 0:
        return len(rising) - 1
    return int(np.argmax(np.linspace(0, 1, len(rising)) - (rising - rising[0]) / span))


def _kmeans(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
    return tuple(Partition(k, kmeans_labels(points_NC, k=k, seed=seed, restarts=restarts)[0]) for k in ks)


def _gaussian(covariance: Covariance) -> Clusterer:
    """Gaussian mixture by EM from K-means (McLachlan & Peel 2000). BIC: lower is better, comparable between k only.

    Points are divided by their RMS coordinate first, so that the ridge is a share of the variance. Few questions support few
    parameters: give it the leading components only.
    """

    def fit(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
        from sklearn.mixture import GaussianMixture

        scale = float(np.sqrt(np.mean((points_NC - points_NC.mean(axis=0)) ** 2)))
        scaled_NC = points_NC / (scale if scale > 0 else 1.0)
        found = []
        for k in ks:
            model = GaussianMixture(
                k, covariance_type=covariance, reg_covar=RIDGE, max_iter=200, n_init=1, random_state=seed
            )
            with _settled():
                labels_N = model.fit_predict(scaled_NC)
            found.append(Partition(k, by_size(labels_N), bic=float(model.bic(scaled_NC))))
        return tuple(found)

    return fit


@contextmanager
def _settled() -> Generator[None]:
    """Repeated points and EM that stops early are no news here: `found` and the BIC tell."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _linkage(method: Literal["ward", "average"]) -> Clusterer:
    """Agglomerative clustering; one tree serves every k. Ties in height may leave fewer than k clusters."""

    def fit(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
        from scipy.cluster.hierarchy import fcluster, linkage

        tree = linkage(points_NC, method=method)
        return tuple(Partition(k, by_size(fcluster(tree, k, criterion="maxclust"))) for k in ks)

    return fit


def _dbscan(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
    """DBSCAN (Ester et al. 1996); its reach is the knee of the sorted distances to the fourth neighbour."""
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import NearestNeighbors

    count = min(DENSE, len(points_NC))
    reach = np.sort(NearestNeighbors(n_neighbors=count).fit(points_NC).kneighbors(points_NC)[0][:, -1])
    eps = max(float(reach[knee(reach)]), float(np.finfo(float).tiny))
    return (Partition(None, numbered(DBSCAN(eps=eps, min_samples=count).fit_predict(points_NC))),)


def _hdbscan(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
    """HDBSCAN (Campello, Moulavi & Sander 2013); the smallest cluster is one more than a handful."""
    from sklearn.cluster import HDBSCAN

    smallest = min(max(OUTLIER_SIZE, round(OUTLIER_SHARE * len(points_NC))) + 1, len(points_NC))
    return (Partition(None, numbered(HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(points_NC))),)


def _spectral(points_NC: np.ndarray, ks: tuple[int, ...], seed: int, restarts: int) -> tuple[Partition, ...]:
    """Normalised spectral clustering (Ng, Jordan & Weiss 2002) of the nearest-neighbour graph; one eigenproblem for all k.

    Repeated points are one vertex: otherwise a place visited often is a graph of its own, cut at will.
    """
    from scipy.linalg import eigh
    from scipy.sparse.csgraph import laplacian
    from sklearn.neighbors import kneighbors_graph

    places_MC, place_N = np.unique(points_NC, axis=0, return_inverse=True)
    m = len(places_MC)
    found = [Partition(k, by_size(place_N)) for k in ks if k >= m]
    below = [k for k in ks if k < m]
    if not below:
        return tuple(found)
    graph = kneighbors_graph(places_MC, min(NEIGHBOURS, m - 1)).toarray()
    normal_MM = laplacian(np.maximum(graph, graph.T), normed=True)
    _, vectors_MK = eigh(normal_MM, subset_by_index=(0, max(below) - 1), check_finite=False)
    for k in below:
        rows_MK = vectors_MK[:, :k]
        lengths_M = np.linalg.norm(rows_MK, axis=1, keepdims=True)
        unit_MK = np.divide(rows_MK, lengths_M, out=np.zeros_like(rows_MK), where=lengths_M > 0)
        with _settled():
            labels_M = kmeans_labels(unit_MK, k=k, seed=seed, restarts=restarts)[0]
        found.append(Partition(k, by_size(labels_M[place_N])))
    return tuple(sorted(found, key=lambda partition: ks.index(partition.k or 0)))


CLUSTERERS: dict[ClustererName, Clusterer] = {
    "kmeans": _kmeans,
    "gaussian_diag": _gaussian("diag"),
    "gaussian_tied": _gaussian("tied"),
    "ward": _linkage("ward"),
    "average": _linkage("average"),
    "dbscan": _dbscan,
    "hdbscan": _hdbscan,
    "spectral": _spectral,
}
FINDS_ITS_OWN_K: frozenset[ClustererName] = frozenset({"dbscan", "hdbscan"})
