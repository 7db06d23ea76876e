"""The verdict over all sites, groupings and corrections, with the multiplicity over sites paid for.

Shapes: N questions, D width, S responses a question, F groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unmask.analysis.crosstalk import Causal
from unmask.analysis.decision import Decision, decide
from unmask.analysis.directions import Found, shared_and_specific
from unmask.analysis.examination import Settings
from unmask.analysis.nulls import Tested, max_t

Correction = Literal["none", "control"]


@dataclass(frozen=True, slots=True)
class SiteData:
    """What one site holds for N questions: see `decide`."""

    shift_ND: np.ndarray
    base_ND: np.ndarray
    replicates_NSD: np.ndarray | None = None
    control_ND: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class SiteFinding:
    """One site under one grouping and correction: the decision, its directions, and p-values paid for over the sites.

    `p_rank_max_t` and `p_adj_max_t` are Westfall & Young's single-step p-values of T2's and T3's first rank over all sites of the
    same grouping and correction; None where nothing could be tested.
    """

    site: str
    grouping: str
    correction: Correction
    decision: Decision
    directions: tuple[Found, ...]
    first_rank: Tested | None
    first_contrast: Tested | None
    p_rank_max_t: float | None = None
    p_adj_max_t: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.grouping, self.correction


def map_sites(
    sites: Iterable[tuple[str, Callable[[], SiteData]]],
    groupings: Mapping[str, np.ndarray],
    *,
    primary: str,
    seed: int,
    settings: Settings,
    polarity_N: np.ndarray | None = None,
    causal: Mapping[str, Causal] = {},
    told: Callable[[], None] = lambda: None,
) -> list[SiteFinding]:
    """Decide at every site, for every grouping (name to labels, N), without and, where there is one, with the control.

    The same flips serve all sites of a grouping. Planted controls and the Gamma sensitivity are run at the primary site and the
    first grouping; elsewhere only where the rule needs power. `causal` is what T5 found at the primary site, by grouping. Sites
    are loaded one at a time and let go; arrays of the examination are let go too. `told` is called after each decision.
    """
    found: list[SiteFinding] = []
    for site, load in sites:
        data = load()
        for place, (grouping, labels_N) in enumerate(groupings.items()):
            for correction in _corrections(data):
                full = site == primary and place == 0
                tested = causal.get(grouping) if site == primary else None
                found.append(
                    _decide_one(
                        site,
                        data,
                        grouping=grouping,
                        labels_N=labels_N,
                        correction=correction,
                        polarity_N=polarity_N,
                        causal=tested,
                        full=full,
                        seed=seed,
                        settings=settings,
                    )
                )
                told()
    return _pay(found)


def _corrections(data: SiteData) -> tuple[Correction, ...]:
    return ("none",) if data.control_ND is None else ("none", "control")


def decisions_planned(sites: int, groupings: int, *, control: bool) -> int:
    """How many decisions `map_sites` makes."""
    return sites * groupings * (2 if control else 1)


def _decide_one(
    site: str,
    data: SiteData,
    *,
    grouping: str,
    labels_N: np.ndarray,
    correction: Correction,
    polarity_N: np.ndarray | None,
    causal: Causal | None,
    full: bool,
    seed: int,
    settings: Settings,
) -> SiteFinding:
    decision = decide(
        data.shift_ND,
        data.base_ND,
        labels_N,
        replicates_NSD=data.replicates_NSD,
        control_ND=data.control_ND if correction == "control" else None,
        polarity_N=polarity_N,
        causal=causal,
        seed=seed,
        settings=settings,
        full=full,
    )
    examined = decision.examined
    if examined is None:
        return SiteFinding(site, grouping, correction, decision, (), None, None)
    directions = shared_and_specific(
        examined.prepared,
        examined.groups,
        examined.geometry.shared_C,
        total=examined.geometry.total,
        rng=np.random.default_rng([seed, 5]),
    )
    return SiteFinding(
        site,
        grouping,
        correction,
        decision.without_matrices(),
        tuple(directions),
        examined.ranks.tests[0],
        examined.contrasts.tests[0],
    )


def _pay(found: list[SiteFinding]) -> list[SiteFinding]:
    paid = list(found)
    for key in dict.fromkeys(finding.key for finding in found):
        places = [i for i, finding in enumerate(found) if finding.key == key and finding.first_rank is not None]
        ranks = max_t([test for i in places if (test := found[i].first_rank) is not None])
        contrasts = max_t([test for i in places if (test := found[i].first_contrast) is not None])
        for i, p_rank, p_adj in zip(places, ranks, contrasts, strict=True):
            paid[i] = replace(found[i], p_rank_max_t=p_rank, p_adj_max_t=p_adj)
    return paid
