"""Sign-flip tests of the mean shift: is there one (T1), and how many directions do the group means need (T2)?

Shapes: N questions, C coordinates, F groups, B flips, R ranks tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.geometry import gram_of, noise_corrected_gram
from unmask.analysis.preparation import Groups, row_energy


@dataclass(frozen=True, slots=True)
class Tested:
    """A statistic, its null distribution under the flips, and p = (1 + #{null >= statistic}) / (1 + B)."""

    statistic: float
    null_B: np.ndarray

    @property
    def p(self) -> float:
        return float((1 + (self.null_B >= self.statistic).sum()) / (1 + len(self.null_B)))

    @property
    def standardised(self) -> float:
        """The statistic, less the mean and over the SD of itself and its null together: under the null it is one of them."""
        return float(self._standardised[0])

    @property
    def standardised_null_B(self) -> np.ndarray:
        return self._standardised[1:]

    @property
    def _standardised(self) -> np.ndarray:
        drawn = np.append(self.statistic, self.null_B)
        return (drawn - drawn.mean()) / max(float(drawn.std()), 1e-300)


def draw_flips(questions: int, *, flips: int, rng: np.random.Generator) -> np.ndarray:
    """Independent signs +-1 (B x N, float64). The same ones must serve all sites, so that their maximum has a null."""
    return rng.integers(0, 2, size=(flips, questions)).astype(np.float64) * 2.0 - 1.0


def shift_test(rows_NC: np.ndarray, signs_BN: np.ndarray, groups: Groups | None = None) -> Tested:
    """T1: is there a mean shift, over all questions or within groups? (METHODS T1)

    Two statistics share the flips: sum over q != q' of s_q . s_q', and the same within groups, sum_f w_f of the mean over a
    group's pairs (tr G), since shifts of opposite signs in different groups leave no mean over all. The larger of both,
    standardised by its own null, is the statistic. Exact when a question's shift is as likely as its opposite under no shift.
    """
    energy_N = row_energy(rows_NC)
    sums_C = rows_NC.sum(axis=0, keepdims=True)
    found = [Tested(float(row_energy(sums_C)[0] - energy_N.sum()), row_energy(signs_BN @ rows_NC) - energy_N.sum())]
    if groups is not None and groups.count > 1:
        observed, null_B = 0.0, np.zeros(len(signs_BN))
        for group, size in enumerate(groups.sizes_F):
            own = np.flatnonzero(groups.codes_N == group)
            weight = groups.weights_F[group] / (size * (size - 1))
            observed += weight * float(row_energy(rows_NC[own].sum(axis=0, keepdims=True))[0] - energy_N[own].sum())
            null_B += weight * (row_energy(signs_BN[:, own] @ rows_NC[own]) - energy_N[own].sum())
        found.append(Tested(observed, null_B))
    return Tested(
        max(test.standardised for test in found), np.max([test.standardised_null_B for test in found], axis=0)
    )


@dataclass(frozen=True, slots=True)
class RankTests:
    """Sequential tests of rank 1, 2, ...: `tests[i]` has null hypothesis "rank at most first + i"."""

    tests: tuple[Tested, ...]
    first: int

    def rank(self, alpha: float) -> int:
        """The smallest rank that is not rejected; the largest possible one when all are."""
        for index, test in enumerate(self.tests):
            if test.p > alpha:
                return self.first + index
        return self.first + len(self.tests)


def rank_tests(rows_NC: np.ndarray, groups: Groups, signs_BN: np.ndarray, *, alpha: float, least: int = 1) -> RankTests:
    """T2: how many directions do the group means need? Tests rank 1, 2, ... until one is not rejected (METHODS T2).

    Each group's rows are scaled by their RMS residual (which keeps the rank of the mean matrix), residuals are taken from the
    best mean matrix of the null's rank, whitened by their Ledoit-Wolf covariance, and flipped around it. The statistic is the
    noise-corrected energy beyond the first r eigenvalues. At least `least` ranks are tested whatever the p-values.
    """
    scaled_NC = _level_groups(rows_NC, groups)
    found: list[Tested] = []
    for rank in range(1, groups.count):
        found.append(_rank_test(scaled_NC, groups, signs_BN, rank=rank))
        if found[-1].p > alpha and len(found) >= least:
            break
    return RankTests(tuple(found), first=1)


def _level_groups(rows_NC: np.ndarray, groups: Groups) -> np.ndarray:
    """Rows divided by their group's RMS residual."""
    energy_F = np.bincount(groups.codes_N, weights=row_energy(groups.centred(rows_NC)), minlength=groups.count)
    rms_F = np.sqrt(energy_F / np.maximum(groups.sizes_F - 1, 1))
    floor = 1e-6 * float(rms_F.max())
    return rows_NC / np.maximum(rms_F, floor if floor > 0 else 1.0)[groups.codes_N, None]


def _rank_test(rows_NC: np.ndarray, groups: Groups, signs_BN: np.ndarray, *, rank: int) -> Tested:
    residual_NC = rows_NC - low_rank_means(rows_NC, groups, rank=rank)[groups.codes_N]
    rotate_CC, scale_C = ledoit_wolf_whitening(residual_NC)
    white_NC = (rows_NC @ rotate_CC) * scale_C
    null_FC = low_rank_means(white_NC, groups, rank=rank)
    residual_NC = white_NC - null_FC[groups.codes_N]
    observed = float(_beyond(_gram_eigenvalues(white_NC, groups), rank))
    energy_F = np.bincount(groups.codes_N, weights=row_energy(residual_NC), minlength=groups.count)
    noise_BFC = flipped_means(residual_NC, groups, signs_BN)
    mean_BFC = noise_BFC + null_FC
    within_BF = (energy_F - groups.sizes_F * np.einsum("bfc,bfc->bf", noise_BFC, noise_BFC)) / (groups.sizes_F - 1)
    root_F = np.sqrt(groups.weights_F)
    gram_BFF = (mean_BFC @ mean_BFC.transpose(0, 2, 1)) * (root_F[:, None] * root_F[None, :])
    index = np.arange(groups.count)
    gram_BFF[:, index, index] -= within_BF / len(rows_NC)
    return Tested(observed, _beyond(np.linalg.eigvalsh(gram_BFF)[:, ::-1], rank))


def flipped_means(residual_NC: np.ndarray, groups: Groups, signs_BN: np.ndarray) -> np.ndarray:
    """Group means of e_q r_q for every flip (B x F x C)."""
    out_BFC = np.empty((len(signs_BN), groups.count, residual_NC.shape[1]))
    for group, size in enumerate(groups.sizes_F):
        members = np.flatnonzero(groups.codes_N == group)
        out_BFC[:, group] = signs_BN[:, members] @ residual_NC[members] / size
    return out_BFC


def _gram_eigenvalues(rows_NC: np.ndarray, groups: Groups) -> np.ndarray:
    return np.linalg.eigvalsh(gram_of(rows_NC, groups))[::-1]


def _beyond(eigenvalues: np.ndarray, rank: int) -> np.ndarray:
    """tr G less the first `rank` eigenvalues (falling order on the last axis)."""
    return eigenvalues[..., rank:].sum(axis=-1)


def low_rank_means(rows_NC: np.ndarray, groups: Groups, *, rank: int) -> np.ndarray:
    """Best mean matrix (F x C) of a rank: group means projected, in weighted group space, on the first eigenvectors of G."""
    means_FC = groups.means(rows_NC)
    root_F = np.sqrt(groups.weights_F)
    energy_F = np.bincount(groups.codes_N, weights=row_energy(groups.centred(rows_NC)), minlength=groups.count)
    gram_FF = noise_corrected_gram(means_FC, energy_F / np.maximum(groups.sizes_F - 1, 1), groups)
    vectors_FR = np.linalg.eigh(gram_FF)[1][:, ::-1][:, :rank]
    return (vectors_FR @ (vectors_FR.T @ (root_F[:, None] * means_FC))) / root_F[:, None]


def ledoit_wolf_whitening(residual_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (C x C) and scales (C) that whiten rows by their shrunk covariance about zero.

    Ledoit & Wolf (2004): (1 - a) S + a m I with the a of least expected squared error. Flipping rows changes neither S nor a.
    """
    n, c = residual_NC.shape
    covariance_CC = residual_NC.T @ residual_NC / n
    mean = float(np.trace(covariance_CC)) / c
    if mean <= 0:
        return np.eye(c), np.ones(c)
    squared = float((covariance_CC**2).sum())
    distance = squared / c - mean**2
    error = (float((row_energy(residual_NC) ** 2).sum()) / n - squared) / (n * c)
    share = min(max(error, 0.0), distance) / distance if distance > 0 else 1.0
    values_C, rotate_CC = np.linalg.eigh(covariance_CC)
    shrunk_C = (1 - share) * np.maximum(values_C, 0.0) + share * mean
    return rotate_CC, 1.0 / np.sqrt(np.maximum(shrunk_C, 1e-12 * mean))


def max_t(tests: list[Tested]) -> list[float]:
    """Westfall & Young's single-step max-T p-value of each of several tests that share their flips.

    Statistics and nulls are standardised by the mean and SD of both together. Raises ValueError for unequal numbers of flips.
    """
    if not tests:
        return []
    if len({len(test.null_B) for test in tests}) != 1:
        raise ValueError("max-T needs the same flips in every test")
    largest_B = np.max([test.standardised_null_B for test in tests], axis=0)
    return [float((1 + (largest_B >= test.standardised).sum()) / (1 + len(largest_B))) for test in tests]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for step, index in enumerate(order):
        running = max(running, (len(p_values) - step) * p_values[index])
        adjusted[index] = min(1.0, running)
    return [float(p) for p in adjusted]
