"""Clustering: planted groups are found, planted nothing is not, and names of clusters carry no meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances, silhouette_samples, silhouette_score

from unmask.analysis.clustering import (
    adjusted_mutual_information,
    by_size,
    distances,
    is_outlier_group,
    kmeans,
    kmeans_labels,
    kmeans_sweep,
    silhouettes,
)

partitions = st.lists(st.integers(-3, 6), min_size=1, max_size=40)


def blobs(sizes: list[int], *, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Groups of `sizes` far apart, in shuffled order; and which group each point is of."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return 50 * np.eye(len(sizes), width)[group] + rng.normal(size=(len(group), width)), group


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = {*zip(one.tolist(), other.tolist(), strict=True)}
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def test_planted_groups_are_found_and_numbered_by_falling_size() -> None:
    points, group = blobs([10, 40, 25])
    found = kmeans(points, k=3, seed=0)
    assert same_partition(found.labels_N, group)
    assert found.sizes.tolist() == [40, 25, 10]
    assert (found.labels_N == np.array([2, 0, 1])[group]).all()
    assert found.silhouette > 0.9


def test_planted_nothing_has_a_poor_silhouette_whatever_k() -> None:
    points = np.random.default_rng(1).normal(size=(300, 20))
    for k in (2, 4, 8):
        assert kmeans(points, k=k, seed=0).silhouette < 0.1


def test_labels_of_nothing_share_no_information_with_groups_drawn_apart() -> None:
    rng = np.random.default_rng(2)
    found = [
        adjusted_mutual_information(
            kmeans(rng.normal(size=(120, 6)), k=4, seed=0, restarts=1).labels_N, rng.integers(4, size=120)
        )
        for _ in range(20)
    ]
    # 20 draws with a standard deviation near 0.012: the mean's is near 0.003.
    assert abs(np.mean(found)) < 0.01


def test_it_is_scikit_learns_with_other_names() -> None:
    points = np.random.default_rng(3).normal(size=(80, 4))
    found = kmeans(points, k=5, seed=7, restarts=3)
    reference = KMeans(n_clusters=5, n_init=3, random_state=7).fit(points)
    assert same_partition(found.labels_N, reference.labels_)
    assert found.inertia == pytest.approx(reference.inertia_)
    assert found.silhouette == pytest.approx(silhouette_score(points, reference.labels_))


def test_inertia_is_the_squared_distance_to_cluster_means() -> None:
    points = np.random.default_rng(4).normal(size=(60, 3))
    found = kmeans(points, k=4, seed=0)
    spread = [((own - own.mean(axis=0)) ** 2).sum() for own in (points[found.labels_N == c] for c in range(4))]
    assert found.inertia == pytest.approx(sum(spread))


def test_the_same_seed_gives_the_same_labels() -> None:
    points = np.random.default_rng(5).normal(size=(100, 4))
    one, again = kmeans(points, k=6, seed=1), kmeans(points, k=6, seed=1)
    np.testing.assert_array_equal(one.labels_N, again.labels_N)
    assert (one.inertia, one.silhouette) == (again.inertia, again.silhouette)


def test_more_clusters_fit_no_worse() -> None:
    points = np.random.default_rng(6).normal(size=(60, 3))
    inertias = [kmeans(points, k=k, seed=0).inertia for k in (1, 2, 4, 8, 60)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[0] == pytest.approx(((points - points.mean(axis=0)) ** 2).sum())
    assert inertias[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [1, 8])
def test_a_silhouette_is_missing_where_it_is_not_defined(k: int) -> None:
    points = np.random.default_rng(7).normal(size=(8, 3))
    found = kmeans(points, k=k, seed=0)
    assert np.isnan(found.silhouette)
    assert sorted(found.labels_N) == (list(range(8)) if k == 8 else [0] * 8)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_repeated_points_make_no_more_clusters_than_there_are_places() -> None:
    points = np.repeat([[0.0, 0.0], [9.0, 9.0]], [5, 3], axis=0)
    found = kmeans(points, k=4, seed=0)
    assert found.labels_N.tolist() == [0] * 5 + [1] * 3
    assert found.sizes.tolist() == [5, 3]
    assert found.silhouette == pytest.approx(1)


def test_repeated_points_are_not_passed_over_in_silence() -> None:
    with pytest.warns(ConvergenceWarning):
        kmeans(np.zeros((5, 2)), k=2, seed=0)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_points_than_clusters_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} points cannot make 4 clusters"):
        kmeans(np.zeros((n, 2)), k=4, seed=0)


def test_a_point_that_is_not_a_number_is_refused() -> None:
    points = np.ones((6, 2))
    points[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        kmeans(points, k=2, seed=0)


@settings(deadline=None)
@given(partitions)
def test_renumbering_keeps_the_partition_and_orders_it_by_size(labels: list[int]) -> None:
    before = np.array(labels)
    after = by_size(before)
    assert same_partition(before, after)
    sizes = np.bincount(after)
    assert (sizes > 0).all()
    assert sizes.tolist() == sorted(sizes, reverse=True)
    first = [int(np.argmax(after == label)) for label in range(len(sizes))]
    tied = zip(range(len(sizes)), sizes, first, strict=True)
    assert [label for label, _, _ in sorted(tied, key=lambda row: (-row[1], row[2]))] == list(range(len(sizes)))


@settings(deadline=None)
@given(partitions, st.permutations(range(-3, 7)))
def test_renumbering_does_not_know_the_old_names(labels: list[int], names: list[int]) -> None:
    renamed = np.array([names[label + 3] for label in labels])
    np.testing.assert_array_equal(by_size(renamed), by_size(np.array(labels)))
    np.testing.assert_array_equal(by_size(by_size(renamed)), by_size(renamed))


def test_no_labels_stay_no_labels() -> None:
    assert by_size(np.array([], dtype=int)).tolist() == []


@settings(deadline=None, max_examples=50)
@given(partitions, st.permutations(range(-3, 7)))
def test_a_partition_tells_everything_of_itself_under_any_names(labels: list[int], names: list[int]) -> None:
    words = [f"group {names[label + 3]}" for label in labels]
    assert adjusted_mutual_information(np.array(labels), words) == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_mutual_information_has_no_sides(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs).T
    assert adjusted_mutual_information(one, other) == pytest.approx(adjusted_mutual_information(other, one), abs=1e-9)


def test_mutual_information_by_chance_is_0_although_clusters_are_many() -> None:
    """The plain mutual information of 50 random clusters and 4 groups is far from 0; the adjusted one is not."""
    rng = np.random.default_rng(8)
    found = [adjusted_mutual_information(rng.integers(50, size=200), rng.integers(4, size=200)) for _ in range(40)]
    assert abs(np.mean(found)) < 0.015


def test_one_cluster_tells_nothing() -> None:
    assert adjusted_mutual_information(np.zeros(6, dtype=int), ["a", "a", "b", "b", "c", "c"]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("size", "total", "outlier"),
    [
        (1, 4, True),
        (2, 4, True),
        (3, 96, False),
        (2, 96, True),
        (5, 885, True),
        (6, 885, False),
        (4, 200, True),
        (5, 200, False),
    ],
)
def test_a_handful_is_named_as_one(size: int, total: int, outlier: bool) -> None:
    assert is_outlier_group(size, total=total) is outlier


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_only_a_handful_is_an_outlier_and_a_smaller_one_is_too(size: int, total: int) -> None:
    if is_outlier_group(size, total=total):
        assert size <= 5
        assert all(is_outlier_group(smaller, total=total) for smaller in range(1, size))


def test_a_sweep_is_k_means_for_each_k() -> None:
    points = np.random.default_rng(9).normal(size=(50, 4))
    for k, found in zip((2, 5, 9), kmeans_sweep(points, ks=(2, 5, 9), seed=3, restarts=2), strict=True):
        alone = kmeans(points, k=k, seed=3, restarts=2)
        np.testing.assert_array_equal(found.labels_N, alone.labels_N)
        assert (found.inertia, found.silhouette) == (alone.inertia, alone.silhouette)
    assert kmeans_sweep(points, ks=(), seed=0) == ()


def test_the_number_of_starts_may_be_left_to_scikit_learn() -> None:
    points = np.random.default_rng(10).normal(size=(50, 4))
    labels, inertia = kmeans_labels(points, k=3, seed=42, restarts="auto")
    reference = KMeans(n_clusters=3, random_state=42).fit(points)
    assert same_partition(labels, reference.labels_)
    assert inertia == pytest.approx(reference.inertia_)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=30), st.integers(0, 5))
def test_silhouettes_of_every_point_are_scikit_learns(labels: list[int], seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(len(labels), 3))
    (found,) = silhouettes(points, [np.array(labels)])
    if 2 <= len(set(labels)) < len(labels):
        assert found is not None
        np.testing.assert_allclose(found, silhouette_samples(points, labels), atol=1e-9)
    else:
        assert found is None


def test_silhouettes_in_blocks_are_those_in_one_piece_and_noise_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    points, partitions = rng.normal(size=(50, 3)), [rng.integers(4, size=50), rng.integers(-1, 2, size=50)]
    whole = silhouettes(points, partitions)
    monkeypatch.setattr("unmask.analysis.clustering.BLOCK", 7)
    for one, other in zip(whole, silhouettes(points, partitions), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-9)
    kept = partitions[1] != -1
    assert np.isnan(whole[1][~kept]).all()
    np.testing.assert_allclose(whole[1][kept], silhouette_samples(points[kept], partitions[1][kept]), atol=1e-9)


def test_distances_are_those_of_the_points_however_far_from_0() -> None:
    points = np.random.default_rng(12).normal(size=(20, 3)) + 1e6
    np.testing.assert_allclose(distances(points), pairwise_distances(points - 1e6), atol=1e-7)
    np.testing.assert_allclose(distances(points[:4], points), distances(points)[:4], atol=1e-7)
    assert (np.diag(distances(points)) == 0).all()
