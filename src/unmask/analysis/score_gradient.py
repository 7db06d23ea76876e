"""The score-bearing part of the shift: does the direction along which a group's scores rise differ between groups?

Within each group, Cov(s, y) is the gradient of the score y in the shift s. Its rows x_q = (s_q - mean_f s) y_q, y standardised
within the group, have that covariance as their group mean, so the tests of mean shifts answer the question. Being taken within
groups, it owes nothing to the groups' means, so that a constant fingerprint cannot make it. Topic inside a group can, where its
facets differ in topic and in score (docs/calibration.md).

Shapes: N questions, D width, C coordinates, B flips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.geometry import Geometry, describe
from unmask.analysis.nulls import RankTests, Tested, rank_tests, shift_test
from unmask.analysis.preparation import Groups, cap_factors, prepare_shift

_CAP = 3.0
LEAST_SCORED = 20
"""Scored questions that a group needs. In fewer, the group's own mean and spread tie its products to each other, and flips are no
null: with 4 a group, in 100 coordinates, the test rejects 40 % where nothing is."""


@dataclass(frozen=True, slots=True)
class ScoreBearing:
    """`shift` tests whether any direction bears the score at all, `ranks` whether more than one is needed over the groups."""

    shift: Tested
    ranks: RankTests
    geometry: Geometry
    questions: int
    missing: int


def score_bearing(
    shift_ND: np.ndarray,
    scores_N: np.ndarray,
    labels_N: np.ndarray,
    *,
    signs_BN: np.ndarray,
    alpha: float,
    least_in_group: int,
    rng: np.random.Generator,
) -> ScoreBearing | None:
    """Test the score gradient; questions without a score (NaN) are left out and counted.

    None when fewer than 2 groups keep `least_in_group` scored questions whose scores differ.
    """
    labels_N = np.asarray(labels_N).astype(str)
    scores_N = np.asarray(scores_N, dtype=float)
    there_N = np.isfinite(scores_N)
    fit = [
        name
        for name in np.unique(labels_N)
        if (own := scores_N[there_N & (labels_N == name)]).size >= least_in_group and np.ptp(own) > 0
    ]
    if len(fit) < 2:
        return None
    chosen_N = there_N & np.isin(labels_N, fit)
    groups = Groups.of(labels_N[chosen_N])
    rows_NC = groups.centred(prepare_shift(groups.centred(np.asarray(shift_ND, dtype=float)[chosen_N])).rows_NC)
    scores = groups.centred(scores_N[chosen_N][:, None])[:, 0]
    spread_F = np.sqrt(np.bincount(groups.codes_N, weights=scores**2) / (groups.sizes_F - 1))
    products_NC = rows_NC * (scores / spread_F[groups.codes_N])[:, None]
    products_NC *= cap_factors(products_NC, limit=_CAP)[:, None]
    signs_BN = signs_BN[:, chosen_N]
    return ScoreBearing(
        shift=shift_test(products_NC, signs_BN),
        ranks=rank_tests(products_NC, groups, signs_BN, alpha=alpha),
        geometry=describe(products_NC, groups, rng=rng),
        questions=int(chosen_N.sum()),
        missing=int((~there_N).sum()),
    )
