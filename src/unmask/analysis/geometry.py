"""Noise-corrected geometry of group mean shifts: Gram matrix, disattenuated cosines, rho and eta, with intervals.

Shapes: N questions, C coordinates, F groups, B bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unmask.analysis.preparation import Groups, row_energy

LEVEL = 0.90
_MOST_LOST = 0.05
"""An interval is missing when more than this share of the resamples has no cosine (a group without mean shift)."""


class Ends(NamedTuple):
    """An estimate with the ends of its 90 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the group means of one site look like once sampling noise is taken out.

    `gram_FF` is G_fg = sqrt(w_f w_g) mu_f . mu_g, unbiased; `cosine_FF` are disattenuated (may pass 1, NaN where a group has no
    mean shift), with interval ends; `rho` is the share of mean-shift energy outside the shared direction, `eta` the same energy
    over the question variance orthogonal to that direction.
    """

    gram_FF: np.ndarray
    eigenvalues_F: np.ndarray
    cosine_FF: np.ndarray
    cosine_low_FF: np.ndarray
    cosine_high_FF: np.ndarray
    naive_cosine_FF: np.ndarray
    rho: Ends
    eta: Ends
    mean_share: float
    """Energy of the mean shift over the mean energy of a question's shift: how much of it is common or by group."""
    noise_ratio: float
    """Question noise (trace of the within-group covariance) over mean-shift energy."""
    shared_C: np.ndarray
    """The shared direction v, unit norm."""
    total: float
    """tr G: the mean-shift energy."""
    rest: float
    """tr G - l1: its part outside the shared direction."""
    orthogonal_variance: float
    """Question variance of the shift orthogonal to v."""


def noise_corrected_gram(means_FC: np.ndarray, within_F: np.ndarray, groups: Groups) -> np.ndarray:
    """G_fg = sqrt(w_f w_g) mu_f . mu_g - 1[f = g] tr(S_f) / n (F x F): the U-statistic without self-pairs.

    `within_F` holds tr(S_f), the trace of each group's unbiased covariance.
    """
    weighted_FC = np.sqrt(groups.weights_F)[:, None] * means_FC
    return weighted_FC @ weighted_FC.T - np.diag(within_F) / groups.sizes_F.sum()


def within_traces(rows_NC: np.ndarray, groups: Groups) -> np.ndarray:
    """tr(S_f), the trace of each group's unbiased covariance (F). Groups need at least 2 questions."""
    energy_F = np.bincount(groups.codes_N, weights=row_energy(groups.centred(rows_NC)), minlength=groups.count)
    return energy_F / (groups.sizes_F - 1)


def gram_of(rows_NC: np.ndarray, groups: Groups) -> np.ndarray:
    """The noise-corrected Gram matrix of group means (F x F)."""
    return noise_corrected_gram(groups.means(rows_NC), within_traces(rows_NC, groups), groups)


def cosines(gram_FF: np.ndarray) -> np.ndarray:
    """C_fg = G_fg / sqrt(G_ff G_gg), never clipped; NaN where a diagonal entry is not positive."""
    diagonal = np.diagonal(gram_FF, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        norms = np.sqrt(np.where(diagonal > 0, diagonal, np.nan))
    return gram_FF / (norms[..., :, None] * norms[..., None, :])


def shared_direction(means_FC: np.ndarray, gram_FF: np.ndarray, groups: Groups) -> np.ndarray:
    """v = sum_f u_f sqrt(w_f) mu_f, u the leading eigenvector of G: unit norm, along the mean shift (C)."""
    leading_F = np.linalg.eigh(gram_FF)[1][:, -1]
    vector_C = (leading_F * np.sqrt(groups.weights_F)) @ means_FC
    norm = float(np.linalg.norm(vector_C))
    if norm == 0:
        return np.zeros_like(vector_C)
    vector_C = vector_C / norm
    return vector_C if float(groups.weights_F @ means_FC @ vector_C) >= 0 else -vector_C


def off(rows_NC: np.ndarray, direction_C: np.ndarray) -> np.ndarray:
    """Rows with their part along a unit direction projected out (N x C)."""
    return rows_NC - np.outer(rows_NC @ direction_C, direction_C)


def describe(rows_NC: np.ndarray, groups: Groups, *, rng: np.random.Generator, resamples: int = 400) -> Geometry:
    """The geometry of one site, with multinomial bootstrap intervals within groups, pairs (q, q) left out."""
    means_FC = groups.means(rows_NC)
    within_F = within_traces(rows_NC, groups)
    gram_FF = noise_corrected_gram(means_FC, within_F, groups)
    eigenvalues_F = np.linalg.eigvalsh(gram_FF)[::-1]
    shared_C = shared_direction(means_FC, gram_FF, groups)
    total, rest = float(np.trace(gram_FF)), float(np.trace(gram_FF) - eigenvalues_F[0])
    variance = orthogonal_variance(rows_NC, shared_C)
    boot_BFF, boot_variance_B = _bootstrap(rows_NC, groups, rng=rng, resamples=resamples)
    boot_total_B = np.trace(boot_BFF, axis1=1, axis2=2)
    boot_rest_B = boot_total_B - np.linalg.eigvalsh(boot_BFF)[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        rho_B = np.where(boot_total_B > 0, boot_rest_B / boot_total_B, np.nan)
        eta_B = np.where(boot_variance_B > 0, boot_rest_B / boot_variance_B, np.nan)
    low_FF, high_FF = _quantiles(cosines(boot_BFF))
    energy = float(row_energy(rows_NC).mean())
    noise = float(groups.weights_F @ within_F)
    return Geometry(
        gram_FF=gram_FF,
        eigenvalues_F=eigenvalues_F,
        cosine_FF=cosines(gram_FF),
        cosine_low_FF=low_FF,
        cosine_high_FF=high_FF,
        naive_cosine_FF=cosines(means_FC @ means_FC.T),
        rho=_ends(rest / total if total > 0 else np.nan, rho_B),
        eta=_ends(rest / variance if variance > 0 else np.nan, eta_B),
        mean_share=total / energy if energy > 0 else float("nan"),
        noise_ratio=noise / total if total > 0 else float("nan"),
        shared_C=shared_C,
        total=total,
        rest=rest,
        orthogonal_variance=variance,
    )


def orthogonal_variance(rows_NC: np.ndarray, direction_C: np.ndarray) -> float:
    """Mean squared distance of the rows from their mean, orthogonal to a unit direction."""
    centred = rows_NC - rows_NC.mean(axis=0)
    return float(row_energy(centred).mean() - ((centred @ direction_C) ** 2).mean())


def _bootstrap(
    rows_NC: np.ndarray, groups: Groups, *, rng: np.random.Generator, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resampled Gram matrices (B x F x F) and orthogonal variances (B)."""
    n, energy_N = len(rows_NC), row_energy(rows_NC)
    weights_BN = np.zeros((resamples, n))
    sums_BFC = np.empty((resamples, groups.count, rows_NC.shape[1]))
    self_BF = np.empty((resamples, groups.count))
    pairs_BF = np.empty((resamples, groups.count))
    for group, size in enumerate(groups.sizes_F):
        members = np.flatnonzero(groups.codes_N == group)
        drawn = rng.multinomial(size, np.full(size, 1.0 / size), size=resamples).astype(np.float64)
        weights_BN[:, members] = drawn
        sums_BFC[:, group] = drawn @ rows_NC[members]
        self_BF[:, group] = drawn**2 @ energy_N[members]
        pairs_BF[:, group] = size**2 - (drawn**2).sum(axis=1)
    scaled = sums_BFC / groups.sizes_F[:, None]
    gram_BFF = scaled @ scaled.transpose(0, 2, 1)
    own_BF = (np.einsum("bfc,bfc->bf", sums_BFC, sums_BFC) - self_BF) / np.maximum(pairs_BF, 1.0)
    index = np.arange(groups.count)
    gram_BFF[:, index, index] = own_BF
    root_F = np.sqrt(groups.weights_F)
    gram_BFF *= root_F[:, None] * root_F[None, :]
    leading_BF = np.linalg.eigh(gram_BFF)[1][:, :, -1]
    shared_BC = np.einsum("bf,bfc->bc", leading_BF * root_F, scaled)
    shared_BC /= np.maximum(np.linalg.norm(shared_BC, axis=1, keepdims=True), 1e-300)
    mean_BC = sums_BFC.sum(axis=1) / n
    along_BN = shared_BC @ rows_NC.T
    along = (weights_BN * along_BN**2).sum(axis=1) / n - np.einsum("bc,bc->b", mean_BC, shared_BC) ** 2
    spread = weights_BN @ energy_N / n - row_energy(mean_BC)
    return gram_BFF, spread - along


def _ends(value: float, resampled_B: np.ndarray) -> Ends:
    low, high = _quantiles(resampled_B)
    return Ends(float(value), float(low), float(high))


def _quantiles(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 90 % interval over the first axis; NaN where too many resamples are missing."""
    lost = np.isnan(resampled).mean(axis=0) > _MOST_LOST
    filled = np.where(lost, 0.0, resampled)
    low, high = np.nanquantile(filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.where(lost, np.nan, low), np.where(lost, np.nan, high)
