"""Agreement of judges: published values, planted extremes, and intervals that draw whole questions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.analysis.agreement import (
    bootstrap_over,
    krippendorff_alpha,
    pair_agreements,
    spearman,
    widest_disagreements,
    wilson_interval,
)
from unmask.judges.agreement import SHOWN, agreement_record

_ = math.nan
KRIPPENDORFF_2011 = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)
"""Computing Krippendorff's Alpha-Reliability (2011), section E: four observers, twelve units; interval .849."""
WIKIPEDIA = np.array(
    [
        [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
        [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
        [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
    ]
)
"""Wikipedia, Krippendorff's alpha, the worked example: three coders, fifteen units; interval .811."""


def alpha_by_variances(scores_JN: np.ndarray) -> float:
    """The interval alpha without a table of values: within-answer against all pairs of scores."""
    count_N = (~np.isnan(scores_JN)).sum(axis=0)
    shared_JN, count_N = scores_JN[:, count_N >= 2], count_N[count_N >= 2]
    observed = (count_N * np.nanvar(shared_JN, axis=0, ddof=1)).sum() / count_N.sum()
    return float(1 - observed / np.nanvar(shared_JN, ddof=1))


# Alpha


@pytest.mark.parametrize(("scores", "published"), [(KRIPPENDORFF_2011, 0.849), (WIKIPEDIA, 0.811)])
def test_alpha_is_the_published_one(scores: np.ndarray, published: float) -> None:
    assert krippendorff_alpha(scores) == pytest.approx(published, abs=5e-4)
    assert alpha_by_variances(scores) == pytest.approx(published, abs=5e-4)


def test_alpha_of_full_agreement_is_1_and_a_shift_or_a_scale_of_all_changes_nothing() -> None:
    scores = np.random.default_rng(0).integers(0, 101, 50).astype(float)
    assert krippendorff_alpha(np.stack([scores, scores, scores])) == pytest.approx(1)
    noisy = np.stack([scores, scores + np.random.default_rng(1).normal(0, 10, 50).round()])
    assert krippendorff_alpha(noisy) == pytest.approx(krippendorff_alpha(3 * noisy - 7))


def test_alpha_of_independent_judges_is_about_0_and_of_opposed_ones_below() -> None:
    rng = np.random.default_rng(2)
    chance = [krippendorff_alpha(rng.integers(0, 21, (2, 200)) * 5.0) for _ in range(20)]
    assert np.mean(np.array(chance, dtype=float)) == pytest.approx(0, abs=0.04)
    scores = rng.integers(0, 101, 60).astype(float)
    opposed = krippendorff_alpha(np.stack([scores, 100 - scores]))
    assert opposed is not None and opposed < -0.8


def test_alpha_minds_a_shift_that_a_rank_correlation_does_not() -> None:
    scores = np.linspace(0, 60, 40)
    shifted = np.stack([scores, scores + 40])
    assert spearman(*shifted) == pytest.approx(1)
    alpha = krippendorff_alpha(shifted)
    assert alpha is not None and alpha < 0.2


@pytest.mark.parametrize(
    "scores",
    [
        [[_, _, _], [_, _, _]],
        [[1, _, 3], [_, 2, _]],
        [[5, 5, 5], [5, 5, 5]],
        [[5, 5, 90], [5, 5, _]],
        [[1, 2, 3]],
        [[], []],
    ],
)
def test_alpha_is_none_where_no_answer_has_two_scores_or_all_are_equal(scores: list[list[float]]) -> None:
    assert krippendorff_alpha(np.array(scores)) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0, 0.6))
def test_alpha_is_that_of_variances_whatever_is_missing(seed: int, judges: int, gaps: float) -> None:
    rng = np.random.default_rng(seed)
    scores = np.clip(rng.normal(50, 25, 12) + rng.normal(0, 15, (judges, 12)), 0, 100).round()
    scores[rng.random(scores.shape) < gaps] = np.nan
    found = krippendorff_alpha(scores)
    if found is not None:
        assert found == pytest.approx(alpha_by_variances(scores), abs=1e-9)


def test_alpha_of_many_answers_with_scores_that_are_all_different() -> None:
    """As of the offline judge, or a model's probabilities, on a study of the reference size and more."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(0, 100, 3000) + rng.normal(0, 5, (2, 3000))
    assert krippendorff_alpha(scores) == pytest.approx(alpha_by_variances(scores))


# Spearman and pairs


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [1, 2]),
        ([1, 2, _], [1, 2, 3]),
        ([1, 2, 3, _], [1, 2, _, 4]),
        ([5, 5, 5, 5], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [5, 5, 5, 5]),
        ([5, 5, 5, 90], [1, 2, 3, _]),
        ([], []),
    ],
)
def test_spearman_is_none_below_three_answers_or_where_a_side_is_constant(
    first: list[float], second: list[float]
) -> None:
    assert spearman(np.array(first, dtype=float), np.array(second, dtype=float)) is None


def test_spearman_looks_at_what_both_have() -> None:
    first = np.array([1, 2, 3, 4, 100, _])
    second = np.array([10, 20, 30, 40, _, 0])
    assert spearman(first, second) == pytest.approx(1)
    assert spearman(first, -second) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


def test_the_bias_of_a_pair_is_the_first_less_the_second_over_what_both_scored() -> None:
    mild = np.array([10, 20, 30, 40, _, 0])
    harsh = np.array([20, 40, 30, 50, 90, _])
    [pair] = pair_agreements(np.stack([mild, harsh]))
    assert (pair.first, pair.second, pair.n) == (0, 1, 4)
    assert pair.bias == pytest.approx(-10)
    assert pair.mean_distance == pytest.approx(10)
    [turned] = pair_agreements(np.stack([harsh, mild]))
    assert turned.bias == pytest.approx(10)
    assert (turned.spearman, turned.alpha, turned.mean_distance) == (pair.spearman, pair.alpha, pair.mean_distance)


def test_distances_that_cancel_are_no_bias_and_still_a_distance() -> None:
    [pair] = pair_agreements(np.array([[10.0, 30, 50, 70], [30.0, 10, 70, 50]]))
    assert (pair.bias, pair.mean_distance) == (0, 20)


def test_every_pair_comes_once_row_by_row() -> None:
    scores = np.random.default_rng(4).uniform(0, 100, (4, 9))
    pairs = pair_agreements(scores)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(pair.n == 9 for pair in pairs)


def test_two_judges_without_a_common_answer_have_no_figure() -> None:
    [pair] = pair_agreements(np.array([[1, _, 3, _], [_, 2, _, 4]]))
    assert pair == (0, 1, 0, None, None, None, None)


# Disagreements


def test_the_widest_disagreements_come_first_and_a_row_with_one_score_not_at_all() -> None:
    scores = np.array([[0, 10, 50, 90, _, 0], [100, 20, 55, _, _, 60], [50, 90, _, _, _, 10]])
    assert widest_disagreements(scores, most=10).tolist() == [0, 1, 5, 2]
    assert widest_disagreements(scores, most=2).tolist() == [0, 1]
    assert widest_disagreements(scores, most=0).tolist() == []


def test_equally_wide_ones_keep_their_order_and_none_is_no_crash() -> None:
    assert widest_disagreements(np.array([[0.0, 5, 3], [10.0, 15, 13]]), most=3).tolist() == [0, 1, 2]
    assert widest_disagreements(np.full((2, 4), np.nan), most=3).size == 0
    assert widest_disagreements(np.array([[1.0, 2.0]]), most=3).size == 0


def test_the_record_has_a_rubric_s_judges_pairs_and_disagreements_with_their_texts() -> None:
    ids = [f"a{number}" for number in range(30)]
    answers = pd.DataFrame(
        {"response_id": ids, "question": [f"q {name}" for name in ids], "text": [f"t {name}" for name in ids]}
    )
    judgements = pd.DataFrame(
        [
            {"response_id": name, "judge": judge, "rubric": "misalignment", "score": score}
            for number, name in enumerate(ids)
            for judge, score in (("mild", float(number)), ("harsh", _ if number == 29 else 3.0 * number))
        ]
        + [{"response_id": name, "judge": "mild", "rubric": "coherence", "score": 50.0} for name in ids]
    )
    [record] = agreement_record(judgements, answers)
    assert (record["rubric"], record["judges"], record["answers"]) == ("misalignment", ["mild", "harsh"], 30)
    assert record["scored"] == {"mild": 30, "harsh": 29}
    [pair] = record["pairs"]
    assert (pair["first"], pair["second"], pair["n"]) == ("mild", "harsh", 29)
    assert pair["bias"] == pytest.approx(-28)
    shown = record["disagreements"]
    assert len(shown) == SHOWN
    assert shown[0] == {
        "response_id": "a28",
        "question": "q a28",
        "text": "t a28",
        "scores": {"mild": 28.0, "harsh": 84.0},
    }


# Intervals


def test_the_bootstrap_draws_whole_groups_and_as_many_as_there_are() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    rows_of = {name: set(np.flatnonzero(groups == name).tolist()) for name in "abc"}
    draws: list[np.ndarray] = []

    def mean(rows: np.ndarray) -> float:
        draws.append(rows)
        return float(rows.mean())

    bootstrap_over(groups, mean, rng=np.random.default_rng(5), resamples=50)
    assert len(draws) == 50
    for rows in draws:
        counts = np.bincount(rows, minlength=6)
        per_group = {name: {int(counts[row]) for row in own} for name, own in rows_of.items()}
        assert all(len(found) == 1 for found in per_group.values()), "a group was torn apart"
        assert sum(found.pop() for found in per_group.values()) == 3
    assert len({tuple(rows) for rows in draws}) > 5


def test_intervals_over_groups_cover_what_those_over_rows_do_not() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(40), 5)
    covered = {"groups": 0, "rows": 0}
    for _ in range(80):
        values = rng.normal(0, 1, 40)[groups] + rng.normal(0, 0.5, 200)

        def mean(rows: np.ndarray, values: np.ndarray = values) -> float:
            return float(values[rows].mean())

        for name, units in (("groups", groups), ("rows", np.arange(200))):
            ends = bootstrap_over(units, mean, rng=rng, resamples=100)
            assert ends is not None
            covered[name] += ends[0] < 0 < ends[1]
    assert 0.84 <= covered["groups"] / 80 <= 0.99
    assert covered["rows"] / 80 < 0.75


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).normal(size=30)
    first, second = (
        bootstrap_over(np.arange(30), lambda rows: float(values[rows].mean()), rng=np.random.default_rng(8))
        for _ in range(2)
    )
    assert first == second


def test_a_statistic_that_is_often_undefined_has_no_interval() -> None:
    groups = np.arange(2)
    rare = bootstrap_over(groups, lambda rows: None if rows[0] == rows[1] else 1.0, rng=np.random.default_rng(9))
    assert rare is None
    never = bootstrap_over(groups, lambda rows: None, rng=np.random.default_rng(9))
    assert never is None
    many = np.arange(30)  # all of one draw equal: practically never
    assert bootstrap_over(many, lambda rows: None if np.ptp(rows) == 0 else 2.0, rng=np.random.default_rng(9)) == (2, 2)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_is_that_of_the_textbook(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3."""
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_s_interval_is_symmetric_stays_within_0_and_1_and_is_none_of_nothing() -> None:
    low, high = wilson_interval(20, 20) or (0, 0)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 20), abs=1e-12)
    assert 0 <= low < high <= 1
    assert wilson_interval(0, 0) is None
