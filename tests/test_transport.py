"""Topic transport: variances that were planted, a whitener that whitens, contrasts, and what one map can and cannot do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf

from unmask.analysis.geometry import describe, off
from unmask.analysis.nulls import draw_flips
from unmask.analysis.preparation import Groups, prepare_base, prepare_shift
from unmask.analysis.transport import (
    PassThrough,
    Transport,
    base_kernels,
    contrast_tests,
    learn_pass_through,
    topic_kernel,
    transport,
    variance_components,
)
from unmask.analysis.worlds import World, draw

SIZES = (9, 14, 17)
LABELS = np.repeat(["a", "b", "c"], SIZES)
GROUPS = Groups.of(LABELS)
N = len(LABELS)


def base(*, seed: int = 0, n: int = N, width: int = 12, between: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes_N = GROUPS.codes_N if n == N else np.arange(n) % 3
    return rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -0.5 + between * rng.standard_normal(
        (3, width)
    )[codes_N] / np.sqrt(width)


def carried_rows(kernels: list[np.ndarray], theta: list[float], *, columns: int, seed: int) -> np.ndarray:
    covariance_NN = sum(t * kernel for t, kernel in zip(theta, kernels, strict=False))
    covariance_NN = covariance_NN + theta[-1] * np.eye(len(kernels[0]))
    return np.linalg.cholesky(covariance_NN) @ np.random.default_rng(seed).standard_normal((len(kernels[0]), columns))


def reml(rows_NC: np.ndarray, kernels: list[np.ndarray], groups: Groups) -> np.ndarray:
    """The restricted likelihood of group-free contrasts, maximised by a general optimiser under theta >= 0."""
    n, columns = rows_NC.shape
    inside = np.linalg.svd(np.eye(n) - (groups.indicator_NF / groups.sizes_F) @ groups.indicator_NF.T)[0]
    inside = inside[:, : n - groups.count]
    gram = inside.T @ rows_NC @ rows_NC.T @ inside / columns
    parts = [inside.T @ kernel @ inside for kernel in kernels] + [np.eye(n - groups.count)]
    unit = np.trace(gram) / len(gram)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        covariance = sum(t * unit * part for t, part in zip(theta, parts, strict=True))
        inverse = np.linalg.inv(covariance)
        slope = [np.sum(inverse * part) - np.sum((inverse @ gram @ inverse) * part) for part in parts]
        return np.linalg.slogdet(covariance)[1] + np.sum(inverse * gram), unit * np.array(slope)

    start = np.full(len(parts), 1 / len(parts))
    bounds = [(0, None)] * len(kernels) + [(0.01, None)]
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-13, "gtol": 1e-8})
    return unit * found.x


# ---------------------------------------------------------------- kernels


def test_kernels_are_those_of_the_formulae() -> None:
    base_ND = base(width=20)
    further_ND = base(seed=1, width=5)
    within = base_ND.copy()
    for name in "abc":
        within[name == LABELS] -= base_ND[name == LABELS].mean(axis=0)
    directions = np.linalg.svd(within, full_matrices=False)[2][:8]
    top = np.array([[sum((d @ x) * (d @ y) for d in directions) for y in base_ND] for x in base_ND])
    squares = np.array([[np.sum((x - y) ** 2) for y in base_ND] for x in base_ND])
    median = np.median([squares[q, p] for q in range(N) for p in range(q)])
    wanted = [top, base_ND @ base_ND.T - top, np.exp(-squares / (2 * median)), further_ND @ further_ND.T]
    found = base_kernels(base_ND, GROUPS, further=(further_ND,))
    assert len(found) == 4
    for kernel, raw in zip(found, wanted, strict=True):
        np.testing.assert_allclose(kernel, raw / np.mean(np.diag(raw)), atol=1e-9)
        assert np.linalg.eigvalsh(kernel)[0] > -1e-9


def test_kernels_without_variance_are_left_out() -> None:
    assert base_kernels(np.zeros((N, 3)), GROUPS) == []
    narrow = base_kernels(base(width=4), GROUPS)
    assert len(narrow) == 2  # eight components hold all of it: nothing is left for "everything else"


# ---------------------------------------------------------------- variance components


def test_planted_variances_are_recovered() -> None:
    """Three kernels and noise, 1500 columns: each within 15 % of the total."""
    kernels = base_kernels(prepare_base(base(width=30)), GROUPS)
    for theta in ([1.0, 0.5, 0.8, 1.0], [2.0, 0.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.5], [0.0, 0.0, 0.0, 1.0]):
        found = variance_components(carried_rows(kernels, theta, columns=1500, seed=3), kernels, GROUPS)
        assert found.shape == (4,)
        assert (found >= 0).all()
        np.testing.assert_allclose(found, theta, atol=0.15 * sum(theta))


@pytest.mark.parametrize("theta", [[1.0, 0.5, 1.0], [2.0, 0.3, 0.5]])
def test_inside_the_bounds_variances_are_the_restricted_maximum_likelihood_ones(theta: list[float]) -> None:
    kernels = base_kernels(prepare_base(base(width=30)), GROUPS)[:2]
    rows_NC = carried_rows(kernels, theta, columns=60, seed=5)
    wanted = reml(rows_NC, kernels, GROUPS)
    assert wanted.min() > 0.01
    np.testing.assert_allclose(variance_components(rows_NC, kernels, GROUPS), wanted, rtol=0.02, atol=2e-3)


def test_at_the_bounds_too() -> None:
    """Rows of noise alone, where the best variance of some kernel is 0: 12 draws, .04 for what six rounds leave."""
    kernels = base_kernels(prepare_base(base(width=30, between=3.0)), GROUPS)
    for seed in range(12):
        rows_NC = carried_rows(kernels, [0, 0, 0, 1.0], columns=40, seed=seed)
        wanted = reml(rows_NC, kernels, GROUPS)
        np.testing.assert_allclose(variance_components(rows_NC, kernels, GROUPS), wanted, atol=0.04)


def test_variances_do_not_see_group_means_and_scale_with_the_rows() -> None:
    kernels = base_kernels(prepare_base(base(width=30)), GROUPS)
    rows_NC = carried_rows(kernels, [1.0, 0.5, 0.8, 1.0], columns=30, seed=1)
    plain = variance_components(rows_NC, kernels, GROUPS)
    means_FC = 100 * np.random.default_rng(0).standard_normal((3, 30))
    moved = variance_components(rows_NC + means_FC[GROUPS.codes_N], kernels, GROUPS)
    np.testing.assert_allclose(moved, plain, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(variance_components(1e3 * rows_NC, kernels, GROUPS), 1e6 * plain, rtol=1e-6)


def test_rows_without_variation_within_groups_are_all_noise() -> None:
    kernels = base_kernels(prepare_base(base()), GROUPS)
    np.testing.assert_array_equal(variance_components(np.zeros((N, 4)), kernels, GROUPS)[:-1], 0)


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def rows_NC() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((N, 6)) + np.arange(6)


@pytest.fixture(scope="module")
def kernels() -> list[np.ndarray]:
    return base_kernels(prepare_base(base(width=30)), GROUPS)


SHARED = np.arange(6.0) / np.linalg.norm(np.arange(6.0))
THETA = np.array([0.5, 0.2, 0.3, 1.0])


def model_covariance(kernels: list[np.ndarray], gamma: float) -> np.ndarray:
    """V, the kernels' between-group part inflated (METHODS T3 iv), from the group projector written out."""
    projector = np.array([[(a == b) / np.sum(a == LABELS) for b in LABELS] for a in LABELS])
    inflate = np.eye(N) + (np.sqrt(gamma) - 1) * projector
    return sum(t * inflate @ kernel @ inflate for t, kernel in zip(THETA, kernels, strict=False)) + THETA[-1] * np.eye(
        N
    )


@pytest.mark.parametrize("gamma", [1.0, 1.5, 8.0])
def test_the_whitener_whitens_the_model(rows_NC, kernels, gamma: float) -> None:
    found = transport(rows_NC, SHARED, kernels, GROUPS, gamma=gamma, components_K=THETA)
    whitener = found.whitener_NN
    np.testing.assert_allclose(whitener, whitener.T, atol=1e-10)
    np.testing.assert_allclose(whitener @ model_covariance(kernels, gamma) @ whitener, np.eye(N), atol=1e-8)
    white = whitener @ (rows_NC - np.outer(rows_NC @ SHARED, SHARED))
    constant = whitener @ np.ones(N)
    white -= np.outer(constant, constant @ white) / (constant @ constant)
    np.testing.assert_allclose(found.white_NC, white, atol=1e-9)


def test_gamma_1_is_the_plain_kinship_model(rows_NC, kernels) -> None:
    found = transport(rows_NC, SHARED, kernels, GROUPS, gamma=1.0, components_K=THETA)
    plain = sum(t * kernel for t, kernel in zip(THETA, kernels, strict=False)) + np.eye(N)
    np.testing.assert_allclose(np.linalg.inv(found.whitener_NN @ found.whitener_NN), plain, atol=1e-8)


def test_gamma_inflates_differences_between_groups_only(kernels) -> None:
    """A kernel's variance of group means grows by Gamma, its variance within groups not at all."""
    indicator = GROUPS.indicator_NF / GROUPS.sizes_F
    within = np.eye(N) - indicator @ GROUPS.indicator_NF.T
    one, four = (model_covariance(kernels, gamma) - np.eye(N) for gamma in (1.0, 4.0))
    np.testing.assert_allclose(indicator.T @ four @ indicator, 4 * indicator.T @ one @ indicator, atol=1e-9)
    np.testing.assert_allclose(within @ four @ within, within @ one @ within, atol=1e-9)


def test_contrasts_are_an_orthonormal_basis_of_the_groups_free_of_the_constant(rows_NC, kernels) -> None:
    found = transport(rows_NC, SHARED, kernels, GROUPS, gamma=1.5, components_K=THETA)
    contrasts, whitener = found.contrasts_NG, found.whitener_NN
    assert contrasts.shape == (N, 2)
    np.testing.assert_allclose(contrasts.T @ contrasts, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(contrasts.T @ whitener @ np.ones(N), 0, atol=1e-8)
    design = whitener @ GROUPS.indicator_NF
    left = design - contrasts @ (contrasts.T @ design)
    assert np.linalg.matrix_rank(left, tol=1e-8) == 1  # the constant's direction only
    np.testing.assert_allclose(contrasts.T @ found.residual_NC, 0, atol=1e-9)
    assert (found.residual_NC**2).sum() == pytest.approx(
        N / (N - 3) * (found.white_NC**2).sum() - N / (N - 3) * ((contrasts.T @ found.white_NC) ** 2).sum()
    )


def test_a_shift_of_all_questions_along_or_off_the_shared_direction_changes_no_test(rows_NC, kernels) -> None:
    signs_BN = draw_flips(N, flips=19, rng=np.random.default_rng(0))
    plain, moved = (
        transport(rows, SHARED, kernels, GROUPS, gamma=1.5, components_K=THETA)
        for rows in (rows_NC, rows_NC + 7.0 + np.outer(np.arange(N), SHARED))
    )
    np.testing.assert_allclose(moved.white_NC, plain.white_NC, atol=1e-8)
    assert moved.adjusted_energy == pytest.approx(plain.adjusted_energy, abs=1e-7)
    assert [t.p for t in contrast_tests(moved, signs_BN, alpha=1).tests] == [
        t.p for t in contrast_tests(plain, signs_BN, alpha=1).tests
    ]


def slow_contrasts(found: Transport, signs_BN: np.ndarray, rank: int) -> tuple[float, list[float]]:
    """Energy of q' W X beyond a rank, and the same after residuals restricted to that rank were flipped about its fit."""

    def energy(effects: np.ndarray) -> float:
        return float(np.sort(np.linalg.eigvalsh(effects @ effects.T))[::-1][rank:].sum())

    contrasts, white = found.contrasts_NG, found.white_NC
    left, singular, right = np.linalg.svd(contrasts.T @ white, full_matrices=False)
    fit = contrasts @ sum((singular[r] * np.outer(left[:, r], right[r]) for r in range(rank)), np.zeros((2, 6)))
    null = [energy(contrasts.T @ (fit + e[:, None] * (white - fit))) for e in signs_BN]
    return energy(contrasts.T @ white), null


@pytest.mark.parametrize("rank", [0, 1])
def test_contrast_statistics_and_null_are_those_of_a_slow_loop(rows_NC, kernels, rank: int) -> None:
    rows_NC = rows_NC + 2 * np.outer(GROUPS.codes_N == 1, np.arange(6) % 2)
    found = transport(rows_NC, SHARED, kernels, GROUPS, gamma=1.5)
    signs_BN = draw_flips(N, flips=19, rng=np.random.default_rng(1))
    tests = contrast_tests(found, signs_BN, alpha=0.0, least=2)
    assert tests.first == 0
    assert len(tests.tests) == 2
    observed, null = slow_contrasts(found, signs_BN, rank)
    assert tests.tests[rank].statistic == pytest.approx(observed)
    np.testing.assert_allclose(tests.tests[rank].null_B, null, rtol=1e-8)


def test_energies_are_those_of_generalised_and_plain_least_squares(rows_NC, kernels) -> None:
    rows_NC = rows_NC + 3 * np.outer(GROUPS.codes_N == 1, np.arange(6) % 2)
    found = transport(rows_NC, SHARED, kernels, GROUPS, gamma=1.5, components_K=THETA)
    inverse = np.linalg.inv(model_covariance(kernels, 1.5))
    rows = rows_NC - np.outer(rows_NC @ SHARED, SHARED)
    design = GROUPS.indicator_NF
    covariance = np.linalg.inv(design.T @ inverse @ design)
    means = covariance @ design.T @ inverse @ rows
    residual = rows - design @ means
    unit = np.trace(residual.T @ inverse @ residual) / (N - 3)
    shares = [np.mean(name == LABELS) for name in "abc"]

    def about_mean(rows_F: np.ndarray) -> float:
        middle = sum(w * row for w, row in zip(shares, rows_F, strict=True))
        return sum(w * np.sum((row - middle) ** 2) for w, row in zip(shares, rows_F, strict=True))

    spread = np.diag(shares) - np.outer(shares, shares)
    assert found.adjusted_energy == pytest.approx(about_mean(means) - unit * np.sum(spread * covariance))
    parts = [rows[name == LABELS] for name in "abc"]
    noise = sum(w * (1 - w) * np.trace(np.cov(p.T)) / len(p) for w, p in zip(shares, parts, strict=True))
    assert found.plain_energy == pytest.approx(about_mean(np.array([p.mean(axis=0) for p in parts])) - noise)
    assert found.transport_share == pytest.approx(np.clip(1 - found.adjusted_energy / found.plain_energy, 0, 1))


def test_adjusted_energy_is_zero_on_average_under_the_model_and_right_for_planted_means(kernels) -> None:
    """300 draws of the model with its own variances; within 4.5 standard errors. Plain energy is far from it."""
    factor_NN = np.linalg.cholesky(model_covariance(kernels, 1.5))
    own_FC = np.array([[2.0, 0], [-1, 1], [0, -2]]) @ np.eye(2, 6, 3)
    middle_C = GROUPS.weights_F @ own_FC
    truth = float(GROUPS.weights_F @ ((own_FC - middle_C) ** 2).sum(axis=1))
    for means_FC, wanted in ((0 * own_FC, 0.0), (own_FC, truth)):
        found = []
        for seed in range(300):
            rows = factor_NN @ np.random.default_rng(seed).standard_normal((N, 6)) + means_FC[GROUPS.codes_N]
            carried = transport(rows, np.eye(6)[0], kernels, GROUPS, gamma=1.5, components_K=THETA)
            found.append([carried.adjusted_energy, carried.plain_energy])
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert abs(np.mean(found, axis=0)[0] - wanted) < 4.5 * error[0]
        assert np.mean(found, axis=0)[1] - wanted > 10 * error[1]


def test_the_first_contrast_test_is_fair_under_the_model(kernels) -> None:
    """300 draws, 19 flips: 5 % at .05 and 50 % at .5, within 4 standard errors."""
    factor_NN = np.linalg.cholesky(model_covariance(kernels, 1.5))
    found = []
    for seed in range(300):
        rng = np.random.default_rng([7, seed])
        carried = transport(
            factor_NN @ rng.standard_normal((N, 6)), np.eye(6)[0], kernels, GROUPS, gamma=1.5, components_K=THETA
        )
        found.append(contrast_tests(carried, draw_flips(N, flips=19, rng=rng), alpha=0.05).tests[0].p)
    for level in (0.05, 0.5):
        assert abs(np.mean(np.array(found) <= level + 1e-9) - level) < 4 * np.sqrt(level * (1 - level) / 300)


# ---------------------------------------------------------------- pass-through within groups


def learned(rows_NC: np.ndarray, kernels: list[np.ndarray], topic_NN: np.ndarray | None, **options) -> PassThrough:
    return learn_pass_through(
        rows_NC,
        SHARED,
        kernels,
        topic_NN,
        GROUPS,
        **({"alpha": 0.05, "permutations": 19, "rng": np.random.default_rng(0)} | options),
    )


def test_the_topic_kernel_reads_the_directions_in_which_group_means_differ() -> None:
    base_ND = prepare_base(base(width=20))
    means = np.array([base_ND[name == LABELS].mean(axis=0) for name in "abc"])
    basis = np.linalg.svd((means - base_ND.mean(axis=0)) * np.sqrt(SIZES)[:, None])[2][:2]
    wanted = (base_ND @ basis.T) @ (base_ND @ basis.T).T
    kernel = topic_kernel(base_ND, GROUPS)
    np.testing.assert_allclose(kernel, wanted / np.mean(np.diag(wanted)), atol=1e-9)
    between = GROUPS.indicator_NF.T @ kernel @ GROUPS.indicator_NF
    whole = GROUPS.indicator_NF.T @ base_ND @ base_ND.T @ GROUPS.indicator_NF / np.mean(np.diag(wanted))
    np.testing.assert_allclose(between, whole, atol=1e-8)  # nothing that differs between groups is elsewhere
    assert topic_kernel(np.zeros((N, 3)), GROUPS) is None


def test_pass_through_has_a_fair_p_where_there_is_none(kernels) -> None:
    """80 draws of noise and large group means: mean p .525 within 4 standard errors (.13), at .05 at most 12 of them."""
    topic_NN = topic_kernel(prepare_base(base(width=30)), GROUPS)
    found = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((N, 6)) + 5 * rng.standard_normal((3, 6))[GROUPS.codes_N]
        found.append(learned(rows, kernels, topic_NN, rng=rng))
    for name in ("p", "p_topic"):
        values = [getattr(f, name) for f in found]
        assert min(values) >= 1 / 20
        assert abs(np.mean(values) - 0.525) < 0.13
        assert sum(p <= 0.05 for p in values) <= 12
    for f in found:
        assert len(f.kernels) == len(kernels) * (f.p <= 0.05) + (f.p_topic <= 0.05)
        assert f.shown == bool(f.kernels)


def test_pass_through_is_found_where_it_is_and_kept(kernels) -> None:
    topic_NN = topic_kernel(prepare_base(base(width=30)), GROUPS)
    carried = learned(carried_rows(kernels, [1.0, 0.5, 0, 0.3], columns=6, seed=0), kernels, None, permutations=99)
    assert carried.p == 0.01
    assert carried.kernels == kernels
    assert np.isnan(carried.p_topic)
    by_topic = learned(carried_rows([topic_NN], [4.0, 0.3], columns=6, seed=0), kernels, topic_NN, permutations=99)
    assert by_topic.p_topic == 0.01
    assert by_topic.kernels[-1] is topic_NN
    nothing = learned(carried_rows(kernels, [1.0, 0.5, 0, 0.3], columns=6, seed=0), [], None)
    assert (nothing.p, nothing.kernels, nothing.shown) == (1.0, [], False)


def test_pass_through_statistic_against_a_loop(kernels) -> None:
    """One kernel, so that standardising changes no rank: p recounted from the alignments of written-out permutations."""
    rows_NC = carried_rows(kernels, [0.2, 0.1, 0, 1.0], columns=6, seed=3)
    found = learned(rows_NC, kernels[:1], None, permutations=399, rng=np.random.default_rng(8))
    rows = rows_NC - np.outer(rows_NC @ SHARED, SHARED)
    for name in "abc":
        rows[name == LABELS] -= rows[name == LABELS].mean(axis=0)
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(rows).covariance_)
    rows = rows @ vectors / np.sqrt(values)
    gram = rows @ rows.T
    rng, place, drawn = np.random.default_rng(8), np.arange(N), []
    for _ in range(400):
        products = kernels[0] * gram[place][:, place]
        drawn.append(products.sum() - np.trace(products))
        turn = np.arange(N)
        for name in "abc":
            own = np.flatnonzero(name == LABELS)
            turn[own] = rng.permutation(own)
        place = place[turn]
    assert found.p == sum(value >= drawn[0] for value in drawn) / 400
    assert 0.01 < found.p < 0.9


# ---------------------------------------------------------------- worlds


def dimensions_beyond_topic(world: World, *, gamma: float) -> int:
    groups = Groups.of(world.groups_N)
    rows_NC = prepare_shift(world.shift_ND).rows_NC
    shared_C = describe(rows_NC, groups, rng=np.random.default_rng(0), resamples=2).shared_C
    base_ND = prepare_base(world.base_ND)
    passed = learn_pass_through(
        rows_NC,
        shared_C,
        base_kernels(base_ND, groups),
        topic_kernel(base_ND, groups),
        groups,
        alpha=0.05,
        permutations=59,
        rng=np.random.default_rng(2),
    )
    found = transport(rows_NC, shared_C, passed.kernels, groups, gamma=gamma)
    signs_BN = draw_flips(len(rows_NC), flips=99, rng=np.random.default_rng(1))
    return contrast_tests(found, signs_BN, alpha=0.05).rank(0.05)


@pytest.mark.parametrize("kind", ["linear", "lowrank", "nonlinear", "saturating", "gain_by_h"])
def test_one_map_of_the_base_never_makes_two_dimensions(kind: str) -> None:
    for seed in range(3):
        world = draw(f"pass_through_{kind}", rng=np.random.default_rng(seed), questions=120, width=48)
        assert dimensions_beyond_topic(world, gamma=1.5) < 2


@pytest.mark.parametrize("name", ["separable", "separable_pass_through"])
def test_separate_directions_are_found_beyond_topic(name: str) -> None:
    for seed in range(3):
        world = draw(name, rng=np.random.default_rng(seed), questions=160, width=48, rho=0.5)
        assert dimensions_beyond_topic(world, gamma=1.5) >= 2


def test_a_larger_gamma_never_leaves_more_energy() -> None:
    world = draw("separable", rng=np.random.default_rng(0), questions=120, width=48)
    groups = Groups.of(world.groups_N)
    rows_NC = off(prepare_shift(world.shift_ND).rows_NC, np.zeros(48))
    kernels = base_kernels(prepare_base(world.base_ND), groups)
    theta = variance_components(rows_NC, kernels, groups)
    signs_BN = draw_flips(120, flips=9, rng=np.random.default_rng(1))
    found = [
        contrast_tests(
            transport(rows_NC, np.zeros(48), kernels, groups, gamma=gamma, components_K=theta), signs_BN, alpha=0
        )
        .tests[0]
        .statistic
        for gamma in (1.0, 2.0, 8.0)
    ]
    assert found[0] > found[1] > found[2]
