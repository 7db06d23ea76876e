"""Which facet a component goes with most, or that none can be told.

Shapes: N questions, F facets, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unmask.analysis.nulls import holm

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class NearestFacet:
    """The facet (None where none can be told), and in words by which measure; `p` is that of the measure after Holm."""

    facet: str | None
    measure: str
    p: float


def nearest_by_members(facets_N: Sequence[str] | np.ndarray, members_N: np.ndarray) -> NearestFacet:
    """The facet with the highest lift (share among the members / share overall) of those that chance does not explain.

    p is one-sided hypergeometric: members drawn at random from all N questions hold as many of the facet or more.
    Raises ValueError without members.
    """
    names, index_N = np.unique(np.asarray(facets_N).astype(str), return_inverse=True)
    total, size = len(index_N), int(members_N.sum())
    if size == 0:
        raise ValueError("a group without members has no nearest facet")
    all_F = np.bincount(index_N, minlength=len(names))
    held_F = np.bincount(index_N[members_N], minlength=len(names))
    p_F = stats.hypergeom.sf(held_F - 1, total, all_F, size)
    lift_F = (held_F / size) / (all_F / total)
    return _choose(names, lift_F, p_F, measure="lift")


def nearest_by_loadings(
    facets_N: Sequence[str] | np.ndarray, loadings_N: np.ndarray, *, rng: np.random.Generator, permutations: int = 1999
) -> NearestFacet:
    """The facet with the highest standardised difference of mean loading, against all other facets, beyond chance.

    The difference is in pooled standard deviations (Cohen 1988). p is one-sided from permutations of the loadings over questions,
    (1 + those as high) / (1 + P) (Phipson & Smyth 2010): no distribution is assumed, since sparse codes are mostly 0.
    Raises ValueError without loadings.
    """
    names, index_N = np.unique(np.asarray(facets_N).astype(str), return_inverse=True)
    values_N = np.asarray(loadings_N, dtype=float)
    if values_N.size == 0:
        raise ValueError("a component without loadings has no nearest facet")
    if len(names) == 1:
        return NearestFacet(None, "all questions are of one facet", 1.0)
    member_NF = (index_N[:, None] == np.arange(len(names))).astype(float)
    sums_F = values_N @ member_NF
    draws_PN = rng.permuted(np.broadcast_to(values_N, (permutations, len(values_N))), axis=1)
    slack = 1e-9 * max(1.0, float(np.abs(values_N).sum()))  # a sum in another order is the same sum
    as_high_F = (draws_PN @ member_NF >= sums_F - slack).sum(axis=0)
    difference_F = np.array([_standardised(values_N, member_NF[:, f] > 0) for f in range(len(names))])
    return _choose(names, difference_F, (1 + as_high_F) / (1 + permutations), measure="standardised difference")


def _standardised(values_N: np.ndarray, members_N: np.ndarray) -> float:
    """Difference of means in pooled standard deviations; 0 where nothing varies at all."""
    inside, outside = values_N[members_N], values_N[~members_N]
    squares = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
    difference = float(inside.mean() - outside.mean())
    spread = float(np.sqrt(squares / max(1, len(values_N) - 2)))
    if spread > 0:
        return difference / spread
    return float(np.sign(difference)) * float("inf") if difference else 0.0


def _choose(names: np.ndarray, value_F: np.ndarray, p_F: np.ndarray, *, measure: str) -> NearestFacet:
    """The facet with the highest value of those with p <= 0.05 after Holm over all facets; ties go by the alphabet."""
    adjusted_F = np.array(holm(list(p_F)))
    over = f"after Holm over {len(names)} facet{'' if len(names) == 1 else 's'}"
    passed = np.flatnonzero(adjusted_F <= LEVEL)
    if passed.size == 0:
        smallest = float(adjusted_F.min())
        return NearestFacet(None, f"{measure}: no facet beyond chance (smallest p = {smallest:.2g} {over})", smallest)
    best = passed[np.argmax(value_F[passed])]
    p = float(adjusted_F[best])
    return NearestFacet(str(names[best]), f"{measure} {value_F[best]:.1f} (p = {p:.2g} {over})", p)
