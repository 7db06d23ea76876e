"""K-means over tokens that do not fit in memory: mini-batches, several passes, the same labels however the stream is cut.

Descriptive, as `clustering` is: none of this tests separability. Shapes: N tokens, C coordinates, K clusters, S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from unmask.analysis.clustering import kmeans_labels
from unmask.analysis.streaming import checked
from unmask.analysis.threads import one_thread

BATCH = 4096
"""Tokens of a mini-batch; at least k."""

SAMPLE = 20_000
"""Tokens that the start is found on."""


@dataclass(frozen=True, slots=True)
class TokenClustering:
    """Centres (K x C) by falling size, sizes (K), inertia (squared distances of all tokens to their centres, summed), seed."""

    centres_KC: np.ndarray
    sizes_K: np.ndarray
    inertia: float
    seed: int

    @property
    def count(self) -> int:
        """Tokens clustered."""
        return int(self.sizes_K.sum())

    def labels(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """For each block (N x C) the labels (N, int32) of its tokens. Raises ValueError as `Moments.update` does."""
        before = 0
        for block_NC in blocks:
            rows_NC = np.asarray(checked(block_NC, width=self.centres_KC.shape[1], before=before), dtype=np.float64)
            before += len(rows_NC)
            with one_thread():  # never around a yield: the limit would hold for whoever reads the labels
                labels_N = _nearest(rows_NC, self.centres_KC)
            yield labels_N


@dataclass(frozen=True, slots=True)
class _Batches:
    """A stream cut anew into batches of `size` rows in float64, the last one shorter; `count` rows are expected, if known."""

    blocks: Iterable[np.ndarray]
    size: int
    count: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        batch_BC, filled, before = np.empty((0, 0)), 0, 0
        for block in self.blocks:
            width = batch_BC.shape[1] or block.shape[-1]
            rows_NC = checked(block, width=width, before=before)
            before += len(rows_NC)
            start = 0
            while start < len(rows_NC):
                if not filled:
                    batch_BC = np.empty((self.size, width))
                part = rows_NC[start : start + self.size - filled]
                batch_BC[filled : filled + len(part)] = part
                filled += len(part)
                start += len(part)
                if filled == self.size:
                    yield batch_BC
                    filled = 0
        if self.count not in (None, before):
            raise ValueError(f"the stream changed: {self.count} tokens in the first pass, {before} in a later one")
        if filled:
            yield batch_BC[:filled]


def cluster_tokens(
    blocks: Iterable[np.ndarray], *, k: int, seed: int, passes: int = 3, sample: int = SAMPLE, restarts: int = 10
) -> TokenClustering:
    """Mini-batch K-means (Sculley 2010) of blocks (N x C), which are read `passes` + 2 times and never held.

    The first pass draws a uniform sample of `sample` tokens, on which the best of `restarts` K-means from k-means++ gives the
    start; `passes` refine it in mini-batches; the last one measures. Batches are of fixed size whatever the blocks are, and
    one thread computes: the same tokens in the same order and the same seed give the same bits. Memory: about 24 C (S + BATCH)
    bytes.

    Raises ValueError for an iterator (it can be read once), fewer tokens than clusters, fewer different ones in the sample,
    values that are not finite (naming the row), or a stream that changes between passes.
    """
    if iter(blocks) is blocks:
        raise ValueError("blocks are read several times: give a list or an object with __iter__, not an iterator")
    if min(k, passes, restarts) < 1 or sample < k:
        raise ValueError(f"needed: k, passes and restarts of at least 1, and a sample of at least k = {k} tokens")
    size = max(BATCH, k)
    with one_thread():
        sample_SC, count = _sampled(_Batches(blocks, size), most=sample, seed=seed)
        centres_KC = _start(sample_SC, count, k=k, seed=seed, restarts=restarts)
        batches = _Batches(blocks, size, count)
        centres_KC = _refined(batches, centres_KC, seed=seed, passes=passes)
        return _measured(batches, centres_KC, seed=seed)


def _sampled(batches: _Batches, *, most: int, seed: int) -> tuple[np.ndarray, int]:
    """A uniform sample without replacement, and the number of all: every token draws a key, the smallest keys stay."""
    rng = np.random.default_rng(seed)
    keys_S, sample_SC, count = np.empty(0), np.empty((0, 0)), 0
    for batch_BC in batches:
        draws_B = rng.random(len(batch_BC))
        count += len(batch_BC)
        chosen_B = draws_B < (keys_S[-1] if len(keys_S) == most else np.inf)
        keys = np.concatenate([keys_S, draws_B[chosen_B]])
        order_S = np.argsort(keys, kind="stable")[:most]
        rows = np.concatenate([sample_SC.reshape(len(keys_S), batch_BC.shape[1]), batch_BC[chosen_B]])
        keys_S, sample_SC = keys[order_S], rows[order_S]
    return sample_SC, count


def _start(sample_SC: np.ndarray, count: int, *, k: int, seed: int, restarts: int) -> np.ndarray:
    """Centres of K-means on the sample."""
    if count < k:
        raise ValueError(f"{count} tokens cannot make {k} clusters")
    if (different := len(np.unique(sample_SC, axis=0))) < k:
        raise ValueError(f"{different} different tokens in a sample of {len(sample_SC)} cannot make {k} clusters")
    labels_S, _ = kmeans_labels(sample_SC, k=k, seed=seed, restarts=restarts)
    return np.array([sample_SC[labels_S == label].mean(axis=0) for label in range(k)])


def _refined(batches: _Batches, centres_KC: np.ndarray, *, seed: int, passes: int) -> np.ndarray:
    """The centres after `passes` of mini-batches.

    scikit-learn would move a centre that few of the first tokens are near to a random one of them: in a store, tokens of a
    kind lie together, and that would undo the start.
    """
    from sklearn import config_context
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        len(centres_KC),
        init=centres_KC,
        n_init=1,
        batch_size=batches.size,
        random_state=seed,
        reassignment_ratio=0.0,
        compute_labels=False,
    )
    with config_context(skip_parameter_validation=True):
        for _ in range(passes):
            for batch_BC in batches:
                model.partial_fit(batch_BC)
    return np.array(model.cluster_centers_)


def _measured(batches: _Batches, centres_KC: np.ndarray, *, seed: int) -> TokenClustering:
    """Sizes and inertia of all tokens under these centres, which are put in order of falling size."""
    sizes_K, inertia = np.zeros(len(centres_KC), dtype=np.int64), 0.0
    for batch_BC in batches:
        labels_B = _nearest(batch_BC, centres_KC)
        sizes_K += np.bincount(labels_B, minlength=len(centres_KC))
        inertia += float(((batch_BC - centres_KC[labels_B]) ** 2).sum())
    order_K = np.argsort(-sizes_K, kind="stable")
    return TokenClustering(centres_KC[order_K], sizes_K[order_K], inertia, seed)


def _nearest(rows_NC: np.ndarray, centres_KC: np.ndarray) -> np.ndarray:
    """Index (N, int32) of the nearest centre, by |c|^2 - 2 x c around the centres' mean."""
    origin_C = centres_KC.mean(axis=0)
    centred_KC = centres_KC - origin_C
    scores_NK = (rows_NC - origin_C) @ (-2 * centred_KC.T)
    scores_NK += (centred_KC**2).sum(axis=1)
    return scores_NK.argmin(axis=1).astype(np.int32)
