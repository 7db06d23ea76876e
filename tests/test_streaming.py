"""Streaming statistics: one pass equals all rows at once, however the stream is cut; clusters planted among tokens are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.analysis.clustering import adjusted_mutual_information
from unmask.analysis.reduction import pca as batch_pca
from unmask.analysis.streaming import MIRRORED, PANEL, Moments, Projected, pca, stream_moments
from unmask.analysis.token_clustering import _Batches, _sampled, cluster_tokens


def rows_of(n: int, d: int, *, seed: int = 0) -> np.ndarray:
    """Rows with a power-law spectrum, mixed, and a mean that is not 0."""
    draw = np.random.default_rng([seed, n, d])
    mixed, _ = np.linalg.qr(draw.normal(size=(d, d)))
    return draw.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.4 @ mixed + draw.normal(size=d)


def cut(rows_ND: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(rows_ND, sorted(place % (len(rows_ND) + 1) for place in places))


def same(one: Moments, other: Moments) -> None:
    """Equal to rounding."""
    first, second = one.finish(), other.finish()
    assert first.count == second.count
    scale = np.sqrt(np.diagonal(first.covariance_DD))
    np.testing.assert_allclose(first.mean_D, second.mean_D, atol=1e-12 * np.abs(first.mean_D).max() + 1e-300)
    np.testing.assert_allclose(first.covariance_DD, second.covariance_DD, atol=1e-11 * np.outer(scale, scale).max())


def hard(name: str) -> np.ndarray:
    rows = rows_of(2500, 40)
    if name == "offset":
        return rows + 1e5 * np.random.default_rng(1).normal(size=40)
    if name == "massive":
        rows[:, [3, 17]] *= 1000
        return rows
    if name == "oblique":
        direction = np.full(40, 40**-0.5)
        return rows + 1000 * np.random.default_rng(1).normal(size=(len(rows), 1)) * direction
    if name == "sink":
        rows[::500] = 1e4 * rows[0]
        return rows
    if name == "drift":
        return rows + np.linspace(-1e3, 1e3, len(rows))[:, None]
    if name == "constant":
        rows[:, 5] = 1e6
        return rows
    if name == "wide":
        return rows_of(30, 200)
    assert name == "plain"
    return rows


HARD = ["plain", "offset", "massive", "oblique", "sink", "drift", "constant", "wide"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", HARD)
def test_one_pass_is_pca_of_all_rows_in_double(name: str, dtype: type) -> None:
    rows = hard(name)
    rows = np.clip(rows, -6e4, 6e4).astype(dtype) if dtype is np.float16 else rows.astype(dtype)
    found = pca(stream_moments(cut(rows, [1, 2, 900, 901, 2222])), components=20)
    exact = batch_pca(rows, components=20)
    variances = (exact.scores_NC**2).sum(axis=0) / (len(rows) - 1)
    real = variances > 1e-14 * variances[0]  # rounding of the rows' own norm stands below
    np.testing.assert_allclose(found.variances_C[real], variances[real], rtol=1e-6)
    np.testing.assert_allclose(found.share_C, exact.variance_ratio_C, atol=1e-9)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean_D, wide.mean(axis=0), rtol=1e-12, atol=1e-9 * np.abs(wide).max())
    assert found.count == len(rows)


@pytest.mark.parametrize("components", [1, 5, 40])
@pytest.mark.parametrize(("n", "d"), [(300, 40), (2100, 40), (30, 90), (2, 3)])
def test_axes_and_scores_are_those_of_reduction_signs_too(n: int, d: int, components: int) -> None:
    rows = rows_of(n, d)
    found, exact = pca(stream_moments([rows]), components=components), batch_pca(rows, components=components)
    np.testing.assert_allclose(found.axes_CD, exact.loadings_CD, atol=1e-7)
    np.testing.assert_allclose(found.project(rows), exact.scores_NC, atol=1e-7)
    np.testing.assert_allclose(found.axes_CD @ found.axes_CD.T, np.eye(len(found.axes_CD)), atol=1e-12)


def test_covariance_is_numpys_and_symmetric() -> None:
    rows = rows_of(1500, MIRRORED + 88)
    found = stream_moments([rows]).finish()
    np.testing.assert_allclose(found.covariance_DD, np.cov(rows.T), atol=1e-13)
    np.testing.assert_array_equal(found.covariance_DD, found.covariance_DD.T)


@settings(deadline=None, max_examples=40)
@given(places=st.lists(st.integers(0, 3 * PANEL), max_size=12))
def test_cutting_the_stream_elsewhere_changes_no_bit(places: list[int]) -> None:
    rows = rows_of(2 * PANEL + 100, 7)
    whole, parts = stream_moments([rows]).finish(), stream_moments(cut(rows, places)).finish()
    np.testing.assert_array_equal(parts.mean_D, whole.mean_D)
    np.testing.assert_array_equal(parts.covariance_DD, whole.covariance_DD)


@pytest.mark.parametrize("n", [2, PANEL - 2, PANEL - 1, PANEL, 2 * PANEL + 1])
def test_one_row_at_a_time_changes_no_bit(n: int) -> None:
    rows = rows_of(n, 5)
    one_by_one, whole = Moments(5), stream_moments([rows])
    for row in rows:
        one_by_one.update(row[None])
    np.testing.assert_array_equal(one_by_one.finish().covariance_DD, whole.finish().covariance_DD)


@settings(deadline=None, max_examples=40)
@given(places=st.lists(st.integers(0, 3000), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_merging_is_the_stream_of_both_in_any_order(places: list[int], seed: int) -> None:
    rows = rows_of(2600, 6, seed=seed) + 100
    parts = [Moments(6) for _ in range(len(places) + 1)]
    for part, block in zip(parts, cut(rows, places), strict=True):
        part.update(block)
    merged = Moments(6)
    for place in np.random.default_rng(seed).permutation(len(parts)):
        merged.merge(parts[place])
    same(merged, stream_moments([rows]))


def test_merging_leaves_the_other_alone_and_serves_for_oneself() -> None:
    one, other = stream_moments([rows_of(1500, 4)]), stream_moments([rows_of(1200, 4, seed=1)])
    before = other.finish()
    one.merge(other)
    np.testing.assert_array_equal(other.finish().covariance_DD, before.covariance_DD)
    assert one.count == 2700
    one.merge(one)
    same(one, stream_moments([rows_of(1500, 4), rows_of(1200, 4, seed=1)] * 2))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99))
def test_the_rows_order_changes_rounding_only(seed: int) -> None:
    rows = rows_of(2500, 6)
    same(stream_moments([np.random.default_rng(seed).permutation(rows)]), stream_moments([rows]))


def test_finishing_is_a_look_and_not_an_end() -> None:
    rows = rows_of(2500, 6)
    moments = Moments(6)
    for block in cut(rows, [3, 700, 1500]):
        moments.update(block)
        if moments.count > 1:
            first, second = moments.finish(), moments.finish()
            np.testing.assert_array_equal(first.covariance_DD, second.covariance_DD)
    np.testing.assert_array_equal(moments.finish().covariance_DD, stream_moments([rows]).finish().covariance_DD)


def test_projecting_twice_is_projecting_once_and_blocks_are_projected_row_by_row() -> None:
    rows = rows_of(2500, 30).astype(np.float16)
    found = pca(stream_moments([rows]), components=4)
    scores = found.project(rows)
    again = found.project(scores @ found.axes_CD + found.mean_D)
    np.testing.assert_allclose(again, scores, atol=1e-12)
    np.testing.assert_allclose(scores.var(axis=0, ddof=1), found.variances_C, rtol=1e-9)
    projected = Projected(found, cut(rows, [1, 1200]))
    for _ in range(2):
        np.testing.assert_allclose(np.concatenate(list(projected)), scores, atol=1e-12)


def test_shares_of_all_components_are_everything_and_equal_rows_have_none() -> None:
    assert pca(stream_moments([rows_of(300, 12)]), components=99).share_C.sum() == pytest.approx(1)
    flat = pca(stream_moments([np.full((3000, 3), 0.1)]), components=2)
    np.testing.assert_allclose(flat.variances_C, 0, atol=1e-25)
    assert np.isfinite(flat.axes_CD).all()


def test_blocks_are_left_alone_and_may_be_views_and_integers() -> None:
    rows = np.arange(12000, dtype=np.int16).reshape(4, 3000).T % 101
    before = rows.copy()
    found = stream_moments([rows[::2], rows[1::2]])
    np.testing.assert_array_equal(rows, before)
    same(found, stream_moments([rows.astype(np.float32)]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_that_is_not_finite_is_named_and_its_block_refused_whole(value: float, dtype: type) -> None:
    rows = rows_of(3000, 4).astype(dtype)
    broken = rows.copy()
    broken[[2000, 2900], 1] = value
    moments = stream_moments([rows[:100]])
    with pytest.raises(
        ValueError, match=r"row 2000 of the block, 2100 of the stream, .*; 2 of the block's 3000 rows do"
    ):
        moments.update(broken)
    assert moments.count == 100
    moments.update(rows[100:])
    np.testing.assert_array_equal(moments.finish().covariance_DD, stream_moments([rows]).finish().covariance_DD)
    with pytest.raises(ValueError, match="row 2000 of the block holds NaN or infinity"):
        pca(moments, components=2).project(broken)


def test_every_finite_half_is_finite_and_no_other() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    moments = Moments(1)
    moments.update(finite[:, None])
    assert moments.finish().mean_D == pytest.approx([0], abs=1e-9)
    for half in halves[~np.isfinite(halves)]:
        with pytest.raises(ValueError, match="row 0"):
            moments.update(np.array([[half]]))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="stream is empty"):
        stream_moments([])
    with pytest.raises(ValueError, match="at least 1 number"):
        Moments(0)
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 rows, {n} came"):
            pca(stream_moments([np.ones((n, 3))]), components=1)
    for wrong in (np.ones(3), np.ones((2, 4)), np.float64(1)):
        with pytest.raises(ValueError, match="rows x 3, not"):
            Moments(3).update(wrong)
    with pytest.raises(ValueError, match="real numbers"):
        Moments(3).update(np.ones((2, 3), dtype=complex))
    with pytest.raises(ValueError, match="rows of 2 numbers cannot join"):
        Moments(3).merge(Moments(2))
    with pytest.raises(ValueError, match="too large"):
        stream_moments([1e200 * rows_of(5, 3)]).finish()


def blobs(sizes: list[int], *, sort: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    if not sort:
        group = draw.permutation(group)
    return 12 * np.eye(len(sizes), 6)[group] + draw.normal(size=(len(group), 6)), group


@pytest.mark.parametrize("sort", [True, False])
def test_planted_clusters_are_found_even_where_their_tokens_lie_together(sort: bool) -> None:
    """Sorted, the first mini-batches hold tokens of one cluster only."""
    points, group = blobs([9000, 200, 5000, 3000], sort=sort)
    blocks = cut(points, [10, 6000, 11000])
    found = cluster_tokens(blocks, k=4, seed=0, sample=2000, restarts=3)
    labels = np.concatenate(list(found.labels(blocks)))
    assert found.sizes_K.tolist() == [9000, 5000, 3000, 200]
    np.testing.assert_array_equal(labels, np.array([0, 3, 1, 2])[group])
    means = np.array([points[labels == label].mean(axis=0) for label in range(4)])
    np.testing.assert_allclose(found.centres_KC, means, atol=1e-6)
    assert found.inertia == pytest.approx(((points - means[labels]) ** 2).sum())
    assert found.count == len(points)


@settings(deadline=None, max_examples=8)
@given(places=st.lists(st.integers(0, 9000), max_size=6))
def test_tokens_without_structure_give_the_same_bits_for_a_seed_however_cut(places: list[int]) -> None:
    points = np.random.default_rng(3).normal(size=(9000, 5))
    whole = cluster_tokens([points], k=5, seed=7, passes=1, sample=500, restarts=1)
    parts = cluster_tokens(cut(points, places), k=5, seed=7, passes=1, sample=500, restarts=1)
    np.testing.assert_array_equal(parts.centres_KC, whole.centres_KC)
    assert parts.inertia == whole.inertia
    labels = np.concatenate(list(parts.labels(cut(points, places))))
    np.testing.assert_array_equal(np.bincount(labels, minlength=5), whole.sizes_K)
    assert (np.diff(whole.sizes_K) <= 0).all()


def test_another_seed_agrees_on_structure_only() -> None:
    nothing, (planted, _) = np.random.default_rng(3).normal(size=(6000, 5)), blobs([3000, 2000, 1000], sort=False)
    for points, k, agree in ((nothing, 5, False), (planted, 3, True)):
        one, other = (
            np.concatenate(list(cluster_tokens([points], k=k, seed=seed, sample=1000, restarts=1).labels([points])))
            for seed in (0, 1)
        )
        assert (adjusted_mutual_information(one, other) > 0.99) is agree


def test_refining_is_no_worse_than_the_sample_and_near_k_means_of_all() -> None:
    from sklearn.cluster import KMeans

    points = rows_of(20000, 8)
    exact = KMeans(6, n_init=3, random_state=0).fit(points).inertia_
    start = cluster_tokens([points], k=6, seed=0, passes=1, sample=100, restarts=3).inertia
    refined = cluster_tokens([points], k=6, seed=0, passes=4, sample=2000, restarts=3).inertia
    assert refined < 1.01 * exact
    assert refined < start


def test_the_sample_is_uniform_and_without_replacement() -> None:
    points = np.arange(10000.0)[:, None]
    counts = np.zeros(10000)
    for seed in range(200):
        sample, count = _sampled(_Batches(cut(points, [17, 5000]), 4096), most=500, seed=seed)
        assert count == 10000
        assert len(np.unique(sample)) == 500
        counts[sample[:, 0].astype(int)] += 1
    tenths = counts.reshape(10, 1000).sum(axis=1) / (200 * 500)
    np.testing.assert_allclose(tenths, 0.1, atol=0.005)
    whole, _ = _sampled(_Batches([points], 4096), most=20000, seed=0)
    assert sorted(whole[:, 0]) == points[:, 0].tolist()


def test_scores_stream_into_clusters() -> None:
    points, group = blobs([3000, 2000], sort=False)
    rows = points @ np.random.default_rng(1).normal(size=(6, 50))
    blocks = cut(rows.astype(np.float16), [100, 2500])
    scores = Projected(pca(stream_moments(blocks), components=3), blocks)
    found = cluster_tokens(scores, k=2, seed=0, restarts=2)
    assert (np.concatenate(list(found.labels(scores))) == group).all()


def test_what_cannot_be_clustered_is_refused() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.raises(ValueError, match="0 tokens cannot make 2 clusters"):
        cluster_tokens([], k=2, seed=0)
    with pytest.raises(ValueError, match="50 tokens cannot make 51 clusters"):
        cluster_tokens([points], k=51, seed=0)
    with pytest.raises(ValueError, match="2 different tokens in a sample of 50 cannot make 3 clusters"):
        cluster_tokens([np.repeat([[0.0], [1.0]], 25, axis=0)], k=3, seed=0)
    with pytest.raises(ValueError, match="not an iterator"):
        cluster_tokens(iter([points]), k=2, seed=0)
    with pytest.raises(ValueError, match="at least k = 9"):
        cluster_tokens([points], k=9, seed=0, sample=5)
    with pytest.raises(ValueError, match="the stream changed: 50 tokens in the first pass, 0 in a later one"):
        exhausted = Projected(pca(stream_moments([points]), components=2), iter([points]))
        cluster_tokens(exhausted, k=2, seed=0)
    broken = points.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="row 3 of the block, 53 of the stream, holds NaN"):
        cluster_tokens([points, broken], k=2, seed=0)
    with pytest.raises(ValueError, match="rows x 3, not 5 x 2"):
        list(cluster_tokens([points], k=2, seed=0).labels([np.ones((5, 2))]))
