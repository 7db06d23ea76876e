"""The shift's components at the primary site: clusters, principal and independent components, factors, atoms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from unmask.analysis.clustering import Clustering
from unmask.analysis.components import FACTORIZERS, SIGNED, FactorName, Parts, assembled, half_stability, seed_stability
from unmask.analysis.dictionary import sparse_dictionary
from unmask.analysis.reduction import Pca, pca
from unmask.analysis.stability import Recovery
from unmask.stages.decomposition.artifacts import Rows
from unmask.stages.decomposition.config import DecompositionConfig
from unmask.stages.decomposition.examination import FEWEST

SOURCE = "shift"
PCS = 5
HALVES = "|cosine| between random halves"
OTHER_SEEDS = (1, 2)
"""Added to the seed for refits."""

Fit = Callable[[np.ndarray, int], Parts]
"""Rows (N x C) and a seed -> parts."""

NAMES = {"pc": "principal component", "ica": "independent component", "nmf": "non-negative factor", "atom": "atom"}


def add_clusters(
    rows: Rows,
    scores_NC: np.ndarray,
    clustering: Clustering,
    recovery: Recovery | None,
    *,
    question_ids: list[str],
    site: str,
) -> None:
    """One component a cluster; members only, 1 for the one nearest to the centre and less by its rank."""
    labels_N = clustering.labels_N
    k = len(clustering.sizes)
    centred_NC = scores_NC - scores_NC.mean(axis=0)
    total = float((centred_NC**2).sum())
    for label in range(k):
        members = np.flatnonzero(labels_N == label)
        centre_C = centred_NC[members].mean(axis=0)
        away = ((centred_NC[members] - centre_C) ** 2).sum(axis=1)
        ranked = members[np.argsort(away, kind="stable")]
        between = len(members) * float((centre_C**2).sum())
        name = f"{SOURCE}-cluster-{label}"
        rows["components"].append(
            {
                "component_id": name,
                "kind": "cluster",
                "source": SOURCE,
                "site": site,
                "label": f"cluster {label} of {k}",
                "stability_name": None if recovery is None else "bootstrap Jaccard",
                "stability": None if recovery is None else float(recovery.jaccard_K[label]),
                "strength": between / total if total > 0 else None,
                "size": len(members),
            }
        )
        rows["loadings"] += [
            {"component_id": name, "question_id": question_ids[row], "loading": 1 - rank / len(members)}
            for rank, row in enumerate(ranked)
        ]


def add_parts(
    rows: Rows, config: DecompositionConfig, full: Pca, *, question_ids: list[str], site: str
) -> dict[str, np.ndarray]:
    """Components that are no clusters; returns the questions' loadings on each kind of them, to be clustered too.

    Stability is between random halves of the questions, as other seeds on the same questions agree too easily. Nothing is added
    for fewer than `FEWEST` questions or where the shift does not differ.
    """
    n = len(question_ids)
    if n < FEWEST or not full.variance_ratio_C.any():
        return {}
    reduced_NC = full.first(config.components).scores_NC
    fits: dict[str, tuple[np.ndarray, Fit]] = {
        "pc": (full.scores_NC, _principal),
        "ica": (reduced_NC, partial(_factorized, "ica", min(config.factors, n // 4))),
        "nmf": (reduced_NC, partial(_factorized, "nmf", min(config.factors, n // 4))),
        "atom": (reduced_NC, partial(_atoms, config, max(2, min(config.dictionary_atoms, n // 3)))),
    }
    loadings: dict[str, np.ndarray] = {}
    for place, (kind, (points_NC, fit)) in enumerate(fits.items()):
        found = fit(points_NC, config.seed)
        signed = kind in SIGNED
        rng = np.random.default_rng([config.seed, place])
        halves = half_stability(points_NC, found, _at(fit, config.seed), signed=signed, rng=rng)
        _describe(rows, kind, found, halves, shown=PCS if kind == "pc" else config.factors, ids=question_ids, site=site)
        where = {"source": SOURCE, "site": site, "clusterer": kind, "k": len(found.strength_P)}
        measured = {"cosine_halves": halves}
        if kind != "pc":
            seeds = tuple(config.seed + more for more in OTHER_SEEDS)
            measured["cosine_seeds"] = seed_stability(found, partial(fit, points_NC), seeds=seeds, signed=signed)
            loadings[kind] = found.loadings_NP
        rows["stability"].append({**where, "measure": "explained", "cluster": None, "value": found.explained})
        rows["stability"] += [
            {**where, "measure": measure, "cluster": part, "value": float(value)}
            for measure, values_P in measured.items()
            for part, value in enumerate(values_P, start=1)
        ]
    return loadings


def _at(fit: Fit, seed: int) -> Callable[[np.ndarray], Parts]:
    return lambda rows_NC: fit(rows_NC, seed)


def _describe(
    rows: Rows, kind: str, found: Parts, halves_P: np.ndarray, *, shown: int, ids: list[str], site: str
) -> None:
    for part in range(min(shown, len(found.strength_P))):
        name = f"{SOURCE}-{kind}-{part + 1}"
        row: dict[str, Any] = {
            "component_id": name,
            "kind": kind,
            "source": SOURCE,
            "site": site,
            "label": f"{NAMES[kind]} {part + 1} of {len(found.strength_P)}",
            "stability_name": HALVES if kind in SIGNED else HALVES.replace("|cosine|", "cosine"),
            "stability": float(halves_P[part]),
            "strength": float(found.strength_P[part]),
            "size": None,
        }
        rows["components"].append(row)
        rows["loadings"] += [
            {"component_id": name, "question_id": identity, "loading": float(loading)}
            for identity, loading in zip(ids, found.loadings_NP[:, part], strict=True)
        ]


def _principal(rows_NC: np.ndarray, seed: int) -> Parts:
    """Principal components as parts; they know no seed."""
    found = pca(rows_NC, components=PCS)
    return assembled(rows_NC - rows_NC.mean(axis=0), found.scores_NC, found.loadings_CD, converged=True)


def _factorized(name: FactorName, count: int, rows_NC: np.ndarray, seed: int) -> Parts:
    return FACTORIZERS[name](rows_NC, count, seed)


def _atoms(config: DecompositionConfig, count: int, rows_NC: np.ndarray, seed: int) -> Parts:
    made = sparse_dictionary(
        rows_NC,
        atoms=count,
        active=min(config.dictionary_active, count),
        seed=seed,
        steps=config.dictionary_steps,
    )
    return made.parts(rows_NC)
