"""Agreement with known groups: scikit-learn's measures, what is missing left out and counted, and score bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    completeness_score,
    homogeneity_score,
    v_measure_score,
)

from unmask.analysis.validation import Agreement, agreement, score_bands

MEASURES = {
    "ami": adjusted_mutual_info_score,
    "ari": adjusted_rand_score,
    "v": v_measure_score,
    "homogeneity": homogeneity_score,
    "completeness": completeness_score,
}


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60))
def test_every_measure_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, groups = np.array(pairs).T
    found = agreement(labels, groups)
    for name, reference in MEASURES.items():
        assert getattr(found, name) == pytest.approx(reference(groups, labels), abs=1e-8), name
    assert found.n == len(pairs)


@pytest.mark.parametrize(("n", "k", "g"), [(885, 50, 8), (885, 3, 4), (400, 200, 7)])
def test_every_measure_is_scikit_learns_at_the_size_of_a_study(n: int, k: int, g: int) -> None:
    rng = np.random.default_rng(n + k)
    labels, groups = rng.integers(k, size=n), rng.choice(g, size=n, p=np.arange(1, g + 1) / (g * (g + 1) / 2))
    found = agreement(labels, groups)
    for name, reference in MEASURES.items():
        assert getattr(found, name) == pytest.approx(reference(groups, labels), abs=1e-9), name


def test_chance_scores_0_where_it_is_adjusted_for_and_not_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    found = [agreement(rng.integers(40, size=200), rng.integers(4, size=200)) for _ in range(30)]
    assert abs(np.mean([one.ami for one in found])) < 0.02
    assert abs(np.mean([one.ari for one in found])) < 0.01
    assert np.mean([one.v for one in found]) > 0.1


def test_noise_and_unknown_groups_are_left_out_and_counted() -> None:
    labels = np.array([0, 0, 1, 1, -1, 1, 0])
    groups = ["a", "a", "b", "b", "a", None, float("nan")]
    assert agreement(labels, groups) == Agreement(1, 1, 1, 1, 1, n=4)


def test_nothing_to_compare_is_missing() -> None:
    for found in (agreement(np.array([-1, -1]), ["a", "b"]), agreement(np.array([0, 1]), [None, np.nan])):
        assert found.n == 0
        assert np.isnan([found.ami, found.ari, found.v, found.homogeneity, found.completeness]).all()


def test_one_facet_has_nothing_to_agree_with() -> None:
    found = agreement(np.array([0, 1, 1, 2]), ["only"] * 4)
    assert (found.ami, found.homogeneity) == (pytest.approx(0), 1)
    assert found.completeness == pytest.approx(0)


def test_names_of_groups_may_be_of_any_type() -> None:
    labels = np.array([0, 0, 1, 1])
    assert agreement(labels, np.array(["x", "x", "y", "y"], dtype=object)).ami == 1
    assert agreement(labels, np.array([True, True, False, False])).ami == 1


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels cannot be compared with 2 groups"):
        agreement(np.zeros(3, dtype=int), ["a", "b"])


def test_score_bands_are_tertiles_of_what_is_scored() -> None:
    bands = score_bands(np.array([10, np.nan, 20, 30, 40, 50, 60]))
    assert bands.tolist() == ["low", None, "low", "middle", "middle", "high", "high"]


@settings(deadline=None)
@given(st.lists(st.floats(0, 100) | st.just(float("nan")), max_size=40))
def test_bands_follow_the_scores_and_equal_scores_share_one(scores: list[float]) -> None:
    bands = score_bands(np.array(scores))
    rank = {"low": 0, "middle": 1, "high": 2}
    assert [band is None for band in bands] == [bool(np.isnan(score)) for score in scores]
    known = sorted((score, rank[band]) for score, band in zip(scores, bands, strict=True) if band is not None)
    assert [band for _, band in known] == sorted(band for _, band in known)
    by_score: dict[float, set[int]] = {}
    for score, band in known:
        by_score.setdefault(score, set()).add(band)
    assert all(len(held) == 1 for held in by_score.values())


def test_scores_that_are_all_the_same_are_one_band() -> None:
    assert set(score_bands(np.full(9, 42.0))) == {"low"}
    assert score_bands(np.array([np.nan, np.nan])).tolist() == [None, None]
    assert score_bands(np.array([])).tolist() == []
