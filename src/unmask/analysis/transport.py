"""T3, topic transport: do the groups' shifts differ by more than one map of the base activations would carry over?

The kinship mixed model of genetics (Kang et al. 2010) with a sensitivity factor: the map's gain is learned within groups, where
it cannot be confused with group effects, and then the between-group differences of the base activations are believed to carry
Gamma times as much variance.

Shapes: N questions, C coordinates, D width, F groups, B flips, K kernels, G = F - 1 contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from unmask.analysis.geometry import off
from unmask.analysis.nulls import RankTests, Tested, ledoit_wolf_whitening
from unmask.analysis.preparation import Groups, row_energy

TOP_COMPONENTS = 8
_ITERATIONS = 6


@dataclass(frozen=True, slots=True)
class Transport:
    """The model of pass-through at one Gamma: whitener, whitened rows and contrasts, and what the groups hold beyond it."""

    gamma: float
    whitener_NN: np.ndarray
    contrasts_NG: np.ndarray
    white_NC: np.ndarray
    """Whitened rows, the constant partialled out."""
    components_K: np.ndarray
    """Variance of each kernel, the last one noise; kernels have mean diagonal 1."""
    adjusted_energy: float
    """Energy of the generalised-least-squares group means about their mean, less its sampling part."""
    plain_energy: float
    """The same without the model."""

    @property
    def transport_share(self) -> float:
        """Share of the between-group energy (orthogonal to the shared direction) that the model carries over."""
        if self.plain_energy <= 0:
            return float("nan")
        return float(np.clip(1.0 - self.adjusted_energy / self.plain_energy, 0.0, 1.0))

    @property
    def residual_NC(self) -> np.ndarray:
        """Whitened rows free of group effects, at full scale (N x C)."""
        n, g = self.contrasts_NG.shape
        left = self.white_NC - self.contrasts_NG @ (self.contrasts_NG.T @ self.white_NC)
        return left * np.sqrt(n / max(n - g - 1, 1))


def base_kernels(base_ND: np.ndarray, groups: Groups, *, further: tuple[np.ndarray, ...] = ()) -> list[np.ndarray]:
    """Kernels (N x N, mean diagonal 1) on prepared base activations, each describing one way a map could carry topic over.

    The 8 leading principal components of the variation within groups, everything else, a radial kernel at the median distance;
    then a linear kernel for each table of `further` (other layers, a control's shift). Kernels without variance are left out.
    """
    gram_NN = base_ND @ base_ND.T
    within_ND = groups.centred(base_ND)
    values, vectors_NE = np.linalg.eigh(within_ND @ within_ND.T)
    kept = [place for place in range(len(values) - 1, -1, -1) if values[place] > 1e-10 * max(values[-1], 1e-300)]
    kept = kept[:TOP_COMPONENTS]
    loadings_DE = within_ND.T @ vectors_NE[:, kept] / np.sqrt(values[kept])
    scores_NE = base_ND @ loadings_DE
    top_NN = scores_NE @ scores_NE.T
    squared_N = np.diagonal(gram_NN)
    distance_NN = np.maximum(squared_N[:, None] + squared_N[None, :] - 2 * gram_NN, 0.0)
    median = float(np.median(distance_NN[np.triu_indices(len(gram_NN), 1)]))
    kernels = [top_NN, gram_NN - top_NN]
    if median > 0:
        kernels.append(np.exp(-distance_NN / (2 * median)))
    kernels += [rows @ rows.T for rows in further]
    traces = [float(np.trace(kernel)) / len(gram_NN) for kernel in kernels]
    largest = max([*traces, 1e-300])
    return [kernel / trace for kernel, trace in zip(kernels, traces, strict=True) if trace > 1e-10 * largest]


def topic_kernel(base_ND: np.ndarray, groups: Groups) -> np.ndarray | None:
    """Linear kernel (N x N, mean diagonal 1) on the F - 1 directions of the base activations in which the groups' means differ.

    Whatever a linear map carries over between groups, it reads there; None where the groups' means are all the same.
    """
    means_FD = groups.means(base_ND)
    weighted_FD = np.sqrt(groups.sizes_F)[:, None] * (means_FD - groups.weights_F @ means_FD)
    _, singular_F, right_FD = np.linalg.svd(weighted_FD, full_matrices=False)
    kept = singular_F[: groups.count - 1] > 1e-8 * max(float(singular_F[0]), 1e-300)
    scores_NG = base_ND @ right_FD[: groups.count - 1][kept].T
    kernel_NN = scores_NG @ scores_NG.T
    trace = float(np.trace(kernel_NN)) / len(base_ND)
    return kernel_NN / trace if trace > 0 else None


@dataclass(frozen=True, slots=True)
class PassThrough:
    """What the shift is shown to take over from the base activations within groups; kernels not shown are left out.

    `p` is of the kernels of `base_kernels` taken together, `p_topic` of `topic_kernel` (NaN where there is none).
    """

    kernels: list[np.ndarray]
    p: float
    p_topic: float

    @property
    def shown(self) -> bool:
        return bool(self.kernels)


def learn_pass_through(
    rows_NC: np.ndarray,
    shared_C: np.ndarray,
    kernels: list[np.ndarray],
    topic_NN: np.ndarray | None,
    groups: Groups,
    *,
    alpha: float,
    permutations: int,
    rng: np.random.Generator,
) -> PassThrough:
    """Is the shift, within groups and off the shared direction, alike where base activations are alike? Keeps what is shown.

    Statistic: alignment sum_{q != q'} K_qq' s_q . s_q' of group-centred rows, whitened by their Ledoit-Wolf covariance (else a
    few loud directions decide), against permutations of each group's questions. Kernels together by the sum of their
    standardised alignments; the topic kernel alone. A variance that is not shown is not fitted: fitted under theta >= 0 it is
    seldom 0, and between groups, where base activations differ most, the little that chance gives it hides real differences.
    """
    rows_NC = groups.centred(off(rows_NC, shared_C))
    rotate_CC, scale_C = ledoit_wolf_whitening(rows_NC)
    rows_NC = (rows_NC @ rotate_CC) * scale_C
    gram_NN = rows_NC @ rows_NC.T
    np.fill_diagonal(gram_NN, 0.0)
    tested = [*kernels, *([] if topic_NN is None else [topic_NN])]
    aligned_PK = np.empty((permutations + 1, len(tested)))
    members = [np.flatnonzero(groups.codes_N == group) for group in range(groups.count)]
    order_N = np.arange(len(rows_NC))
    for draw in range(permutations + 1):
        aligned_PK[draw] = [float(np.vdot(kernel, gram_NN)) for kernel in tested]
        for own in members:
            order_N[own] = rng.permutation(own)
        gram_NN = gram_NN[np.ix_(order_N, order_N)]
    z_PK = (aligned_PK - aligned_PK[1:].mean(axis=0)) / np.maximum(aligned_PK[1:].std(axis=0), 1e-300)
    p = _permutation_p(z_PK[:, : len(kernels)].sum(axis=1))
    p_topic = float("nan") if topic_NN is None else _permutation_p(z_PK[:, -1])
    kept = list(kernels) if p <= alpha else []
    if topic_NN is not None and p_topic <= alpha:
        kept.append(topic_NN)
    return PassThrough(kept, p, p_topic)


def _permutation_p(statistic_P: np.ndarray) -> float:
    """The first is the observed one."""
    return float((statistic_P >= statistic_P[0]).sum() / len(statistic_P))


def variance_components(rows_NC: np.ndarray, kernels: list[np.ndarray], groups: Groups) -> np.ndarray:
    """Non-negative REML variances of the kernels and of noise (K + 1), from contrasts orthogonal to the groups.

    Iterated MINQUE (Rao 1971): theta solves tr(V^-1 K_i V^-1 K_j) theta_j = tr(V^-1 K_i V^-1 S) under theta >= 0, with V from the
    round before; S is the rows' Gram matrix over C. Noise keeps at least a hundredth of the total.
    """
    n, columns = rows_NC.shape
    complete_NN = np.linalg.qr(groups.indicator_NF, mode="complete")[0]
    inside_NM = complete_NN[:, groups.count :]
    rows_MC = inside_NM.T @ rows_NC
    target_MM = rows_MC @ rows_MC.T / columns
    parts = [inside_NM.T @ kernel @ inside_NM for kernel in kernels]
    m = n - groups.count
    scale = float(np.trace(target_MM)) / m
    theta = np.full(len(kernels) + 1, scale / (len(kernels) + 1))
    if scale <= 0:
        return np.append(np.zeros(len(kernels)), 1.0)
    for _ in range(_ITERATIONS):
        covariance_MM = sum(t * part for t, part in zip(theta, parts, strict=False)) + theta[-1] * np.eye(m)
        inverse_MM = cho_solve(cho_factor(covariance_MM), np.eye(m))
        sides = [inverse_MM @ part for part in parts] + [inverse_MM]
        fit = inverse_MM @ target_MM
        normal = np.array([[float((a * b.T).sum()) for b in sides] for a in sides])
        right = np.array([float((a * fit.T).sum()) for a in sides])
        found = _least_squares_above_zero(normal, right)
        found[-1] = max(found[-1], 0.01 * scale)
        done = np.abs(found - theta).max() < 1e-3 * scale
        theta = found
        if done:
            break
    return theta


def _least_squares_above_zero(normal_KK: np.ndarray, right_K: np.ndarray) -> np.ndarray:
    """The theta >= 0 of least theta' N theta - 2 r' theta: non-negative least squares on a root of N, not on N itself."""
    values_K, vectors_KK = np.linalg.eigh(normal_KK)
    kept = values_K > 1e-12 * values_K[-1]
    root_K = np.sqrt(values_K[kept])
    return nnls(root_K[:, None] * vectors_KK[:, kept].T, (vectors_KK[:, kept].T @ right_K) / root_K)[0]


def transport(
    rows_NC: np.ndarray,
    shared_C: np.ndarray,
    kernels: list[np.ndarray],
    groups: Groups,
    *,
    gamma: float,
    components_K: np.ndarray | None = None,
) -> Transport:
    """Fit the pass-through model to rows with the shared direction projected out, and whiten them by it.

    `components_K` reuses variances that were fitted before: they do not depend on gamma.
    """
    rows_NC = off(rows_NC, shared_C)
    n = len(rows_NC)
    if components_K is None:
        components_K = variance_components(rows_NC, kernels, groups)
    projector_NN = (groups.indicator_NF / groups.sizes_F) @ groups.indicator_NF.T
    covariance_NN = components_K[-1] * np.eye(n)
    extra = np.sqrt(gamma) - 1.0
    for variance, kernel in zip(components_K, kernels, strict=False):
        if variance > 0:
            left_NN = kernel + extra * (projector_NN @ kernel)
            covariance_NN += variance * (left_NN + extra * (left_NN @ projector_NN))
    values, vectors_NN = np.linalg.eigh(covariance_NN)
    values = np.maximum(values, 1e-10 * float(values[-1]))
    whitener_NN = (vectors_NN / np.sqrt(values)) @ vectors_NN.T
    constant_N = whitener_NN @ np.ones(n)
    constant_N /= np.linalg.norm(constant_N)
    white_NC = off_constant(whitener_NN @ rows_NC, constant_N)
    design_NF = off_constant(whitener_NN @ groups.indicator_NF, constant_N)
    contrasts_NG = np.linalg.svd(design_NF, full_matrices=False)[0][:, : groups.count - 1]
    adjusted, plain = _group_energy(rows_NC, white_NC, contrasts_NG, whitener_NN, groups)
    return Transport(gamma, whitener_NN, contrasts_NG, white_NC, components_K, adjusted, plain)


def off_constant(rows_NC: np.ndarray, constant_N: np.ndarray) -> np.ndarray:
    """Columns with their part along a unit vector over questions taken out."""
    return rows_NC - np.outer(constant_N, constant_N @ rows_NC)


def _group_energy(
    rows_NC: np.ndarray, white_NC: np.ndarray, contrasts_NG: np.ndarray, whitener_NN: np.ndarray, groups: Groups
) -> tuple[float, float]:
    """Between-group energy less its sampling part: by generalised least squares under the model, and plainly."""
    n, w_F = len(rows_NC), groups.weights_F
    spread_FF = np.diag(w_F) - np.outer(w_F, w_F)
    left = white_NC - contrasts_NG @ (contrasts_NG.T @ white_NC)
    unit = float(row_energy(left).sum()) / max(n - groups.count, 1)
    design_NF = whitener_NN @ groups.indicator_NF
    covariance_FF = np.linalg.inv(design_NF.T @ design_NF)
    means_FC = covariance_FF @ (design_NF.T @ (whitener_NN @ rows_NC))
    adjusted = float((spread_FF * (means_FC @ means_FC.T)).sum()) - unit * float((spread_FF * covariance_FF).sum())
    plain_FC = groups.means(rows_NC)
    energy_F = np.bincount(groups.codes_N, weights=row_energy(groups.centred(rows_NC)), minlength=groups.count)
    sampling_F = energy_F / np.maximum(groups.sizes_F - 1, 1) / groups.sizes_F
    plain = float((spread_FF * (plain_FC @ plain_FC.T)).sum()) - float((np.diagonal(spread_FF) * sampling_F).sum())
    return adjusted, plain


def contrast_tests(found: Transport, signs_BN: np.ndarray, *, alpha: float, least: int = 1) -> RankTests:
    """Sequential sign-flip tests of rank 0, 1, ... of the group contrasts q' W X; their count is k_adj (METHODS T3).

    Residuals are restricted to the null: whitened rows less their contrasts' part of that rank. At least `least` tests are made.
    """
    contrasts_NG, white_NC = found.contrasts_NG, found.white_NC
    effects_GC = contrasts_NG.T @ white_NC
    left_GG, singular_G, right_GC = np.linalg.svd(effects_GC, full_matrices=False)
    signed_BGN = signs_BN[:, None, :] * contrasts_NG.T[None, :, :]
    flat = signed_BGN.reshape(-1, contrasts_NG.shape[0])
    flipped_BGC = (flat @ white_NC).reshape(len(signs_BN), -1, white_NC.shape[1])
    turn_BGG = (flat @ contrasts_NG).reshape(len(signs_BN), -1, contrasts_NG.shape[1])
    tests: list[Tested] = []
    for rank in range(len(singular_G)):
        null_GC = (left_GG[:, :rank] * singular_G[:rank]) @ right_GC[:rank]
        tests.append(_contrast_test(singular_G, flipped_BGC + null_GC - turn_BGG @ null_GC, rank=rank))
        if tests[-1].p > alpha and len(tests) >= least:
            break
    return RankTests(tuple(tests), first=0)


def _contrast_test(singular_G: np.ndarray, null_BGC: np.ndarray, *, rank: int) -> Tested:
    eigenvalues_BG = np.linalg.eigvalsh(null_BGC @ null_BGC.transpose(0, 2, 1))[:, ::-1]
    return Tested(float((singular_G[rank:] ** 2).sum()), eigenvalues_BG[:, rank:].sum(axis=1))
