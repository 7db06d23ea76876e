"""Sign-flip tests: exact where symmetry holds, equal to slow loops, right in size, and never p = 0."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from unmask.analysis.nulls import (
    RankTests,
    draw_flips,
    flipped_means,
    holm,
    ledoit_wolf_whitening,
    low_rank_means,
    max_t,
    rank_tests,
    shift_test,
)
from unmask.analysis.nulls import (
    Tested as Outcome,
)
from unmask.analysis.preparation import Groups, prepare_shift
from unmask.analysis.worlds import draw

SIZES = (4, 6, 10)
LABELS = np.repeat(["a", "b", "c"], SIZES)
GROUPS = Groups.of(LABELS)
N, C = len(LABELS), 4


def rows(*, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise_NC = rng.standard_t(5, size=(N, C)) @ np.triu(np.ones((C, C)))
    return noise_NC * np.repeat([2.0, 1.0, 0.7], SIZES)[:, None] + shift * np.arange(C)


def signs(*, flips: int = 19, n: int = N, seed: int = 0) -> np.ndarray:
    return draw_flips(n, flips=flips, rng=np.random.default_rng([seed, 99]))


def slow_gram(rows_NC: np.ndarray) -> np.ndarray:
    """G of METHODS section 2 with the traces of each group's covariance, group by group."""
    parts = [rows_NC[name == LABELS] for name in "abc"]
    gram = np.zeros((3, 3))
    for f, one in enumerate(parts):
        for g, other in enumerate(parts):
            gram[f, g] = np.sqrt(len(one) * len(other)) / N * (one.mean(axis=0) @ other.mean(axis=0))
        gram[f, f] -= sum(np.var(one[:, c], ddof=1) for c in range(one.shape[1])) / N
    return gram


def beyond(gram: np.ndarray, rank: int) -> float:
    return float(np.trace(gram) - np.sort(np.linalg.eigvalsh(gram))[::-1][:rank].sum())


def slow_low_rank(rows_NC: np.ndarray, rank: int) -> np.ndarray:
    """The mean of every question's group, in the span of the first eigenvectors of G over the weighted groups (N x C)."""
    vectors = np.linalg.eigh(slow_gram(rows_NC))[1][:, ::-1][:, :rank]
    shares = [np.mean(name == LABELS) for name in "abc"]
    means = [rows_NC[name == LABELS].mean(axis=0) for name in "abc"]
    out = np.zeros_like(rows_NC)
    for f, name in enumerate("abc"):
        for r in range(rank):
            for g in range(3):
                out[name == LABELS] += (
                    vectors[f, r] * vectors[g, r] * np.sqrt(shares[g]) * means[g] / np.sqrt(shares[f])
                )
    return out


def slow_rank_test(rows_NC: np.ndarray, signs_BN: np.ndarray, rank: int) -> tuple[float, list[float]]:
    """T2 (i)-(v) as METHODS lists them; scikit-learn's Ledoit-Wolf covariance whitens."""
    scaled = rows_NC.copy()
    for name in "abc":
        own = rows_NC[name == LABELS]
        scaled[name == LABELS] /= np.sqrt(((own - own.mean(axis=0)) ** 2).sum() / (len(own) - 1))
    first = scaled - slow_low_rank(scaled, rank)
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(first).covariance_)
    white = scaled @ (vectors / np.sqrt(values) @ vectors.T)
    mean = slow_low_rank(white, rank)
    residual = white - mean
    null = [beyond(slow_gram(mean + e[:, None] * residual), rank) for e in signs_BN]
    return beyond(slow_gram(white), rank), null


def pair_sums(rows_NC: np.ndarray, e_N: np.ndarray) -> tuple[float, float]:
    """Sum of s_q . s_q' over all pairs q != q', and the share-weighted means over the pairs of each group."""
    products = {(q, p): e_N[q] * e_N[p] * (rows_NC[q] @ rows_NC[p]) for q in range(N) for p in range(N) if q != p}
    within = 0.0
    for name in "abc":
        own = [value for (q, p), value in products.items() if LABELS[q] == LABELS[p] == name]
        within += np.mean(name == LABELS) * np.mean(own)
    return sum(products.values()), within


def test_shift_test_is_the_sum_over_pairs_and_its_flips() -> None:
    """But for level and unit; the larger of both sums, each standardised, which 199 flips leave uncertain by a hundredth."""
    rows_NC, signs_BN = rows(), signs(flips=199)
    observed = np.array(pair_sums(rows_NC, np.ones(N)))
    null = np.array([pair_sums(rows_NC, e_N) for e_N in signs_BN])
    plain, grouped = shift_test(rows_NC, signs_BN), shift_test(rows_NC, signs_BN, GROUPS)
    for flip in range(199):
        wanted = (null[flip, 0] - observed[0]) / null[:, 0].std()
        assert (plain.null_B[flip] - plain.statistic) / plain.null_B.std() == pytest.approx(wanted, abs=1e-8)
    assert plain.p == (1 + sum(value >= observed[0] for value in null[:, 0])) / 200
    z_B, z = (null - null.mean(axis=0)) / null.std(axis=0), (observed - null.mean(axis=0)) / null.std(axis=0)
    assert grouped.statistic == pytest.approx(z.max(), abs=0.02)
    np.testing.assert_allclose(grouped.null_B, z_B.max(axis=1), atol=0.08)


def test_shifts_of_opposite_groups_are_found_within_them() -> None:
    rows_NC = rows() + 3 * np.array([0.0, 1, -1])[GROUPS.codes_N][:, None]
    rows_NC -= rows_NC.mean(axis=0)
    assert shift_test(rows_NC, signs(flips=99)).p > 0.5
    assert shift_test(rows_NC, signs(flips=99), GROUPS).p == 0.01


def test_shift_test_of_groups_is_exact_too() -> None:
    """1000 draws, 9 flips: 10 % reject at .1, within 3.5 standard errors (3.3 %)."""
    groups, found = Groups.of(np.repeat([0, 1, 2, 3], 5)), []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        found.append(shift_test(rng.standard_normal((20, 5)), draw_flips(20, flips=9, rng=rng), groups).p)
    assert abs(np.mean(np.array(found) <= 0.1 + 1e-9) - 0.1) < 0.033


def test_shift_test_is_exact_under_symmetric_noise() -> None:
    """p takes 1/20 ... 20/20, each with probability 1/20. 1200 draws: every cumulative share within 4 standard errors."""
    found = []
    for seed in range(1200):
        rng = np.random.default_rng(seed)
        rows_NC = rng.standard_t(2, size=(8, 3)) * rng.uniform(0.1, 5, size=(8, 1))
        found.append(shift_test(rows_NC, draw_flips(8, flips=19, rng=rng)).p)
    assert min(found) == 1 / 20
    for level in np.arange(1, 20) / 20:
        assert abs(np.mean(np.array(found) <= level + 1e-9) - level) < 4 * np.sqrt(level * (1 - level) / 1200)


def test_shift_test_finds_a_shift() -> None:
    assert shift_test(rows(shift=2.0), signs()).p == 1 / 20
    assert shift_test(-rows(shift=2.0), signs()).p == 1 / 20


def test_p_counts_the_observed_value_and_is_never_zero() -> None:
    assert Outcome(5.0, np.arange(9.0)).p == 0.5
    assert Outcome(100.0, np.arange(9.0)).p == 0.1
    assert Outcome(-1.0, np.arange(9.0)).p == 1.0
    found = Outcome(5.0, np.array([1.0, 3.0]))
    together = np.array([5.0, 1.0, 3.0])
    assert found.standardised == pytest.approx((5.0 - 3.0) / together.std())
    np.testing.assert_allclose(found.standardised_null_B, (together[1:] - 3.0) / together.std())


def test_flips_are_signs_fair_and_repeatable() -> None:
    drawn = signs(flips=400, n=50)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    np.testing.assert_array_equal(drawn, signs(flips=400, n=50))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_rank_test_and_its_null_are_those_of_a_slow_loop(rank: int, shift: float) -> None:
    rows_NC, signs_BN = rows(seed=2, shift=shift), signs()
    found = rank_tests(rows_NC, GROUPS, signs_BN, alpha=0.05, least=2)
    assert found.first == 1
    observed, null = slow_rank_test(rows_NC, signs_BN, rank)
    tested = found.tests[rank - 1]
    assert tested.statistic == pytest.approx(observed, rel=1e-7, abs=1e-9)
    np.testing.assert_allclose(tested.null_B, null, rtol=1e-7, atol=1e-9)


def test_low_rank_means_are_exact_at_full_rank_and_of_the_rank_asked() -> None:
    rows_NC = rows(shift=1.0)
    np.testing.assert_allclose(low_rank_means(rows_NC, GROUPS, rank=3), GROUPS.means(rows_NC), atol=1e-10)
    for rank in (1, 2):
        means_FC = low_rank_means(rows_NC, GROUPS, rank=rank)
        assert np.linalg.matrix_rank(means_FC, tol=1e-9) == rank
        np.testing.assert_allclose(means_FC[GROUPS.codes_N], slow_low_rank(rows_NC, rank), atol=1e-10)
    one = np.outer([1.0, 3, -2], np.arange(C))[GROUPS.codes_N]
    np.testing.assert_allclose(low_rank_means(one, GROUPS, rank=1)[GROUPS.codes_N], one, atol=1e-10)


def test_flipped_means_against_a_loop() -> None:
    rows_NC, signs_BN = rows(), signs(flips=3)
    for flip, e_N in enumerate(signs_BN):
        for f, name in enumerate("abc"):
            own = [e_N[q] * rows_NC[q] for q in range(N) if LABELS[q] == name]
            np.testing.assert_allclose(flipped_means(rows_NC, GROUPS, signs_BN)[flip, f], sum(own) / len(own))


def test_rank_test_ignores_gains_of_groups_units_and_rotation() -> None:
    rng = np.random.default_rng(0)
    rows_NC, signs_BN = rows(seed=3, shift=1.0), signs(flips=99)
    plain = rank_tests(rows_NC, GROUPS, signs_BN, alpha=1.0).tests[0]
    turn_CC = np.linalg.qr(rng.standard_normal((C, C)))[0]
    gains_N1 = np.array([0.01, 5.0, 300.0])[GROUPS.codes_N][:, None]
    for other_NC in (gains_N1 * rows_NC, 1e-6 * rows_NC, 1e6 * rows_NC, rows_NC @ turn_CC):
        found = rank_tests(other_NC, GROUPS, signs_BN, alpha=1.0).tests[0]
        assert found.statistic == pytest.approx(plain.statistic, rel=1e-6)
        np.testing.assert_allclose(found.null_B, plain.null_B, rtol=1e-5, atol=1e-8)
        assert found.p == plain.p


def test_whitening_is_ledoit_and_wolfs_and_does_not_see_flips() -> None:
    rng = np.random.default_rng(0)
    for shape in ((30, 6), (10, 25)):
        residual_NC = rng.standard_normal(shape) * np.geomspace(0.1, 10, shape[1])
        rotate_CC, scale_C = ledoit_wolf_whitening(residual_NC)
        wanted_CC = LedoitWolf(assume_centered=True).fit(residual_NC).covariance_
        np.testing.assert_allclose((rotate_CC / scale_C**2) @ rotate_CC.T, wanted_CC, rtol=1e-8, atol=1e-10)
        flip_N = rng.choice([-1.0, 1.0], size=shape[0])
        again_CC, same_C = ledoit_wolf_whitening(flip_N[:, None] * residual_NC)
        np.testing.assert_allclose(same_C, scale_C, rtol=1e-10)
        np.testing.assert_allclose((again_CC * same_C) @ again_CC.T, (rotate_CC * scale_C) @ rotate_CC.T, atol=1e-9)
    rotate_CC, scale_C = ledoit_wolf_whitening(np.zeros((5, 3)))
    np.testing.assert_array_equal(rotate_CC * scale_C, np.eye(3))


def test_rank_test_keeps_its_size_in_monolithic_worlds() -> None:
    """120 worlds with unequal gains and groups, 80 questions each. Of a fair test's runs 5 % reject; 14 of 120 would be 3.3
    standard errors more. The mean p lies within 4 standard errors (.106) of .52, what 19 flips give."""
    found = []
    for seed in range(120):
        world = draw("monolithic_hetero_gain", rng=np.random.default_rng(seed), questions=80, width=24, responses=1)
        prepared = prepare_shift(world.shift_ND)
        signs_BN = signs(flips=19, n=80, seed=seed)
        found.append(rank_tests(prepared.rows_NC, Groups.of(world.groups_N), signs_BN, alpha=0.05).tests[0].p)
    assert sum(p <= 0.05 for p in found) <= 14
    assert abs(np.mean(found) - 0.525) < 0.106


def test_rank_test_finds_the_number_of_directions() -> None:
    """Two clear directions over four groups: rank 2 in at least 8 of 10 draws (nominally 19 of 20)."""
    labels_N = np.repeat(np.arange(4), 20)
    means_FC = np.zeros((4, 6))
    means_FC[:, 0], means_FC[:, 1] = 2.0, [1, 1, -1, -1]
    ranks = []
    for seed in range(10):
        rows_NC = means_FC[labels_N] + 0.6 * np.random.default_rng(seed).standard_normal((80, 6))
        ranks.append(rank_tests(rows_NC, Groups.of(labels_N), signs(flips=39, n=80, seed=seed), alpha=0.05).rank(0.05))
    assert min(ranks) == 2
    assert ranks.count(2) >= 8


def test_rank_is_the_first_that_is_not_rejected() -> None:
    low, high = Outcome(9.0, np.zeros(99)), Outcome(-9.0, np.zeros(99))
    assert RankTests((low, low, high), first=1).rank(0.05) == 3
    assert RankTests((high, low), first=1).rank(0.05) == 1
    assert RankTests((low, low), first=0).rank(0.05) == 2


def test_max_t_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    shared_B = rng.standard_normal(59)
    tests = [Outcome(s, 10**k * (shared_B + rng.standard_normal(59))) for k, s in enumerate((3.5, 18.0, 50.0))]
    drawn = [np.append(t.statistic, t.null_B) for t in tests]
    standard = [[(v - np.mean(d)) / np.std(d) for v in t.null_B] for t, d in zip(tests, drawn, strict=True)]
    largest = [max(column) for column in zip(*standard, strict=True)]
    wanted = [(1 + sum(m >= (d[0] - np.mean(d)) / np.std(d) for m in largest)) / 60 for d in drawn]
    assert max_t(tests) == pytest.approx(wanted)
    assert all(paid >= test.p for paid, test in zip(max_t(tests), tests, strict=True))
    assert len(set(wanted)) == 3


def test_max_t_of_one_test_is_its_own_p_and_of_the_same_test_twice_too() -> None:
    rng = np.random.default_rng(1)
    for statistic in (-1.0, 0.2, 1.4, 9.0):
        test = Outcome(statistic, rng.standard_normal(99))
        assert max_t([test]) == [test.p]
        assert max_t([test, test]) == [test.p, test.p]
    assert max_t([]) == []


def test_max_t_pays_for_the_number_of_tests() -> None:
    """Ten independent null tests, 600 studies: the smallest paid p is at most .05 in 5 %; at most 8.6 % (4 standard errors),
    at least 1.5 %. Unpaid it is 40 %."""
    rng = np.random.default_rng(2)
    paid, plain = [], []
    for _ in range(600):
        tests = [Outcome(float(rng.standard_normal()), rng.standard_normal(199)) for _ in range(10)]
        paid.append(min(max_t(tests)))
        plain.append(min(test.p for test in tests))
    assert 0.015 < np.mean(np.array(paid) <= 0.05) < 0.086
    assert np.mean(np.array(plain) <= 0.05) > 0.3


def test_max_t_needs_the_same_flips() -> None:
    with pytest.raises(ValueError, match="same flips"):
        max_t([Outcome(0.0, np.zeros(9)), Outcome(0.0, np.zeros(19))])


def test_holm_against_a_hand_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
