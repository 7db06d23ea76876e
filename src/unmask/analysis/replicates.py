"""T4, replicates: does a question's shift, beyond its group's mean, come back in a second response to the same question?

Shapes: N questions, S responses a question, C coordinates, J leading coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from unmask.analysis.geometry import off
from unmask.analysis.preparation import Groups

LEADING = 40
"""Coordinates in which dimensions are looked for: the leading ones of both halves' pooled covariance, whatever the pairing."""

LEAST_SHARE = 0.25
"""A dimension counts when its cross-validated energy passes this share of tr G."""

_SPLITS = 10


@dataclass(frozen=True, slots=True)
class Replicates:
    """Question-level dimensions that replicate: their number, the largest one's energy over tr G, its permutation p."""

    dimensions: int
    largest_share: float
    p: float
    permutations: int
    reliability: float
    """Share of the within-group variance (orthogonal to v) that two responses to a question have in common."""


def replicate_test(
    halves_2NC: np.ndarray,
    groups: Groups,
    shared_C: np.ndarray,
    *,
    total: float,
    alpha: float,
    permutations: int,
    rng: np.random.Generator,
) -> Replicates:
    """T4: cross-response covariance within groups, orthogonal to v; dimensions by half-sample cross-validation.

    `halves_2NC` holds the means of two disjoint sets of each question's responses, `total` is tr G. The null permutes, within
    groups, which second half belongs to which first one. A dimension counts when its energy in the half of the questions that did
    not choose it passes both a quarter of tr G and the permutations' (1 - alpha) quantile of the largest one (METHODS T4).
    """
    first_NC, second_NC = (off(groups.centred(half), shared_C) for half in halves_2NC)
    scatter = first_NC.T @ first_NC + second_NC.T @ second_NC
    last = len(scatter) - 1
    leading_CJ = eigh(scatter, subset_by_index=[max(0, last + 1 - LEADING), last])[1][:, ::-1]
    first_NJ, second_NJ = first_NC @ leading_CJ, second_NC @ leading_CJ
    splits_SN = np.array([_split(groups, rng=rng) for _ in range(_SPLITS)])
    halved_SJN = splits_SN[:, None, :] * first_NJ.T
    energies_J = _energies(first_NJ, halved_SJN, second_NJ, splits_SN)
    largest_B = np.empty(permutations)
    for draw in range(permutations):
        largest_B[draw] = _energies(first_NJ, halved_SJN, second_NJ[_within(groups, rng=rng)], splits_SN).max()
    p = float((1 + (largest_B >= energies_J.max()).sum()) / (1 + permutations))
    bar = max(LEAST_SHARE * total, float(np.quantile(largest_B, 1 - alpha)))
    variance = float((first_NC**2).sum() + (second_NC**2).sum()) / 2
    return Replicates(
        dimensions=int((energies_J > bar).sum()) if p <= alpha else 0,
        largest_share=float(energies_J.max() / total) if total > 0 else float("nan"),
        p=p,
        permutations=permutations,
        reliability=float((first_NC * second_NC).sum() / variance) if variance > 0 else float("nan"),
    )


def joint_coordinates(halves_2ND: np.ndarray, direction_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact coordinates of both halves together (2 x N x C), and of a direction (C).

    Those of their mean will not do where D > N: what the halves do not share would be partly projected out, and noise alone would
    seem to come back.
    """
    _, n, d = halves_2ND.shape
    if d <= 2 * n:
        return halves_2ND, direction_D
    both = halves_2ND.reshape(2 * n, d)
    values, left = np.linalg.eigh(both @ both.T)
    kept = values > 1e-10 * max(float(values[-1]), 1e-300)
    root_C = np.sqrt(values[kept])
    direction_C = (both.T @ left[:, kept] / root_C).T @ direction_D
    return (left[:, kept] * root_C).reshape(2, n, -1), direction_C


def _split(groups: Groups, *, rng: np.random.Generator) -> np.ndarray:
    """A random half of each group (bool, N)."""
    chosen_N = np.zeros(len(groups.codes_N), dtype=bool)
    for group in range(groups.count):
        members = rng.permutation(np.flatnonzero(groups.codes_N == group))
        chosen_N[members[: len(members) // 2]] = True
    return chosen_N


def _within(groups: Groups, *, rng: np.random.Generator) -> np.ndarray:
    """A permutation of the questions that keeps groups."""
    order_N = np.arange(len(groups.codes_N))
    for group in range(groups.count):
        members = np.flatnonzero(groups.codes_N == group)
        order_N[members] = rng.permutation(members)
    return order_N


def _energies(first_NJ: np.ndarray, halved_SJN: np.ndarray, second_NJ: np.ndarray, splits_SN: np.ndarray) -> np.ndarray:
    """Energy (per question) of each dimension, chosen in one half and measured in the other, averaged over ways and splits.

    `halved_SJN` are the first responses of each split's half, zero elsewhere.
    """
    s, j, n = halved_SJN.shape
    products_SJJ = (halved_SJN.reshape(s * j, n) @ second_NJ).reshape(s, j, j)
    all_JJ = first_NJ.T @ second_NJ
    sizes_S = splits_SN.sum(axis=1)
    one = (products_SJJ + products_SJJ.transpose(0, 2, 1)) / (2 * sizes_S[:, None, None])
    other_JJ = all_JJ[None] - products_SJJ
    two = (other_JJ + other_JJ.transpose(0, 2, 1)) / (2 * (splits_SN.shape[1] - sizes_S)[:, None, None])
    total_J = np.zeros(first_NJ.shape[1])
    for chooser, measured in ((one, two), (two, one)):
        vectors_SJJ = np.linalg.eigh(chooser)[1][:, :, ::-1]
        total_J += np.einsum("sij,sij->sj", vectors_SJJ, measured @ vectors_SJJ).mean(axis=0)
    return total_J / 2
