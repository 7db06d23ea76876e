"""Every clusterer finds planted groups, none hides noise in a cluster, and the same seed gives the same labels."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, SpectralClustering
from sklearn.mixture import GaussianMixture

from unmask.analysis.clusterers import CLUSTERERS, FINDS_ITS_OWN_K, NOISE, ClustererName, cluster, knee, numbered
from unmask.analysis.validation import agreement

NAMES = get_args(ClustererName)


def blobs(sizes: list[int], *, width: int = 5, apart: float = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return apart * np.eye(len(sizes), width)[group] + rng.normal(size=(len(group), width)), group


def test_the_table_holds_every_name() -> None:
    assert tuple(CLUSTERERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_planted_groups_are_found(name: ClustererName) -> None:
    points, group = blobs([50, 30, 20])
    (found,) = cluster(points, by=name, ks=(3,), seed=0)
    assert found.found == 3
    assert found.k == (None if name in FINDS_ITS_OWN_K else 3)
    assert found.noise <= 5
    assert agreement(found.labels_N, group).ari == pytest.approx(1)
    kept = found.labels_N[found.labels_N != NOISE]
    assert np.bincount(kept).tolist() == sorted(np.bincount(kept), reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_partition_whatever_else_was_asked(name: ClustererName) -> None:
    points = np.random.default_rng(1).normal(size=(60, 6))
    one, again = (cluster(points, by=name, ks=ks, seed=3) for ks in ((2, 5), (5,)))
    np.testing.assert_array_equal(one[-1].labels_N, again[-1].labels_N)
    assert len(one) == (1 if name in FINDS_ITS_OWN_K else 2)


@pytest.mark.parametrize("name", ["dbscan", "hdbscan"])
def test_a_stray_point_is_counted_as_noise_and_is_in_no_cluster(name: ClustererName) -> None:
    points, group = blobs([40, 40])
    points = np.vstack([points, [[500, 0, 0, 0, 0], [0, -500, 0, 0, 0]]])
    (found,) = cluster(points, by=name, ks=(), seed=0)
    assert found.labels_N[-2:].tolist() == [NOISE, NOISE]
    assert found.noise == int((found.labels_N == NOISE).sum()) >= 2
    assert found.found == 2
    assert agreement(found.labels_N[:-2], group).ari == pytest.approx(1)


def test_hdbscan_calls_pure_noise_noise() -> None:
    shares = []
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(300, 20))
        (found,) = cluster(points, by="hdbscan", ks=(), seed=0)
        shares.append(found.noise / len(points))
    assert np.median(shares) > 0.9


@pytest.mark.parametrize("method", ["ward", "average"])
def test_one_tree_cut_at_every_k_is_scikit_learns(method: ClustererName) -> None:
    points = np.random.default_rng(2).normal(size=(80, 4))
    for found in cluster(points, by=method, ks=(2, 5, 11), seed=0):
        reference = AgglomerativeClustering(n_clusters=found.k, linkage=method).fit_predict(points)
        assert agreement(found.labels_N, reference).ari == pytest.approx(1)


def test_spectral_clustering_follows_shapes_that_k_means_cuts() -> None:
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    points, group = np.vstack([ring, 6 * ring]), np.repeat([0, 1], 100)
    (found,) = cluster(points, by="spectral", ks=(2,), seed=0)
    assert agreement(found.labels_N, group).ari == pytest.approx(1)
    (cut,) = cluster(points, by="kmeans", ks=(2,), seed=0)
    assert agreement(cut.labels_N, group).ari < 0.3
    reference = SpectralClustering(2, affinity="nearest_neighbors", n_neighbors=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that the graph falls apart
        assert agreement(found.labels_N, reference.fit_predict(points)).ari == pytest.approx(1)


@pytest.mark.parametrize("name", ["gaussian_diag", "gaussian_tied"])
def test_bic_is_smallest_at_the_planted_number_and_at_1_for_one_gaussian(name: ClustererName) -> None:
    ks = (1, 2, 3, 4, 5)
    points, _ = blobs([60, 60, 60], apart=8)
    assert ks[int(np.argmin([found.bic for found in cluster(points, by=name, ks=ks, seed=0)]))] == 3
    nothing = np.random.default_rng(3).normal(size=(200, 5))
    assert ks[int(np.argmin([found.bic for found in cluster(nothing, by=name, ks=ks, seed=0)]))] == 1


def test_bic_is_scikit_learns_in_units_of_the_rms_coordinate() -> None:
    points, _ = blobs([60, 60], apart=8)
    (found,) = cluster(points, by="gaussian_diag", ks=(2,), seed=0)
    scaled = points / np.sqrt(np.mean((points - points.mean(axis=0)) ** 2))
    reference = GaussianMixture(2, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(scaled)
    assert found.bic == pytest.approx(reference.bic(scaled))
    (larger,) = cluster(1000 * points, by="gaussian_diag", ks=(2,), seed=0)
    assert larger.bic == pytest.approx(found.bic)


def test_only_mixtures_have_a_bic() -> None:
    points, _ = blobs([20, 20])
    for name in NAMES:
        assert np.isnan(cluster(points, by=name, ks=(2,), seed=0)[0].bic) == (not name.startswith("gaussian"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["constant column", "all the same", "two places", "barely enough"])
def test_degenerate_points_make_no_error_and_no_more_clusters_than_places(name: ClustererName, case: str) -> None:
    rng = np.random.default_rng(4)
    points, places = {
        "constant column": (np.column_stack([rng.normal(size=(30, 3)), np.full(30, 7.0)]), 30),
        "all the same": (np.full((12, 3), 2.5), 1),
        "two places": (np.repeat([[0.0, 0.0], [9.0, 9.0]], [12, 8], axis=0), 2),
        "barely enough": (rng.normal(size=(3, 2)), 3),
    }[case]
    (found,) = cluster(points, by=name, ks=(3,), seed=0)
    assert len(found.labels_N) == len(points)
    assert found.found <= places or name.startswith("gaussian")
    assert found.found + (found.noise > 0) >= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(name: ClustererName, value: float) -> None:
    points = np.ones((10, 2))
    points[4, 1] = value
    with pytest.raises(ValueError, match=f"finite values, {name} was given NaN"):
        cluster(points, by=name, ks=(2,), seed=0)


@pytest.mark.parametrize(("n", "ks", "most"), [(4, (2, 5), 5), (2, (), 3), (0, (1,), 3)])
def test_fewer_points_than_clusters_are_refused(n: int, ks: tuple[int, ...], most: int) -> None:
    with pytest.raises(ValueError, match=f"{n} points cannot make {most} clusters"):
        cluster(np.zeros((n, 2)), by="ward", ks=ks, seed=0)


def test_noise_keeps_its_label_when_clusters_are_numbered() -> None:
    assert numbered(np.array([-1, 7, 3, 3, -1])).tolist() == [-1, 1, 0, 0, -1]
    assert numbered(np.array([-1, -1])).tolist() == [-1, -1]


def test_the_knee_is_where_a_rising_curve_turns_up() -> None:
    assert knee(np.array([0.0, 0.1, 0.2, 0.3, 5.0, 10.0])) == 3
    assert knee(np.zeros(5)) == 4
    assert knee(np.array([1.0, 2.0])) == 1
