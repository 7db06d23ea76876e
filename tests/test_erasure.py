"""Erasers: what LEACE and nullspace projection guarantee, that LEACE changes least, and that nothing planted costs little."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.linalg import null_space, sqrtm
from sklearn.linear_model import LogisticRegression

from unmask.analysis.erasure import Eraser, inlp, leace


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def world(n: int, d: int, *, classes: int = 2, size: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated activations off centre whose mean depends on one of `classes` labels; coordinate 0 is massive."""
    draw = rng(seed)
    labels = draw.permutation(np.arange(n) % classes)
    acts = draw.standard_normal((n, d)) @ (draw.standard_normal((d, d)) / np.sqrt(d)) + 2.0
    acts += size * draw.standard_normal((classes, d))[labels]
    acts[:, 0] *= 50
    return acts, labels


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(labels.max() + 1)[labels]


def cross_covariance(acts: np.ndarray, labels_NK: np.ndarray) -> np.ndarray:
    return (acts - acts.mean(axis=0)).T @ (labels_NK - labels_NK.mean(axis=0)) / len(acts)


def changed(eraser: Eraser, acts: np.ndarray, root_DD: np.ndarray) -> float:
    """Mean squared change in the norm |root x|."""
    return float((((eraser.apply(acts) - acts) @ root_DD.T) ** 2).sum(axis=1).mean())


def sal(acts: np.ndarray, labels_NK: np.ndarray) -> Eraser:
    """Spectral attribute removal (Shao et al. 2203.07893): orthogonal projection off the cross-covariance's columns."""
    left, singular, _ = np.linalg.svd(cross_covariance(acts, labels_NK), full_matrices=False)
    basis = left[:, singular > 1e-9 * singular[0]]
    return Eraser(basis, basis.T, acts.mean(axis=0))


SHAPES = [(200, 6, 2), (200, 6, 4), (30, 80, 2), (30, 80, 3), (20, 20, 2)]


@pytest.mark.parametrize("shrunk", [True, False])
@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_labels_are_uncorrelated_with_erased_activations(n: int, d: int, classes: int, shrunk: bool) -> None:
    acts, labels = world(n, d, classes=classes)
    labels_NK = one_hot(labels)
    eraser = leace(acts, labels_NK, shrunk=shrunk)
    assert eraser.left_DK.shape == (d, classes - 1)
    assert eraser.right_KD.shape == (classes - 1, d)
    assert np.abs(cross_covariance(acts, labels_NK)).max() > 0.1
    assert np.abs(cross_covariance(eraser.apply(acts), labels_NK)).max() < 1e-8
    erased = eraser.apply(acts) - acts.mean(axis=0)
    np.testing.assert_allclose(erased.mean(axis=0), 0, atol=1e-8)  # the mean stays


@pytest.mark.parametrize("shrunk", [True, False])
@pytest.mark.parametrize(("n", "d", "classes"), SHAPES[:2])
def test_no_least_squares_predictor_beats_the_constant(n: int, d: int, classes: int, shrunk: bool) -> None:
    acts, labels = world(n, d, classes=classes)
    labels_NK = one_hot(labels) - one_hot(labels).mean(axis=0)
    for rows, least in ((acts, 0.05), (leace(acts, one_hot(labels), shrunk=shrunk).apply(acts), None)):
        design = np.column_stack([rows - rows.mean(axis=0), np.ones(n)])
        fitted = design @ np.linalg.lstsq(design, labels_NK, rcond=1e-10)[0]
        gain = 1 - ((labels_NK - fitted) ** 2).sum() / (labels_NK**2).sum()
        assert gain == pytest.approx(0, abs=1e-9) if least is None else gain > least


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_erasers_are_projections(n: int, d: int, classes: int) -> None:
    acts, labels = world(n, d, classes=classes)
    fresh = 3 * rng(9).standard_normal((5, d))
    for eraser in (
        leace(acts, one_hot(labels)),
        leace(acts, one_hot(labels), shrunk=False),
        inlp(acts, labels, steps=2),
    ):
        count = eraser.left_DK.shape[1]
        assert eraser.right_KD.shape == (count, d)
        np.testing.assert_allclose(eraser.right_KD @ eraser.left_DK, np.eye(count), atol=1e-8)
        once = eraser.apply(fresh)
        np.testing.assert_allclose(eraser.apply(once), once, atol=1e-7)
        np.testing.assert_allclose(eraser.apply(fresh[None])[0], once)
        np.testing.assert_allclose(eraser.apply(acts.mean(axis=0)), acts.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_leace_is_the_closed_form(classes: int) -> None:
    """I - W^-1 P W with W = Cov(x)^-1/2 in full, by another way."""
    acts, labels = world(300, 6, classes=classes)
    acts[:, 0] /= 50
    covariance = np.cov(acts.T, bias=True)
    whiten = np.real(sqrtm(np.linalg.inv(covariance)))
    column = whiten @ cross_covariance(acts, one_hot(labels))
    projector = column @ np.linalg.pinv(column, rcond=1e-9)
    eraser = leace(acts, one_hot(labels), shrunk=False)
    np.testing.assert_allclose(eraser.left_DK @ eraser.right_KD, np.linalg.inv(whiten) @ projector @ whiten, atol=1e-8)


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_leace_changes_least_in_every_norm(n: int, d: int, classes: int) -> None:
    """Never more than orthogonal projection (SAL), in the norm that whitens, the plain one, and others."""
    acts, labels = world(n, d, classes=classes)
    labels_NK = one_hot(labels)
    eraser, other = leace(acts, labels_NK, shrunk=False), sal(acts, labels_NK)
    assert np.abs(cross_covariance(other.apply(acts), labels_NK)).max() < 1e-8
    values, vectors = np.linalg.eigh(np.cov(acts.T, bias=True))
    kept = values > 1e-10 * values[-1]
    whiten = (vectors[:, kept] / np.sqrt(values[kept])).T
    norms = [whiten, np.eye(d), *(rng(seed).standard_normal((d, d)) for seed in range(5)), np.eye(d)[:1]]
    for root in norms:
        assert changed(eraser, acts, root) <= changed(other, acts, root) * (1 + 1e-9) + 1e-12
    # in the whitening norm a projection of K dimensions costs K, whatever it is that is erased
    assert changed(eraser, acts, whiten) == pytest.approx(classes - 1, rel=1e-6)


def test_leace_changes_less_than_any_other_eraser() -> None:
    """r plus any map that also ends uncorrelated with the labels: rows in the left null space of the cross-covariance."""
    acts, labels = world(200, 6)
    labels_NK, eraser = labels[:, None].astype(float), leace(acts, labels.astype(float), shrunk=False)
    free = null_space(cross_covariance(acts, labels_NK).T)
    centred = acts - acts.mean(axis=0)
    least = changed(eraser, acts, np.eye(6))
    for seed in range(20):
        other = eraser.apply(acts) + 0.1 * centred @ free @ rng(seed).standard_normal((5, 6))
        assert np.abs(cross_covariance(other, labels_NK)).max() < 1e-8
        assert ((other - acts) ** 2).sum(axis=1).mean() > least


def test_shrinking_spares_new_rows_when_rows_are_few() -> None:
    """As many rows as dimensions: new rows are changed far less (.17 of their variance, .29 without), erased no worse."""

    def of_new_rows(shrunk: bool) -> np.ndarray:
        found = []
        for seed in range(8):
            acts, labels = world(460, 60, size=0.6, seed=seed)
            acts[:, 0] /= 50
            eraser, fresh, sides = leace(acts[:60], labels[:60], shrunk=shrunk), acts[60:], labels[60:]
            erased = eraser.apply(fresh)
            left, was = (
                np.linalg.norm(rows[sides == 1].mean(axis=0) - rows[sides == 0].mean(axis=0))
                for rows in (erased, fresh)
            )
            found.append((left / was, changed(eraser, fresh, np.eye(60)) / fresh.var(axis=0).sum()))
        return np.mean(found, axis=0)

    shrunk, plain = of_new_rows(True), of_new_rows(False)
    assert shrunk[0] < min(0.5, 1.05 * plain[0])
    assert shrunk[1] < 0.75 * plain[1]


def test_numeric_labels_of_one_column_and_doubled_ones() -> None:
    acts, labels = world(100, 6)
    one = leace(acts, labels.astype(float))
    for same in (one_hot(labels), np.column_stack([labels, 3 * labels + 1]), 5.0 - labels):
        two = leace(acts, same)
        np.testing.assert_allclose(two.left_DK @ two.right_KD, one.left_DK @ one.right_KD, atol=1e-8)


@pytest.mark.parametrize("shrunk", [True, False])
def test_scales_of_coordinates_change_nothing(shrunk: bool) -> None:
    acts, labels = world(100, 6)
    units = (
        np.array([3, 0.01, 1, 20, 7, 1.0]) if not shrunk else np.array([3, 0.5, 1, 2, 2, 1.0])
    )  # short of the SD's floor
    plain, scaled = (leace(rows, labels, shrunk=shrunk) for rows in (acts, acts * units))
    np.testing.assert_allclose(scaled.apply(acts * units), plain.apply(acts) * units, rtol=1e-7, atol=1e-7)


def test_constant_labels_and_constant_activations_erase_nothing() -> None:
    acts, labels = world(40, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for eraser in (
            leace(acts, np.ones(40)),
            leace(np.ones((40, 6)), labels, shrunk=False),
            leace(np.ones((40, 6)), labels),
        ):
            assert eraser.left_DK.shape == (6, 0)
            np.testing.assert_array_equal(eraser.apply(acts), acts)


@pytest.mark.parametrize("shrunk", [True, False])
def test_nothing_planted_costs_one_dimension_of_many(shrunk: bool) -> None:
    """A random label's column is noise of the activations' covariance: about 1 / D of the variance in units of SD."""
    acts, labels = world(2000, 50, size=0.0)
    acts[:, 0] /= 50
    eraser = leace(acts, labels, shrunk=shrunk)
    share = changed(eraser, acts, np.eye(50)) / float(acts.var(axis=0).sum())
    assert share < 4 / 50


@pytest.mark.parametrize("labels", [np.zeros((3, 2)), np.full((40, 1), np.nan), np.zeros((40, 1, 1))])
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels"):
        leace(world(40, 6)[0], labels)


# ------------------------------------------------------------------------------------------------ nullspace projection


def test_a_nullspace_projection_is_orthogonal() -> None:
    acts, labels = world(200, 8)
    eraser = inlp(acts, labels, steps=3)
    assert eraser.left_DK.shape == (8, 3)
    np.testing.assert_array_equal(eraser.left_DK.T, eraser.right_KD)
    np.testing.assert_allclose(eraser.left_DK.T @ eraser.left_DK, np.eye(3), atol=1e-10)
    np.testing.assert_allclose((eraser.apply(acts) - eraser.centre_D) @ eraser.left_DK, 0, atol=1e-8)


def test_each_step_takes_out_one_dimension_less_than_labels_and_keeps_the_earlier_ones() -> None:
    acts, labels = world(200, 12, classes=3)
    two, four = inlp(acts, labels, steps=1), inlp(acts, labels, steps=2)
    assert (two.left_DK.shape[1], four.left_DK.shape[1]) == (2, 4)
    np.testing.assert_allclose(four.left_DK[:, :2], two.left_DK)


@pytest.mark.parametrize("classes", [2, 3])
def test_accuracy_of_a_new_classifier_falls_to_chance(classes: int) -> None:
    acts, labels = world(600, 16, classes=classes, size=0.8)
    acts[:, 0] /= 50

    def accuracy(rows: np.ndarray) -> float:
        scaled = (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-6)
        model = LogisticRegression(max_iter=2000).fit(scaled[:400], labels[:400])
        return float(model.score(scaled[400:], labels[400:]))

    assert accuracy(acts) > 0.8
    erased = accuracy(inlp(acts[:400], labels[:400], steps=9 // (classes - 1)).apply(acts))
    assert erased < 1 / classes + 0.14  # 4 SE of 200 rows


def test_it_ends_when_nothing_is_left() -> None:
    acts, labels = world(60, 3)
    eraser = inlp(acts, labels, steps=10)
    assert eraser.left_DK.shape[1] <= 3
    few, sides = world(6, 20)
    assert inlp(few, sides, steps=30).left_DK.shape[1] <= 20


def test_nothing_planted_costs_a_dimension_a_step() -> None:
    acts, labels = world(2000, 50, size=0.0)
    acts[:, 0] /= 50
    share = changed(inlp(acts, labels, steps=2), acts, np.eye(50)) / float(acts.var(axis=0).sum())
    assert share < 4 / 50


def test_what_cannot_be_classified_is_refused() -> None:
    acts, labels = world(40, 6)
    with pytest.raises(ValueError, match="step"):
        inlp(acts, labels, steps=0)
    with pytest.raises(ValueError, match="label"):
        inlp(acts, np.zeros(40), steps=1)
    with pytest.raises(ValueError, match="label"):
        inlp(acts, labels[:-1], steps=1)
    acts[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        inlp(acts, labels, steps=1)
