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


@dataclass(frozen=True, slots=True)
class Planned:
    """A decision to be made: a site under one grouping and correction. `full`: with planted controls and Gamma sensitivity."""

    site: str
    grouping: str
    correction: Correction
    full: bool


def plan(sites: Iterable[str], groupings: Iterable[str], *, primary: str, control: bool) -> tuple[Planned, ...]:
    """Every site under every grouping, without and, where there is one, with the control; in the order of the findings.

    Planted controls and the Gamma sensitivity are run at the primary site and the first grouping; elsewhere only where the rule
    needs power.
    """
    corrections: tuple[Correction, ...] = ("none", "control") if control else ("none",)
    groupings = tuple(groupings)
    return tuple(
        Planned(site, grouping, correction, full=site == primary and place == 0)
        for site in sites
        for place, grouping in enumerate(groupings)
        for correction in corrections
    )


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

    The same flips serve all sites of a grouping. `causal` is what T5 found at the primary site, by grouping. Sites are loaded one
    at a time and let go; arrays of the examination are let go too. `told` is called after each decision.
    """
    found: list[SiteFinding] = []
    for site, load in sites:
        data = load()
        for planned in plan((site,), groupings, primary=primary, control=data.control_ND is not None):
            found.append(
                decide_at(
                    planned,
                    data,
                    groupings[planned.grouping],
                    polarity_N=polarity_N,
                    causal=causal.get(planned.grouping) if site == primary else None,
                    seed=seed,
                    settings=settings,
                )
            )
            told()
    return pay(found)


def decide_at(
    planned: Planned,
    data: SiteData,
    labels_N: np.ndarray,
    *,
    polarity_N: np.ndarray | None,
    causal: Causal | None,
    seed: int,
    settings: Settings,
) -> SiteFinding:
    """Make one decision, by itself: what other sites cost it is paid for by `pay`. `causal`: what T5 found at this very site."""
    decision = decide(
        data.shift_ND,
        data.base_ND,
        labels_N,
        replicates_NSD=data.replicates_NSD,
        control_ND=data.control_ND if planned.correction == "control" else None,
        polarity_N=polarity_N,
        causal=causal,
        seed=seed,
        settings=settings,
        full=planned.full,
    )
    where = (planned.site, planned.grouping, planned.correction)
    examined = decision.examined
    if examined is None:
        return SiteFinding(*where, decision, (), None, None)
    directions = shared_and_specific(
        examined.prepared,
        examined.groups,
        examined.geometry.shared_C,
        total=examined.geometry.total,
        rng=np.random.default_rng([seed, 5]),
    )
    return SiteFinding(
        *where,
        decision.without_matrices(),
        tuple(directions),
        examined.ranks.tests[0],
        examined.contrasts.tests[0],
    )


def pay(found: list[SiteFinding]) -> list[SiteFinding]:
    """The same findings with the max-T p-values over all sites of their grouping and correction."""
    paid = list(found)
    for key in dict.fromkeys(finding.key for finding in found):
        places = [i for i, finding in enumerate(found) if finding.key == key and finding.first_rank is not None]
        ranks = max_t([test for i in places if (test := found[i].first_rank) is not None])
        contrasts = max_t([test for i in places if (test := found[i].first_contrast) is not None])
        for i, p_rank, p_adj in zip(places, ranks, contrasts, strict=True):
            paid[i] = replace(found[i], p_rank_max_t=p_rank, p_adj_max_t=p_adj)
    return paid
