"""The rule of METHODS section 4, path by path, and against a second writing of it over every combination."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from unmask.analysis.verdict import VERDICTS, Findings, Thresholds, judge_findings

NAN = float("nan")

NOTHING = Findings(0.5, 0.5, 0.5, 0.5, k_adj=0, k_star=2, rho_adj=0.0, eta_adj=0.0)
ONE = Findings(0.01, 0.5, 0.05, 0.03, k_adj=0, k_star=2, rho_adj=0.0, eta_adj=0.0, fingerprint_removed=True)
RAW = replace(ONE, fingerprint_removed=False)
WIDE = replace(ONE, rho_high=0.3)
TOPIC = replace(WIDE, p_rank=0.01)
GRADED = replace(TOPIC, k_adj=1)
MANY = replace(TOPIC, k_adj=3, rho_adj=0.2, eta_adj=0.1)
FAINT = replace(MANY, rho_adj=0.04, eta_adj=0.02)

TABLE = [
    # 1
    (NOTHING, "no-shift", None),
    (replace(MANY, p_shift=0.051), "no-shift", None),
    (replace(MANY, p_shift=0.05), "separable", "geometric, provisional"),
    # 2
    (ONE, "monolithic", None),
    (replace(ONE, p_rank=0.01), "monolithic", None),
    (replace(ONE, p_rank=NAN), "monolithic", None),
    (replace(ONE, replicate_dimensions=0), "monolithic", None),
    (RAW, "monolithic", "fingerprint of tuning included"),
    (replace(RAW, k_adj=3, rho_adj=0.04), "monolithic", "fingerprint of tuning included"),
    (replace(RAW, causal="cross-talk"), "monolithic", None),
    (replace(RAW, replicate_dimensions=1), "entangled", "not along the facets"),
    (replace(RAW, causal="selective"), "inconclusive", "conflict"),
    (replace(ONE, causal="cross-talk"), "monolithic", None),
    (replace(ONE, causal="undetermined"), "monolithic", None),
    (replace(ONE, causal="not potent"), "monolithic", None),
    (replace(ONE, replicate_dimensions=1), "entangled", "not along the facets"),
    (replace(ONE, replicate_dimensions=3, causal="cross-talk"), "entangled", "not along the facets"),
    (replace(ONE, causal="selective"), "inconclusive", "conflict"),
    (replace(ONE, causal="selective", replicate_dimensions=2), "inconclusive", "conflict"),
    # limits are ends of intervals, and must both be passed
    (replace(ONE, rho_high=0.1), "inconclusive", None),
    (replace(ONE, eta_high=0.06), "inconclusive", None),
    (replace(ONE, rho_high=NAN), "inconclusive", None),
    (replace(ONE, eta_high=NAN), "inconclusive", None),
    # 3
    (WIDE, "inconclusive", None),
    (replace(WIDE, p_rank=0.051, k_adj=3, rho_adj=0.5, causal="selective"), "inconclusive", None),
    (replace(WIDE, p_rank=NAN, k_adj=3, rho_adj=0.5), "inconclusive", None),
    # 4: k_adj >= k* with energy
    (MANY, "separable", "geometric, provisional"),
    (replace(MANY, k_adj=2), "separable", "geometric, provisional"),
    (replace(MANY, rho_adj=0.05, eta_adj=0.0), "separable", "geometric, provisional"),
    (replace(MANY, rho_adj=0.0, eta_adj=0.03), "separable", "geometric, provisional"),
    (replace(MANY, rho_adj=NAN, eta_adj=0.03), "separable", "geometric, provisional"),
    (replace(MANY, causal="selective"), "separable", None),
    (replace(MANY, causal="cross-talk"), "entangled", None),
    (replace(MANY, causal="undetermined"), "inconclusive", None),
    (replace(MANY, causal="not potent"), "inconclusive", None),
    (replace(MANY, replicate_dimensions=4), "separable", "geometric, provisional"),
    # with less energy
    (FAINT, "entangled", None),
    (replace(FAINT, causal="cross-talk"), "entangled", None),
    (replace(FAINT, causal="undetermined"), "entangled", None),
    (replace(FAINT, causal="selective"), "inconclusive", "conflict"),
    # one dimension, and whether it is enough
    (GRADED, "inconclusive", "graded axis or two camps"),
    (replace(GRADED, causal="undetermined"), "inconclusive", "graded axis or two camps"),
    (replace(GRADED, causal="not potent"), "inconclusive", "graded axis or two camps"),
    (replace(GRADED, causal="selective"), "separable", None),
    (replace(GRADED, causal="cross-talk"), "monolithic", "graded"),
    (replace(GRADED, k_star=1, rho_adj=0.2), "separable", "geometric, provisional"),
    (replace(GRADED, k_star=1, rho_adj=0.099, eta_adj=0.059), "inconclusive", "graded axis or two camps"),
    (replace(GRADED, k_star=1, rho_adj=0.0, eta_adj=0.06), "separable", "geometric, provisional"),
    (replace(GRADED, k_star=1, causal="cross-talk"), "entangled", None),
    (replace(GRADED, k_star=1, causal="selective"), "inconclusive", "conflict"),
    # none
    (TOPIC, "inconclusive", None),
    (replace(TOPIC, power_of_interest=0.8), "entangled", "carried by topic"),
    (replace(TOPIC, power_of_interest=0.79), "inconclusive", None),
    (replace(TOPIC, power_of_interest=NAN), "inconclusive", None),
    (replace(TOPIC, causal="cross-talk"), "entangled", "carried by topic"),
    (replace(TOPIC, causal="cross-talk", power_of_interest=0.1), "entangled", "carried by topic"),
    (replace(TOPIC, causal="selective", power_of_interest=1.0), "inconclusive", "conflict"),
    (replace(TOPIC, causal="undetermined", power_of_interest=1.0), "entangled", "carried by topic"),
    (replace(TOPIC, causal="not potent", power_of_interest=0.5), "inconclusive", None),
]  # fmt: skip


@pytest.mark.parametrize(("found", "verdict", "qualifier"), TABLE)
def test_the_table(found: Findings, verdict: str, qualifier: str | None) -> None:
    ruling = judge_findings(found)
    assert (ruling.verdict, ruling.qualifier) == (verdict, qualifier)


@pytest.mark.parametrize("found", [replace(MANY, p_shift=NAN), replace(MANY, rho_adj=NAN, eta_adj=NAN)])
def test_a_missing_number_is_never_a_confident_verdict(found: Findings) -> None:
    assert judge_findings(found).verdict == "inconclusive"


def second_writing(found: Findings) -> str:
    """The rule once more, as nested conditions; NaN fails every comparison that would claim something."""
    if not found.p_shift <= 0.05:
        return "no-shift"
    if found.rho_high < 0.10 and found.eta_high < 0.06:
        if found.causal == "selective":
            return "inconclusive"
        return "entangled" if (found.replicate_dimensions or 0) >= 1 else "monolithic"
    if not found.p_rank <= 0.05:
        return "inconclusive"
    if found.k_adj >= found.k_star:
        least = 1.0 if found.k_adj == 1 else 0.5  # one dimension alone must hold twice as much
        if found.rho_adj >= least * 0.10 or found.eta_adj >= least * 0.06:
            return {None: "separable", "selective": "separable", "cross-talk": "entangled"}.get(
                found.causal, "inconclusive"
            )
        if found.k_adj == 1:
            return "entangled" if found.causal == "cross-talk" else "inconclusive"
        return "inconclusive" if found.causal == "selective" else "entangled"
    if found.k_adj == 1:
        return {"selective": "separable", "cross-talk": "monolithic"}.get(found.causal, "inconclusive")
    if found.causal in {"cross-talk", "selective"}:
        return {"cross-talk": "entangled", "selective": "inconclusive"}[found.causal]
    return "entangled" if (found.power_of_interest or 0) >= 0.8 else "inconclusive"


def test_every_combination_agrees_with_a_second_writing_and_says_why() -> None:
    seen = set()
    for p_shift, p_rank, highs, k_adj, k_star, energy, dimensions, causal, power, removed in product(
        (0.01, 0.5),
        (0.01, 0.5, NAN),
        ((0.05, 0.03), (0.3, 0.03), (0.05, 0.2), (NAN, 0.03)),
        (0, 1, 2, 3),
        (1, 2),
        ((0.2, 0.1), (0.0, 0.1), (0.2, 0.0), (0.07, 0.04), (0.0, 0.0), (-0.1, -0.1)),
        (None, 0, 2),
        (None, "selective", "cross-talk", "undetermined", "not potent"),
        (None, 0.3, 0.9, NAN),
        (False, True),
    ):
        found = Findings(p_shift, p_rank, *highs, k_adj, k_star, *energy, dimensions, causal, power, removed)
        ruling = judge_findings(found)
        assert ruling.verdict == second_writing(found), found
        assert ruling.verdict in VERDICTS
        assert len(ruling.reasons) >= 1
        assert all(reason.strip() for reason in ruling.reasons)
        seen.add(ruling.verdict)
    assert seen == set(VERDICTS)


def test_limits_are_the_ones_given() -> None:
    strict = Thresholds(alpha=0.001, rho=0.01, eta=0.01, power=0.99)
    assert judge_findings(MANY, strict).verdict == "no-shift"
    assert judge_findings(replace(ONE, p_shift=0.0005), strict).verdict == "inconclusive"
    wide = Thresholds(rho=0.5, eta=0.5)
    assert judge_findings(MANY, wide).verdict == "monolithic"
    assert judge_findings(replace(TOPIC, power_of_interest=0.9), strict).verdict == "no-shift"
    loose = Thresholds(power=0.5)
    assert judge_findings(replace(TOPIC, power_of_interest=0.6), loose).verdict == "entangled"


def test_reasons_name_the_numbers_they_rest_on() -> None:
    said = " ".join(judge_findings(replace(ONE, p_rank=0.034)).reasons)
    assert "0.050" in said
    assert "p = 0.034" in said
    assert "although the small rest is real" in said
    assert "0.79" in " ".join(judge_findings(replace(TOPIC, power_of_interest=0.79)).reasons)
    assert "not measured" in " ".join(judge_findings(TOPIC).reasons)
    rest = replace(ONE, fingerprint_removed=False, k_adj=3)
    assert "3 dimensions" in judge_findings(rest).reasons[-1]
    assert "3 dimensions" not in " ".join(judge_findings(replace(rest, fingerprint_removed=True)).reasons)
    assert "k_adj = 3, needed 2" in " ".join(judge_findings(MANY).reasons)
