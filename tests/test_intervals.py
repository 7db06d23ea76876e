"""Bootstrap intervals: they cover, they resample questions, and missing is left out and never counted as 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from unmask.analysis.intervals import Interval, bootstrap_mean, mean_interval

numbers = st.floats(-1e6, 1e6)


def interval_of(values: np.ndarray | list[float], *, seed: int = 0, **options: Any) -> Interval:
    return bootstrap_mean(np.asarray(values), rng=np.random.default_rng(seed), **options)


def covered(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(level: float) -> None:
    rng = np.random.default_rng(1)
    intervals = [
        bootstrap_mean(rng.normal(3.0, 2.0, size=60), rng=rng, resamples=400, level=level) for _ in range(1000)
    ]
    # Standard deviation of the share: 0.013 and 0.007; a percentile interval of 60 values is a little short.
    assert covered(intervals, 3.0) == pytest.approx(level, abs=0.04)


def test_resampling_questions_covers_where_resampling_answers_does_not() -> None:
    """Ten answers to a question share what the question does; only the mean per question is an independent value."""
    rng = np.random.default_rng(2)
    by_question, by_answer = [], []
    for _ in range(400):
        answers_QS = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 10))
        by_question.append(bootstrap_mean(answers_QS.mean(axis=1), rng=rng, resamples=300))
        by_answer.append(bootstrap_mean(answers_QS.ravel(), rng=rng, resamples=300))
    assert covered(by_question, 0.0) == pytest.approx(0.95, abs=0.04)
    assert covered(by_answer, 0.0) < 0.6


def test_it_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=50)
    reference = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4))
    found = interval_of(values, resamples=20_000)
    width = found.high - found.low
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.05 * width)


def test_the_width_shrinks_with_the_root_of_the_number_of_questions() -> None:
    rng = np.random.default_rng(5)
    few, many = (interval_of(rng.normal(size=n)) for n in (100, 1600))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=2, max_size=20))
def test_the_ends_lie_among_the_values_and_about_the_mean(values: list[float]) -> None:
    found = interval_of(values, resamples=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-100, 100), st.floats(0.1, 10))
def test_moving_and_stretching_the_values_moves_and_stretches_the_interval(
    values: list[float], shift: float, factor: float
) -> None:
    found = interval_of(values, resamples=100)
    moved = interval_of(np.array(values) * factor + shift, resamples=100)
    assert moved == pytest.approx([end * factor + shift for end in found], abs=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=10), st.lists(st.integers(0, 10), max_size=5))
def test_missing_values_are_left_out(values: list[float], places: list[int]) -> None:
    with_gaps = list(values)
    for place in places:
        with_gaps.insert(place, float("nan"))
    np.testing.assert_equal(interval_of(with_gaps, resamples=50), interval_of(values, resamples=50))


@pytest.mark.parametrize("values", [[], [np.nan], [np.nan] * 3])
def test_the_mean_of_nothing_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match="mean of no values"):
        interval_of(values)


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = interval_of([np.nan, 4.0])
    assert found.mean == 4.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval_of([2.5] * 9) == (2.5, 2.5, 2.5)


def test_the_seed_is_all_the_chance_there_is() -> None:
    values = np.random.default_rng(6).normal(size=30)
    assert interval_of(values, seed=1) == interval_of(values, seed=1)
    assert interval_of(values, seed=1) != interval_of(values, seed=2)


def test_a_higher_level_is_a_wider_interval() -> None:
    values = np.random.default_rng(7).normal(size=30)
    widths = [
        found.high - found.low for found in (interval_of(values, level=level) for level in (0.5, 0.8, 0.95, 0.99))
    ]
    assert widths == sorted(widths)
    assert len(set(widths)) == 4


def test_integers_and_flags_have_a_mean_too() -> None:
    assert interval_of(np.array([True, False, False, True])).mean == 0.5
    assert interval_of(np.array([1, 2])).mean == 1.5


@pytest.mark.parametrize("size", [3, 4, 8, 19, 20, 40])
def test_a_mean_interval_covers_the_truth_at_any_number_of_questions(size: int) -> None:
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(600):
        interval = mean_interval(rng.normal(3.0, 2.0, size), rng=rng, resamples=400)
        held += interval.low <= 3.0 <= interval.high
    assert 0.915 <= held / 600 <= 0.98


def test_a_mean_interval_leaves_missing_values_out_and_refuses_nothing_at_all() -> None:
    rng = np.random.default_rng(0)
    assert mean_interval(np.array([1.0, np.nan, 3.0]), rng=rng).mean == 2.0
    with pytest.raises(ValueError, match="no values"):
        mean_interval(np.array([np.nan]), rng=rng)
