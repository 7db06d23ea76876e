"""Replicates: dimensions that come back in a second response, and none where only noise does not."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.examination import Settings, examine, flips_for, replicated
from unmask.analysis.preparation import Groups
from unmask.analysis.replicates import Replicates, replicate_test

LABELS = np.repeat(["a", "b", "c"], (24, 30, 36))
GROUPS = Groups.of(LABELS)
N, C = len(LABELS), 10
SHARED = np.eye(C)[0]
TOTAL = 1.0


def halves(*, parts: int = 0, size: float = 1.5, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """One shared direction, `parts` axes on which questions differ (the same in both responses), and noise of its own in each."""
    rng = np.random.default_rng(seed)
    own_NC = np.zeros((N, C))
    own_NC[:, 1 : 1 + parts] = size * rng.standard_normal((N, parts))
    gains_N1 = 1 + 0.3 * rng.standard_normal((N, 1))
    return gains_N1 * SHARED + own_NC + noise * rng.standard_normal((2, N, C))


def trial(
    halves_2NC: np.ndarray, *, groups: Groups = GROUPS, total: float = TOTAL, permutations: int = 59
) -> Replicates:
    return replicate_test(
        halves_2NC,
        groups,
        SHARED,
        total=total,
        alpha=0.05,
        permutations=permutations,
        rng=np.random.default_rng(1),
    )


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_as_many_dimensions_are_found_as_were_planted(parts: int) -> None:
    for seed in range(3):
        found = trial(halves(parts=parts, seed=seed))
        assert found.dimensions == parts
        assert found.p == 1 / 60
        assert found.largest_share == pytest.approx(1.5**2, rel=0.5)


def test_the_energy_found_is_the_variance_planted_and_reliability_its_share() -> None:
    """Variance 4 on one axis of ten, noise 1 on each but the shared one, which is projected out: 20 draws, 4 standard errors."""
    found = [trial(halves(parts=1, size=2.0, seed=seed), permutations=1) for seed in range(20)]
    shares, reliable = (np.array([getattr(f, name) for f in found]) for name in ("largest_share", "reliability"))
    assert abs(shares.mean() - 4) < 4 * shares.std() / np.sqrt(20) + 0.1
    assert abs(reliable.mean() - 4 / (4 + 9)) < 4 * reliable.std() / np.sqrt(20)


def test_nothing_is_found_where_only_the_shared_direction_replicates() -> None:
    """40 draws of noise and a shared direction whose gain replicates: p is .508 on average within 4 standard errors (.19)."""
    found = [trial(halves(seed=seed), permutations=59) for seed in range(40)]
    assert [f.dimensions for f in found if f.p > 0.05] == [0] * sum(f.p > 0.05 for f in found)
    assert sum(f.p <= 0.05 for f in found) <= 8  # 2 are expected, 7.5 is 4 standard errors more
    assert abs(np.mean([f.p for f in found]) - 0.508) < 0.19
    assert abs(np.mean([f.reliability for f in found])) < 4 * np.std([f.reliability for f in found]) / np.sqrt(40)


def test_group_means_of_any_size_are_no_dimension() -> None:
    means_FC = 50 * np.random.default_rng(0).standard_normal((3, C))
    plain, moved = trial(halves()), trial(halves() + means_FC[GROUPS.codes_N])
    assert moved.p == plain.p
    assert moved.largest_share == pytest.approx(plain.largest_share, rel=1e-6)


def test_a_dimension_that_replicates_but_holds_little_does_not_count() -> None:
    found = trial(halves(parts=1), total=100.0)
    assert found.p == 1 / 60
    assert found.dimensions == 0
    assert found.largest_share < 0.25


def test_noise_free_rows_without_parts_have_nothing() -> None:
    gains_N1 = np.linspace(1, 2, N)[:, None]
    found = trial(np.stack([gains_N1 * SHARED, gains_N1 * SHARED]))
    assert found.dimensions == 0
    assert np.isnan(found.reliability)


def test_without_mean_shift_energy_the_share_is_missing() -> None:
    assert np.isnan(trial(halves(parts=1), total=-0.1).largest_share)


def test_a_rotation_that_keeps_the_shared_direction_changes_nothing() -> None:
    turn_CC = np.eye(C)
    turn_CC[1:, 1:] = np.linalg.qr(np.random.default_rng(0).standard_normal((C - 1, C - 1)))[0]
    plain, turned = trial(halves(parts=2)), trial(halves(parts=2) @ turn_CC)
    assert turned.p == plain.p
    assert turned.dimensions == plain.dimensions
    assert turned.largest_share == pytest.approx(plain.largest_share, rel=1e-6)
    assert turned.reliability == pytest.approx(plain.reliability, rel=1e-9)


# ---------------------------------------------------------------- from a study's rows


SETTINGS = Settings(flips=19, resamples=20)


def of_study(halves_2ND: np.ndarray, *, without: tuple = ()) -> Replicates | None:
    """T4 from a study's rows, which are the halves' means turned at random; the halves `without` are then missing."""
    halves_2ND = halves_2ND @ np.linalg.qr(np.random.default_rng(6).standard_normal((halves_2ND.shape[2],) * 2))[0]
    base_ND = np.random.default_rng(5).standard_normal((N, 6))
    signs_BN = flips_for(N, seed=0, settings=SETTINGS)
    found = examine(halves_2ND.mean(axis=0), base_ND, GROUPS, signs_BN=signs_BN, seed=0, settings=SETTINGS)
    left_2ND = halves_2ND.copy()
    for place in without:
        left_2ND[place] = np.nan
    return replicated(found, left_2ND, seed=0, settings=SETTINGS)


def test_questions_with_a_missing_half_are_left_out() -> None:
    made = halves(parts=1, size=3.0)
    whole, part = of_study(made), of_study(made, without=((0, [3, 40], 2), (1, 80)))
    for found in (whole, part):
        assert found.dimensions == 1
        assert np.isfinite([found.p, found.largest_share, found.reliability]).all()
    assert part.reliability != whole.reliability
    assert part.reliability == pytest.approx(whole.reliability, abs=0.1)


def test_a_group_that_lost_most_of_its_halves_cannot_be_tested() -> None:
    in_b = np.flatnonzero(LABELS == "b")
    assert of_study(halves(parts=1), without=((1, in_b[4:]),)) is not None
    assert of_study(halves(parts=1), without=((1, in_b[3:]),)) is None
    assert of_study(halves(parts=1), without=((1, in_b),)) is None


def test_noise_does_not_replicate_when_there_are_more_coordinates_than_questions() -> None:
    """Pure response noise about one direction: 6 draws; the share in common is 0, its standard error .004."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found = of_study(0.3 + rng.standard_normal((2, N, 400)))
        assert abs(found.reliability) < 0.1
        assert found.p > 0.02


def test_every_half_missing_is_no_test() -> None:
    assert of_study(halves(parts=1), without=(1,)) is None
