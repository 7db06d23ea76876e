"""Stability: planted groups come back, planted nothing does not, and the definitions by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.clustering import kmeans_labels
from unmask.analysis.stability import bootstrap_jaccard, consensus, prediction_strength


def blobs(k: int, size: int, *, width: int = 6, apart: float = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(k), size)
    return apart * np.eye(k, width)[group] + rng.normal(size=(k * size, width)), group


def cloud(n: int = 150, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def means(k: int):
    return lambda points: kmeans_labels(points, k=k, seed=0, restarts=3)[0]


@pytest.mark.parametrize("k", [2, 4])
def test_prediction_strength_picks_the_planted_number(k: int) -> None:
    points, _ = blobs(k, 30)
    found = prediction_strength(points, ks=range(1, 8), seed=0)
    assert found.chosen == k
    assert found.values_K[found.ks.index(k)] == pytest.approx(1)
    assert found.values_K[found.ks.index(k + 1)] < 0.8


@pytest.mark.parametrize("seed", range(3))
def test_prediction_strength_picks_1_on_nothing(seed: int) -> None:
    found = prediction_strength(cloud(seed=seed), ks=range(1, 6), seed=0)
    assert found.chosen == 1
    assert found.values_K[0] == 1


def test_prediction_strength_of_a_singleton_is_0() -> None:
    points = np.vstack([np.zeros((7, 2)) + np.arange(7)[:, None] / 100, [[1e3, 1e3]]])
    assert prediction_strength(points, ks=(2,), seed=0, splits=3).values_K[0] < 0.5


def test_planted_clusters_are_recovered_and_split_ones_dissolve() -> None:
    points, group = blobs(3, 30)
    found = bootstrap_jaccard(points, group, labeller=means(3), seed=0, resamples=20)
    assert found.jaccard_K == pytest.approx([1, 1, 1])
    assert found.recovered_K == pytest.approx([1, 1, 1])
    assert found.dissolved_K == pytest.approx([0, 0, 0])
    nothing = cloud()
    labels, _ = kmeans_labels(nothing, k=5, seed=0, restarts=10)
    poor = bootstrap_jaccard(nothing, labels, labeller=means(5), seed=0, resamples=20)
    assert poor.jaccard_K.max() < 0.75
    assert poor.dissolved_K.mean() > 0.3


def test_a_labeller_that_calls_all_noise_recovers_nothing() -> None:
    points, group = blobs(2, 10)
    found = bootstrap_jaccard(points, group, labeller=lambda rows: np.full(len(rows), -1), seed=0, resamples=3)
    assert found.jaccard_K.tolist() == [0, 0]


def test_noise_is_no_cluster_that_could_come_back() -> None:
    points, group = blobs(3, 20)
    noisy = np.where(group == 2, -1, group)
    found = bootstrap_jaccard(points, noisy, labeller=means(3), seed=0, resamples=5)
    assert found.jaccard_K == pytest.approx([1, 1])


def test_a_cluster_that_no_resample_holds_is_missing() -> None:
    points = np.arange(40.0)[:, None]
    labels = np.zeros(40, dtype=int)
    labels[7] = 1
    seed = next(s for s in range(50) if 7 not in np.random.default_rng(s).integers(40, size=40))
    found = bootstrap_jaccard(points, labels, labeller=lambda rows: np.zeros(len(rows), int), seed=seed, resamples=1)
    assert found.jaccard_K[0] == pytest.approx(1)
    assert np.isnan([found.jaccard_K[1], found.dissolved_K[1], found.recovered_K[1]]).all()


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_consensus_is_certain_on_planted_groups_and_ambiguous_on_nothing(share: float) -> None:
    points, group = blobs(3, 20)
    found = consensus(points, k=3, seed=0, runs=20, share=share)
    same = group[:, None] == group
    # One start may land in a poor optimum; most do not.
    assert np.nanmean(found.together_NN[same]) > 0.9
    assert np.nanmean(found.together_NN[~same]) < 0.15
    nothing = consensus(cloud(60), k=3, seed=0, runs=20, share=share)
    assert nothing.pac > 0.3 > found.pac
    assert nothing.within(group).max() < found.within(group).min()


def test_consensus_is_symmetric_and_certain_of_each_question_itself() -> None:
    found = consensus(cloud(30), k=3, seed=0, runs=10, share=0.5)
    np.testing.assert_array_equal(found.together_NN, found.together_NN.T)
    assert np.diag(found.together_NN) == pytest.approx(1)
    assert ((found.together_NN >= 0) & (found.together_NN <= 1))[np.isfinite(found.together_NN)].all()


def test_one_cluster_is_always_together_and_a_pair_never_drawn_is_missing() -> None:
    found = consensus(cloud(12), k=1, seed=0, runs=5)
    assert (found.together_NN == 1).all()
    assert found.pac == 0
    few = consensus(cloud(12), k=1, seed=0, runs=1, share=0.25)
    assert np.isnan(few.together_NN).any()
    assert np.isnan(consensus(cloud(12), k=1, seed=0, runs=1).within(np.arange(12))).all()


def test_the_same_seed_gives_the_same_answer() -> None:
    points = cloud(40)
    one, again = (consensus(points, k=3, seed=4, runs=5) for _ in range(2))
    np.testing.assert_array_equal(one.together_NN, again.together_NN)
    ones = [prediction_strength(points, ks=(2, 3), seed=4, splits=2).values_K for _ in range(2)]
    np.testing.assert_array_equal(*ones)


def test_what_cannot_be_computed_is_refused() -> None:
    points = cloud(10)
    with pytest.raises(ValueError, match="k from 1 to 5"):
        prediction_strength(points, ks=(6,), seed=0)
    with pytest.raises(ValueError, match="cannot make 9 clusters"):
        consensus(points, k=9, seed=0, share=0.8)
    with pytest.raises(ValueError, match="cannot make"):
        consensus(points, k=2, seed=0, share=1.2)
    with pytest.raises(ValueError, match="at least 1 resample and 1 cluster"):
        bootstrap_jaccard(points, np.full(10, -1), labeller=means(2), seed=0)
    points[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        prediction_strength(points, ks=(2,), seed=0)
    with pytest.raises(ValueError, match="finite"):
        consensus(points, k=2, seed=0)
