"""Rows on the choice of k and on stability, at the primary site."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from unmask.analysis.clusterers import ClustererName, Partition, cluster
from unmask.analysis.clustering import kmeans_labels
from unmask.analysis.selection import Curve, bic_curve, elbow_curve, gap_curve, internal_curves
from unmask.analysis.stability import Recovery, bootstrap_jaccard, consensus, prediction_strength
from unmask.stages.decomposition.config import DecompositionConfig

FEWEST = 10
"""Below so many questions neither k nor stability is looked into: halves would hold less than a handful."""

FAST_STARTS = 3
"""Starts of K-means on references and resamples: more would change their mean inertia by less than their own spread."""

SUBSAMPLE = 0.8
"""Share of the questions in a run of the consensus over questions (Monti et al. 2003)."""

BOOTSTRAPPED: tuple[ClustererName, ...] = ("ward",)
"""Clusterers whose clusters are bootstrapped beside those of K-means."""

Row = dict[str, Any]


def curves(config: DecompositionConfig, scores_NC: np.ndarray) -> tuple[Curve, ...]:
    """Every criterion for k of one source; none where the questions are fewer than `FEWEST` or do not differ."""
    n = len(scores_NC)
    different = len(np.unique(scores_NC, axis=0))
    ks = tuple(range(1, min(config.most_k, n // 2, different - 1) + 1))
    if n < FEWEST or len(ks) < 3:
        return ()
    found = cluster(scores_NC, by="kmeans", ks=ks, seed=config.seed, restarts=config.restarts)
    mixtures = cluster(
        scores_NC[:, : config.mixture_components], by="gaussian_diag", ks=ks, seed=config.seed, restarts=config.restarts
    )
    return (
        *internal_curves(scores_NC, found),
        elbow_curve(scores_NC, ks=ks, seed=config.seed, restarts=config.restarts),
        gap_curve(scores_NC, ks=ks, seed=config.seed, references=config.gap_references, restarts=FAST_STARTS),
        bic_curve(mixtures),
        prediction_strength(scores_NC, ks=ks, seed=config.seed, splits=config.prediction_splits, restarts=FAST_STARTS),
    )


def selection_rows(found: tuple[Curve, ...], where: dict[str, str]) -> list[Row]:
    return [
        {
            **where,
            "criterion": curve.criterion,
            "k": k,
            "value": float(curve.values_K[place]),
            "se": float(curve.se_K[place]),
            "chosen": k == curve.chosen,
        }
        for curve in found
        for place, k in enumerate(curve.ks)
    ]


def recoveries(
    config: DecompositionConfig, scores_NC: np.ndarray, labels_N: np.ndarray, *, k: int
) -> dict[ClustererName, Recovery]:
    """Bootstrap of the primary clustering and of Ward's at the same k; none for too few questions."""
    if not enough(scores_NC, k):
        return {}
    labellers = {"kmeans": partial(_kmeans_again, k=k, seed=config.seed)}
    labels: dict[ClustererName, np.ndarray] = {"kmeans": labels_N}
    for name in BOOTSTRAPPED:
        if name in config.clusterers:
            labels[name] = _again(scores_NC, name=name, k=k, seed=config.seed)
            labellers[name] = partial(_again, name=name, k=k, seed=config.seed)
    return {
        name: bootstrap_jaccard(
            scores_NC, own_N, labeller=labellers[name], seed=config.seed, resamples=config.bootstraps
        )
        for name, own_N in labels.items()
    }


def stability_rows(
    config: DecompositionConfig,
    scores_NC: np.ndarray,
    labels_N: np.ndarray,
    found: dict[ClustererName, Recovery],
    *,
    k: int,
    where: dict[str, str],
) -> list[Row]:
    """Bootstrap Jaccard by cluster, and consensus over seeds and over questions, by cluster and as PAC."""
    rows: list[Row] = [
        {"clusterer": name, "measure": measure, "cluster": cluster, "value": float(value)}
        for name, recovery in found.items()
        for measure, values_K in (
            ("jaccard", recovery.jaccard_K),
            ("dissolved", recovery.dissolved_K),
            ("recovered", recovery.recovered_K),
        )
        for cluster, value in enumerate(values_K)
    ]
    if enough(scores_NC, k):
        for over, share in (("seeds", 1.0), ("questions", SUBSAMPLE)):
            agreed = consensus(scores_NC, k=k, seed=config.seed, runs=config.consensus_runs, share=share)
            rows.append({"clusterer": "kmeans", "measure": f"pac_{over}", "cluster": None, "value": agreed.pac})
            rows += [
                {"clusterer": "kmeans", "measure": f"consensus_{over}", "cluster": cluster, "value": float(value)}
                for cluster, value in enumerate(agreed.within(labels_N))
            ]
    return [{**where, "k": k, **row} for row in rows]


def strength_rows(found: tuple[Curve, ...], where: dict[str, str]) -> list[Row]:
    """Prediction strength again, where stability is looked for."""
    return [
        {
            **where,
            "clusterer": "kmeans",
            "k": k,
            "measure": "prediction_strength",
            "cluster": None,
            "value": float(value),
        }
        for curve in found
        if curve.criterion == "prediction_strength"
        for k, value in zip(curve.ks, curve.values_K, strict=True)
    ]


def enough(scores_NC: np.ndarray, k: int) -> bool:
    """Whether halves and subsamples can hold k clusters."""
    return len(scores_NC) >= FEWEST and 2 * k <= len(scores_NC)


def _kmeans_again(points_NC: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    return kmeans_labels(points_NC, k=k, seed=seed, restarts=FAST_STARTS)[0]


def _again(points_NC: np.ndarray, *, name: ClustererName, k: int, seed: int) -> np.ndarray:
    found: tuple[Partition, ...] = cluster(points_NC, by=name, ks=(k,), seed=seed, restarts=FAST_STARTS)
    return found[0].labels_N
