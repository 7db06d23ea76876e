"""Coherent window, dose curves, chance by random directions, and agreement of read-outs: loops, theorems, missing values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unmask.analysis.effects import beaten_by, coherent_window, dose_curve, readouts_agree
from unmask.analysis.intervals import mean_interval


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------------ window


def test_the_largest_positive_coherent_coefficient_is_chosen() -> None:
    loss = np.array([[0.9, 0.1, 0.0, 0.1, 0.2, 0.8], [0.3, 0.2, 0.0, 0.2, 0.4, 0.9]])
    found = coherent_window(loss, [-2, -1, 0, 1, 2, 4], most_loss=0.5)
    assert found.coherent_K.tolist() == [False, True, True, True, True, False]
    assert found.chosen == 2.0


def test_one_direction_that_breaks_answers_is_enough() -> None:
    loss = np.array([[0.1, 0.1], [0.1, 0.6]])
    assert coherent_window(loss, [1, 2], most_loss=0.5).chosen == 1.0
    assert coherent_window(loss[:1], [1, 2], most_loss=0.5).chosen == 2.0


def test_beyond_an_incoherent_coefficient_nothing_of_its_sign_is_coherent() -> None:
    """In any order of coefficients; the other sign stands for itself."""
    coefficients, loss = np.array([4, -1, 2, 1, -2]), np.array([[0.1, 0.1, 0.9, 0.1, 0.1]])
    found = coherent_window(loss, coefficients, most_loss=0.5)
    assert found.coherent_K.tolist() == [False, True, False, True, True]
    assert found.chosen == 1.0


def test_zero_bounds_neither_sign() -> None:
    found = coherent_window(np.array([[0.9, 0.1, 0.1]]), [0, 1, -1], most_loss=0.5)
    assert found.coherent_K.tolist() == [False, True, True]


def test_no_coherent_coefficient_chooses_none() -> None:
    assert coherent_window(np.array([[0.9, 0.9]]), [1, 2], most_loss=0.5).chosen is None
    found = coherent_window(np.array([[0.0, 0.0]]), [0, -1], most_loss=0.5)
    assert found.chosen is None
    assert found.coherent_K.all()


def test_a_gain_and_the_limit_itself_are_coherent_and_a_missing_loss_is_not() -> None:
    assert coherent_window(np.array([[-3.0, 0.5]]), [1, 2], most_loss=0.5).chosen == 2.0
    found = coherent_window(np.array([[0.1, 0.1, 0.1], [0.1, np.nan, 0.1]]), [1, 2, 3], most_loss=0.5)
    assert found.coherent_K.tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_the_window_is_that_of_a_slow_loop_and_grows_with_the_limit(seed: int) -> None:
    loss, coefficients = rng(seed).uniform(0, 1, (3, 9)), rng(seed).permutation(np.arange(-4, 5))
    before = None
    for limit in (0.5, 0.8, 0.95):
        found = coherent_window(loss, coefficients, most_loss=limit)
        for place, one in enumerate(coefficients):
            wanted = all(
                loss[d, k] <= limit
                for k, other in enumerate(coefficients)
                if k == place or (other * one > 0 and abs(other) < abs(one))
                for d in range(3)
            )
            assert found.coherent_K[place] == wanted
        assert before is None or (found.coherent_K | ~before).all()
        before = found.coherent_K


@pytest.mark.parametrize(
    ("loss", "coefficients"),
    [(np.zeros((0, 2)), [1, 2]), (np.zeros((1, 2)), [1]), (np.zeros(2), [1, 2]), (np.zeros((1, 2)), [1, np.nan])],
)
def test_a_window_of_other_shapes_is_refused(loss: np.ndarray, coefficients: list) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        coherent_window(loss, coefficients, most_loss=0.5)


# ------------------------------------------------------------------------------------------------ doses


def test_means_and_counts_are_those_of_a_slow_loop() -> None:
    effects, groups = rng(1).standard_normal((30, 3)), np.repeat(["a", "b", "c"], 10)
    effects[0, 1] = effects[12, 1] = effects[5, 2] = np.nan
    found = dose_curve(effects, groups, "a", [0.5, 1, 2], rng=rng())
    assert [dose.coefficient for dose in found] == [0.5, 1.0, 2.0]
    for k, dose in enumerate(found):
        own = [effects[n, k] for n in range(30) if groups[n] == "a" and not np.isnan(effects[n, k])]
        others = [effects[n, k] for n in range(30) if groups[n] != "a" and not np.isnan(effects[n, k])]
        assert dose.own.mean == pytest.approx(np.mean(own))
        assert dose.others.mean == pytest.approx(np.mean(others))
        assert dose.every.mean == pytest.approx(np.mean(own + others))
        assert (dose.items, dose.own_items, dose.missing) == (len(own + others), len(own), 30 - len(own + others))
        for part in (dose.own, dose.others, dose.every):
            assert part.low < part.mean < part.high


@pytest.mark.parametrize("size", [4, 19, 20, 60])
def test_intervals_are_those_of_a_mean_over_questions(size: int) -> None:
    """Student's t below 20, else percentiles: 4000 resamples on either side come within a twentieth of the width."""
    values = rng(2).exponential(size=(size, 1))
    found = dose_curve(values, np.full(size, "a"), None, [1], rng=rng(), resamples=4000)[0].every
    wanted = mean_interval(values[:, 0], rng=rng(1), resamples=4000, level=0.90)
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.05 * width)


@pytest.mark.parametrize("size", [8, 40])
def test_intervals_hold_the_truth(size: int) -> None:
    """Of 200 intervals of 90 %, 180 with SD 4.2: at least 163, with a tenth of the values missing."""
    held = 0
    for seed in range(200):
        draw = rng(seed)
        values = 0.7 + draw.standard_normal((size, 1))
        values[draw.uniform(size=(size, 1)) < 0.1] = np.nan
        found = dose_curve(values, np.full(size, "a"), None, [1], rng=draw, resamples=300)[0].every
        held += found.low <= 0.7 <= found.high
    assert held >= 163


def test_equal_columns_get_equal_intervals() -> None:
    """The same items are drawn at every coefficient."""
    values = np.repeat(rng(3).standard_normal((40, 1)), 2, axis=1)
    one, two = dose_curve(values, np.full(40, "a"), None, [1, 2], rng=rng())
    assert one.every == two.every


def test_what_is_not_there_is_nan() -> None:
    values = rng().standard_normal((5, 2))
    values[:, 1] = np.nan
    values[1:, 0] = np.nan
    one, nothing = dose_curve(values, np.array(list("aabbb")), "a", [1, 2], rng=rng())
    assert one.own.mean == values[0, 0]
    assert np.isnan([one.own.low, one.own.high, *one.others]).all()
    assert (nothing.items, nothing.missing) == (0, 5)
    assert np.isnan([*nothing.own, *nothing.others, *nothing.every]).all()
    shared = dose_curve(rng().standard_normal((5, 1)), np.array(list("aabbb")), None, [1], rng=rng())[0]
    assert np.isnan([*shared.own, *shared.others]).all()
    assert np.isfinite(shared.every).all()
    assert shared.own_items == 0


def test_doses_of_other_shapes_or_infinite_effects_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        dose_curve(np.zeros((3, 2)), np.array(list("ab")), "a", [1, 2], rng=rng())
    with pytest.raises(ValueError, match="do not fit"):
        dose_curve(np.zeros((2, 2)), np.array(list("ab")), "a", [1], rng=rng())
    with pytest.raises(ValueError, match="finite"):
        dose_curve(np.full((2, 1), np.inf), np.array(list("ab")), "a", [1], rng=rng())


# ------------------------------------------------------------------------------------------------ read-outs


def test_agreement_is_spearmans() -> None:
    one, noise = rng(1).standard_normal(30), rng(2).standard_normal(30)
    found = readouts_agree(one, one + noise, None, rng=rng())
    assert found.spearman == pytest.approx(stats.spearmanr(one, one + noise).statistic)
    assert found.low < found.spearman < found.high
    assert found.cells == 30
    ties = np.round(one + noise)
    assert readouts_agree(one, ties, None, rng=rng()).spearman == pytest.approx(stats.spearmanr(one, ties).statistic)
    assert readouts_agree(one, np.exp(one), None, rng=rng()).spearman == pytest.approx(1)
    assert readouts_agree(one, -one, None, rng=rng()).spearman == pytest.approx(-1)


def test_unrelated_readouts_hold_zero() -> None:
    """Of 60 intervals of 95 %, 57 with SD 1.7; of 40 cells at least 50."""
    held = 0
    for seed in range(60):
        found = readouts_agree(
            rng(seed).standard_normal(40), rng(1000 + seed).standard_normal(40), None, rng=rng(seed), resamples=120
        )
        held += found.low <= 0 <= found.high
    assert held >= 50


def test_pairs_with_a_missing_value_are_left_out() -> None:
    one, two = np.array([1.0, 2, 3, 4, 5, np.nan]), np.array([1.0, 3, 2, np.nan, 5, 6])
    found = readouts_agree(one, two, None, rng=rng())
    assert found.cells == 4
    assert found.spearman == pytest.approx(stats.spearmanr([1, 2, 3, 5], [1, 3, 2, 5]).statistic)


def test_too_few_pairs_or_a_constant_have_no_agreement() -> None:
    few = readouts_agree(np.array([1.0, 2, 3, np.nan]), np.arange(4.0), None, rng=rng())
    assert few.cells == 3
    assert np.isnan([few.spearman, few.low, few.high]).all()
    flat = readouts_agree(np.ones(9), np.arange(9.0), None, rng=rng())
    assert flat.cells == 9
    assert np.isnan(flat.spearman)
    assert readouts_agree(np.array([]), np.array([]), None, rng=rng()).cells == 0


def test_clusters_are_drawn_whole() -> None:
    """Cells copied five times tell no more: within clusters the interval is that of the cells, without them too narrow."""
    one, two = rng(3).standard_normal(12), rng(3).standard_normal(12) + rng(4).standard_normal(12)
    cells = readouts_agree(one, two, None, rng=rng())
    copied = (np.repeat(one, 5), np.repeat(two, 5))
    clustered = readouts_agree(*copied, np.repeat(np.arange(12), 5), rng=rng())
    alone = readouts_agree(*copied, None, rng=rng())
    assert clustered.high - clustered.low == pytest.approx(cells.high - cells.low)
    assert alone.high - alone.low < 0.7 * (cells.high - cells.low)
    single = readouts_agree(one, two, np.zeros(12), rng=rng())
    assert np.isnan([single.low, single.high]).all()
    assert single.spearman == cells.spearman


def test_readouts_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        readouts_agree(np.zeros(4), np.zeros(5), None, rng=rng())
    with pytest.raises(ValueError, match="length"):
        readouts_agree(np.zeros(4), np.zeros(4), np.zeros(3), rng=rng())


# ------------------------------------------------------------------------------------------------ chance


def test_share_of_random_directions_that_do_as_much() -> None:
    random = np.array([0.1, -0.2, 0.3, -0.4])
    assert beaten_by(1.0, random) == 1 / 5
    assert beaten_by(-0.25, random) == 3 / 5
    assert beaten_by(0.4, random) == 2 / 5  # as large counts
    assert beaten_by(0.0, random) == 1.0
    assert beaten_by(0.35, np.append(random, np.nan)) == 2 / 5


def test_without_an_effect_or_random_directions_there_is_no_share() -> None:
    assert np.isnan(beaten_by(float("nan"), np.ones(3)))
    assert np.isnan(beaten_by(1.0, np.array([])))
    assert np.isnan(beaten_by(1.0, np.array([np.nan])))


def test_a_random_direction_passes_as_often_as_its_level() -> None:
    """Exchangeable effects: p <= .1 in 10 % of 2000 draws with 19 others (SD .7 %)."""
    draws = rng(7).standard_normal((2000, 20))
    found = np.array([beaten_by(row[0], row[1:]) for row in draws])
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.028)
