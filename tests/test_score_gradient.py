"""The score-bearing part: found where a direction bears the score, absent where scores have nothing to do with shifts."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.nulls import draw_flips
from unmask.analysis.score_gradient import LEAST_SCORED, ScoreBearing, score_bearing
from unmask.analysis.worlds import draw


def trial(shift_ND, scores_N, labels_N, *, seed: int = 0, least: int = 4, flips: int = 99) -> ScoreBearing | None:
    return score_bearing(
        shift_ND,
        scores_N,
        labels_N,
        signs_BN=draw_flips(len(shift_ND), flips=flips, rng=np.random.default_rng([seed, 1])),
        alpha=0.05,
        least_in_group=least,
        rng=np.random.default_rng([seed, 2]),
    )


def idle(*, per: int, width: int, seed: int, groups: int = 4) -> ScoreBearing:
    """Scores drawn without a look at the shifts, whose groups differ in mean."""
    rng = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(groups), per)
    shift_ND = rng.standard_normal((groups * per, width)) + rng.standard_normal((groups, width))[labels_N]
    return trial(shift_ND, 50 + 10 * rng.standard_normal(groups * per), labels_N, seed=seed, flips=19)


def test_scores_that_are_independent_of_the_shift_find_nothing() -> None:
    """120 studies of 4 groups of 40, 8 coordinates. T1 and T2 at 5 %: at most 14 of 120 (3.3 standard errors more)."""
    found = [idle(per=40, width=8, seed=seed) for seed in range(120)]
    assert sum(f.shift.p <= 0.05 for f in found) <= 14
    assert sum(f.ranks.tests[0].p <= 0.05 for f in found) <= 14
    assert abs(np.mean([f.shift.p for f in found]) - 0.525) < 0.12


def test_groups_of_the_least_size_find_nothing_either() -> None:
    """100 studies of 4 groups of the least size allowed, in more coordinates: 5 % of them, at most 16 (5 standard errors)."""
    found = [idle(per=LEAST_SCORED, width=60, seed=seed) for seed in range(100)]
    assert sum(f.shift.p <= 0.05 for f in found) <= 16
    assert sum(f.ranks.tests[0].p <= 0.05 for f in found) <= 16


def bearing(directions_FD: np.ndarray, *, per: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shifts that rise with the score along each group's own direction; group means differ and say nothing."""
    rng = np.random.default_rng(seed)
    f, d = directions_FD.shape
    labels_N = np.repeat([f"group-{k}" for k in range(f)], per)
    scores_N = rng.standard_normal(f * per)
    means_FD = rng.standard_normal((f, d))
    codes_N = np.repeat(np.arange(f), per)
    shift_ND = means_FD[codes_N] + scores_N[:, None] * directions_FD[codes_N] + 0.5 * rng.standard_normal((f * per, d))
    return shift_ND, 50 + 20 * scores_N, labels_N


def test_one_direction_bears_the_score_of_every_group() -> None:
    rejected = 0
    for seed in range(12):
        found = trial(*bearing(np.tile(np.eye(10)[0], (3, 1)), seed=seed), seed=seed)
        assert found.shift.p == 0.01
        assert found.geometry.cosine_FF[0, 1] > 0.8
        rejected += found.ranks.tests[0].p <= 0.05
    assert rejected <= 3  # nominally .6 of 12


def test_a_direction_for_each_group_is_more_than_one() -> None:
    for seed in range(3):
        found = trial(*bearing(np.eye(10)[:3], seed=seed), seed=seed)
        assert found.shift.p == 0.01
        assert found.ranks.tests[0].p == 0.01
        assert abs(found.geometry.cosine_FF[0, 1]) < 0.5


def test_worlds_of_both_kinds() -> None:
    for seed in range(3):
        made = {"noise_ratio": 1.0, "questions": 200, "width": 32, "facet_gain": 0.0}
        one, own, none = (
            draw("monolithic", rng=np.random.default_rng(seed), score=score, **made)
            for score in ("shared", "separable", "none")
        )
        assert trial(own.shift_ND, own.scores_N, own.groups_N).ranks.tests[0].p == 0.01
        assert trial(one.shift_ND, one.scores_N, one.groups_N).shift.p == 0.01
        assert trial(one.shift_ND, one.scores_N, one.groups_N).ranks.tests[0].p > 0.01
        assert trial(none.shift_ND, none.scores_N, none.groups_N).shift.p > 0.01


def test_the_gradient_is_the_covariance_of_shift_and_standardised_score_in_each_group() -> None:
    """G is U-statistics of rows whose group mean is (n - 1) / n times Cov(s, y): checked from numpy's covariances."""
    rng = np.random.default_rng(4)
    labels_N = np.repeat(["a", "b"], (12, 20))
    shift_ND, scores_N = rng.standard_normal((32, 3)), rng.standard_normal(32)
    shift_ND[:, 0] += scores_N
    for name in "ab":
        shift_ND[labels_N == name] -= shift_ND[labels_N == name].mean(axis=0)
    found = trial(shift_ND, scores_N, labels_N)
    scaled_ND = shift_ND / shift_ND.std(axis=0)
    gram = np.zeros((2, 2))
    rows = []
    for name in "ab":
        own, y = scaled_ND[labels_N == name], scores_N[labels_N == name]
        own, y = own - own.mean(axis=0), (y - y.mean()) / y.std(ddof=1)
        rows.append(own * y[:, None])
        wanted = [np.cov(own[:, c], y)[0, 1] * (len(y) - 1) / len(y) for c in range(3)]
        np.testing.assert_allclose(rows[-1].mean(axis=0), wanted)
    norms = np.linalg.norm(np.concatenate(rows), axis=1)
    ceiling = 3 * np.median(norms)
    rows = [r * np.minimum(1, ceiling / np.linalg.norm(r, axis=1))[:, None] for r in rows]
    assert np.linalg.norm(scaled_ND, axis=1).max() < 3 * np.median(np.linalg.norm(scaled_ND, axis=1))
    for f, one in enumerate(rows):
        for g, other in enumerate(rows):
            products = one @ other.T
            mean = products.mean() if f != g else (products.sum() - np.trace(products)) / (len(one) * (len(one) - 1))
            gram[f, g] = np.sqrt(len(one) * len(other)) / 32 * mean
    np.testing.assert_allclose(found.geometry.gram_FF, gram, rtol=1e-8, atol=1e-10)


def test_units_and_levels_of_scores_and_group_means_do_not_matter() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    plain = trial(shift_ND, scores_N, labels_N)
    other = trial(shift_ND, 1e4 * scores_N - 7, labels_N)
    assert other.shift.statistic == pytest.approx(plain.shift.statistic)
    assert other.shift.p == plain.shift.p
    leveled = trial(shift_ND, scores_N + 1e3 * (labels_N == "group-1"), labels_N)
    assert leveled.shift.statistic == pytest.approx(plain.shift.statistic)


def test_group_means_do_not_matter() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    plain, moved = (
        trial(shift_ND + size * (labels_N == "group-1")[:, None] * np.arange(10), scores_N, labels_N) for size in (0, 3)
    )
    assert moved.shift.statistic == pytest.approx(plain.shift.statistic, rel=1e-6)
    assert moved.geometry.eta.value == pytest.approx(plain.geometry.eta.value, rel=1e-6)


def test_missing_scores_are_counted_and_left_out() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    whole_N = np.arange(240) % 10 != 3
    part = trial(shift_ND, np.where(whole_N, scores_N, np.nan), labels_N)
    assert (part.questions, part.missing) == (216, 24)
    signs_BN = draw_flips(240, flips=99, rng=np.random.default_rng([0, 1]))
    alone = score_bearing(
        shift_ND[whole_N], scores_N[whole_N], labels_N[whole_N], signs_BN=signs_BN[:, whole_N], alpha=0.05,
        least_in_group=4, rng=np.random.default_rng([0, 2]),
    )  # fmt: skip
    assert alone.shift.p == part.shift.p
    assert alone.shift.statistic == pytest.approx(part.shift.statistic)
    assert alone.missing == 0


def test_none_where_fewer_than_two_groups_can_be_asked() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    assert trial(shift_ND, np.full(240, np.nan), labels_N) is None
    assert trial(shift_ND, np.full(240, 50.0), labels_N) is None
    assert trial(shift_ND, scores_N, labels_N, least=81) is None
    assert trial(shift_ND, np.where(labels_N == "group-0", scores_N, 7.0), labels_N) is None
    two = trial(shift_ND, np.where(labels_N == "group-0", 7.0, scores_N), labels_N)
    assert (two.questions, two.missing) == (160, 0)
    few_N = np.where((labels_N == "group-0") & (np.arange(240) >= 3), np.nan, scores_N)
    assert trial(shift_ND, few_N, labels_N).questions == 160


def test_numbers_as_labels() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    codes_N = np.unique(labels_N, return_inverse=True)[1]
    assert trial(shift_ND, scores_N, codes_N).shift.p == trial(shift_ND, scores_N, labels_N).shift.p


def test_shifts_that_are_not_finite_are_refused() -> None:
    shift_ND, scores_N, labels_N = bearing(np.eye(10)[:3])
    shift_ND[5, 5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        trial(shift_ND, scores_N, labels_N)
