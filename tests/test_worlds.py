"""Simulated worlds: what they say of themselves is what they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from unmask.analysis.real_worlds import Empirical, real_world
from unmask.analysis.world_maps import _MAPS, follow
from unmask.analysis.world_noise import PowerLaw
from unmask.analysis.worlds import WORLDS, World, draw


def made(name: str, *, seed: int = 0, **overrides) -> World:
    return draw(name, rng=np.random.default_rng(seed), **overrides)


def means(rows_ND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Means by label, each times the root of its share, in a plain loop."""
    return np.array(
        [np.sqrt(np.mean(labels_N == label)) * rows_ND[labels_N == label].mean(axis=0) for label in np.unique(labels_N)]
    )


def rho_of(rows_ND: np.ndarray, labels_N: np.ndarray) -> float:
    energies = np.linalg.svd(means(rows_ND, labels_N), compute_uv=False) ** 2
    return 1 - energies[0] / energies.sum()


def signal_of(world: World) -> np.ndarray:
    return world.signal_ND / world.unit_D


def test_every_family_and_truth_is_there() -> None:
    assert {spec.truth for spec in WORLDS.values()} == {
        "no-shift", "monolithic", "entangled", "separable", "graded", "nested",
    }  # fmt: skip
    assert sum(name.startswith("pass_through_") for name in WORLDS) >= 5


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_can_be_drawn_and_is_whole(name: str) -> None:
    world = made(name, questions=150, width=64)
    assert world.shift_ND.shape == world.base_ND.shape == world.signal_ND.shape == (150, 64)
    assert world.replicates_NSD.shape == (150, 2, 64)
    np.testing.assert_allclose(world.replicates_NSD.mean(axis=1), world.shift_ND)
    assert world.control_ND is None
    assert ((world.scores_N >= 0) & (world.scores_N <= 100)).all()
    for array in (world.shift_ND, world.base_ND, world.signal_ND, world.scores_N):
        assert np.isfinite(array).all()
    assert len(np.unique(world.groups_N)) == 4
    for facet in np.unique(world.facets_N):
        assert len(np.unique(world.groups_N[world.facets_N == facet])) == 1
        assert (world.facets_N == facet).sum() >= 4
    for group in np.unique(world.groups_N):
        assert len(np.unique(world.facets_N[world.groups_N == group])) in {2, 3}


@pytest.mark.parametrize("name", ["monolithic", "separable_hard", "pass_through_nonlinear", "separable_lengths"])
def test_the_same_seed_gives_the_same_world_and_another_does_not(name: str) -> None:
    first, again, other = made(name), made(name), made(name, seed=1)
    np.testing.assert_array_equal(first.shift_ND, again.shift_ND)
    np.testing.assert_array_equal(first.base_ND, again.base_ND)
    np.testing.assert_array_equal(first.scores_N, again.scores_N)
    assert not np.allclose(first.shift_ND, other.shift_ND)


def test_two_draws_from_one_generator_differ() -> None:
    rng = np.random.default_rng(0)
    assert not np.allclose(draw("no_shift", rng=rng).shift_ND, draw("no_shift", rng=rng).shift_ND)


def test_a_control_or_another_noise_leaves_the_rest_as_it_was() -> None:
    plain = made("separable")
    with_control = made("separable", control=True)
    np.testing.assert_array_equal(plain.shift_ND, with_control.shift_ND)
    np.testing.assert_allclose(plain.signal_ND, made("separable", noise_ratio=9.0).signal_ND)


@pytest.mark.parametrize("asked", [0.05, 0.1, 0.15, 0.25])
@pytest.mark.parametrize("offsets", ["isotropic", "correlated", "noise"])
def test_rho_of_the_noise_free_means_is_the_one_asked(asked: float, offsets: str) -> None:
    world = made("separable", rho=asked, offsets=offsets)
    assert world.rho == pytest.approx(asked, abs=1e-9)
    assert rho_of(signal_of(world), world.groups_N) == pytest.approx(asked, abs=1e-9)
    assert world.persona_rho == pytest.approx(asked, abs=1e-9)


@pytest.mark.parametrize("asked", [0.01, 0.03])
def test_eta_of_the_noise_free_means_is_the_one_asked(asked: float) -> None:
    assert made("separable", rho=None, eta=asked).eta == pytest.approx(asked, abs=1e-9)


def test_eta_is_the_share_of_the_question_variance_outside_the_shared_direction() -> None:
    """Against the drawn shifts themselves, without tails; the noise enters by its expectation only."""
    world = made("separable", questions=4000, width=64, tail_df=1e6, skew=0.0, eta=0.03, rho=None)
    _, values, right = np.linalg.svd(means(signal_of(world), world.groups_N), full_matrices=False)
    shift_ND = world.shift_ND / world.unit_D
    outside_ND = shift_ND - np.outer(shift_ND @ right[0], right[0])
    assert (values[1:] ** 2).sum() / outside_ND.var(axis=0).sum() == pytest.approx(0.03, rel=0.03)


def test_without_specific_directions_the_means_have_rank_one_or_none() -> None:
    for name in ("monolithic", "monolithic_hetero_gain", "nested", "sign_mixed_unbalanced"):
        assert made(name).rho == pytest.approx(0, abs=1e-12)
    nothing = made("no_shift")
    assert np.isnan(nothing.rho)
    assert not nothing.signal_ND.any()


@pytest.mark.parametrize(("name", "rank"), [("graded", 2), ("two_way", 2), ("separable", 4), ("monolithic", 1)])
def test_ranks_of_the_means(name: str, rank: int) -> None:
    world = made(name, facet_gain=0.0, question_gain=0.0)
    energies = np.linalg.svd(means(signal_of(world), world.groups_N), compute_uv=False)
    assert (energies > 1e-9 * energies[0]).sum() == rank


def test_a_size_that_no_directions_can_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no size .* gives 0.99"):
        made("separable", rho=0.99)


def test_noise_has_the_size_said_and_responses_share_only_the_question_part() -> None:
    world = made("no_shift", questions=3000, width=64, noise_ratio=4.0, tail_df=30.0)
    rows_ND = world.shift_ND / world.unit_D
    assert np.sqrt((rows_ND**2).sum(axis=1).mean()) == pytest.approx(4, rel=0.03)
    first_ND, second_ND = (world.replicates_NSD / world.unit_D).transpose(1, 0, 2)
    assert abs((first_ND * second_ND).sum(axis=1).mean()) < 0.3
    common = made("no_shift", questions=3000, width=64, noise_ratio=4.0, tail_df=30.0, question_share=0.5)
    first_ND, second_ND = (common.replicates_NSD / common.unit_D).transpose(1, 0, 2)
    assert (first_ND * second_ND).sum(axis=1).mean() == pytest.approx(8, rel=0.1)
    assert np.sqrt(((common.shift_ND / common.unit_D) ** 2).sum(axis=1).mean()) == pytest.approx(4, rel=0.03)


def test_one_response_has_no_replicates() -> None:
    world = made("monolithic", responses=1)
    assert world.replicates_NSD is None
    assert world.shift_ND.shape == (240, 256)


def test_topic_is_thirty_five_per_cent_of_the_base_variance() -> None:
    shares = []
    for seed in range(20):
        world = made("monolithic", seed=seed, questions=2000, width=64)
        base_ND = world.base_ND / world.unit_D
        between_FD = means(base_ND - base_ND.mean(axis=0), world.facets_N)
        shares.append((between_FD**2).sum() / base_ND.var(axis=0).sum())
    assert np.mean(shares) == pytest.approx(0.35, abs=0.01)


def test_massive_dimensions_are_massive_in_base_and_shift() -> None:
    world = made("monolithic", massive=2)
    massive_D = world.unit_D > 1
    assert massive_D.sum() == 2
    for rows_ND in (world.base_ND, world.shift_ND):
        spread_D = rows_ND.std(axis=0)
        assert spread_D[massive_D].min() > 5 * np.median(spread_D)


def test_rotation_is_orthogonal_and_undone_and_variance_falls_as_said() -> None:
    rng = np.random.default_rng(0)
    spread = PowerLaw.make(32, exponent=1.0, skew=0.3, rng=rng)
    matrix_DD = spread.rotate(np.eye(32))
    np.testing.assert_allclose(matrix_DD @ matrix_DD.T, np.eye(32), atol=1e-12)
    np.testing.assert_allclose(spread.rotate_back(matrix_DD), np.eye(32), atol=1e-12)
    covariance_DD = matrix_DD.T * spread.variance_D @ matrix_DD
    assert np.trace(covariance_DD) == pytest.approx(1)
    rows_KD = spread.draw(200_000, rng=rng)
    np.testing.assert_allclose(np.cov(rows_KD.T), covariance_DD, atol=0.004)
    direction_D = rng.standard_normal(32)
    unit_D = direction_D / np.linalg.norm(direction_D)
    assert spread.variance_along(direction_D) == pytest.approx(unit_D @ covariance_DD @ unit_D)


def test_noise_is_skewed_and_heavy_tailed() -> None:
    rows_ND = made("no_shift", questions=4000, width=32, massive=0, tail_df=5.0).shift_ND
    axis_D = np.linalg.svd(rows_ND - rows_ND.mean(axis=0), full_matrices=False)[2][0]
    standard_N = (rows_ND - rows_ND.mean(axis=0)) @ axis_D
    standard_N /= standard_N.std()
    assert abs((standard_N**3).mean()) > 0.3
    assert (standard_N**4).mean() > 4


def test_control_drifts_at_the_angle_and_size_said() -> None:
    options = {"control": True, "control_angle": 60.0, "control_size": 0.5, "noise_ratio": 1e-9, "shared": 0.0}
    world = made("monolithic_drift", **options)
    drift_D = signal_of(world).mean(axis=0)
    control_D = (world.control_ND / world.unit_D).mean(axis=0)
    cosine = control_D @ drift_D / np.linalg.norm(control_D) / np.linalg.norm(drift_D)
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(60, abs=1e-5)
    assert np.linalg.norm(drift_D) == pytest.approx(4)
    assert np.linalg.norm(control_D) == pytest.approx(2)


def test_a_control_with_the_same_drift_leaves_the_persona() -> None:
    world = made("monolithic_drift", control=True, noise_ratio=1e-9)
    left_ND = (world.shift_ND - world.control_ND) / world.unit_D
    assert world.rho > 1e-4
    assert rho_of(left_ND, world.groups_N) < 1e-12


def test_a_control_has_noise_of_its_own_and_may_answer_fewer_questions() -> None:
    world = made("no_shift", questions=2000, width=64, control=True, control_questions=500, control_noise=2.0)
    asked_N = np.isfinite(world.control_ND).all(axis=1)
    assert asked_N.sum() == 500
    assert np.isnan(world.control_ND[~asked_N]).all()
    own_ND, other_ND = world.shift_ND[asked_N] / world.unit_D, world.control_ND[asked_N] / world.unit_D
    assert (other_ND**2).sum() / (own_ND**2).sum() == pytest.approx(4, rel=0.2)
    assert abs((own_ND * other_ND).sum()) < 0.05 * (own_ND**2).sum()


@pytest.mark.parametrize("kind", _MAPS)
def test_a_map_is_one_function_of_the_base_with_the_energy_asked(kind: str) -> None:
    """Two questions with the same base activation get the same part, whatever their dimension."""
    rng = np.random.default_rng(0)
    half_ND = rng.standard_normal((60, 40))
    base_ND = np.concatenate([half_ND, half_ND])
    topic_ND = np.repeat(rng.standard_normal((6, 40)), 20, axis=0)
    rows_ND = follow(kind, base_ND, topic_ND, energy=2.5, rng=rng)
    np.testing.assert_allclose(rows_ND[:60], rows_ND[60:], atol=1e-12)
    assert np.mean((rows_ND**2).sum(axis=1)) == pytest.approx(2.5)
    np.testing.assert_allclose(rows_ND.mean(axis=0), 0, atol=1e-12)


def test_the_linear_map_is_linear() -> None:
    rng = np.random.default_rng(0)
    one_ND, two_ND = rng.standard_normal((2, 50, 20))
    one_ND, two_ND = one_ND - one_ND.mean(axis=0), two_ND - two_ND.mean(axis=0)
    parts = [_MAPS["linear"](rows, rows, np.random.default_rng(1)) for rows in (one_ND, two_ND, one_ND + 2 * two_ND)]
    np.testing.assert_allclose(parts[2], parts[0] + 2 * parts[1], atol=1e-10)


def test_a_map_of_bases_that_do_not_vary_is_refused() -> None:
    with pytest.raises(ValueError, match="do not vary"):
        follow("linear", np.zeros((9, 4)), np.zeros((9, 4)), energy=1.0, rng=np.random.default_rng(0))


def test_long_questions_are_quieter_and_dimensions_differ() -> None:
    world = made("monolithic_lengths", questions=800)
    noise_N = np.linalg.norm((world.shift_ND - world.signal_ND) / world.unit_D, axis=1)
    assert spearmanr(noise_N, world.noise_scale_N).statistic > 0.4
    assert np.mean(world.noise_scale_N**2) == pytest.approx(1)
    medians = [np.median(world.noise_scale_N[world.groups_N == group]) for group in np.unique(world.groups_N)]
    assert max(medians) > 1.5 * min(medians)


def test_three_per_cent_of_the_rows_are_ten_times_as_loud() -> None:
    world = made("separable_outliers", questions=300)
    assert (world.noise_scale_N == 10).sum() == 9
    assert (world.noise_scale_N == 1).sum() == 291


def test_unequal_dimensions_have_the_shares_said() -> None:
    sizes = sorted(np.unique(made("monolithic_unequal", questions=400).groups_N, return_counts=True)[1] / 400)
    assert sizes == pytest.approx([0.05, 0.1, 0.25, 0.6], abs=0.02)


def test_near_topics_share_noise_and_nothing_else_does() -> None:
    """Within a facet, the mean product of two questions' noise is positive only where near-topics share it."""

    def common(name: str) -> float:
        world = made(name, questions=600)
        noise_ND = (world.shift_ND - world.signal_ND) / world.unit_D
        gram_NN = noise_ND @ noise_ND.T
        same_NN = world.facets_N[:, None] == world.facets_N
        np.fill_diagonal(same_NN, False)
        return float(gram_NN[same_NN].mean())

    assert common("monolithic_clustered") > 5 * abs(common("monolithic"))


def test_nested_directions_leave_the_means_of_dimension_and_facet_alone() -> None:
    world, plain = made("nested"), made("nested", nested=0.0)
    difference_ND = signal_of(world) - signal_of(plain)
    touched_N = np.abs(difference_ND).sum(axis=1) > 1e-9
    assert len(np.unique(world.groups_N[touched_N])) == 1
    for labels_N in (world.groups_N, world.facets_N):
        np.testing.assert_allclose(means(difference_ND, labels_N), 0, atol=1e-12)
    assert np.linalg.matrix_rank(difference_ND, tol=1e-9) == 1


def test_sign_mixed_shifts_cancel_within_dimensions_until_polarity_is_undone() -> None:
    world = made("sign_mixed_balanced", facet_gain=0.0, question_gain=0.0)
    mixed_ND = signal_of(world)
    assert np.linalg.matrix_rank(mixed_ND, tol=1e-9) == 1
    for group in np.unique(world.groups_N):
        rows_ND = mixed_ND[world.groups_N == group]
        assert np.linalg.norm(rows_ND.mean(axis=0)) <= 1 / len(rows_ND) + 1e-12
    undone_ND = world.polarity_N[:, None] * mixed_ND
    np.testing.assert_allclose(undone_ND, np.broadcast_to(undone_ND[0], undone_ND.shape), atol=1e-12)
    tilted = made("sign_mixed_unbalanced")
    shares = sorted(np.mean(tilted.polarity_N[tilted.groups_N == group] > 0) for group in np.unique(tilted.groups_N))
    assert shares == pytest.approx([0.1, 0.367, 0.633, 0.9], abs=0.03)


def score_links(world: World) -> list[np.ndarray]:
    """Direction along which the signal varies with the score, by dimension."""
    signal_ND, found = signal_of(world), []
    for group in np.unique(world.groups_N):
        member_N = world.groups_N == group
        scores_N = world.scores_N[member_N] - world.scores_N[member_N].mean()
        direction_D = scores_N @ signal_ND[member_N]
        found.append(direction_D / np.linalg.norm(direction_D))
    return found


def test_scores_bear_on_one_direction_or_on_one_in_each_dimension() -> None:
    one, other = score_links(made("separable", rho=0.05))[:2]
    assert one @ other > 0.8
    links = score_links(made("monolithic", score="separable"))
    assert max(abs(links[row] @ links[column]) for row in range(4) for column in range(row)) < 0.4


def test_score_bearing_variation_leaves_the_facet_means_alone() -> None:
    world, plain = made("monolithic", score="separable"), made("monolithic", score="none")
    np.testing.assert_allclose(
        means(world.signal_ND, world.facets_N), means(plain.signal_ND, plain.facets_N), atol=1e-9
    )
    assert not np.allclose(world.signal_ND, plain.signal_ND)


def test_scores_are_low_without_a_persona_and_rise_with_its_strength() -> None:
    world = made("monolithic", questions=400)
    strength_N = np.linalg.norm(signal_of(world), axis=1)
    assert spearmanr(strength_N, world.scores_N).statistic > 0.8
    idle = made("no_shift", questions=400)
    assert idle.scores_N.mean() < 20 < world.scores_N.mean()
    assert abs(spearmanr(strength_N, made("monolithic", questions=400, score="none").scores_N).statistic) < 0.2


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("monolith", {}, "no world is called 'monolith'"),
        ("monolithic", {"colour": 1}, "a world has no colour"),
        ("monolithic", {"questions": 20}, "too few"),
        ("monolithic", {"shares": (0.5, 0.5)}, "2 shares for 4 dimensions"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name: str, options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        made(name, **options)


@pytest.fixture(scope="module")
def study() -> dict[str, np.ndarray]:
    """Stands for a study's own arrays: what matters is that they are given, not drawn by the world."""
    rng = np.random.default_rng(5)
    groups_N = np.repeat(["politics", "morals", "money"], 40)
    facets_N = np.tile(np.repeat(["one", "two"], 20), 3)
    noise_ND = rng.standard_t(4, size=(120, 48)) * np.linspace(0.01, 3, 48) + 7
    base_ND = 50 + rng.normal(size=(120, 48)) * np.linspace(5, 0.5, 48)
    return {"base_ND": base_ND, "groups_N": groups_N, "facets_N": facets_N, "noise_ND": noise_ND}


@pytest.mark.parametrize("kind", ["none", "shared", "pass_through", "separable"])
def test_each_planted_kind_keeps_the_studys_base_and_labels(study, kind) -> None:
    world = real_world(**study, kind=kind, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(world.base_ND, study["base_ND"])
    np.testing.assert_array_equal(world.groups_N, study["groups_N"])
    assert world.replicates_NSD.shape == (120, 2, 48)
    assert np.isfinite(world.shift_ND).all()
    again = real_world(**study, kind=kind, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(world.shift_ND, again.shift_ND)


def test_the_size_planted_among_real_bases_is_the_one_asked(study) -> None:
    world = real_world(**study, kind="separable", rng=np.random.default_rng(0), rho=0.2)
    assert rho_of(signal_of(world), world.groups_N) == pytest.approx(0.2, abs=1e-9)
    assert np.isnan(real_world(**study, kind="none", rng=np.random.default_rng(0)).rho)


def test_noise_is_the_studys_own_rows_up_to_sign_free_of_facet_means(study) -> None:
    world = real_world(**study, kind="none", rng=np.random.default_rng(0), responses=1)
    keys = study["groups_N"].astype(object) + study["facets_N"].astype(object)
    centred_ND = study["noise_ND"].copy()
    for key in np.unique(keys):
        centred_ND[keys == key] -= centred_ND[keys == key].mean(axis=0)
    unit_ND, own_ND = world.shift_ND / world.unit_D, centred_ND / world.unit_D
    cosine_NN = unit_ND @ own_ND.T
    cosine_NN /= np.linalg.norm(unit_ND, axis=1)[:, None] * np.linalg.norm(own_ND, axis=1)
    np.testing.assert_allclose(np.abs(cosine_NN).max(axis=1), 1)
    assert len(np.unique(np.abs(cosine_NN).argmax(axis=1))) == 120


def test_the_empirical_spread_is_the_rows_own_covariance(study) -> None:
    rows_ND = study["noise_ND"] - study["noise_ND"].mean(axis=0)
    rows_ND /= np.sqrt((rows_ND**2).sum())
    spread = Empirical(rows_ND)
    drawn_KD = spread.draw(50_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn_KD.T @ drawn_KD / 50_000, rows_ND.T @ rows_ND, atol=2e-3)
    axis_D = np.arange(48.0)
    assert spread.variance_along(axis_D) == pytest.approx(axis_D @ rows_ND.T @ rows_ND @ axis_D / (axis_D @ axis_D))


def test_real_arrays_that_do_not_fit_are_refused(study) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="do not fit"):
        real_world(**{**study, "noise_ND": study["noise_ND"][:, :5]}, kind="none", rng=rng)
    with pytest.raises(ValueError, match="finite"):
        real_world(**{**study, "base_ND": np.full((120, 48), np.nan)}, kind="none", rng=rng)
    with pytest.raises(ValueError, match="no spread"):
        real_world(**{**study, "noise_ND": np.ones((120, 48))}, kind="none", rng=rng)
