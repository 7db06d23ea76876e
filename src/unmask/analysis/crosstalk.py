"""T5, the causal test: does adding one group's direction move that group's score more than the other groups' scores?

Shapes: F groups (as many directions), I items a group, R random directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Causal = Literal["selective", "cross-talk", "undetermined", "not potent"]

MOST_SELECTIVE = 0.5
"""Cross-talk below this (whole interval) is selective, above it (whole interval) is cross-talk."""


@dataclass(frozen=True, slots=True)
class CrossTalk:
    """Cross-talk X = mean off-diagonal over mean diagonal effect, with its 90 % interval, and what it says."""

    outcome: Causal
    effects_FF: np.ndarray
    """Mean effect of direction i on group j's score, random directions subtracted."""
    x: float
    x_low: float
    x_high: float
    p: float
    potent_share: float
    """Share of the directions whose own effect has t > 2."""
    split_half_rank1: float
    """Share of the split-half covariance of the effects held by one dimension. Reported only."""
    items: int


def cross_talk(
    effects_FFI: np.ndarray,
    random_RFI: np.ndarray,
    *,
    alpha: float = 0.05,
    resamples: int = 1000,
    permutations: int = 999,
    rng: np.random.Generator,
) -> CrossTalk:
    """T5 on M[i, j, item]: the effect of direction i on the score of item `item` of group j (METHODS T5).

    `random_RFI` holds the same for random directions of equal norm; their mean over directions is taken off each item. Items are
    resampled (the same ones in every row) for the interval; p permutes the rows of the double-centred matrix and compares traces.
    Two or three groups have 2 or 6 permutations, so that p cannot fall below .05: they are never selective. Raises ValueError for
    another shape, fewer than 2 groups or items, no random direction, or values that are not finite.
    """
    effects_FFI, random_RFI = np.asarray(effects_FFI, dtype=float), np.asarray(random_RFI, dtype=float)
    f, columns, items = effects_FFI.shape
    if f != columns or f < 2 or items < 2 or random_RFI.shape[1:] != (f, items) or not len(random_RFI):
        raise ValueError(
            f"cross-talk needs F x F x I effects with F, I > 1, not {effects_FFI.shape}, {random_RFI.shape}"
        )
    if not (np.isfinite(effects_FFI).all() and np.isfinite(random_RFI).all()):
        raise ValueError("cross-talk needs finite effects; leave out items that were not scored")
    moved_FFI = effects_FFI - random_RFI.mean(axis=0)[None]
    mean_FF = moved_FFI.mean(axis=2)
    draws_BFI = rng.integers(items, size=(resamples, f, items))
    column_F = np.arange(f)
    boot_BFF = np.stack([moved_FFI[:, j, :][:, draws_BFI[:, j]].mean(axis=2).T for j in column_F], axis=2)
    x_B = _ratio(boot_BFF)
    low, high = np.quantile(x_B, [0.05, 0.95]) if np.isfinite(x_B).all() else (np.nan, np.nan)
    p = _row_permutation_p(mean_FF, permutations=permutations, rng=rng)
    own_FI = moved_FFI[column_F, column_F]
    with np.errstate(divide="ignore", invalid="ignore"):
        t_F = own_FI.mean(axis=1) / (own_FI.std(axis=1, ddof=1) / np.sqrt(items))
    potent = float(np.diagonal(mean_FF).mean()) > 0 and float((t_F > 2).mean()) >= 0.5
    x = float(_ratio(mean_FF[None])[0])
    return CrossTalk(
        outcome=_outcome(potent, p, low=float(low), high=float(high), alpha=alpha),
        effects_FF=mean_FF,
        x=x,
        x_low=float(low),
        x_high=float(high),
        p=p,
        potent_share=float((t_F > 2).mean()),
        split_half_rank1=_split_half_rank1(moved_FFI, rng=rng),
        items=items,
    )


def _ratio(mean_BFF: np.ndarray) -> np.ndarray:
    """Mean off-diagonal over mean diagonal; infinite where the diagonal is not positive."""
    f = mean_BFF.shape[1]
    diagonal_B = np.trace(mean_BFF, axis1=1, axis2=2) / f
    outside_B = (mean_BFF.sum(axis=(1, 2)) - f * diagonal_B) / (f * (f - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(diagonal_B > 0, outside_B / diagonal_B, np.inf)


def _outcome(potent: bool, p: float, *, low: float, high: float, alpha: float) -> Causal:
    if not potent:
        return "not potent"
    if p < alpha and high < MOST_SELECTIVE:
        return "selective"
    return "cross-talk" if low > MOST_SELECTIVE else "undetermined"


def _row_permutation_p(mean_FF: np.ndarray, *, permutations: int, rng: np.random.Generator) -> float:
    """How often a permutation of the rows gives the double-centred matrix at least this trace; all of them when F is small."""
    centred = mean_FF - mean_FF.mean(axis=0) - mean_FF.mean(axis=1)[:, None] + mean_FF.mean()
    f, observed = len(centred), float(np.trace(centred))
    columns = np.arange(f)
    if f <= 5:
        from itertools import permutations as every

        traces = np.array([centred[list(order), columns].sum() for order in every(range(f))])
        return float((traces >= observed - 1e-12 * abs(observed)).mean())
    traces = np.array([centred[rng.permutation(f), columns].sum() for _ in range(permutations)])
    return float((1 + (traces >= observed).sum()) / (1 + permutations))


def _split_half_rank1(moved_FFI: np.ndarray, *, rng: np.random.Generator, splits: int = 50) -> float:
    """Leading eigenvalue of the symmetrised split-half cross-product over its positive eigenvalues' sum, averaged over splits."""
    items = moved_FFI.shape[2]
    shares = []
    for _ in range(splits):
        order = rng.permutation(items)
        one, two = (moved_FFI[:, :, part].mean(axis=2) for part in (order[: items // 2], order[items // 2 :]))
        cross = (one @ two.T + two @ one.T) / 2
        values = np.linalg.eigvalsh(cross)
        positive = values[values > 0].sum()
        if positive > 0:
            shares.append(float(values[-1] / positive))
    return float(np.mean(shares)) if shares else float("nan")
