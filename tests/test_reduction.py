"""Principal components: the theorems that define them, and scikit-learn's as the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from unmask.analysis.reduction import coordinates, pca, scaled_gram

SHAPES = [(40, 6), (12, 12), (13, 12), (12, 13), (6, 300), (300, 6), (2, 5), (5, 2), (7, 1), (2, 1)]


def rows_of(n: int, d: int, *, seed: int = 0) -> np.ndarray:
    """Rows with a mean far from 0 and a spectrum without ties."""
    rng = np.random.default_rng([seed, n, d])
    return rng.normal(size=(n, d)) * np.linspace(5, 1, d) + 100 * rng.normal(size=d)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("components", [1, 3, 1000])
def test_it_is_scikit_learns_up_to_sign(n: int, d: int, components: int) -> None:
    rows = rows_of(n, d)
    found = pca(rows, components=components)
    kept = min(components, n - 1, d)
    reference = PCA(n_components=kept, svd_solver="full").fit(rows)
    assert found.scores_NC.shape == (n, kept)
    assert found.loadings_CD.shape == (kept, d)
    signs = np.sign((found.loadings_CD * reference.components_).sum(axis=1))
    np.testing.assert_allclose(found.loadings_CD, reference.components_ * signs[:, None], atol=1e-8)
    np.testing.assert_allclose(found.scores_NC, reference.transform(rows) * signs, atol=1e-6)
    np.testing.assert_allclose(found.variance_ratio_C, reference.explained_variance_ratio_, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_loadings_are_orthonormal_scores_uncorrelated_and_the_largest_loading_positive(n: int, d: int) -> None:
    found = pca(rows_of(n, d), components=1000)
    count = len(found.loadings_CD)
    np.testing.assert_allclose(found.loadings_CD @ found.loadings_CD.T, np.eye(count), atol=1e-9)
    products = found.scores_NC.T @ found.scores_NC
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-8 * products.max())
    np.testing.assert_allclose(found.scores_NC.mean(axis=0), 0, atol=1e-9)
    largest = np.abs(found.loadings_CD).argmax(axis=1)
    assert (found.loadings_CD[np.arange(count), largest] > 0).all()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_all_components_together_lose_nothing(n: int, d: int) -> None:
    rows = rows_of(n, d)
    found = pca(rows, components=1000)
    np.testing.assert_allclose(found.scores_NC @ found.loadings_CD + rows.mean(axis=0), rows, atol=1e-8)
    assert found.variance_ratio_C.sum() == pytest.approx(1)
    assert (np.diff(found.variance_ratio_C) <= 1e-12).all()


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30)])
def test_no_other_directions_keep_more_of_the_variance(n: int, d: int) -> None:
    rows = rows_of(n, d)
    centred = rows - rows.mean(axis=0)
    kept = (pca(rows, components=3).scores_NC ** 2).sum()
    rng = np.random.default_rng(1)
    for _ in range(50):
        axes_DC, _ = np.linalg.qr(rng.normal(size=(d, 3)))
        assert ((centred @ axes_DC) ** 2).sum() <= kept


@settings(deadline=None, max_examples=50)
@given(n=st.integers(2, 12), d=st.integers(1, 12), seed=st.integers(0, 9), shift=st.floats(-1e3, 1e3))
def test_moving_all_rows_or_reordering_them_changes_nothing_else(n: int, d: int, seed: int, shift: float) -> None:
    rows = rows_of(n, d, seed=seed)
    order = np.random.default_rng(seed).permutation(n)
    one, other = pca(rows, components=2), pca(rows[order] + shift, components=2)
    np.testing.assert_allclose(other.variance_ratio_C, one.variance_ratio_C, atol=1e-9)
    np.testing.assert_allclose(np.abs(other.scores_NC), np.abs(one.scores_NC[order]), atol=1e-5)


def test_both_gram_matrices_give_the_same_answer() -> None:
    """A zero column more turns n > d into n <= d and must change nothing."""
    rows = rows_of(9, 8)
    padded = np.hstack([rows, np.zeros((9, 1))])
    tall, square = pca(rows, components=5), pca(padded, components=5)
    np.testing.assert_allclose(square.scores_NC, tall.scores_NC, atol=1e-8)
    np.testing.assert_allclose(square.loadings_CD[:, :8], tall.loadings_CD, atol=1e-9)


@pytest.mark.parametrize("d", [5, 400])
def test_a_planted_direction_is_the_first_component(d: int) -> None:
    rng = np.random.default_rng(2)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    rows = 20 * rng.normal(size=(60, 1)) * direction + 0.1 * rng.normal(size=(60, d))
    found = pca(rows, components=2)
    assert abs(found.loadings_CD[0] @ direction) > 0.99
    assert found.variance_ratio_C[0] > 0.9


def test_noise_of_equal_variance_has_no_outstanding_component() -> None:
    rows = np.random.default_rng(3).normal(size=(2000, 5))
    assert pca(rows, components=5).variance_ratio_C == pytest.approx([0.2] * 5, abs=0.03)


@pytest.mark.parametrize("d", [3, 50])
def test_repeated_rows_have_the_rank_of_the_different_ones(d: int) -> None:
    rows = np.repeat(rows_of(3, d), 5, axis=0)
    found = pca(rows, components=10)
    assert found.variance_ratio_C[:2].sum() == pytest.approx(1)
    np.testing.assert_allclose(found.scores_NC[:, 2:], 0, atol=1e-5)
    np.testing.assert_allclose(found.scores_NC @ found.loadings_CD + rows.mean(axis=0), rows, atol=1e-8)
    assert np.isfinite(found.loadings_CD).all()


@pytest.mark.parametrize(("n", "d"), [(5, 3), (3, 5)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_rows_that_are_all_the_same_have_no_variance_and_no_nan(n: int, d: int, value: float) -> None:
    found = pca(np.full((n, d), value), components=2)
    np.testing.assert_allclose(found.scores_NC, 0, atol=1e-6)
    assert np.isfinite(found.loadings_CD).all()
    if value == 0:
        assert found.variance_ratio_C.tolist() == [0, 0]


def test_a_constant_column_has_no_loading() -> None:
    rows = rows_of(30, 5)
    rows[:, 2] = 7.25
    assert pca(rows, components=4).loadings_CD[:, 2] == pytest.approx(0, abs=1e-9)


def test_half_precision_is_computed_in_double() -> None:
    rows = (rows_of(20, 6) * 100).astype(np.float16)
    found = pca(rows, components=3)
    assert found.scores_NC.dtype == np.float64
    np.testing.assert_array_equal(found.scores_NC, pca(rows.astype(np.float64), components=3).scores_NC)


def test_the_rows_themselves_are_left_alone() -> None:
    rows = rows_of(10, 4)
    before = rows.copy()
    pca(rows, components=2)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        pca(np.ones((n, 3)), components=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    rows = rows_of(4, 3)
    rows[1, 2] = value
    with pytest.raises(ValueError, match="finite values"):
        pca(rows, components=1)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("components", [1, 3])
def test_the_first_of_all_components_are_those_of_a_smaller_number(n: int, d: int, components: int) -> None:
    """One eigendecomposition serves every number; the leading ones alone are found by another route of LAPACK."""
    rows = rows_of(n, d)
    few, first = pca(rows, components=components), pca(rows, components=1000).first(components)
    np.testing.assert_allclose(first.loadings_CD, few.loadings_CD, atol=1e-8)
    np.testing.assert_allclose(first.scores_NC, few.scores_NC, atol=1e-6)
    np.testing.assert_allclose(first.variance_ratio_C, few.variance_ratio_C, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30)])
def test_all_components_keep_every_distance(n: int, d: int) -> None:
    rows = rows_of(n, d)
    scores = pca(rows, components=1000).scores_NC
    apart = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.testing.assert_allclose(np.linalg.norm(scores[:, None] - scores, axis=2), apart, atol=1e-6)


@pytest.mark.parametrize(("n", "widths"), [(20, (5, 7)), (6, (30, 4, 50))])
def test_summed_grams_are_the_layers_side_by_side_each_of_rms_norm_1(n: int, widths: tuple[int, ...]) -> None:
    layers = [10.0**place * rows_of(n, width, seed=place) for place, width in enumerate(widths)]
    wide = np.hstack([rows / np.sqrt((rows**2).sum(axis=1).mean()) for rows in layers])
    found = coordinates(sum(scaled_gram(rows) for rows in layers), components=4)
    expected = pca(wide, components=4)
    np.testing.assert_allclose(found.variance_ratio_C, expected.variance_ratio_C, atol=1e-9)
    np.testing.assert_allclose(np.abs(found.scores_NC), np.abs(expected.scores_NC), atol=1e-7)


def test_a_layer_of_zeros_adds_nothing_to_the_stack() -> None:
    rows = rows_of(9, 4)
    np.testing.assert_array_equal(scaled_gram(np.zeros((9, 3))), np.zeros((9, 9)))
    alone = coordinates(scaled_gram(rows), components=3)
    stacked = coordinates(scaled_gram(rows) + scaled_gram(np.zeros((9, 3))), components=3)
    np.testing.assert_array_equal(stacked.scores_NC, alone.scores_NC)
    assert stacked.first(2).scores_NC.shape == (9, 2)


def test_a_gram_matrix_that_is_none_is_refused() -> None:
    for wrong in (np.ones((1, 1)), np.ones((3, 4))):
        with pytest.raises(ValueError, match="square Gram matrix"):
            coordinates(wrong, components=1)
    with pytest.raises(ValueError, match="finite values"):
        coordinates(np.full((3, 3), np.nan), components=1)
    with pytest.raises(ValueError, match="finite values"):
        scaled_gram(np.full((3, 3), np.inf))
