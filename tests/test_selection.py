"""Criteria for k: planted groups, planted nothing, scikit-learn's indices, and published values of the gap statistic."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from unmask.analysis.clusterers import Partition, cluster
from unmask.analysis.clustering import kmeans_labels, silhouettes
from unmask.analysis.selection import bic_curve, elbow_curve, gap_curve, indices, internal_curves

# R's cluster::clusGap(scale(x), kmeans, K.max = 10, nstart = 25), and silhouette and fpc::calinhara of kmeans(nstart = 25), as
# printed in G. Papadopoulos, "Cluster validation for wine profiling" (2025; wine, B = 50) and in T. Danner, "Dimensionality
# reduction and clustering II" of the course Introduction to Data Science (2022; iris, B = 10). K. Kulma, "Determining the optimal
# number of clusters in your dataset" (2017, kkulma.github.io) has the table for wine with B = 100, within 0.004 up to k = 3.
WINE_GAP = (0.4852182, 0.5518490, 0.6264310, 0.6231634, 0.6201548, 0.6161904)
WINE_GAP_SE = (0.012319766, 0.010262462, 0.009535433, 0.009926294, 0.009860836)
IRIS_GAP = (0.2112157, 0.4597287, 0.4805310, 0.4387785, 0.4576270, 0.4489795)
WINE_SILHOUETTE = {2: 0.2593170, 3: 0.2848589}
WINE_CALINSKI = {2: 69.52333, 3: 70.94001}


def scaled(rows: np.ndarray) -> np.ndarray:
    """R's scale()."""
    return (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)


def blobs(k: int, size: int, *, width: int = 6, apart: float = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return apart * np.repeat(np.eye(k, width), size, axis=0) + rng.normal(size=(k * size, width))


def sweep(points: np.ndarray, ks: range) -> tuple[Partition, ...]:
    return cluster(points, by="kmeans", ks=tuple(ks), seed=0)


def test_the_gap_statistic_of_wine_is_the_published_one() -> None:
    found = gap_curve(scaled(load_wine().data), ks=range(1, 7), seed=0, references=30, restarts=4, power=1)
    # Means over 30 and 50 references of a standard deviation of 0.01 differ by 0.002; local optima add some.
    np.testing.assert_allclose(found.values_K, WINE_GAP, atol=0.009)
    np.testing.assert_allclose(found.se_K[:5], WINE_GAP_SE, rtol=0.5)
    assert found.chosen == 3  # the notebook's choice, and the number of cultivars


def test_the_gap_statistic_of_iris_is_the_published_one() -> None:
    found = gap_curve(scaled(load_iris().data), ks=range(1, 7), seed=0, references=30, restarts=4, power=1)
    np.testing.assert_allclose(found.values_K, IRIS_GAP, atol=0.02)  # the published side drew 10 references
    assert found.chosen in (2, 3)


def test_silhouette_and_calinski_harabasz_of_wine_are_the_published_ones() -> None:
    points = scaled(load_wine().data)
    for found in cluster(points, by="kmeans", ks=(2, 3), seed=0, restarts=50):
        (inside,) = indices(points, [found.labels_N])
        assert inside.silhouette == pytest.approx(WINE_SILHOUETTE[found.k], abs=1e-6)
        assert inside.calinski_harabasz == pytest.approx(WINE_CALINSKI[found.k], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_statistic_picks_1_on_one_gaussian(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(150, 8))
    assert gap_curve(points, ks=range(1, 6), seed=0, references=10).chosen == 1


def test_every_criterion_finds_planted_groups() -> None:
    points, ks = blobs(4, 25), range(1, 9)
    found = sweep(points, ks)
    chosen = {curve.criterion: curve.chosen for curve in internal_curves(points, found)}
    chosen["elbow"] = elbow_curve(points, ks=ks, seed=0).chosen
    chosen["gap"] = gap_curve(points, ks=ks, seed=0, references=10).chosen
    chosen["bic"] = bic_curve(cluster(points, by="gaussian_diag", ks=tuple(ks), seed=0)).chosen
    assert chosen == dict.fromkeys(("silhouette", "calinski_harabasz", "davies_bouldin", "elbow", "gap", "bic"), 4)


def test_moving_turning_or_scaling_the_points_leaves_the_gap_where_it_was() -> None:
    points = blobs(3, 20)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    one = gap_curve(points, ks=range(1, 5), seed=0, references=40)
    other = gap_curve(5 * points @ turn + 100, ks=range(1, 5), seed=0, references=40)
    # The box is the same up to the order and sign of its axes, so other references are drawn in it.
    np.testing.assert_allclose(other.values_K, one.values_K, atol=0.05)
    assert one.chosen == other.chosen == 3


def test_the_gap_keeps_its_definition() -> None:
    """Gap(1) by hand: the spread of the whole set against that of uniform points in its own box."""
    points = np.random.default_rng(2).normal(size=(40, 3))
    found = gap_curve(points, ks=(1, 2), seed=5, references=4)
    centred = points - points.mean(axis=0)
    turned = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    rng = np.random.default_rng(5)
    null = []
    for _ in range(4):
        drawn = rng.uniform(turned.min(axis=0), turned.max(axis=0), turned.shape)
        null.append(np.log(((drawn - drawn.mean(axis=0)) ** 2).sum()))
    assert found.values_K[0] == pytest.approx(np.mean(null) - np.log((centred**2).sum()))
    assert found.se_K[0] == pytest.approx(np.std(null) * np.sqrt(1 + 1 / 4))


@pytest.mark.parametrize("k", [2, 5, 30])
def test_indices_are_scikit_learns(k: int) -> None:
    points = np.random.default_rng(3).normal(size=(60, 4))
    labels, _ = kmeans_labels(points, k=k, seed=0, restarts=2)
    (found,) = indices(points, [labels])
    assert found.silhouette == pytest.approx(silhouette_score(points, labels))
    assert found.calinski_harabasz == pytest.approx(calinski_harabasz_score(points, labels))
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(points, labels))


def test_noise_is_left_out_of_the_indices() -> None:
    points = blobs(2, 20)
    labels = np.repeat([0, 1], 20)
    (with_noise,) = indices(np.vstack([points, 1e3 * np.ones((3, 6))]), [np.append(labels, [-1, -1, -1])])
    (without,) = indices(points, [labels])
    assert with_noise.silhouette == pytest.approx(without.silhouette)
    assert with_noise.calinski_harabasz == pytest.approx(without.calinski_harabasz)
    assert with_noise.davies_bouldin == pytest.approx(without.davies_bouldin)


@pytest.mark.parametrize("labels", [[0] * 6, list(range(6)), [-1] * 6, [-1] * 5 + [0]])
def test_indices_are_missing_where_they_are_not_defined(labels: list[int]) -> None:
    (found,) = indices(np.random.default_rng(4).normal(size=(6, 2)), [np.array(labels)])
    assert np.isnan([found.silhouette, found.calinski_harabasz, found.davies_bouldin]).all()


def test_a_cluster_of_one_has_silhouette_0() -> None:
    (values,) = silhouettes(np.array([[0.0], [1.0], [9.0]]), [np.array([0, 0, 1])])
    assert values is not None
    assert values.tolist() == pytest.approx([8 / 9, 7 / 8, 0])


def test_repeated_points_give_no_nan_and_no_warning() -> None:
    points = np.repeat([[0.0, 0.0], [9.0, 9.0]], [5, 3], axis=0)
    (found,) = indices(points, [np.repeat([0, 1], [5, 3])])
    assert found.silhouette == pytest.approx(1)
    assert found.davies_bouldin == pytest.approx(0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_gap_without_spread_is_missing() -> None:
    points = np.repeat([[0.0, 0.0], [9.0, 1.0]], 6, axis=0)
    found = gap_curve(points, ks=range(1, 4), seed=0, references=4)
    assert np.isfinite(found.values_K[0])
    assert np.isnan(found.values_K[1:]).all()
    assert found.chosen is None


def test_the_elbow_is_the_point_farthest_below_the_chord() -> None:
    points = blobs(3, 20)
    found = elbow_curve(points, ks=(1, 2, 3, 6, 9), seed=0)
    inertia = np.array([kmeans_labels(points, k=k, seed=0, restarts=10)[1] for k in found.ks])
    np.testing.assert_allclose(found.values_K, inertia)
    assert found.chosen == 3


@pytest.mark.parametrize("ks", [(2, 3), (1, 3), (1,), ()])
def test_a_gap_needs_every_k_from_1(ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give 1, 2|numbers of clusters"):
        gap_curve(np.random.default_rng(5).normal(size=(9, 2)), ks=ks, seed=0)


def test_what_cannot_be_computed_is_refused() -> None:
    points = np.random.default_rng(6).normal(size=(5, 2))
    with pytest.raises(ValueError, match="numbers of clusters must be from 1 to 5"):
        gap_curve(points, ks=range(1, 8), seed=0)
    with pytest.raises(ValueError, match="at least 2 references"):
        gap_curve(points, ks=(1, 2), seed=0, references=1)
    with pytest.raises(ValueError, match="at least 3 numbers"):
        elbow_curve(points, ks=(1, 2), seed=0)
    with pytest.raises(ValueError, match="asked for with a k"):
        internal_curves(points, [Partition(None, np.zeros(5, dtype=int))])
    points[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        gap_curve(points, ks=(1, 2), seed=0)
    with pytest.raises(ValueError, match="NaN"):
        elbow_curve(points, ks=(1, 2, 3), seed=0)
