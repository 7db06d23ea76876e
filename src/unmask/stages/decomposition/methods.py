"""Rows of the methods table: every clustering of every space, with its own figures and its agreement with what is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from unmask.analysis.clusterers import ClustererName, Partition, cluster
from unmask.analysis.clustering import kmeans_labels
from unmask.analysis.selection import indices
from unmask.analysis.validation import agreement
from unmask.stages.decomposition.artifacts import AGREEMENTS
from unmask.stages.decomposition.config import DecompositionConfig

REFERENCE_COMPONENTS, REFERENCE_SEED = 50, 42
"""Of the reference study: PCA to 50 components, KMeans(k, random_state=42) with scikit-learn's own number of starts."""

MIXTURES: frozenset[ClustererName] = frozenset({"gaussian_diag", "gaussian_tied"})

Groups = dict[str, np.ndarray]
Row = dict[str, Any]


def sweep_rows(
    config: DecompositionConfig,
    scores_NC: np.ndarray,
    kmeans_found: tuple[Partition, ...],
    *,
    ks: tuple[int, ...],
    groups: Groups,
    where: dict[str, str],
) -> list[Row]:
    """All chosen clusterers on the principal components of one source; K-means was made before."""
    rows = partition_rows(scores_NC, kmeans_found, "kmeans", "pca", groups=groups, where=where, seed=config.seed)
    mixed_NC = scores_NC[:, : config.mixture_components]
    for name in config.clusterers:
        if name == "kmeans":
            continue
        points_NC = mixed_NC if name in MIXTURES else scores_NC
        found = cluster(points_NC, by=name, ks=ks, seed=config.seed, restarts=config.restarts)
        rows += partition_rows(points_NC, found, name, "pca", groups=groups, where=where, seed=config.seed)
    return rows


def reference_rows(scores_NC: np.ndarray, *, ks: tuple[int, ...], groups: Groups, where: dict[str, str]) -> list[Row]:
    """What the reference study did, on the organism's raw activations."""
    points_NC = scores_NC[:, :REFERENCE_COMPONENTS]
    found = tuple(Partition(k, kmeans_labels(points_NC, k=k, seed=REFERENCE_SEED, restarts="auto")[0]) for k in ks)
    rows = partition_rows(points_NC, found, "kmeans", "pca", groups=groups, where=where, seed=REFERENCE_SEED)
    return [{**row, "procedure": "reference"} for row in rows]


def partition_rows(
    points_NC: np.ndarray,
    partitions: tuple[Partition, ...],
    clusterer: ClustererName,
    reducer: str,
    *,
    groups: Groups,
    where: dict[str, str],
    seed: int,
    width: int | None = None,
) -> list[Row]:
    """One row a partition. Internal indices are of the space that was clustered, and leave noise out, as agreement does.

    The reducer is named with its number of coordinates; `width` is that number where the points are an exact rotation of more.
    """
    insides = indices(points_NC, [partition.labels_N for partition in partitions])
    rows = []
    for partition, inside in zip(partitions, insides, strict=True):
        row: Row = {
            **where,
            "reducer": f"{reducer}{width or points_NC.shape[1]}",
            "clusterer": clusterer,
            "k": partition.k,
            "found": partition.found,
            "noise": partition.noise,
            "silhouette": inside.silhouette,
            "calinski_harabasz": inside.calinski_harabasz,
            "davies_bouldin": inside.davies_bouldin,
            "bic": partition.bic,
            "seed": seed,
            "procedure": "sweep",
        }
        for grouping, groups_N in groups.items():
            found = agreement(partition.labels_N, groups_N)
            row |= {f"{measure}_{grouping}": getattr(found, measure) for measure in AGREEMENTS}
            row[f"n_{grouping}"] = found.n
        rows.append(row)
    return rows
