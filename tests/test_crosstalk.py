"""The causal test: selective directions, directions that all do the same, and nothing at all."""

from __future__ import annotations

import dataclasses
import time
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import stats

from unmask.analysis.crosstalk import CrossTalk, _rank1, cross_talk


def effects(
    *, groups: int = 4, items: int = 40, x: float = 0.0, size: float = 1.0, noise: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """M of METHODS T5 with cross-talk `x`, and four random directions without effect."""
    rng = np.random.default_rng(seed)
    mean_FF = size * (np.eye(groups) + x * (1 - np.eye(groups)))
    made = mean_FF[:, :, None] + noise * rng.standard_normal((groups, groups, items))
    return made, noise * rng.standard_normal((4, groups, items))


def trial(made: np.ndarray, random: np.ndarray, *, resamples: int = 200, draws: int = 199, seed: int = 0) -> CrossTalk:
    """Of F x F x I effects and R x F x I random ones: all groups have as many items."""
    f, items = made.shape[1:]
    rows, randoms = made.reshape(len(made), f * items), random.reshape(len(random), random.shape[1] * random.shape[2])
    return ragged(rows, randoms, np.repeat(named(f), items), resamples=resamples, draws=draws, seed=seed)


def named(groups: int) -> list[str]:
    """Names whose alphabetical order is not that of the rows."""
    return [f"group-{(3 * place + 1) % 7}{place}" for place in range(groups)]


def ragged(
    made_FN: np.ndarray,
    random_RN: np.ndarray,
    groups_N: np.ndarray,
    *,
    resamples: int = 200,
    draws: int = 199,
    seed: int = 0,
) -> CrossTalk:
    rng, names = np.random.default_rng(seed), named(len(made_FN))
    return cross_talk(made_FN, random_RN, groups_N, names=names, resamples=resamples, permutations=draws, rng=rng)


def outcomes(count: int = 40, **options) -> list[str]:
    """At 40 items, whose SD is the effect (METHODS T5, reference figures), four groups."""
    return [trial(*effects(noise=1.0, seed=seed, **options), resamples=150).outcome for seed in range(count)]


@pytest.mark.parametrize("groups", [4, 6])
def test_an_identity_is_selective(groups: int) -> None:
    found = trial(*effects(groups=groups))
    assert found.outcome == "selective"
    assert found.x == pytest.approx(0, abs=0.05)
    assert found.x_low < 0 < found.x_high or abs(found.x) < 0.05
    assert found.potent_share == 1
    assert found.p < 0.05
    assert found.items == 40 * groups
    assert found.items_F.tolist() == [40] * groups
    assert found.dropped == 0
    np.testing.assert_allclose(found.effects_FF, np.eye(groups), atol=0.3)


@pytest.mark.parametrize("groups", [2, 4, 6])
def test_directions_that_all_do_the_same_are_cross_talk(groups: int) -> None:
    found = trial(*effects(groups=groups, x=1.0))
    assert found.outcome == "cross-talk"
    assert found.x == pytest.approx(1, abs=0.1)
    assert found.x_low > 0.5
    assert found.split_half_rank1 > 0.9


def test_nothing_at_all_is_not_potent() -> None:
    assert trial(*effects(size=0.0)).outcome == "not potent"
    assert trial(np.zeros((4, 4, 9)), np.zeros((4, 4, 9))).outcome == "not potent"
    assert trial(*effects(size=-1.0)).outcome == "not potent"


def test_half_of_the_directions_must_work() -> None:
    made, random = effects(noise=0.3)
    for place in range(3):
        made[place, place] -= 1
    assert trial(made, random).outcome == "not potent"
    made[2, 2] += 1
    assert trial(made, random).outcome != "not potent"


def test_what_random_directions_do_as_well_is_taken_off_each_column() -> None:
    made, random = effects(seed=3)
    offset_F = np.array([0.0, 5.0, -3.0, 100.0])[:, None]
    plain, moved = trial(made, random), trial(made + offset_F, random + offset_F)
    np.testing.assert_allclose(moved.effects_FF, plain.effects_FF, atol=1e-9)
    assert moved.x == pytest.approx(plain.x)
    assert moved.outcome == plain.outcome


def test_figures_are_those_of_a_slow_loop() -> None:
    made, random = effects(groups=3, items=7, x=0.4, seed=2)
    found = trial(made, random)
    mean = np.array(
        [[np.mean([made[i, j, k] - np.mean(random[:, j, k]) for k in range(7)]) for j in range(3)] for i in range(3)]
    )
    own = [mean[i, i] for i in range(3)]
    others = [mean[i, j] for i in range(3) for j in range(3) if i != j]
    np.testing.assert_allclose(found.effects_FF, mean)
    assert found.x == pytest.approx(np.mean(others) / np.mean(own))
    potent = []
    for i in range(3):
        values = [made[i, i, k] - np.mean(random[:, i, k]) for k in range(7)]
        potent.append(np.mean(values) / (np.std(values, ddof=1) / np.sqrt(7)) > 2)
    assert found.potent_share == np.mean(potent)


def test_the_interval_resamples_items_the_same_in_every_row() -> None:
    """Against 3000 slow resamples: ends agree within a tenth of the width, some 4 standard errors of the difference."""
    made, random = effects(groups=3, items=12, x=0.5, noise=0.3, size=2.0, seed=4)
    made += np.random.default_rng(5).standard_normal((1, 3, 12))  # what all directions do alike to an item
    found = trial(made, random, resamples=3000)
    rng = np.random.default_rng(9)
    ratios, means = [], []
    for _ in range(3000):
        mean = np.empty((3, 3))
        for j in range(3):
            drawn = rng.integers(12, size=12)
            for i in range(3):
                mean[i, j] = np.mean(made[i, j, drawn] - random[:, j, drawn].mean(axis=0))
        ratios.append((mean.sum() - np.trace(mean)) / 2 / np.trace(mean))
        means.append(mean)
    means = np.array(means)
    own = np.diagonal(means, axis1=1, axis2=2)
    others = (means.sum(axis=2) - own) / 2
    for wanted, low, high in (
        (ratios, found.x_low, found.x_high),
        (means, found.low_FF, found.high_FF),
        (own - others, found.selectivity_low_F, found.selectivity_high_F),
        ((own - others) / (np.abs(own) + np.abs(others)), found.index_low_F, found.index_high_F),
    ):
        ends = np.quantile(wanted, [0.05, 0.95], axis=0)
        assert (np.abs(np.array([low, high]) - ends) <= 0.1 * (ends[1] - ends[0])).all()


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_p_is_exact_for_few_groups(groups: int) -> None:
    made, random = effects(groups=groups, items=5, noise=2.0, seed=groups)
    mean = (made - random.mean(axis=0)).mean(axis=2)
    centred = np.array(
        [[mean[i, j] - mean[i].mean() - mean[:, j].mean() + mean.mean() for j in range(groups)] for i in range(groups)]
    )
    traces = [sum(centred[order[j], j] for j in range(groups)) for order in permutations(range(groups))]
    wanted = np.mean([trace >= np.trace(centred) - 1e-9 for trace in traces])
    assert trial(made, random).p == pytest.approx(wanted)


def test_p_is_drawn_for_many_groups_fair_and_never_zero() -> None:
    """60 null matrices of 6 groups: p is .525 on average within 4 standard errors (.15)."""
    assert trial(*effects(groups=6), draws=99).p == 0.01
    found = [trial(*effects(groups=6, items=5, size=0.0, seed=s), draws=19, resamples=2).p for s in range(60)]
    assert min(found) >= 1 / 20
    assert abs(np.mean(found) - 0.525) < 0.15


def test_a_common_effect_of_all_directions_does_not_pass_for_selectivity() -> None:
    """Rows and columns with levels of their own are centred out: 60 matrices, 4 standard errors over 5 % is 16 %."""
    found = []
    for seed in range(60):
        made, random = effects(size=0.0, seed=seed)
        levels = np.random.default_rng(seed).standard_normal((2, 4))
        found.append(trial(made + levels[0][:, None, None] + levels[1][:, None], random, resamples=2).p)
    assert np.mean(np.array(found) <= 0.05) <= 0.16


@pytest.mark.parametrize(("x", "outcome"), [(0.0, "selective"), (0.25, "selective"), (1.0, "cross-talk")])
def test_reference_power_at_40_items(x: float, outcome: str) -> None:
    """METHODS: 99-100 % selective up to .25, 92-100 % cross-talk at 1. Of 40 runs at least 34 (.85, 4 SE below .98)."""
    assert outcomes(x=x).count(outcome) >= 34


def test_in_between_little_is_claimed() -> None:
    """METHODS: at .5 at most 10 % either way, so of 60 runs 6; 4 standard errors more are 15."""
    found = outcomes(count=60, x=0.5)
    assert found.count("selective") <= 15
    assert found.count("cross-talk") <= 15


@pytest.mark.parametrize("groups", [2, 3])
def test_two_or_three_groups_are_never_selective(groups: int) -> None:
    """Of 2 or 6 permutations the best has p = 1/2 or 1/6."""
    found = trial(*effects(groups=groups, noise=0.05))
    assert found.outcome == "undetermined"
    assert found.p == pytest.approx({2: 1 / 2, 3: 1 / 6}[groups])


@pytest.mark.parametrize(
    ("made", "random", "groups"),
    [
        ((3, 9), (2, 9), "aaabbbccc"[:8]),  # fewer groups than items
        ((3, 9), (2, 8), "aaabbbccc"),
        ((2, 9), (2, 9), "aaabbbccc"),  # fewer rows than names
        ((3, 9), (9,), "aaabbbccc"),
        ((9,), (2, 9), "aaabbbccc"),
        ((3, 3, 3), (2, 9), "aaabbbccc"),
    ],
)
def test_other_shapes_are_refused(made: tuple, random: tuple, groups: str) -> None:
    with pytest.raises(ValueError, match="F x N"):
        cross_talk(np.ones(made), np.ones(random), np.array(list(groups)), names="abc", rng=np.random.default_rng(0))


@pytest.mark.parametrize("names", ["aa", "a"])
def test_names_are_two_or_more_and_different(names: str) -> None:
    with pytest.raises(ValueError, match="F x N"):
        cross_talk(np.ones((2, 4)), np.ones((2, 4)), np.array(list("aabb")), names=names, rng=np.random.default_rng(0))


def test_items_of_a_group_without_a_direction_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no direction.*'c'"):
        cross_talk(np.ones((2, 6)), np.ones((2, 6)), np.array(list("aabbcc")), names="ab", rng=np.random.default_rng(0))


def test_infinite_effects_are_refused() -> None:
    made, random = effects()
    made[0, 1, 2] = np.inf
    with pytest.raises(ValueError, match="finite"):
        trial(made, random)


def test_an_item_missing_anywhere_is_dropped_everywhere() -> None:
    made, random = effects(items=12, x=0.4, seed=6)
    rows, randoms, groups = made.reshape(4, 48), random.reshape(4, 48), np.repeat(named(4), 12)
    holed, holed_randoms = rows.copy(), randoms.copy()
    holed[0, 3] = holed[2, 3] = holed[1, 30] = holed_randoms[1, 17] = np.nan
    found, kept = ragged(holed, holed_randoms, groups), np.delete(np.arange(48), [3, 17, 30])
    wanted = ragged(rows[:, kept], randoms[:, kept], groups[kept])
    assert (found.dropped, found.items, found.items_F.tolist()) == (3, 45, [11, 11, 11, 12])
    np.testing.assert_array_equal(found.effects_FF, wanted.effects_FF)
    assert (found.x_low, found.p, found.rank1) == (wanted.x_low, wanted.p, wanted.rank1)


def test_a_group_needs_two_items_that_are_not_missing() -> None:
    made, random = effects(items=3)
    made[1, 2, :2] = np.nan
    with pytest.raises(ValueError, match=f"at least 2 items.*{named(4)[2]}"):
        trial(made, random)


def test_no_random_direction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        trial(effects()[0], np.empty((0, 4, 40)))


def unequal(mean_FF: np.ndarray, sizes: tuple[int, ...], *, noise: float = 0.5, seed: int = 0) -> CrossTalk:
    """Groups of `sizes` items in random order, with four random directions without effect."""
    rng = np.random.default_rng(seed)
    columns = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    made = mean_FF[:, columns] + noise * rng.standard_normal((len(mean_FF), len(columns)))
    return ragged(made, noise * rng.standard_normal((4, len(columns))), np.array(named(len(sizes)))[columns], seed=seed)


def test_groups_of_unequal_size_are_a_slow_loop() -> None:
    rng, sizes = np.random.default_rng(3), (5, 2, 9, 4)
    groups = rng.permutation(np.repeat(named(4), sizes))
    made, random = rng.standard_normal((4, 20)), rng.standard_normal((3, 20))
    found = ragged(made, random, groups)
    mean = np.zeros((4, 4))
    for i in range(4):
        for j, name in enumerate(named(4)):
            mean[i, j] = np.mean([made[i, n] - np.mean(random[:, n]) for n in range(20) if groups[n] == name])
    np.testing.assert_allclose(found.effects_FF, mean)
    assert found.names == tuple(named(4))
    assert found.items_F.tolist() == list(sizes)
    for i in range(4):
        others = np.mean([mean[i, j] for j in range(4) if j != i])
        assert found.own_F[i] == pytest.approx(mean[i, i])
        assert found.others_F[i] == pytest.approx(others)
        assert found.selectivity_F[i] == pytest.approx(mean[i, i] - others)
        assert found.index_F[i] == pytest.approx((mean[i, i] - others) / (abs(mean[i, i]) + abs(others)))
        each = [np.mean(random[r, groups == named(4)[i]]) for r in range(3)]
        assert found.random_mean_F[i] == pytest.approx(np.mean(each))
        assert found.random_sd_F[i] == pytest.approx(np.std(each, ddof=1))


def test_the_order_of_groups_and_items_does_not_matter() -> None:
    rng = np.random.default_rng(8)
    groups, made, random = np.repeat(named(4), (5, 3, 9, 4)), rng.standard_normal((4, 21)), rng.standard_normal((3, 21))
    shuffled = rng.permutation(21)
    one = ragged(made, random, groups)
    two = ragged(made[:, shuffled], random[:, shuffled], groups[shuffled])
    np.testing.assert_allclose(one.effects_FF, two.effects_FF)
    assert one.p == two.p
    order, names = [2, 0, 3, 1], named(4)
    turned = cross_talk(made[order], random, groups, names=[names[i] for i in order], rng=rng, resamples=50)
    np.testing.assert_allclose(turned.effects_FF, one.effects_FF[np.ix_(order, order)])
    assert turned.p == one.p


def test_selective_and_cross_talk_with_unequal_groups() -> None:
    assert unequal(np.eye(4), (10, 60, 25, 40)).outcome == "selective"
    assert unequal(np.ones((4, 4)), (10, 60, 25, 40)).outcome == "cross-talk"
    assert unequal(np.zeros((4, 4)), (10, 60, 25, 40)).outcome == "not potent"


def test_one_random_direction_has_no_spread() -> None:
    made, random = effects()
    assert np.isnan(trial(made, random[:1]).random_sd_F).all()


def test_planted_rank_one_is_near_one_with_its_interval_over_it() -> None:
    """Columns and rows of unlike size, 20 runs of 25 to 40 items: at most 4 intervals miss (nominal 2, SD 1.3; in fact fewer)."""
    mean_FF = np.outer([0.6, 1.0, 1.4, 0.8], [1.2, 0.7, 1.0, 1.3])
    runs = [unequal(mean_FF, (30, 40, 25, 35), noise=1.0, seed=seed) for seed in range(20)]
    assert np.median([run.rank1 for run in runs]) == pytest.approx(1, abs=0.02)
    assert sum(run.rank1_low <= 1 <= run.rank1_high for run in runs) >= 16
    assert all(run.rank1_low < run.rank1 < run.rank1_high for run in runs)


def test_an_identity_is_far_from_rank_one() -> None:
    """Truth 1/4; the largest of four equal eigenvalues is raised by noise."""
    runs = [unequal(np.eye(4), (30, 40, 25, 35), seed=seed) for seed in range(10)]
    assert all(0.2 < run.rank1 < 0.45 for run in runs)
    assert all(run.rank1_high < 0.6 for run in runs)


def test_rank1_in_between_is_covered() -> None:
    """I / 2 + 1 / 2: singular values 2.5 and three of .5, share .893; 30 runs, nominal 27 with SD 1.6."""
    mean_FF = 0.5 * np.eye(4) + 0.5
    values = np.linalg.svd(mean_FF)[1] ** 2
    truth = values[0] / values.sum()
    runs = [unequal(mean_FF, (30, 40, 25, 35), seed=seed) for seed in range(30)]
    assert sum(run.rank1_low <= truth <= run.rank1_high for run in runs) >= 21
    assert np.mean([run.rank1 for run in runs]) == pytest.approx(truth, abs=0.01)


def test_rank1_is_the_average_over_splits() -> None:
    """C in closed form is what 4000 random halvings give on average; of no resample spread, value and share agree."""
    rng, sizes = np.random.default_rng(1), (4, 6, 5)
    groups = np.repeat(named(3), sizes)
    made = 2 * np.eye(3)[:, np.repeat(np.arange(3), sizes)] + rng.standard_normal((3, 15))
    cross = np.zeros((3, 3))
    for _ in range(4000):
        halves = [rng.permutation(np.flatnonzero(groups == name)) for name in named(3)]
        one = np.stack([made[:, half[: len(half) // 2]].mean(axis=1) for half in halves], axis=1)
        two = np.stack([made[:, half[len(half) // 2 :]].mean(axis=1) for half in halves], axis=1)
        cross += (one @ two.T + two @ one.T) / 2 / 4000
    members = [np.flatnonzero(groups == name) for name in named(3)]
    share, *_ = _rank1(made, members, [np.ones((3, size)) for size in sizes])
    values = np.linalg.eigvalsh(cross)
    assert share == pytest.approx(values[-1] / values.sum(), abs=0.02)


def test_nothing_at_all_has_no_rank() -> None:
    found = trial(np.zeros((4, 4, 9)), np.zeros((4, 4, 9)))
    assert np.isnan([found.rank1, found.rank1_low, found.rank1_high, found.split_half_rank1]).all()
    assert np.isnan(found.index_F).all()
    assert np.isnan(found.x_low)
    assert (found.p_F == 1).all()


def test_a_planted_row_alone_is_selective() -> None:
    mean_FF = np.full((4, 4), 0.5)
    mean_FF[2, 2] = 1.5
    found = unequal(mean_FF, (30, 40, 25, 35), noise=0.8, seed=2)
    assert found.p_holm_F[2] < 0.05
    assert (found.p_holm_F[[0, 1, 3]] > 0.05).all()
    assert found.selectivity_low_F[2] > 0.5
    assert found.selectivity_low_F[2] < 1 < found.selectivity_high_F[2]
    assert found.index_low_F[2] < 0.5 < found.index_high_F[2]
    assert ((found.selectivity_low_F < 0) & (found.selectivity_high_F > 0))[[0, 1, 3]].all()


def test_rows_that_are_alike_are_not_selective_beyond_alpha() -> None:
    """100 runs of 4 rows that do the same: 5 % of Holm's least p are below .05, 4 standard errors more are 14; p is fair."""
    runs = [unequal(np.ones((4, 4)), (8, 16, 10, 12), seed=seed) for seed in range(100)]
    assert sum(run.p_holm_F.min() <= 0.05 for run in runs) <= 14
    assert np.mean([run.p_F.mean() for run in runs]) == pytest.approx(0.5, abs=0.06)
    assert min(run.p_F.min() for run in runs) >= 1 / 200


def test_own_items_that_scatter_more_do_not_make_a_row_selective() -> None:
    """Ten own items of three times the SD among 120 others: of 100 runs 5 % are below .05, 4 standard errors more are 14."""
    found = []
    for seed in range(100):
        draw, columns = np.random.default_rng(seed), np.repeat(np.arange(4), (10, 40, 40, 40))
        made = 1 + draw.standard_normal((4, 130)) * np.array([3.0, 1, 1, 1])[columns]
        found.append(ragged(made, np.zeros((1, 130)), np.array(named(4))[columns], seed=seed).p_F[0])
    assert np.mean(np.array(found) <= 0.05) <= 0.14


def test_a_group_that_any_direction_moves_makes_no_row_selective() -> None:
    """Rows all alike, one column higher: 100 runs, 5 % of Holm's least p are below .05, 4 standard errors more are 14."""
    runs = [unequal(np.ones((4, 1)) * [2.0, 1, 1, 1], (40, 40, 40, 40), seed=seed) for seed in range(100)]
    assert np.mean([run.p_holm_F.min() <= 0.05 for run in runs]) <= 0.14
    assert np.mean([run.p <= 0.05 for run in runs]) <= 0.14
    assert {run.outcome for run in runs} == {"cross-talk"}


def test_a_row_that_moves_its_own_items_least_is_not_selective() -> None:
    """One-sided."""
    mean_FF = np.ones((4, 4)) - np.eye(4)
    found = unequal(mean_FF, (30, 40, 25, 35))
    assert (found.p_F > 0.95).all()
    assert (found.index_F < -0.5).all()


def test_p_of_a_row_is_that_of_all_assignments_of_labels() -> None:
    """Two groups of 3 and 4 items have 35: 4000 draws come within 4 standard errors (.032)."""
    rng = np.random.default_rng(4)
    made, groups = rng.standard_normal((2, 7)) + 0.3, np.repeat(named(2), (3, 4))
    found = ragged(made, np.zeros((1, 7)), groups, draws=4000)
    made = made - made[::-1]  # what one row does beyond the other
    for row, size in enumerate((3, 4)):
        own = tuple(np.flatnonzero(groups == named(2)[row]))
        t = {
            chosen: stats.ttest_ind(made[row, list(chosen)], np.delete(made[row], chosen), equal_var=False).statistic
            for chosen in combinations(range(7), size)
        }
        assert found.p_F[row] == pytest.approx(np.mean([value >= t[own] - 1e-9 for value in t.values()]), abs=0.032)


def test_a_whole_study_takes_no_time() -> None:
    """F = 9, 900 items, 20 random directions, 1000 resamples: a fourth of a second on one core, so 5 on a busy one."""
    rng = np.random.default_rng(0)
    groups = np.repeat(named(9), 100)
    made, random = rng.standard_normal((9, 900)), rng.standard_normal((20, 900))
    start = time.process_time()
    cross_talk(made, random, groups, names=named(9), rng=rng)
    assert time.process_time() - start < 5


def test_the_same_generator_gives_the_same_answer() -> None:
    made, random = effects(groups=6, x=0.4, noise=1.0)
    one, two = trial(made, random), trial(made, random)
    for field in dataclasses.fields(CrossTalk):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
