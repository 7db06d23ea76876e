"""The nearest facet: the planted one, none where nothing is planted, and the stated error rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unmask.analysis.facets import nearest_by_loadings, nearest_by_members

FACETS = np.array(["a"] * 60 + ["b"] * 30 + ["c"] * 10)


def by_loadings(facets: np.ndarray, loadings: np.ndarray, **options: int) -> str | None:
    return nearest_by_loadings(facets, loadings, rng=np.random.default_rng(0), **options).facet


def test_a_cluster_goes_with_the_facet_of_the_highest_lift() -> None:
    members = np.zeros(100, dtype=bool)
    members[60:72] = True  # 12 of b's 30
    members[:3] = True
    found = nearest_by_members(FACETS, members)
    assert found.facet == "b"
    assert found.p == pytest.approx(3 * stats.hypergeom.sf(11, 100, 30, 15))
    assert found.measure.startswith("lift 2.7 (p = ")
    assert found.measure.endswith("after Holm over 3 facets)")


def test_a_cluster_like_all_questions_goes_with_no_facet() -> None:
    members = np.arange(100) % 10 == 0  # 6, 3 and 1
    found = nearest_by_members(FACETS, members)
    assert found.facet is None
    assert "no facet beyond chance" in found.measure
    assert nearest_by_members(np.array(["a"] * 9), np.arange(9) < 4).facet is None
    assert nearest_by_members(FACETS, np.arange(100) == 60).facet is None  # one question cannot tell
    with pytest.raises(ValueError, match="without members"):
        nearest_by_members(FACETS, np.zeros(100, dtype=bool))


def test_random_clusters_and_loadings_are_given_a_facet_in_at_most_five_percent() -> None:
    rng = np.random.default_rng(1)
    by_members = sum(nearest_by_members(FACETS, rng.permutation(100) < 20).facet is not None for _ in range(400))
    sparse = sum(
        by_loadings(FACETS, rng.exponential(size=100) * (rng.random(100) < 0.1), permutations=199) is not None
        for _ in range(400)
    )
    for wrong in (by_members, sparse):
        assert stats.binomtest(wrong, 400, 0.05, alternative="greater").pvalue > 0.01


def test_loadings_go_with_the_facet_where_they_are_planted_in_units_of_spread() -> None:
    rng = np.random.default_rng(2)
    loadings = rng.normal(size=100) + 2.0 * (FACETS == "c")
    assert by_loadings(FACETS, loadings) == "c"
    assert by_loadings(FACETS, -loadings) != "c"
    inside, outside = loadings[90:], loadings[:90]
    pooled = np.sqrt(((inside - inside.mean()) ** 2).sum() / 98 + ((outside - outside.mean()) ** 2).sum() / 98)
    measure = nearest_by_loadings(FACETS, loadings, rng=np.random.default_rng(0)).measure
    assert measure.startswith(f"standardised difference {(inside.mean() - outside.mean()) / pooled:.1f} (p = ")


def test_loadings_that_do_not_vary_go_with_no_facet() -> None:
    assert by_loadings(FACETS, np.full(100, 0.1)) is None
    assert by_loadings(np.array(["a"] * 5), np.arange(5.0)) is None
    assert by_loadings(np.array(["a", "b"]), np.array([1.0, 0.0])) is None
    with pytest.raises(ValueError, match="without loadings"):
        nearest_by_loadings([], np.array([]), rng=np.random.default_rng(0))
