"""Taking the control organism's shift away, and what the distance of the group means from the origin says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from unmask.analysis.decision import decide
from unmask.analysis.examination import Settings
from unmask.analysis.fingerprint import ORIGIN_SHARE, Origin, origin, remove_control
from unmask.analysis.preparation import Groups, prepare_shift
from unmask.analysis.worlds import draw

SIZES = (20, 30, 50)
GROUPS = Groups.of(np.repeat(["a", "b", "c"], SIZES))
N, D = sum(SIZES), 12


def study(means_FD: np.ndarray, *, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    return means_FD[GROUPS.codes_N] + noise * np.random.default_rng(seed).standard_normal((N, D))


def test_the_controls_mean_or_its_rows_are_taken_off() -> None:
    rng = np.random.default_rng(0)
    shift_ND, control_ND = rng.standard_normal((2, N, D))
    control_ND[[3, 60], 5] = np.nan
    there = [q for q in range(N) if q not in (3, 60)]
    mean_D = sum(control_ND[q] for q in there) / len(there)
    np.testing.assert_allclose(remove_control(shift_ND, control_ND, removal="mean"), shift_ND - mean_D)
    found = remove_control(shift_ND, control_ND, removal="question")
    np.testing.assert_allclose(found[there], shift_ND[there] - control_ND[there])
    assert np.isnan(found[[3, 60]]).all()


def test_a_constant_of_both_organisms_drops_out() -> None:
    rng = np.random.default_rng(0)
    shift_ND, control_ND, drift_D = rng.standard_normal((N, D)), rng.standard_normal((N, D)), 50 * np.ones(D)
    for removal in ("mean", "question"):
        np.testing.assert_allclose(
            remove_control(shift_ND + drift_D, control_ND + drift_D, removal=removal),
            remove_control(shift_ND, control_ND, removal=removal),
            atol=1e-12,
        )


def test_controls_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        remove_control(np.ones((N, D)), np.ones((N, D + 1)), removal="mean")
    with pytest.raises(ValueError, match="no row"):
        remove_control(np.ones((N, D)), np.full((N, D), np.nan), removal="question")


def nearest(means_FC: np.ndarray) -> float:
    """Distance from the origin to the weighted best line through the means, by a general optimiser."""
    w_F = np.array(SIZES) / N
    middle = w_F @ means_FC
    axis = np.linalg.svd(np.sqrt(w_F)[:, None] * (means_FC - middle))[2][0]
    return float(np.sqrt(minimize(lambda t: np.sum((middle + t[0] * axis) ** 2), [0.0]).fun))


def test_the_distance_is_that_of_the_best_line_through_the_means() -> None:
    """Without noise to correct for, exactly; the fingerprint is the length of the control's mean, in the prepared scale."""
    rng = np.random.default_rng(1)
    shift_ND = study(3 * rng.standard_normal((3, D)), noise=1e-6)
    control_ND = np.tile(rng.standard_normal(D) + 2, (N, 1))
    control_ND[7] = np.nan
    prepared = prepare_shift(shift_ND)
    found = origin(prepared, GROUPS, control_ND)
    assert found.distance == pytest.approx(nearest(GROUPS.means(prepared.rows_NC)), rel=1e-5)
    assert found.fingerprint == pytest.approx(
        np.sqrt(sum((x / s) ** 2 for x, s in zip(control_ND[0], prepared.scale_D, strict=True)))
    )


def test_noise_of_the_controls_mean_is_taken_out_of_both_lengths() -> None:
    """The control's mean was taken off every row: its sampling noise is in the distance and in the fingerprint."""
    rng = np.random.default_rng(4)
    shift_ND = study(3 * rng.standard_normal((3, D)), noise=1e-6)
    noise_ND = rng.standard_normal((N, D))
    still_ND = np.tile(rng.standard_normal(D) + 2, (N, 1))
    still, noisy = (
        origin(prepare_shift(shift_ND), GROUPS, control)
        for control in (still_ND, still_ND + noise_ND - noise_ND.mean(axis=0))
    )
    scale_D = prepare_shift(shift_ND).scale_D
    lost = sum(np.var((noise_ND / scale_D)[:, d], ddof=1) for d in range(D)) / N
    assert noisy.distance**2 == pytest.approx(still.distance**2 - lost)
    assert noisy.fingerprint**2 == pytest.approx(still.fingerprint**2 - lost)


def test_one_axis_through_the_origin_needs_no_fingerprint_and_another_one_does() -> None:
    axis_D, drift_D = np.eye(D)[0], 8 * np.eye(D)[1]
    grades = np.outer([1.0, 3.0, 6.0], axis_D)
    control_ND = drift_D + np.random.default_rng(3).standard_normal((N, D))
    through = origin(prepare_shift(study(grades)), GROUPS, control_ND)
    beside = origin(prepare_shift(study(grades + drift_D)), GROUPS, control_ND)
    assert through.share < 0.2
    assert through.k_star == 2
    assert beside.share > 0.7
    assert beside.k_star == 1


def test_two_camps_pass_far_from_the_origin() -> None:
    two_ND = study(5 * np.eye(D)[[0, 0, 1]])
    found = origin(
        prepare_shift(two_ND), GROUPS, 2 * np.eye(D)[2] + 0.1 * np.random.default_rng(0).standard_normal((N, D))
    )
    assert found.k_star == 1


def test_the_distance_is_corrected_for_noise() -> None:
    """Means on one axis through the origin, much noise: 40 draws, the squared distance averages 0.5 at most (uncorrected: 1+)."""
    grades = np.outer([2.0, 4.0, 8.0], np.eye(D)[0])
    found = [
        origin(prepare_shift(study(grades, noise=2.0, seed=s)), GROUPS, np.ones((N, D))).distance for s in range(40)
    ]
    naive = [nearest(GROUPS.means(prepare_shift(study(grades, noise=2.0, seed=s)).rows_NC)) for s in range(40)]
    assert np.mean(np.square(found)) < 0.6 * np.mean(np.square(naive))


def test_without_any_fingerprint_one_dimension_is_enough() -> None:
    assert Origin(1.0, 0.0).k_star == 1
    assert Origin(0.99 * ORIGIN_SHARE, 1.0).k_star == 2
    assert Origin(ORIGIN_SHARE, 1.0).k_star == 1


SETTINGS = Settings(flips=99, resamples=60, planted_runs=19, planted_flips=19)


def decided(name: str, *, seed: int, **options):
    world = draw(name, rng=np.random.default_rng(seed), questions=120, width=48, control=True, **options)
    return decide(world.shift_ND, world.base_ND, world.groups_N, control_ND=world.control_ND, seed=0, settings=SETTINGS)


def test_a_tuning_that_did_what_the_control_did_is_no_shift() -> None:
    """Drift alone, the same in both: 12 studies, T1 rejects in 5 %; at most 4 (4.5 standard errors more).

    The control's mean has noise of its own, a constant: flips of rows without that mean reject nearly always.
    """
    found = [decided("monolithic_drift", seed=seed, shared=0.0, drift=1.0).numbers["p_shift"] for seed in range(12)]
    assert sum(p <= 0.05 for p in found) <= 4


def test_a_control_tells_two_camps_from_one_direction_and_from_a_grade() -> None:
    """The line through the camps is .7 from the origin, the fingerprint .75 long: a share of .94, far from the limit."""
    for seed in range(3):
        camps = decided("two_way", seed=seed, noise_ratio=1.5, drift=0.75)
        assert camps.verdict == "separable"
        assert camps.findings.k_star == 1
        assert decided("monolithic_drift", seed=seed, noise_ratio=1.5).verdict == "monolithic"
        grade = decided("graded", seed=seed, noise_ratio=1.5)
        assert grade.findings.k_star == 2
        assert grade.verdict in {"monolithic", "inconclusive"}
