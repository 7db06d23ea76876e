"""Directions from arrays: what they are in loops, theorems of each, planted directions found and nothing planted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from unmask.analysis.extraction import (
    group_means,
    halves,
    logistic_weights,
    mean_shift,
    random_in_span,
    random_isotropic,
    ridge_probe,
    score_contrast,
    shift_components,
    shuffled_group_means,
    specific_parts,
    standardise,
    unit,
)

N, D = 40, 7


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    """Correlated, off centre, of unlike scales."""
    draw = rng(seed)
    return draw.standard_normal((n, d)) @ draw.standard_normal((d, d)) + 3 * draw.standard_normal(d)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# ------------------------------------------------------------------------------------------------ halves


def test_halves_are_stratified_and_odd_ones_go_either_way() -> None:
    strata = np.repeat(["a", "b", "c"], (10, 7, 1))
    taken = np.array([halves(strata, rng=rng(seed)) for seed in range(400)])
    assert taken.dtype == bool
    assert (taken[:, :10].sum(axis=1) == 5).all()
    assert set(taken[:, 10:17].sum(axis=1)) == {3, 4}
    assert np.mean(taken[:, 17]) == pytest.approx(0.5, abs=0.1)  # 4 SE
    np.testing.assert_allclose(taken.mean(axis=0), 0.5, atol=0.1)
    assert halves(np.array([]), rng=rng()).shape == (0,)


# ------------------------------------------------------------------------------------------------ means


def test_means_are_loops() -> None:
    shift, groups = rows(9), np.array(list("abcabcabb"))
    np.testing.assert_allclose(mean_shift(shift), [np.mean(shift[:, d]) for d in range(D)])
    chosen = groups == "b"
    np.testing.assert_allclose(mean_shift(shift, chosen), shift[chosen].mean(axis=0))
    np.testing.assert_allclose(mean_shift(shift, np.flatnonzero(chosen)), shift[chosen].mean(axis=0))
    found = group_means(shift, groups)
    assert list(found) == ["a", "b", "c"]
    for name, mean in found.items():
        np.testing.assert_allclose(
            mean, np.mean([row for row, g in zip(shift, groups, strict=True) if g == name], axis=0)
        )


def test_means_are_float64_and_of_something() -> None:
    shift = rows(6).astype(np.float32)
    assert mean_shift(shift).dtype == np.float64
    with pytest.raises(ValueError, match="the shift"):
        mean_shift(shift, np.zeros(6, dtype=bool))
    shift[2, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        mean_shift(shift)
    assert np.isfinite(mean_shift(shift, [0, 1])).all()


def test_specific_parts_sum_to_zero_by_size_and_forget_what_is_common() -> None:
    shift, groups = rows(10), np.array(list("aaaaaabbcc"))
    found = specific_parts(shift, groups)
    total = sum((groups == name).sum() * part for name, part in found.items())
    np.testing.assert_allclose(total, 0, atol=1e-12)
    moved = specific_parts(shift + 5.0, groups)
    for name, part in found.items():
        np.testing.assert_allclose(part, moved[name], atol=1e-12)
        np.testing.assert_allclose(part + shift.mean(axis=0), shift[groups == name].mean(axis=0))


# ------------------------------------------------------------------------------------------------ scores


def test_a_contrast_is_the_highest_less_the_lowest() -> None:
    acts, scores = rows(10), rng(1).permutation(10).astype(float)
    order = np.argsort(scores)
    np.testing.assert_allclose(
        score_contrast(acts, scores), acts[order[-3:]].mean(axis=0) - acts[order[:3]].mean(axis=0)
    )
    np.testing.assert_allclose(score_contrast(acts, -scores), -score_contrast(acts, scores))
    np.testing.assert_allclose(score_contrast(acts + 4, scores), score_contrast(acts, scores), atol=1e-12)


def test_ties_at_the_cut_share_their_places_in_any_order() -> None:
    acts, scores = rows(10), np.array([0.0, 0, 0, 0, 0, 0, 100, 100, 50, 50])
    wanted = (acts[[6, 7]].sum(axis=0) + acts[[8, 9]].mean(axis=0)) / 3 - acts[:6].mean(axis=0)
    np.testing.assert_allclose(score_contrast(acts, scores), wanted)
    order = rng().permutation(10)
    np.testing.assert_allclose(score_contrast(acts[order], scores[order]), wanted)


def test_answers_without_a_score_are_left_out() -> None:
    acts, scores = rows(12), np.arange(12.0)
    scores[[0, 5]] = np.nan
    broken = acts.copy()
    broken[0] = np.nan
    kept = np.isfinite(scores)
    np.testing.assert_allclose(score_contrast(broken, scores), score_contrast(acts[kept], scores[kept]))


def test_a_planted_gradient_is_found_and_none_is_small() -> None:
    planted = np.eye(D)[2]
    noise, scores = rng(1).standard_normal((400, D)), rng(2).uniform(0, 100, 400)
    found = score_contrast(noise + 0.05 * np.outer(scores, planted), scores)
    assert cosine(found, planted) > 0.97
    assert np.linalg.norm(score_contrast(noise, scores)) < 0.7  # sqrt(2 D / 120) = .34 on average


@pytest.mark.parametrize(("count", "share"), [(6, 0.3), (40, 0.0), (40, 0.6), (40, -0.2), (0, 0.3)])
def test_too_small_a_contrast_is_refused(count: int, share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        score_contrast(rows(count), np.arange(count), share=share)


def test_equal_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="equal"):
        score_contrast(rows(20), np.full(20, 50.0))


# ------------------------------------------------------------------------------------------------ components


@pytest.mark.parametrize(("n", "d"), [(40, 7), (9, 30)])
def test_components_are_singular_vectors_as_long_as_the_sd(n: int, d: int) -> None:
    shift = rows(n, d)
    found = shift_components(shift, 4)
    _, singular, right = np.linalg.svd(shift - shift.mean(axis=0))
    assert found.shape == (4, d)
    for k in range(4):
        assert abs(cosine(found[k], right[k])) == pytest.approx(1)
        assert np.linalg.norm(found[k]) == pytest.approx(singular[k] / np.sqrt(n - 1))
        along = shift @ found[k] / np.linalg.norm(found[k])
        assert along.std(ddof=1) == pytest.approx(np.linalg.norm(found[k]))
        assert shift.mean(axis=0) @ found[k] >= 0


def test_all_components_together_are_the_covariance() -> None:
    shift = rows()
    found = shift_components(shift, D)
    np.testing.assert_allclose(found.T @ found, np.cov(shift.T), atol=1e-9)


def test_without_a_mean_shift_the_sign_is_still_settled() -> None:
    shift = rows() - rows().mean(axis=0)
    found = shift_components(shift, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(shift_components(-shift, 3)))
    assert (found[np.arange(3), np.abs(found).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(found, shift_components(-shift, 3), atol=1e-9)


@pytest.mark.parametrize("count", [0, 5, 8])
def test_more_components_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="4 components"):
        shift_components(rows(5, 9), count)


# ------------------------------------------------------------------------------------------------ probes


def labelled(n: int, d: int, *, size: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated activations, labels, and the shift planted for label 1 (in the activations' units)."""
    draw = rng(seed)
    labels = draw.permutation(np.arange(n) % 2)
    mix, planted = draw.standard_normal((d, d)) / np.sqrt(d), draw.standard_normal(d)
    return draw.standard_normal((n, d)) @ mix + size * np.outer(labels, planted) + 5.0, labels, planted


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 30)])
def test_exact_coordinates_keep_inner_products_and_come_back(n: int, d: int) -> None:
    acts = rows(n, d)
    made = standardise(acts)
    scaled = (acts - acts.mean(axis=0)) / made.scale_D
    assert made.rows_NC.shape[1] <= min(n, d)
    np.testing.assert_allclose(made.rows_NC @ made.rows_NC.T, scaled @ scaled.T, atol=1e-9)
    np.testing.assert_allclose(made.vectors(made.rows_NC), acts - acts.mean(axis=0), atol=1e-9)
    weights = rng(5).standard_normal((2, made.rows_NC.shape[1]))
    np.testing.assert_allclose(
        (acts - acts.mean(axis=0)) @ made.weights(weights).T, made.rows_NC @ weights.T, atol=1e-9
    )


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 30)])
def test_ridge_minimises_its_loss_in_the_primal_and_in_the_dual(n: int, d: int) -> None:
    acts, labels, _ = labelled(n, d, size=0.5)
    found = ridge_probe(acts, labels, penalty=0.3)
    scale, centred = standardise(acts).scale_D, acts - acts.mean(axis=0)

    def loss(weights: np.ndarray) -> float:
        return np.mean((labels - labels.mean() - centred @ weights) ** 2) + 0.3 * np.sum((weights * scale) ** 2)

    for seed in range(20):
        assert loss(found + 1e-3 * rng(seed).standard_normal(d)) > loss(found)
    z = centred / scale
    direct = np.linalg.solve(z.T @ z / n + 0.3 * np.eye(d), z.T @ (labels - labels.mean()) / n) / scale
    np.testing.assert_allclose(found, direct, atol=1e-10)


def towards_one(acts: np.ndarray, labels: np.ndarray, *, penalty: float) -> np.ndarray:
    """Logistic weights (D) of two labels."""
    return logistic_weights(acts, labels, penalty=penalty)[0]


@pytest.mark.parametrize(("n", "d"), [(60, 6), (12, 30)])
def test_logistic_minimises_its_loss_in_the_primal_and_in_the_dual(n: int, d: int) -> None:
    acts, labels, _ = labelled(n, d, size=0.5)
    found = towards_one(acts, labels, penalty=0.1)
    scale, centred = standardise(acts).scale_D, acts - acts.mean(axis=0)

    def loss(both: np.ndarray) -> float:
        odds = centred @ (both[1:] / scale) + both[0]
        return np.mean(np.logaddexp(0, np.where(labels == 1, -odds, odds))) + 0.05 * np.sum(both[1:] ** 2)

    best = minimize(loss, np.zeros(d + 1), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found * scale, best.x[1:], atol=2e-3)


@pytest.mark.parametrize("probe", [ridge_probe, towards_one])
def test_weights_are_in_the_activations_own_units(probe) -> None:
    """A coordinate in other units has its weight in the inverse ones; a constant changes nothing."""
    acts, labels, _ = labelled(60, 6, size=1.0)
    units = np.array([1, 10, 0.5, 4, 1, 2.0])
    np.testing.assert_allclose(
        probe(acts * units - 7, labels, penalty=0.1) * units, probe(acts, labels, penalty=0.1), rtol=2e-3, atol=1e-4
    )


@pytest.mark.parametrize("probe", [ridge_probe, towards_one])
@pytest.mark.parametrize(("n", "d"), [(300, 10), (80, 200)])
def test_a_planted_label_is_read_from_new_rows_and_none_is_not(probe, n: int, d: int) -> None:
    for size, least, most in ((1.5, 0.9, 1.0), (0.0, 0.25, 0.75)):
        acts, labels, planted = labelled(2 * n, d, size=size)
        weights = probe(acts[:n], labels[:n], penalty=0.1)
        assert weights.shape == (d,)
        fresh = (acts[n:] - acts[:n].mean(axis=0)) @ weights > 0
        assert least <= np.mean(fresh == labels[n:]) <= most
        if size:
            assert weights @ planted > 0


def test_two_labels_of_any_kind_and_more_for_weights() -> None:
    acts, labels, _ = labelled(60, 6, size=1.0)
    wanted = towards_one(acts, labels, penalty=0.1)
    np.testing.assert_allclose(towards_one(acts, labels.astype(bool), penalty=0.1), wanted)
    np.testing.assert_allclose(towards_one(acts, np.array(["a", "b"])[labels], penalty=0.1), wanted)
    np.testing.assert_allclose(ridge_probe(acts, labels == 1, penalty=1.0), ridge_probe(acts, labels, penalty=1.0))
    weights = logistic_weights(acts, np.arange(60) % 3, penalty=0.1)
    assert weights.shape == (3, 6)
    np.testing.assert_allclose(weights.sum(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("probe", [ridge_probe, logistic_weights])
def test_probes_refuse_what_they_cannot_fit(probe) -> None:
    acts, labels, _ = labelled(20, 4, size=1.0)
    with pytest.raises(ValueError, match="label"):
        probe(acts, np.ones(20), penalty=0.1)
    with pytest.raises(ValueError, match="label"):
        probe(acts, labels[:-1], penalty=0.1)
    with pytest.raises(ValueError, match="penalty"):
        probe(acts, labels, penalty=0.0)
    with pytest.raises(ValueError, match="label"):
        ridge_probe(acts, np.where(labels, 1.0, np.nan), penalty=0.1)


def test_constant_coordinates_get_no_weight_and_no_warning() -> None:
    acts, labels, _ = labelled(40, 5, size=1.0)
    acts[:, 2] = 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for probe in (ridge_probe, towards_one):
            assert probe(acts, labels, penalty=0.1)[2] == pytest.approx(0, abs=1e-9)


def test_a_unit_vector_keeps_the_orientation_and_zeros_stay_zeros() -> None:
    vector = np.array([3.0, -4.0], dtype=np.float32)
    assert unit(vector).tolist() == [0.6, -0.8]
    assert unit(vector).dtype == np.float64
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------ random ones


def test_isotropic_directions_are_of_unit_length_and_have_no_preference() -> None:
    """Of 4000 the mean outer product is I / D, entries with SD below .004."""
    draw = rng()
    found = np.stack([random_isotropic(draw, 5) for _ in range(4000)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_allclose(found.T @ found / 4000, np.eye(5) / 5, atol=0.02)


def test_directions_in_span_have_the_activations_covariance() -> None:
    acts, draw = rows(12, 4), rng()
    found = np.stack([random_in_span(draw, acts) for _ in range(20000)])
    wanted = np.cov(acts.T)
    assert np.abs(found.T @ found / 20000 - wanted).max() < 0.04 * np.trace(wanted)
    wide = rows(4, 9)
    centred = wide - wide.mean(axis=0)
    vector = random_in_span(draw, wide)
    np.testing.assert_allclose(np.linalg.lstsq(centred.T, vector)[0] @ centred, vector, atol=1e-9)


def test_shuffled_means_are_of_disjoint_sets_without_regard_to_groups() -> None:
    """Rows that are unit vectors tell which of them a mean holds."""
    found = shuffled_group_means(np.eye(12), [5, 3, 4], rng())
    assert found.shape == (3, 12)
    np.testing.assert_allclose((found > 0).sum(axis=1), [5, 3, 4])
    np.testing.assert_allclose((found > 0).sum(axis=0), 1)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    shift = np.repeat([[0.0], [10.0]], 50, axis=0)
    draw = rng(1)
    apart = [np.ptp(shuffled_group_means(shift, [50, 50], draw)) for _ in range(100)]
    assert np.mean(apart) == pytest.approx(10 * 2 * np.sqrt(0.25 / 100) * np.sqrt(2 / np.pi), abs=0.3)


@pytest.mark.parametrize("sizes", [[5, 5, 5], [3, 0], []])
def test_sets_that_cannot_be_made_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="disjoint"):
        shuffled_group_means(rows(12), sizes, rng())
