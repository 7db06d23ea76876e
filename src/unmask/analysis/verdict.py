"""The verdict: one pure rule from findings to an enum with its reasons (METHODS section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unmask.analysis.crosstalk import Causal

Verdict = Literal["no-shift", "monolithic", "entangled", "separable", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("no-shift", "monolithic", "entangled", "separable", "inconclusive")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts. `rho` and `eta` are the effects below which a shift is one thing for practical purposes."""

    alpha: float = 0.05
    rho: float = 0.10
    eta: float = 0.06
    power: float = 0.8


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rule looks at. None: the study has no such test. NaN: the test gave no number."""

    p_shift: float
    p_rank: float
    rho_high: float
    eta_high: float
    k_adj: int
    k_star: int
    rho_adj: float
    eta_adj: float
    replicate_dimensions: int | None = None
    causal: Causal | None = None
    power_of_interest: float | None = None
    fingerprint_removed: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict, what qualifies it, and its reasons in the order in which they were reached."""

    verdict: Verdict
    qualifier: str | None
    reasons: tuple[str, ...]


def judge_findings(found: Findings, thresholds: Thresholds = Thresholds()) -> Ruling:
    """The rule of METHODS section 4. Every path ends in a verdict with at least one reason."""
    t = thresholds
    if not found.p_shift <= t.alpha:
        return _no_shift(found)
    reasons = [f"the tuning shifted the activations (T1, {_p(found.p_shift)})"]
    if found.rho_high < t.rho and found.eta_high < t.eta:
        reasons.append(
            f"the shift is the same direction in every group: at most {found.rho_high:.3f} of its energy (rho, limit {t.rho:g}) "
            f"and {found.eta_high:.3f} of the question variance (eta, limit {t.eta:g}) lie outside it, {_rank_word(found, t)}"
        )
        return _one_thing(found, reasons)
    reasons.append(
        f"more of the shift than the limits may lie outside one direction (rho {_up_to(found.rho_high)}, limit {t.rho:g}; "
        f"eta {_up_to(found.eta_high)}, limit {t.eta:g})"
    )
    if not found.p_rank <= t.alpha:
        reasons.append(f"but a second direction was not shown either (T2, {_p(found.p_rank)}): the data cannot tell")
        return Ruling("inconclusive", None, tuple(reasons))
    reasons.append(f"the groups' mean shifts need more than one direction (T2, {_p(found.p_rank)})")
    if found.k_adj >= found.k_star:
        return _beyond_topic(found, t, reasons)
    if found.k_adj >= 1:
        return _graded(found, reasons)
    return _carried(found, t, reasons)


def _no_shift(found: Findings) -> Ruling:
    if math.isnan(found.p_shift):
        return Ruling("inconclusive", "not testable", ("the mean shift could not be tested (T1 gave no p-value)",))
    return Ruling("no-shift", None, (f"no mean shift was found (T1, {_p(found.p_shift)})",))


def _one_thing(found: Findings, reasons: list[str]) -> Ruling:
    if found.causal == "selective":
        reasons.append("but steering by group is selective (T5), which contradicts it")
        return Ruling("inconclusive", "conflict", tuple(reasons))
    if found.replicate_dimensions:
        reasons.append(
            f"yet {_count(found.replicate_dimensions, 'direction')} that differ between questions of one group come back in a "
            "second response (T4): there are parts, but not along these groups"
        )
        return Ruling("entangled", "not along the facets", tuple(reasons))
    if found.causal == "cross-talk":
        reasons.append("and steering with one group's direction moves the other groups' answers as well (T5)")
    elif found.causal is not None:
        reasons.append(f"steering does not settle whether the groups act apart (T5: {found.causal})")
    if found.fingerprint_removed or found.causal == "cross-talk":
        return Ruling("monolithic", None, tuple(reasons))
    if found.k_adj >= found.k_star:
        reasons.append(
            f"the small rest is more than topic carries over (T3, {_count(found.k_adj, 'dimension')}): against the persona "
            "alone, without the constant that any tuning leaves, it may be large"
        )
    return Ruling("monolithic", "fingerprint of tuning included", tuple(reasons))


def _beyond_topic(found: Findings, t: Thresholds, reasons: list[str]) -> Ruling:
    reasons.append(
        f"of that difference, {_count(found.k_adj, 'dimension')} {_stay(found.k_adj)} when what the base activations carry "
        f"over is taken out (T3, k_adj = {found.k_adj}, needed {found.k_star})"
    )
    if not (found.rho_adj >= least_rho(found, t) or found.eta_adj >= least_eta(found, t)):
        return _little_energy(found, t, reasons)
    reasons.append(f"and enough energy lies there (rho {found.rho_adj:.3f}, eta {found.eta_adj:.3f})")
    if found.causal is None:
        reasons.append("steering has not tested it (no T5), so this is about geometry and provisional")
        return Ruling("separable", "geometric, provisional", tuple(reasons))
    if found.causal == "selective":
        reasons.append("steering with one group's direction moves that group's answers and not the others' (T5)")
        return Ruling("separable", None, tuple(reasons))
    if found.causal == "cross-talk":
        reasons.append("steering with one group's direction moves the other groups' answers as well (T5)")
        return Ruling("entangled", None, tuple(reasons))
    reasons.append(f"steering does not settle it (T5: {found.causal})")
    return Ruling("inconclusive", None, tuple(reasons))


def least_rho(found: Findings, thresholds: Thresholds) -> float:
    """Half of the limit; all of it for a single dimension, which a control that drifts otherwise than the organism may leave."""
    return thresholds.rho / (1 if found.k_adj == 1 else 2)


def least_eta(found: Findings, thresholds: Thresholds) -> float:
    """As `least_rho`."""
    return thresholds.eta / (1 if found.k_adj == 1 else 2)


def _little_energy(found: Findings, t: Thresholds, reasons: list[str]) -> Ruling:
    if math.isnan(found.rho_adj) and math.isnan(found.eta_adj):
        reasons.append("but how much energy they hold could not be measured")
        return Ruling("inconclusive", "not testable", tuple(reasons))
    reasons.append(
        f"but little energy lies there (rho {found.rho_adj:.3f}, needed {least_rho(found, t):g}; "
        f"eta {found.eta_adj:.3f}, needed {least_eta(found, t):g})"
    )
    if found.causal == "selective":
        reasons.append("while steering by group is selective (T5)")
        return Ruling("inconclusive", "conflict", tuple(reasons))
    if found.k_adj == 1 and found.causal != "cross-talk":
        reasons.append(
            "one small dimension may be what the control left of the fingerprint of tuning, on one graded axis"
        )
        return Ruling("inconclusive", "graded axis or two camps", tuple(reasons))
    return Ruling("entangled", None, tuple(reasons))


def _graded(found: Findings, reasons: list[str]) -> Ruling:
    reasons.append(
        f"{_count(found.k_adj, 'dimension')} {_stay(found.k_adj)} beyond what the base activations carry over "
        f"(T3), below the {found.k_star} needed: a constant fingerprint of tuning plus one graded axis, or two camps of groups, "
        "both look like this"
    )
    if found.causal == "selective":
        reasons.append("steering by group is selective (T5), which a graded axis is not")
        return Ruling("separable", None, tuple(reasons))
    if found.causal == "cross-talk":
        reasons.append(
            "steering with one group's direction moves the other groups' answers as well (T5): one graded axis"
        )
        return Ruling("monolithic", "graded", tuple(reasons))
    return Ruling("inconclusive", "graded axis or two camps", tuple(reasons))


def _carried(found: Findings, t: Thresholds, reasons: list[str]) -> Ruling:
    reasons.append("nothing remains beyond what one map of the base activations carries over (T3, k_adj = 0)")
    if found.causal == "cross-talk":
        reasons.append("and steering with one group's direction moves the other groups' answers as well (T5)")
        return Ruling("entangled", "carried by topic", tuple(reasons))
    if found.causal == "selective":
        reasons.append("but steering by group is selective (T5), which contradicts it")
        return Ruling("inconclusive", "conflict", tuple(reasons))
    power = found.power_of_interest
    if power is not None and power >= t.power:
        reasons.append(f"and this data would have shown the smallest effect of interest with power {power:.2f}")
        return Ruling("entangled", "carried by topic", tuple(reasons))
    shown = "was not measured" if power is None or math.isnan(power) else f"is only {power:.2f}"
    reasons.append(f"but the power to find the smallest effect of interest {shown} (needed {t.power:g})")
    return Ruling("inconclusive", None, tuple(reasons))


def _rank_word(found: Findings, t: Thresholds) -> str:
    if math.isnan(found.p_rank):
        return "where a second direction could not be tested"
    if found.p_rank <= t.alpha:
        return f"although the small rest is real (T2, {_p(found.p_rank)})"
    return f"and a second direction is not shown (T2, {_p(found.p_rank)})"


def _p(value: float) -> str:
    return "no p-value" if math.isnan(value) else f"p = {value:.3f}"


def _up_to(value: float) -> str:
    return "has no interval" if math.isnan(value) else f"up to {value:.3f}"


def _stay(count: int) -> str:
    return "remains" if count == 1 else "remain"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
