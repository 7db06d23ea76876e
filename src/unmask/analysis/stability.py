"""Whether a clustering comes back on other questions, other samples or other seeds. Descriptive.

Stable is not real: K-means cuts one elongated cloud in the same place every time.
Shapes: N questions, C coordinates, K clusters, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unmask.analysis.clustering import NOISE, kmeans_labels
from unmask.analysis.selection import Curve
from unmask.analysis.threads import one_thread

PREDICTED = 0.8
"""Tibshirani & Walther (2005): the largest k whose prediction strength is above 0.8 to 0.9."""

AMBIGUOUS = (0.1, 0.9)
"""Co-association between these is ambiguous (Senbabaoglu, Michailidis & Li 2014)."""

Labeller = Callable[[np.ndarray], np.ndarray]
"""Points (M x C) -> labels (M), -1 for noise: any clustering."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Per cluster: mean Jaccard similarity to the best match in resamples (K), and the shares dissolved and recovered (K).

    Dissolved: at most 0.5; recovered: at least 0.75 (Hennig 2007). NaN for a cluster that no resample held.
    """

    jaccard_K: np.ndarray
    dissolved_K: np.ndarray
    recovered_K: np.ndarray


@dataclass(frozen=True, slots=True)
class Consensus:
    """Share of the runs holding both questions that put them together (N x N), and the proportion of ambiguous pairs.

    NaN for a pair never held together by a run. `pac` is 0 where every pair is always or never together.
    """

    together_NN: np.ndarray
    pac: float

    def within(self, labels_N: np.ndarray) -> np.ndarray:
        """Mean co-association between the members of each cluster (K); NaN for a cluster of one."""
        out = []
        for label in range(int(labels_N.max(initial=NOISE)) + 1):
            members = np.flatnonzero(labels_N == label)
            pairs = self.together_NN[np.ix_(members, members)][np.triu_indices(len(members), 1)]
            out.append(float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan"))
        return np.array(out)


def prediction_strength(
    points_NC: np.ndarray, *, ks: Sequence[int], seed: int, splits: int = 5, restarts: int = 3
) -> Curve:
    """Prediction strength of K-means over k (Tibshirani & Walther 2005).

    Halves are clustered apart; every cluster of one half counts the share of its pairs that the other half's centres put
    together; the smallest share of the clusters, averaged over both roles and all splits, is ps(k), and ps(1) = 1. A cluster of
    one counts 0: it predicts nothing. Chosen: the largest k with ps(k) >= 0.8. SE: over splits. Raises ValueError when a half
    is smaller than the largest k, for k < 1, or values that are not finite.
    """
    ks = tuple(sorted(set(ks)))
    half = len(points_NC) // 2
    if not ks or ks[0] < 1 or ks[-1] > half:
        raise ValueError(f"prediction strength needs k from 1 to {half}, half the points, not {list(ks)}")
    if not np.isfinite(points_NC).all():
        raise ValueError("prediction strength needs finite values")
    rng = np.random.default_rng(seed)
    values_SK = np.empty((splits, len(ks)))
    with one_thread():
        for split in range(splits):
            order = rng.permutation(len(points_NC))
            parts = (points_NC[order[:half]], points_NC[order[half:]])
            for place, k in enumerate(ks):
                values_SK[split, place] = _predicted(parts, k=k, seed=seed, restarts=restarts)
    values_K = values_SK.mean(axis=0)
    se_K = values_SK.std(axis=0, ddof=1) / np.sqrt(splits) if splits > 1 else np.full(len(ks), np.nan)
    above = [k for k, value in zip(ks, values_K, strict=True) if value >= PREDICTED]
    return Curve("prediction_strength", ks, values_K, se_K, max(above, default=None))


def _predicted(parts: tuple[np.ndarray, np.ndarray], *, k: int, seed: int, restarts: int) -> float:
    if k == 1:
        return 1.0
    labels = [kmeans_labels(part, k=k, seed=seed, restarts=restarts)[0] for part in parts]
    return float(np.mean([_smallest_share(parts[i], labels[i], parts[1 - i], labels[1 - i]) for i in (0, 1)]))


def _smallest_share(test_MC: np.ndarray, own_M: np.ndarray, train_MC: np.ndarray, train_M: np.ndarray) -> float:
    """Smallest share, over the test half's clusters, of pairs that the nearest training centre puts together."""
    centres_KC = np.stack([train_MC[train_M == label].mean(axis=0) for label in np.unique(train_M)])
    away_MK = (centres_KC**2).sum(axis=1) - 2 * test_MC @ centres_KC.T
    nearest_M = away_MK.argmin(axis=1)
    shares = []
    for label in np.unique(own_M):
        counts = np.bincount(nearest_M[own_M == label])
        size = int(counts.sum())
        shares.append(float((counts * (counts - 1)).sum()) / (size * (size - 1)) if size > 1 else 0.0)
    return min(shares)


def bootstrap_jaccard(
    points_NC: np.ndarray, labels_N: np.ndarray, *, labeller: Labeller, seed: int, resamples: int = 50
) -> Recovery:
    """Cluster-wise stability under the bootstrap (Hennig 2007): max_D |C & D| / |C u D| on the questions drawn.

    `labeller` clusters each bootstrap sample; a question drawn twice counts once. Raises ValueError for fewer than 1 resample
    or when no question is in a cluster.
    """
    k = int(np.max(labels_N, initial=NOISE)) + 1
    if resamples < 1 or k < 1:
        raise ValueError("a bootstrap needs at least 1 resample and 1 cluster")
    rng = np.random.default_rng(seed)
    found_BK = np.full((resamples, k), np.nan)
    with one_thread():
        for resample in range(resamples):
            drawn = rng.integers(len(points_NC), size=len(points_NC))
            again = np.asarray(labeller(points_NC[drawn]))
            kept, first = np.unique(drawn, return_index=True)
            found_BK[resample] = _best_jaccard(labels_N[kept], again[first], k)
    held_K = np.isfinite(found_BK).sum(axis=0)
    share = [np.where(held_K > 0, test.sum(axis=0) / np.maximum(held_K, 1), np.nan)
             for test in (np.nan_to_num(found_BK), found_BK <= 0.5, found_BK >= 0.75)]  # fmt: skip
    return Recovery(*share)


def _best_jaccard(labels_M: np.ndarray, again_M: np.ndarray, k: int) -> np.ndarray:
    """For each of k clusters the largest Jaccard similarity to one of the other clustering; NaN for a cluster not drawn."""
    own_MK = labels_M[:, None] == np.arange(k)
    other_MJ = again_M[:, None] == np.arange(int(again_M.max(initial=NOISE)) + 1)
    both_KJ = own_MK.T.astype(float) @ other_MJ
    either_KJ = own_MK.sum(axis=0)[:, None] + other_MJ.sum(axis=0)[None] - both_KJ
    best_K = (both_KJ / np.maximum(either_KJ, 1)).max(axis=1, initial=0.0)
    return np.where(own_MK.any(axis=0), best_K, np.nan)


def consensus(points_NC: np.ndarray, *, k: int, seed: int, runs: int = 50, share: float = 1.0) -> Consensus:
    """Co-association of K-means with one start a run (Monti et al. 2003): over seeds, or over questions with `share` < 1.

    PAC is the share of pairs with a co-association strictly between 0.1 and 0.9 (Senbabaoglu, Michailidis & Li 2014).
    Raises ValueError for fewer questions in a run than clusters, a share outside (0, 1], or values that are not finite.
    """
    n = len(points_NC)
    drawn = round(share * n)
    if not 0 < share <= 1 or drawn < max(k, 2) or runs < 1:
        raise ValueError(f"consensus over {drawn} of {n} questions cannot make {k} clusters")
    if not np.isfinite(points_NC).all():
        raise ValueError("consensus needs finite values")
    rng = np.random.default_rng(seed)
    together_NN, held_NN = np.zeros((n, n)), np.zeros((n, n))
    with one_thread():
        for _ in range(runs):
            rows = np.sort(rng.permutation(n)[:drawn])
            labels = kmeans_labels(points_NC[rows], k=k, seed=int(rng.integers(2**31)), restarts=1)[0]
            member_NK, present_N = np.zeros((n, k)), np.zeros(n)
            member_NK[rows, labels], present_N[rows] = 1.0, 1.0
            together_NN += member_NK @ member_NK.T
            held_NN += np.outer(present_N, present_N)
    share_NN = np.divide(together_NN, held_NN, out=np.full((n, n), np.nan), where=held_NN > 0)
    pairs = share_NN[np.triu_indices(n, 1)]
    known = pairs[np.isfinite(pairs)]
    low, high = AMBIGUOUS
    return Consensus(share_NN, float(((known > low) & (known < high)).mean()) if len(known) else float("nan"))
