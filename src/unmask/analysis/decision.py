"""From one site's arrays to a verdict: examine, plant where power decides, apply the rule.

Shapes: N questions, D width, S responses a question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unmask.analysis.crosstalk import CrossTalk
from unmask.analysis.examination import (
    Examined,
    Sensitivity,
    Settings,
    Untestable,
    examine,
    flips_for,
    gamma_sensitivity,
    interest_energy,
    keep_groups,
    planted_controls,
    replicated,
)
from unmask.analysis.fingerprint import Origin, origin, remove_control
from unmask.analysis.planted import PlantedControls
from unmask.analysis.preparation import Groups
from unmask.analysis.replicates import Replicates
from unmask.analysis.verdict import Findings, Ruling, Verdict, judge_findings


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with everything it was reached from. `examined` is None when nothing could be tested."""

    ruling: Ruling
    numbers: dict[str, float | None]
    examined: Examined | None = None
    findings: Findings | None = None
    planted: PlantedControls | None = None
    replicates: Replicates | None = None
    origin: Origin | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    dropped: dict[str, int] | None = None

    def without_matrices(self) -> Decision:
        """The same with the matrices over questions let go; statistics, geometry and p-values stay."""
        if self.examined is None:
            return self
        empty = np.zeros((0, 0))
        carried = replace(self.examined.transport, whitener_NN=empty, contrasts_NG=empty, white_NC=empty)
        prepared = replace(self.examined.prepared, rows_NC=empty, basis_DC=empty)
        return replace(self, examined=replace(self.examined, transport=carried, prepared=prepared, kernels=[]))

    @property
    def verdict(self) -> Verdict:
        return self.ruling.verdict

    @property
    def qualifier(self) -> str | None:
        return self.ruling.qualifier


def decide(
    shift_ND: np.ndarray,
    base_ND: np.ndarray,
    groups_N: np.ndarray,
    *,
    replicates_NSD: np.ndarray | None = None,
    control_ND: np.ndarray | None = None,
    causal: CrossTalk | None = None,
    seed: int,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    full: bool = False,
) -> Decision:
    """The verdict on one site: is the shift one thing over the groups?

    `shift_ND` is tuned minus base reader on the organism's text (mean over responses), `base_ND` the base reader's activations
    there, `replicates_NSD` the shift per response (S >= 2), `control_ND` the control organism's shift on the same text (NaN rows
    where it was not read). With a control, the shift without the control's mean is what is decided on. `full` plants controls and
    runs the Gamma sensitivity whatever the verdict; otherwise only where the rule needs power. Data that cannot be tested give
    `inconclusive` with the reason; values that are not finite raise ValueError.
    """
    try:
        kept = keep_groups(groups_N)
    except Untestable as error:
        return _untestable(error, None)
    rows_N = kept.rows_N
    shift_ND, base_ND = np.asarray(shift_ND, float)[rows_N], np.asarray(base_ND, float)[rows_N]
    groups = Groups.of(np.asarray(groups_N)[rows_N])
    signs_BN = flips_for(len(shift_ND), seed=seed, settings=settings)
    corrected_ND, halves_2ND = shift_ND, _halves(replicates_NSD, rows_N)
    if control_ND is not None:
        control_ND = np.asarray(control_ND, float)[rows_N]
        corrected_ND = remove_control(shift_ND, control_ND, removal="mean")
        if halves_2ND is not None:
            halves_2ND = np.stack([remove_control(half, control_ND, removal="mean") for half in halves_2ND])
    try:
        found = examine(corrected_ND, base_ND, groups, signs_BN=signs_BN, seed=seed, settings=settings)
    except Untestable as error:
        return _untestable(error, kept.dropped)
    start = origin(found.prepared, groups, control_ND) if control_ND is not None else None
    k_star = start.k_star if start is not None else 2
    again = replicated(found, halves_2ND, seed=seed, settings=settings) if halves_2ND is not None else None
    alpha = settings.thresholds.alpha
    findings = Findings(
        p_shift=found.shift.p,
        p_rank=found.ranks.tests[0].p,
        rho_high=found.geometry.rho.high,
        eta_high=found.geometry.eta.high,
        k_adj=found.k_adj(alpha),
        k_star=min(k_star, groups.count - 1),
        rho_adj=found.rho_adj,
        eta_adj=found.eta_adj,
        replicate_dimensions=again.dimensions if again is not None else None,
        causal=causal.outcome if causal is not None else None,
    )
    if k_star > groups.count - 1:
        findings = replace(findings, k_star=k_star)  # two groups have one contrast: a graded axis cannot be told apart
    ruling = judge_findings(findings, settings.thresholds)
    planted, sensitivity, gamma_star = None, [], None
    if full or (findings.k_adj == 0 and ruling.verdict == "inconclusive"):
        planted = planted_controls(found, k_star=max(1, min(k_star, groups.count - 1)), seed=seed, settings=settings)
        power = planted.power_at(interest_energy(found.geometry, settings.thresholds))
        findings = replace(findings, power_of_interest=power)
        ruling = judge_findings(findings, settings.thresholds)
    if full:
        sensitivity, gamma_star = gamma_sensitivity(
            found, k_star=max(1, min(k_star, groups.count - 1)), signs_BN=signs_BN, settings=settings
        )
    return Decision(
        ruling=ruling,
        numbers=_numbers(found, findings, settings, planted=planted, again=again, start=start, gamma_star=gamma_star),
        examined=found,
        findings=findings,
        planted=planted,
        replicates=again,
        origin=start,
        sensitivity=tuple(sensitivity),
        dropped=kept.dropped,
    )


def _untestable(error: Untestable, dropped: dict[str, int] | None) -> Decision:
    return Decision(Ruling("inconclusive", "not testable", (str(error),)), {}, dropped=dropped)


def _halves(replicates_NSD: np.ndarray | None, rows_N: np.ndarray) -> np.ndarray | None:
    """Means of two disjoint halves of each question's responses (2 x N x D); None below two responses."""
    if replicates_NSD is None or replicates_NSD.shape[1] < 2:
        return None
    kept = np.asarray(replicates_NSD, dtype=float)[rows_N]
    middle = kept.shape[1] // 2
    return np.stack([kept[:, :middle].mean(axis=1), kept[:, middle:].mean(axis=1)])


def _numbers(
    found: Examined,
    findings: Findings,
    settings: Settings,
    *,
    planted: PlantedControls | None,
    again: Replicates | None,
    start: Origin | None,
    gamma_star: float | None,
) -> dict[str, float | None]:
    """Every number of the verdict by name; None where it was not measured or is not defined."""
    g, t = found.geometry, settings.thresholds
    detectable = planted.detectable() if planted is not None else float("nan")
    values = {
        "p_shift": found.shift.p,
        "p_rank": found.ranks.tests[0].p,
        "rank": found.ranks.rank(t.alpha),
        "rho": g.rho.value,
        "rho_low": g.rho.low,
        "rho_high": g.rho.high,
        "eta": g.eta.value,
        "eta_low": g.eta.low,
        "eta_high": g.eta.high,
        "k_adj": findings.k_adj,
        "k_star": findings.k_star,
        "p_adj": max(test.p for test in found.contrasts.tests[: findings.k_star]),
        "rho_adj": findings.rho_adj,
        "eta_adj": findings.eta_adj,
        "gamma": settings.gamma,
        "gamma_star": gamma_star,
        "mean_share": g.mean_share,
        "transport_share": found.transport.transport_share,
        "pass_through_p": found.pass_through_p,
        "noise_ratio": g.noise_ratio,
        "replicate_dimensions": again.dimensions if again is not None else None,
        "replicate_p": again.p if again is not None else None,
        "replicate_reliability": again.reliability if again is not None else None,
        "mde80_rho": detectable / g.total if g.total > 0 else None,
        "mde80_eta": detectable / g.orthogonal_variance if g.orthogonal_variance > 0 else None,
        "power_at_interest": findings.power_of_interest,
        "false_positive_rate": planted.false_positive_rate if planted is not None else None,
        "origin_share": start.share if start is not None else None,
        "alpha": t.alpha,
        "rho_star": t.rho,
        "eta_star": t.eta,
        "capped": found.prepared.capped,
    }
    return {name: None if value is None or not math.isfinite(value) else float(value) for name, value in values.items()}
