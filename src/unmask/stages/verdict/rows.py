"""Rows of the verdict's tables from its findings. Missing is None, never a number."""

from __future__ import annotations

from typing import Any

from unmask.analysis.nulls import Tested
from unmask.analysis.site_map import SiteFinding
from unmask.artifact import finite
from unmask.records import Site

NUMBERS = (
    *(
        "p_shift",
        "p_rank",
        "rank",
        "k_adj",
        "k_star",
        "p_adj",
        "gamma_star",
        "rho",
        "rho_low",
        "rho_high",
        "eta",
        "eta_low",
    ),
    *(
        "eta_high",
        "rho_adj",
        "eta_adj",
        "mean_share",
        "transport_share",
        "noise_ratio",
        "replicate_dimensions",
        "power_at_interest",
    ),
)


def site_row(found: SiteFinding, primary: str) -> dict[str, Any]:
    """One line of the layer and site map."""
    numbers = found.decision.numbers
    return {
        "site": found.site,
        "layer": Site.parse(found.site).layer,
        "grouping": found.grouping,
        "correction": found.correction,
        "primary": found.site == primary,
        "verdict": found.decision.verdict,
        "qualifier": found.decision.qualifier,
        **{name: numbers.get(name) for name in NUMBERS},
        "p_rank_max_t": finite(found.p_rank_max_t),
        "p_adj_max_t": finite(found.p_adj_max_t),
        "reason": found.decision.ruling.reasons[0] if found.decision.examined is None else None,
    }


def geometry_rows(found: SiteFinding) -> list[dict[str, Any]]:
    """Gram entries and cosines of every pair of groups, the diagonal included."""
    examined = found.decision.examined
    if examined is None:
        return []
    g, groups = examined.geometry, examined.groups
    return [
        {
            "site": found.site,
            "grouping": found.grouping,
            "correction": found.correction,
            "group_a": groups.names[a],
            "group_b": groups.names[b],
            "n_a": int(groups.sizes_F[a]),
            "n_b": int(groups.sizes_F[b]),
            "gram": finite(g.gram_FF[a, b]),
            "cosine": finite(g.cosine_FF[a, b]),
            "cosine_low": finite(g.cosine_low_FF[a, b]),
            "cosine_high": finite(g.cosine_high_FF[a, b]),
            "naive_cosine": finite(g.naive_cosine_FF[a, b]),
        }
        for a in range(groups.count)
        for b in range(a, groups.count)
    ]


def test_rows(found: SiteFinding) -> list[dict[str, Any]]:
    """Every test that was made at one site."""
    decision = found.decision
    examined = decision.examined
    if examined is None:
        return []
    rows = [_test(found, "T1 shift", examined.shift, rank=None, note="is there a mean shift")]
    for place, test in enumerate(examined.ranks.tests):
        rank = examined.ranks.first + place
        paid = found.p_rank_max_t if place == 0 else None
        rows.append(_test(found, "T2 rank", test, rank=rank, paid=paid, note=f"more than {rank} needed by the means"))
    for place, test in enumerate(examined.contrasts.tests):
        paid = found.p_adj_max_t if place == 0 else None
        note = f"more than {place} beyond topic, gamma {examined.transport.gamma:g}"
        rows.append(_test(found, "T3 topic transport", test, rank=place, paid=paid, note=note))
    if decision.replicates is not None:
        again = decision.replicates
        rows.append(
            {
                **_where(found, "T4 replicates"),
                "rank": None,
                "statistic": finite(again.largest_share),
                "null_mean": None,
                "null_sd": None,
                "p": again.p,
                "p_max_t": None,
                "flips": again.permutations,
                "note": f"largest replicating energy over tr G; {again.dimensions} dimensions above a quarter; permutations",
            }
        )
    return rows


def _where(found: SiteFinding, test: str) -> dict[str, Any]:
    return {"test": test, "site": found.site, "grouping": found.grouping, "correction": found.correction}


def _test(
    found: SiteFinding, name: str, test: Tested, *, rank: int | None, note: str, paid: float | None = None
) -> dict[str, Any]:
    return {
        **_where(found, name),
        "rank": rank,
        "statistic": finite(test.statistic),
        "null_mean": finite(float(test.null_B.mean())),
        "null_sd": finite(float(test.null_B.std())),
        "p": test.p,
        "p_max_t": finite(paid),
        "flips": len(test.null_B),
        "note": note,
    }


def power_rows(found: SiteFinding) -> list[dict[str, Any]]:
    """Planted effects, each in units of rho and of eta."""
    planted, examined = found.decision.planted, found.decision.examined
    if planted is None or examined is None:
        return []
    units = {"rho": examined.geometry.total, "eta": examined.geometry.orthogonal_variance}
    return [
        {
            "site": found.site,
            "grouping": found.grouping,
            "correction": found.correction,
            "scale": scale,
            "offsets": point.offsets if point.energy > 0 else "none",
            "effect": point.energy / unit,
            "runs": point.runs,
            "detected": point.detected,
            "share": point.share,
            "low": point.interval[0],
            "high": point.interval[1],
        }
        for scale, unit in units.items()
        if unit > 0
        for point in planted.points
    ]


def sensitivity_rows(found: SiteFinding) -> list[dict[str, Any]]:
    """T3 over the range of Gamma."""
    return [
        {
            "site": found.site,
            "correction": found.correction,
            "gamma": row.gamma,
            "k_adj": row.k_adj,
            "p": row.p,
            "rejected": row.rejected,
        }
        for row in found.decision.sensitivity
    ]
