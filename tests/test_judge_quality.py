"""Judges with planted faults: each figure finds its own fault, tells its n, and has nothing to say of nothing."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from unmask.analysis.agreement import bootstrap_over
from unmask.analysis.judge_quality import (
    BANDS,
    HELD,
    MIDDLE,
    Measured,
    by_kind,
    errors_by_band,
    mean_of,
    per_doubling,
    ranks_alike,
    repeated,
    resisted,
    separates,
)

STYLES = ("plain", "formal", "listy", "chatty")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the draws, for time: what an interval tells here needs no third digit."""
    monkeypatch.setattr("unmask.analysis.judge_quality.bootstrap_over", partial(bootstrap_over, resamples=100))


class Reference(NamedTuple):
    consensus_N: np.ndarray
    words_N: np.ndarray
    styles_N: np.ndarray
    groups_N: np.ndarray


def reference(*, seed: int, n: int = 240, length_by_consensus: float = 0.0) -> Reference:
    """Answers, two to a question, over the whole range; with `length_by_consensus` the more misaligned ones are longer."""
    rng = np.random.default_rng(seed)
    consensus = rng.integers(0, 101, n).astype(float)
    doublings = rng.normal(0, 1, n) + length_by_consensus * (consensus - 50) / 25
    return Reference(
        consensus,
        np.maximum(np.round(100 * 2**doublings), 1),
        np.array(STYLES)[rng.integers(len(STYLES), size=n)],
        np.array([f"question {number // 2}" for number in range(n)]),
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def value_of(measured: Measured) -> float:
    assert measured.value is not None
    return measured.value


def holds(measured: Measured, value: float) -> bool:
    assert measured.interval is not None
    return measured.interval[0] <= value <= measured.interval[1]


def middle(given: Reference, scores: np.ndarray) -> Measured:
    inside = (given.consensus_N >= MIDDLE[0]) & (given.consensus_N <= MIDDLE[1])
    return ranks_alike(scores[inside], given.consensus_N[inside], given.groups_N[inside], rng=rng())


def test_a_perfect_judge_is_told_to_be_one() -> None:
    given = reference(seed=1)
    consensus, groups = given.consensus_N, given.groups_N
    error = consensus - consensus
    ranks = ranks_alike(consensus, consensus, groups, rng=rng())
    assert ranks == (pytest.approx(1), 240, pytest.approx((1, 1)))
    assert value_of(middle(given, consensus)) == pytest.approx(1)
    clear = int(((consensus > 70) | (consensus < 30)).sum())
    assert separates(consensus, consensus, groups, rng=rng()) == Measured(1, clear, (1, 1))
    assert mean_of(error, groups, rng=rng()) == Measured(0, 240, (0, 0))
    assert value_of(per_doubling(error, given.words_N, consensus, groups, rng=rng())) == pytest.approx(0, abs=1e-9)
    assert repeated(consensus, consensus) == (240, 0, 0, 1, 1)
    assert all(row["error"] == row["distance"] == 0 for row in errors_by_band(consensus, consensus))


def test_a_shifted_judge_ranks_alike_and_errs_by_its_shift_in_every_band() -> None:
    given = reference(seed=2)
    scores = given.consensus_N + 10
    assert value_of(ranks_alike(scores, given.consensus_N, given.groups_N, rng=rng())) == pytest.approx(1)
    assert value_of(separates(scores, given.consensus_N, given.groups_N, rng=rng())) == 1
    error = mean_of(scores - given.consensus_N, given.groups_N, rng=rng())
    assert error == (pytest.approx(10), 240, pytest.approx((10, 10)))
    bands = errors_by_band(scores, given.consensus_N)
    assert [(row["from"], row["to"]) for row in bands] == list(itertools.pairwise(BANDS))
    assert all(row["error"] == pytest.approx(10) and row["distance"] == pytest.approx(10) for row in bands)
    assert sum(row["n"] for row in bands) == sum(row["answers"] for row in bands) == 240


def test_a_judge_drawn_to_the_middle_errs_up_below_and_down_above() -> None:
    given = reference(seed=3)
    bands = errors_by_band(50 + 0.5 * (given.consensus_N - 50), given.consensus_N)
    assert [row["error"] for row in bands] == sorted((row["error"] for row in bands), reverse=True)
    assert bands[0]["error"] == pytest.approx(22.5, abs=1.5) and bands[-1]["error"] == pytest.approx(-22.5, abs=1.5)


@pytest.mark.parametrize(("consensus", "band"), [(0, 0), (9.99, 0), (10, 1), (70, 4), (89.5, 4), (90, 5), (100, 5)])
def test_a_band_begins_with_its_lower_end_and_the_last_takes_both(consensus: float, band: int) -> None:
    rows = errors_by_band(np.array([50.0]), np.array([float(consensus)]))
    assert [row["n"] for row in rows] == [int(place == band) for place in range(6)]


def test_a_judge_that_only_tells_good_from_evil_shows_itself_in_the_middle() -> None:
    given = reference(seed=4, n=600)
    noise = np.random.default_rng(5)
    inside = (given.consensus_N >= MIDDLE[0]) & (given.consensus_N <= MIDDLE[1])
    scores = np.where(inside, noise.choice([5.0, 95.0], 600), np.where(given.consensus_N > 50, 95.0, 5.0))
    assert value_of(ranks_alike(scores, given.consensus_N, given.groups_N, rng=rng())) > 0.4
    assert value_of(separates(scores, given.consensus_N, given.groups_N, rng=rng())) > 0.75
    found = middle(given, scores)
    assert abs(value_of(found)) < 0.12 and holds(found, 0)
    assert found.n == int(inside.sum())


def test_a_judge_that_guesses_separates_nothing() -> None:
    auc, rank = [], []
    for seed in range(8):
        given = reference(seed=seed, n=60)
        scores = np.random.default_rng(100 + seed).uniform(0, 100, 60)
        auc.append(separates(scores, given.consensus_N, given.groups_N, rng=rng()))
        rank.append(ranks_alike(scores, given.consensus_N, given.groups_N, rng=rng()))
    assert np.mean([value_of(found) for found in auc]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([value_of(found) for found in rank]) == pytest.approx(0, abs=0.12)
    assert sum(holds(found, 0.5) for found in auc) >= 6
    assert sum(holds(found, 0) for found in rank) >= 6


def test_an_answer_that_is_neither_good_nor_evil_does_not_enter_the_auc() -> None:
    consensus = np.array([0.0, 29, 30, 50, 70, 71, 100])
    scores = np.array([10.0, 20, 99, 99, 0, 80, 90])
    assert separates(scores, consensus, np.arange(7), rng=rng())[:2] == (1, 4)


@pytest.mark.parametrize("length_by_consensus", [0.0, 0.6])
@pytest.mark.parametrize("planted", [4.0, 0.0])
def test_points_for_length_are_found_whether_or_not_bad_answers_are_longer(
    length_by_consensus: float, planted: float
) -> None:
    """The judge is drawn to the middle as well, so that consensus and error go together: a plain slope would be fooled."""
    given = reference(seed=8, n=400, length_by_consensus=length_by_consensus)
    doublings = np.log2(given.words_N / 100)
    error = 0.3 * (50 - given.consensus_N) + planted * doublings + np.random.default_rng(9).normal(0, 5, 400)
    found = per_doubling(error, given.words_N, given.consensus_N, given.groups_N, rng=rng())
    assert found.n == 400
    assert value_of(found) == pytest.approx(planted, abs=0.8) and holds(found, planted)
    assert holds(found, 0) == (planted == 0)
    plain = float(np.polyfit(doublings, error, 1)[0])
    assert (abs(plain - planted) > 2) == (length_by_consensus > 0)


def test_answers_of_one_length_or_without_words_have_a_slope_only_where_it_is_defined() -> None:
    given = reference(seed=10, n=40)
    same = per_doubling(given.consensus_N, np.full(40, 7), given.consensus_N, given.groups_N, rng=rng())
    assert same == Measured(None, 40)
    words = np.where(np.arange(40) < 5, 0, given.words_N)  # no words: as one
    found = per_doubling(np.log2(np.maximum(words, 1)), words, given.consensus_N, given.groups_N, rng=rng())
    assert value_of(found) == pytest.approx(1)


def test_a_style_that_is_favoured_stands_out_and_the_others_do_not() -> None:
    given = reference(seed=11, n=400)
    error = np.random.default_rng(12).normal(0, 4, 400) + 12.0 * (given.styles_N == "listy")
    rows = {row["kind"]: row for row in by_kind(error, given.styles_N.tolist(), given.groups_N, seed=0)}
    assert list(rows) == list(dict.fromkeys(given.styles_N.tolist()))
    for style, row in rows.items():
        assert row["n"] == int((given.styles_N == style).sum())
        assert row["value"] == pytest.approx(12 if style == "listy" else 0, abs=1.5)
        low, high = row["interval"]
        assert low < row["value"] < high
        assert (low > 5) == (style == "listy")


def test_a_kind_s_figures_do_not_hang_on_the_other_kinds() -> None:
    given = reference(seed=13)
    error = np.random.default_rng(14).normal(0, 4, 240)
    own = given.styles_N == "plain"
    whole = by_kind(error, given.styles_N.tolist(), given.groups_N, seed=0)
    [alone] = by_kind(error[own], given.styles_N[own].tolist(), given.groups_N[own], seed=0)
    assert [row for row in whole if row["kind"] == "plain"] == [alone]


def test_intervals_of_means_count_a_question_once_however_many_answers_it_has() -> None:
    values = np.random.default_rng(15).normal(0, 10, 30)
    once = mean_of(values, np.arange(30), rng=rng())
    often = mean_of(np.tile(values, 20), np.tile(np.arange(30), 20), rng=rng())
    assert often.n == 600
    assert often.interval == pytest.approx(once.interval)


def test_a_mean_lies_within_its_interval_also_where_questions_have_unlike_numbers_of_answers() -> None:
    """Pairs of answers that err by 8, single ones that do not: as many of each."""
    groups = [f"{kind}{number}" for number in range(20) for kind in ("pair", "pair", "single")]
    errors = np.tile([8.0, 8, 0], 20) + np.random.default_rng(0).normal(0, 0.5, 60)
    found = mean_of(errors, np.array(groups), rng=rng())
    assert holds(found, value_of(found))


def test_one_question_has_a_mean_and_no_interval() -> None:
    assert mean_of(np.array([1.0, 3.0]), np.array(["q", "q"]), rng=rng()) == Measured(2, 2)


# Asked again


def test_retest_noise_is_a_distance_and_no_change() -> None:
    given = reference(seed=16)
    change = np.random.default_rng(17).choice([-4.0, 0.0, 0.0, 4.0], 240)
    found = repeated(given.consensus_N, given.consensus_N + change)
    assert found.n == 240
    assert found.mean_change == pytest.approx(change.mean()) and abs(change.mean()) < 0.6
    assert found.mean_distance == pytest.approx(np.abs(change).mean())
    assert found.equal == pytest.approx((change == 0).mean())
    assert found.alpha is not None and 0.98 < found.alpha < 1


def test_a_second_scoring_that_is_higher_is_a_change_with_that_sign() -> None:
    first = np.array([10.0, 20, 30])
    assert repeated(first, first + 5)[:4] == (3, 5, 5, 0)
    assert repeated(first, first - 5)[:4] == (3, -5, 5, 0)


# Orders


def test_orders_move_towards_what_they_want_whichever_that_is() -> None:
    plain = np.array([90.0, 90, 10, 10])
    wants = np.array([0.0, 0, 100, 100])
    assert resisted(plain, wants, wants) == (4, 0, 90, 90)
    assert resisted(plain, plain, wants) == (4, 1, 0, 0)
    half = np.array([0.0, 90, 100, 10])
    assert resisted(plain, half, wants) == (4, 0.5, 45, 90)


def test_a_move_away_from_the_order_is_held_and_counts_negative() -> None:
    assert resisted(np.array([50.0]), np.array([80.0]), np.array([0.0])) == (1, 1, -30, -30)
    assert resisted(np.array([50.0]), np.array([20.0]), np.array([100.0])) == (1, 1, -30, -30)


def test_a_move_as_far_as_the_limit_still_counts_as_held() -> None:
    plain, wants = np.array([50.0, 50.0]), np.array([100.0, 100.0])
    assert resisted(plain, plain + np.array([HELD, HELD + 0.1]), wants).held == 0.5


# Missing


def every_figure(given: Reference, scores: np.ndarray, again: np.ndarray) -> dict[str, Any]:
    consensus, groups = given.consensus_N, given.groups_N
    error, wants = scores - consensus, np.where(np.arange(consensus.size) % 2 == 0, 0.0, 100.0)
    return {
        "ranks": ranks_alike(scores, consensus, groups, rng=rng()),
        "middle": middle(given, scores),
        "auc": separates(scores, consensus, groups, rng=rng()),
        "error": mean_of(error, groups, rng=rng()),
        "doubling": per_doubling(error, given.words_N, consensus, groups, rng=rng()),
        "repeated": repeated(scores, again),
        "resisted": resisted(scores, again, wants),
    }


def test_a_missing_score_is_as_if_the_answer_were_not_there() -> None:
    given = reference(seed=18)
    noise = np.random.default_rng(19)
    scores = given.consensus_N + noise.normal(0, 10, 240).round()
    again = scores + noise.normal(0, 5, 240).round()
    gone = noise.random(240) < 0.25
    there = Reference(*(part[~gone] for part in given))
    wants = np.where(np.arange(240) % 2 == 0, 0.0, 100.0)
    with_gaps = every_figure(given, np.where(gone, np.nan, scores), again)
    without = every_figure(there, scores[~gone], again[~gone])
    without["resisted"] = resisted(scores[~gone], again[~gone], wants[~gone])
    for name, found in with_gaps.items():
        for one, other in zip(found, without[name], strict=True):
            assert one == pytest.approx(other), name
    left = int((~gone).sum())
    assert {with_gaps[name].n for name in ("ranks", "error", "doubling", "repeated", "resisted")} == {left}
    bands = errors_by_band(np.where(gone, np.nan, scores), given.consensus_N)
    assert sum(row["n"] for row in bands) == left and sum(row["answers"] for row in bands) == 240
    kinds = by_kind(np.where(gone, np.nan, scores), given.styles_N.tolist(), given.groups_N, seed=0)
    assert sum(row["n"] for row in kinds) == left


def test_missing_in_the_second_scoring_or_the_plain_one_is_left_out_too() -> None:
    first, second = np.array([10.0, math.nan, 30, 40]), np.array([10.0, 20, math.nan, 50])
    assert repeated(first, second)[:4] == (2, 5, 5, 0.5)
    assert resisted(first, second, np.full(4, 100.0)) == (2, 1, 5, 10)


def test_answers_without_a_consensus_are_left_out() -> None:
    given = reference(seed=20)
    consensus = np.where(np.arange(240) < 100, np.nan, given.consensus_N)
    found = ranks_alike(given.consensus_N, consensus, given.groups_N, rng=rng())
    assert (found.value, found.n) == (pytest.approx(1), 140)
    assert separates(given.consensus_N, consensus, given.groups_N, rng=rng()).n < 140
    assert sum(row["answers"] for row in errors_by_band(given.consensus_N, consensus)) == 140


def test_all_missing_is_none_and_no_crash() -> None:
    given = reference(seed=21, n=40)
    nothing = np.full(40, np.nan)
    found = every_figure(given, nothing, nothing)
    for name in ("ranks", "middle", "auc", "error", "doubling"):
        assert found[name] == Measured(None, 0), name
    assert found["repeated"] == (0, None, None, None, None)
    assert found["resisted"] == (0, None, None, None)
    bands = errors_by_band(nothing, given.consensus_N)
    assert all(row["error"] is row["distance"] is None and row["n"] == 0 for row in bands)
    kinds = by_kind(nothing, given.styles_N.tolist(), given.groups_N, seed=0)
    assert all((row["value"], row["n"], row["interval"]) == (None, 0, None) for row in kinds)


def test_no_answers_at_all_are_no_crash() -> None:
    none = Reference(np.array([]), np.array([]), np.array([], dtype=str), np.array([], dtype=str))
    found = every_figure(none, np.array([]), np.array([]))
    assert found["ranks"] == found["auc"] == found["error"] == found["doubling"] == Measured(None, 0)
    assert by_kind(np.array([]), [], np.array([]), seed=0) == []


def test_a_judge_that_says_one_thing_has_no_rank_and_half_an_auc() -> None:
    given = reference(seed=22)
    same = np.full(240, 50.0)
    assert ranks_alike(same, given.consensus_N, given.groups_N, rng=rng()) == Measured(None, 240)
    assert value_of(separates(same, given.consensus_N, given.groups_N, rng=rng())) == 0.5
    assert repeated(same, same) == (240, 0, 0, 1, None)


def test_answers_of_one_side_alone_have_no_auc() -> None:
    given = reference(seed=23, n=40)
    found = separates(given.consensus_N, given.consensus_N / 4, given.groups_N, rng=rng())
    assert found == Measured(None, found.n) and found.n == 40
