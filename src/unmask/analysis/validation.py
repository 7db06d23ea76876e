"""How far a clustering agrees with what is known of the questions: dimension, facet, score band.

Agreement with a dimension is agreement with topic, in the base model as much as in the organism: always show both.
Shapes: N questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unmask.analysis.clustering import NOISE

BANDS = ("low", "middle", "high")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a clustering with known groups; NaN where no question has both. 1 is the same partition.

    ami and ari are 0 by chance (Vinh, Epps & Bailey 2010; Hubert & Arabie 1985); v, homogeneity and completeness are not
    adjusted for chance and rise with the number of clusters (Rosenberg & Hirschberg 2007).
    """

    ami: float
    ari: float
    v: float
    homogeneity: float
    completeness: float
    n: int
    """Questions compared: those that are in a cluster and whose group is known."""


MEASURES = ("ami", "ari", "v", "homogeneity", "completeness")


def agreement(labels_N: np.ndarray, groups_N: Sequence[object] | np.ndarray) -> Agreement:
    """Compare labels with groups; noise, and questions whose group is None or NaN, are left out and show in `n`.

    All five come from one contingency table (scikit-learn's functions make it five times; a sweep calls this thousands of
    times). Raises ValueError when the two differ in length.
    """
    labels_N = np.asarray(labels_N)
    known_N = np.array([is_known(group) for group in groups_N], dtype=bool)
    if len(labels_N) != len(known_N):
        raise ValueError(f"{len(labels_N)} labels cannot be compared with {len(known_N)} groups")
    kept_N = known_N & (labels_N != NOISE)
    n = int(kept_N.sum())
    if n == 0:
        return Agreement(*(float("nan"),) * 5, n=0)
    words = np.array([str(group) for group, kept in zip(groups_N, kept_N, strict=True) if kept])
    truth_M, found_M = np.unique(words, return_inverse=True)[1], np.unique(labels_N[kept_N], return_inverse=True)[1]
    counts_GK = np.zeros((truth_M.max() + 1, found_M.max() + 1), dtype=np.int64)
    np.add.at(counts_GK, (truth_M, found_M), 1)
    groups_G, clusters_K = counts_GK.sum(axis=1), counts_GK.sum(axis=0)
    mutual = max(0.0, _entropy(groups_G) + _entropy(clusters_K) - _entropy(counts_GK.ravel()))
    homogeneity = _share(mutual, _entropy(groups_G))
    completeness = _share(mutual, _entropy(clusters_K))
    both = homogeneity + completeness
    return Agreement(
        ami=_adjusted(mutual, groups_G, clusters_K),
        ari=_rand(counts_GK, groups_G, clusters_K),
        v=2 * homogeneity * completeness / both if both > 0 else 0.0,
        homogeneity=homogeneity,
        completeness=completeness,
        n=n,
    )


def is_known(group: object) -> bool:
    """False for None and NaN."""
    return group is not None and not (isinstance(group, float) and np.isnan(group))


def _entropy(counts: np.ndarray) -> float:
    """In nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _share(mutual: float, entropy: float) -> float:
    """Of an entropy explained; 1 where there is nothing to explain."""
    return mutual / entropy if entropy > 0 else 1.0


def _adjusted(mutual: float, groups_G: np.ndarray, clusters_K: np.ndarray) -> float:
    """AMI with arithmetic normalisation; 1 where both are one group, or both as many as there are questions."""
    n = int(groups_G.sum())
    if len(groups_G) == len(clusters_K) and len(groups_G) in (1, n):
        return 1.0
    chance = _chance_information(groups_G, clusters_K)
    most = (_entropy(groups_G) + _entropy(clusters_K)) / 2
    rest = most - chance
    # Both sides vanish together for trivial partitions; scikit-learn keeps the sign and divides by the smallest number too.
    rest = min(rest, -np.finfo(float).eps) if rest < 0 else max(rest, np.finfo(float).eps)
    return float((mutual - chance) / rest)


def _chance_information(groups_G: np.ndarray, clusters_K: np.ndarray) -> float:
    """Expected mutual information of partitions of these sizes (Vinh, Epps & Bailey 2010, eq. 24), in nats."""
    from scipy.special import gammaln

    n = int(groups_G.sum())
    # Equal sizes have equal terms: each pair of sizes is summed once.
    sizes_A, times_A = np.unique(groups_G, return_counts=True)
    sizes_B, times_B = np.unique(clusters_K, return_counts=True)
    a, b = sizes_A[:, None, None], sizes_B[None, :, None]
    shared = np.arange(1, min(int(sizes_A.max()), int(sizes_B.max())) + 1)
    possible = (shared >= a + b - n) & (shared <= np.minimum(a, b))
    log_factorial = gammaln(np.arange(n + 2) + 1.0)

    def log_of(value: np.ndarray) -> np.ndarray:
        return log_factorial[np.clip(value, 0, n)]

    log_p = (
        log_of(a) + log_of(b) + log_of(n - a) + log_of(n - b) - log_factorial[n] - log_of(shared)
        - log_of(a - shared) - log_of(b - shared) - log_of(n - a - b + shared)
    )  # fmt: skip
    terms = shared / n * np.log(n * shared / (a * b)) * np.exp(log_p)
    return float((np.where(possible, terms, 0.0).sum(axis=2) * times_A[:, None] * times_B).sum())


def _rand(counts_GK: np.ndarray, groups_G: np.ndarray, clusters_K: np.ndarray) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985); 1 where both partitions are trivial in the same way."""

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum()) / 2

    total = pairs(groups_G.sum(keepdims=True))
    if total == 0:
        return 1.0
    expected = pairs(groups_G) * pairs(clusters_K) / total
    most = (pairs(groups_G) + pairs(clusters_K)) / 2
    return (pairs(counts_GK) - expected) / (most - expected) if most != expected else 1.0


def score_bands(scores_N: Sequence[float] | np.ndarray) -> np.ndarray:
    """Tertile of each score as `low`, `middle` or `high`; None for a missing score.

    Cut at the 1/3 and 2/3 quantiles of the scores that are there, a score on a cut goes below: equal scores share a band, so
    few distinct scores make fewer bands.
    """
    scores_N = np.asarray(scores_N, dtype=float)
    bands_N = np.full(len(scores_N), None, dtype=object)
    known_N = ~np.isnan(scores_N)
    if known_N.any():
        cuts = np.quantile(scores_N[known_N], [1 / 3, 2 / 3])
        bands_N[known_N] = np.array(BANDS, dtype=object)[np.searchsorted(cuts, scores_N[known_N], side="left")]
    return bands_N
