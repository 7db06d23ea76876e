"""From one site's arrays to a verdict: examine, plant where power decides, apply the rule.

Shapes: N questions, D width, S responses a question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unmask.analysis.crosstalk import Causal
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
from unmask.analysis.nulls import Tested, shift_test
from unmask.analysis.planted import PlantedControls
from unmask.analysis.preparation import Groups, flip_rows
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
        passed = replace(self.examined.pass_through, kernels=[])
        return replace(self, examined=replace(self.examined, transport=carried, prepared=prepared, pass_through=passed))

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
    polarity_N: np.ndarray | None = None,
    causal: Causal | None = None,
    seed: int,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    full: bool = False,
) -> Decision:
    """The verdict on one site: is the shift one thing over the groups?

    `shift_ND` is tuned minus base reader on the organism's text (mean over responses), `base_ND` the base reader's activations
    there, `replicates_NSD` the shift per response (S >= 2), `control_ND` the control organism's shift on the same text (NaN rows
    where it was not read). With a control, the shift without the control's mean is what is decided on. `causal` is what T5 found
    over these groups, None where it was not measured. `polarity_N` is -1 where
    agreeing with the question is the aligned answer: where no mean shift is found, but one is once these questions' shifts are
    turned round (at a fifth of alpha), that is decided on. `full` plants controls and runs the Gamma sensitivity whatever the
    verdict; otherwise only where the rule needs power. Data that cannot be tested give `inconclusive` with the reason; values
    that are not finite raise ValueError.
    """
    found = _decide(
        shift_ND,
        base_ND,
        groups_N,
        replicates_NSD=replicates_NSD,
        control_ND=control_ND,
        causal=causal,
        seed=seed,
        settings=settings,
        full=full,
    )
    if polarity_N is None or found.verdict != "no-shift":
        return found
    sign_N1 = np.where(np.asarray(polarity_N) < 0, -1.0, 1.0)[:, None]
    if (sign_N1 == sign_N1[0]).all():
        return found
    turned = _decide(
        np.asarray(shift_ND, float) * sign_N1,
        np.asarray(base_ND, float) * sign_N1,
        groups_N,
        replicates_NSD=None if replicates_NSD is None else np.asarray(replicates_NSD, float) * sign_N1[:, None],
        control_ND=None if control_ND is None else np.asarray(control_ND, float) * sign_N1,
        causal=causal,
        seed=seed,
        settings=settings,
        full=full,
    )
    if turned.examined is None or turned.examined.shift.p > settings.thresholds.alpha / TURNED_SHARE:
        return found
    reason = (
        "no mean shift was found as it is, but one is where the shifts of questions whose polarity is -1 are turned round "
        f"(T1, p = {turned.examined.shift.p:.3f}): all that follows is about the turned shifts"
    )
    qualifier = f"{turned.qualifier}, sign by polarity" if turned.qualifier else "sign by polarity"
    return replace(turned, ruling=Ruling(turned.verdict, qualifier, (reason, *turned.ruling.reasons)))


TURNED_SHARE = 5
"""The level of the second look, at shifts turned by polarity, is alpha over this."""


def _decide(
    shift_ND: np.ndarray,
    base_ND: np.ndarray,
    groups_N: np.ndarray,
    *,
    replicates_NSD: np.ndarray | None,
    control_ND: np.ndarray | None,
    causal: Causal | None,
    seed: int,
    settings: Settings,
    full: bool,
) -> Decision:
    _refuse_unequal(shift_ND, base_ND, groups_N, replicates_NSD, control_ND)
    try:
        kept = keep_groups(groups_N)
    except Untestable as error:
        return _untestable(error, None)
    rows_N = kept.rows_N
    shift_ND, base_ND = np.asarray(shift_ND, float)[rows_N], np.asarray(base_ND, float)[rows_N]
    groups = Groups.of(np.asarray(groups_N)[rows_N])
    if shift_ND.size and not shift_ND.any():
        reason = "the tuned and the base model have the same activations, to the last digit"
        return Decision(Ruling("no-shift", None, (reason,)), {}, dropped=kept.dropped)
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
    if control_ND is not None:
        found = replace(found, shift=_paired_shift(shift_ND, control_ND, groups, signs_BN, found.shift))
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
        k_star=k_star,  # two groups have one contrast: without a control a graded axis cannot be told apart
        rho_adj=found.rho_adj,
        eta_adj=found.eta_adj,
        replicate_dimensions=again.dimensions if again is not None else None,
        causal=causal,
        fingerprint_removed=control_ND is not None,
    )
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


def _refuse_unequal(
    shift_ND: np.ndarray,
    base_ND: np.ndarray,
    groups_N: np.ndarray,
    replicates_NSD: np.ndarray | None,
    control_ND: np.ndarray | None,
) -> None:
    """Raise ValueError unless every table has a row per question."""
    tables = {"the shift": shift_ND, "the base activations": base_ND, "the groups": groups_N}
    tables |= {"the replicates": replicates_NSD} if replicates_NSD is not None else {}
    tables |= {"the control's shift": control_ND} if control_ND is not None else {}
    rows = {name: len(table) for name, table in tables.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"not a row per question: {', '.join(f'{name} {count}' for name, count in rows.items())}")


def _paired_shift(
    shift_ND: np.ndarray, control_ND: np.ndarray, groups: Groups, signs_BN: np.ndarray, unpaired: Tested
) -> Tested:
    """T1 beyond the control: question by question, where both were read.

    The control's mean is one noisy vector, taken off every row: T1 would find that noise. Falls back on the unpaired test where
    some group has fewer than 2 questions with a control.
    """
    there_N = np.isfinite(control_ND).all(axis=1)
    paired = Groups.of(np.array(groups.names)[groups.codes_N[there_N]])
    if paired.count < groups.count or paired.sizes_F.min() < 2:
        return unpaired
    rows_ND = flip_rows(remove_control(shift_ND, control_ND, removal="question")[there_N])
    return shift_test(rows_ND, signs_BN[:, there_N], paired)


def _untestable(error: Untestable, dropped: dict[str, int] | None) -> Decision:
    return Decision(Ruling("inconclusive", "not testable", (str(error),)), {}, dropped=dropped)


def _halves(replicates_NSD: np.ndarray | None, rows_N: np.ndarray) -> np.ndarray | None:
    """Means of two disjoint halves of each question's responses (2 x N x D); None below two responses."""
    if replicates_NSD is None or replicates_NSD.shape[1] < 2:
        return None
    kept = np.asarray(replicates_NSD, dtype=float)[rows_N]
    middle = kept.shape[1] // 2
    return np.stack([_mean_of_present(kept[:, :middle]), _mean_of_present(kept[:, middle:])])


def _mean_of_present(rows_NSD: np.ndarray) -> np.ndarray:
    """Mean over the responses that are there (N x D); NaN for a question that has none."""
    there_NS = np.asarray(np.isfinite(rows_NSD).all(axis=2))
    sums_ND = np.where(there_NS[:, :, None], rows_NSD, 0.0).sum(axis=1)
    counts_N1 = there_NS.sum(axis=1, keepdims=True)
    return np.where(counts_N1 > 0, sums_ND / np.maximum(counts_N1, 1), np.nan)


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
        "pass_through_p": found.pass_through.p,
        "topic_gain_p": found.pass_through.p_topic,
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
