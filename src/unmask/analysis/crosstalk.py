"""T5, the causal test: does adding one group's direction move that group's score more than the other groups' scores?

Shapes: F groups (as many directions), N items of all groups, M items of one group, R random directions, B resamples,
P permutations, S splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.nulls import holm

Causal = Literal["selective", "cross-talk", "undetermined", "not potent"]

MOST_SELECTIVE = 0.5
"""Cross-talk below this (whole interval) is selective, above it (whole interval) is cross-talk."""

_SPLITS = 50


@dataclass(frozen=True, slots=True)
class CrossTalk:
    """Cross-talk X = mean off-diagonal over mean diagonal effect, with what it says; every interval is of 90 %."""

    outcome: Causal
    names: tuple[str, ...]
    """The groups, in the order of rows and columns."""
    effects_FF: np.ndarray
    """M: mean effect of direction i on the items of group j, random directions subtracted."""
    low_FF: np.ndarray
    high_FF: np.ndarray
    random_mean_F: np.ndarray
    """What was subtracted: the random directions' mean effect on the items of each group."""
    random_sd_F: np.ndarray
    """SD over the random directions of their mean effect on the items of each group; NaN for one direction."""
    x: float
    x_low: float
    x_high: float
    p: float
    potent_share: float
    """Share of the directions whose own effect has t > 2."""
    split_half_rank1: float
    """Share of the split-half covariance of the effects held by one dimension. Reported only."""
    rank1: float
    """Share of the energy of M in one dimension, without sampling noise (see `cross_talk`); may pass 1. Reported only."""
    rank1_low: float
    rank1_high: float
    own_F: np.ndarray
    others_F: np.ndarray
    """Mean of row i over the other groups' columns, each group counting alike."""
    selectivity_F: np.ndarray
    """Own less others, in the effects' units."""
    selectivity_low_F: np.ndarray
    selectivity_high_F: np.ndarray
    index_F: np.ndarray
    """(own - others) / (|own| + |others|): 1 own items only, 0 all alike, -1 other items only; NaN where both are 0."""
    index_low_F: np.ndarray
    index_high_F: np.ndarray
    p_F: np.ndarray
    """One-sided, of each row: its items' group labels permuted."""
    p_holm_F: np.ndarray
    items_F: np.ndarray
    items: int
    dropped: int
    """Items left out because a value was missing in some row."""


def cross_talk(
    effects_FN: np.ndarray,
    random_RN: np.ndarray,
    groups_N: np.ndarray,
    *,
    names: Sequence[str],
    alpha: float = 0.05,
    resamples: int = 1000,
    permutations: int = 999,
    rng: np.random.Generator,
) -> CrossTalk:
    """T5 on the effect of direction i (of group `names[i]`) on item n (of group `groups_N[n]`), METHODS T5.

    `random_RN` holds the same for random directions of equal norm; their mean over directions is taken off each item, and
    M[i, j] is the mean over the items of group j. Items are resampled within groups, the same ones in every row, for all
    intervals: percentiles, too narrow below some 20 items a group. p permutes the rows of the double-centred matrix and compares
    traces. Two or three groups have 2 or 6 permutations, so that p cannot fall below .05: they are never selective.

    `rank1` is the largest eigenvalue of C over its trace, C = sum_j of the mean of e_n e_n'^T over the pairs n != n' of items of
    group j (e_n: effects of all directions on item n). C is the split-half cross-product of M averaged over all splits, in closed
    form; E[C] = M M^T. The share is 1 where all directions do the same up to a factor, and 1 / F for an identity. Sampling noise
    raises a largest eigenvalue, and resampling does so once more; hence the value is twice C's share less the resamples' median,
    and the interval the basic one (Davison & Hinkley 1997, ch. 5), of resamples whose pairs leave (n, n) out. All three are NaN
    where a resample's trace is not positive: there is no effect to speak of. Where eigenvalues are equal (an identity) few to
    three quarters of the intervals hold the truth; the others lie above it.

    `p_F` asks whether a row, less the median of the other rows at each item, is higher on its own items than on its other ones:
    Welch's t under permuted labels, which keeps its level where own items merely scatter more (Janssen 1997). What any direction
    does to a group's items is so taken off; a direction that is a stronger copy of the others may still stand out where a group's
    items are moved more easily, and the whole matrix's p is what settles it.

    An item with a missing value (NaN) in any row is dropped. Raises ValueError for shapes that do not fit, repeated names, fewer
    than 2 groups, items of a group without a direction, no random direction, infinite values, or fewer than 2 items left in a
    group.
    """
    names = tuple(names)
    moved_FN, random_RN, groups_N, dropped = _checked(effects_FN, random_RN, groups_N, names)
    members = [np.flatnonzero(groups_N == name) for name in names]
    counts = [_draws(len(own_M), resamples, rng=rng) for own_M in members]
    mean_FF, random_RF = _means(moved_FN, members), _means(random_RN, members)
    boot_BFF = np.stack(
        [drawn_BM @ moved_FN[:, own].T / len(own) for drawn_BM, own in zip(counts, members, strict=True)], axis=2
    )
    x_low, x_high = _ends(_ratio(boot_BFF))
    p = _row_permutation_p(mean_FF, permutations=permutations, rng=rng)
    t_F = _own_t(moved_FN, members)
    potent = float(np.diagonal(mean_FF).mean()) > 0 and float((t_F > 2).mean()) >= 0.5
    own_F, others_F = (part[0] for part in _own_and_others(mean_FF[None]))
    own_BF, others_BF = _own_and_others(boot_BFF)
    low_FF, high_FF = _ends(boot_BFF)
    selectivity_low_F, selectivity_high_F = _ends(own_BF - others_BF)
    index_low_F, index_high_F = _ends(_index(own_BF, others_BF))
    rank1, rank1_low, rank1_high = _rank1(moved_FN, members, counts)
    p_F = _label_permutation_p(_beyond_others(moved_FN), groups_N, names, permutations=permutations, rng=rng)
    return CrossTalk(
        outcome=_outcome(potent, p, low=float(x_low), high=float(x_high), alpha=alpha),
        names=names,
        effects_FF=mean_FF,
        low_FF=low_FF,
        high_FF=high_FF,
        random_mean_F=random_RF.mean(axis=0),
        random_sd_F=random_RF.std(axis=0, ddof=1) if len(random_RF) > 1 else np.full(len(names), np.nan),
        x=float(_ratio(mean_FF[None])[0]),
        x_low=float(x_low),
        x_high=float(x_high),
        p=p,
        potent_share=float((t_F > 2).mean()),
        split_half_rank1=_split_half_rank1(moved_FN, members, rng=rng),
        rank1=rank1,
        rank1_low=rank1_low,
        rank1_high=rank1_high,
        own_F=own_F,
        others_F=others_F,
        selectivity_F=own_F - others_F,
        selectivity_low_F=selectivity_low_F,
        selectivity_high_F=selectivity_high_F,
        index_F=_index(own_F, others_F),
        index_low_F=index_low_F,
        index_high_F=index_high_F,
        p_F=p_F,
        p_holm_F=np.array(holm([float(value) for value in p_F])),
        items_F=np.array([len(own) for own in members]),
        items=moved_FN.shape[1],
        dropped=dropped,
    )


def _checked(
    effects_FN: np.ndarray, random_RN: np.ndarray, groups_N: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Effects with the random ones' mean off, random effects, groups of the items without a missing value; how many had one."""
    effects_FN, random_RN = np.asarray(effects_FN, dtype=float), np.asarray(random_RN, dtype=float)
    groups_N = np.asarray(groups_N)
    f, n = len(names), len(groups_N)
    if f < 2 or len(set(names)) < f or effects_FN.shape != (f, n) or random_RN.shape[1:] != (n,) or not len(random_RN):
        raise ValueError(
            f"cross-talk needs F x N effects of F > 1 named groups and R x N random ones, not {effects_FN.shape}, "
            f"{random_RN.shape} for {f} names and {n} items"
        )
    values = np.vstack([effects_FN, random_RN])
    if np.isinf(values).any():
        raise ValueError("cross-talk needs finite effects; an item that was not scored is NaN")
    groups_N = groups_N.astype(str)
    if strange := set(groups_N.tolist()) - set(names):
        raise ValueError(f"no direction for the group of some items: {sorted(strange)}")
    there_N = ~np.isnan(values).any(axis=0)
    few = [name for name in names if (groups_N[there_N] == name).sum() < 2]
    if few:
        raise ValueError(f"cross-talk needs at least 2 items without missing values in each group; fewer in {few}")
    random_RN = random_RN[:, there_N]
    moved_FN = effects_FN[:, there_N] - random_RN.mean(axis=0)
    return moved_FN, random_RN, groups_N[there_N], int((~there_N).sum())


def _draws(size: int, resamples: int, *, rng: np.random.Generator) -> np.ndarray:
    """How often each of `size` items is in each resample (B x M)."""
    drawn_BM = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn_BM.ravel(), minlength=resamples * size).reshape(resamples, size).astype(float)


def _means(rows_RN: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Mean of each row over each group's items (R x F)."""
    return np.stack([rows_RN[:, own].mean(axis=1) for own in members], axis=1)


def _ends(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 90 % interval over the first axis; NaN where a resample has no finite value."""
    fine = np.isfinite(resampled).all(axis=0)
    low, high = np.quantile(np.where(fine, resampled, 0.0), [0.05, 0.95], axis=0)
    return np.where(fine, low, np.nan), np.where(fine, high, np.nan)


def _ratio(mean_BFF: np.ndarray) -> np.ndarray:
    """Mean off-diagonal over mean diagonal; infinite where the diagonal is not positive."""
    own_BF, others_BF = _own_and_others(mean_BFF)
    diagonal_B = own_BF.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(diagonal_B > 0, others_BF.mean(axis=1) / diagonal_B, np.inf)


def _own_and_others(mean_BFF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the diagonal, and the mean off it (B x F each)."""
    own_BF = np.diagonal(mean_BFF, axis1=1, axis2=2)
    return own_BF, (mean_BFF.sum(axis=2) - own_BF) / (mean_BFF.shape[2] - 1)


def _index(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    size = np.abs(own) + np.abs(others)
    return np.divide(own - others, size, out=np.full(own.shape, np.nan), where=size > 0)


def _own_t(moved_FN: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """t of each direction's effect on its own group's items (F)."""
    found = []
    for row_N, own in zip(moved_FN, members, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(row_N[own].mean() / (row_N[own].std(ddof=1) / np.sqrt(len(own))))
    return np.array(found)


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


def _beyond_others(moved_FN: np.ndarray) -> np.ndarray:
    """Each row less the median of the other rows, item by item: what any direction does to an item is taken off."""
    rows = np.arange(len(moved_FN))
    return np.stack([moved_FN[row] - np.median(moved_FN[rows != row], axis=0) for row in rows])


def _label_permutation_p(
    moved_FN: np.ndarray, groups_N: np.ndarray, names: tuple[str, ...], *, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Of each row: how often its own group's label, dealt out anew over all items, falls on at least as large a Welch t (F)."""
    dealt_PN = rng.permuted(np.tile(np.unique(groups_N, return_inverse=True)[1], (permutations, 1)), axis=1)
    code = {name: place for place, name in enumerate(sorted(names))}
    found = np.empty(len(names))
    for row, name in enumerate(names):
        own_QN = np.vstack([groups_N == name, dealt_PN == code[name]]).astype(float)
        t_Q = _welch_t(moved_FN[row] - moved_FN[row].mean(), own_QN)
        found[row] = (1 + (t_Q[1:] >= t_Q[0] - 1e-9 * abs(t_Q[0])).sum()) / (1 + permutations)
    return found


def _welch_t(values_N: np.ndarray, own_QN: np.ndarray) -> np.ndarray:
    """Mean over own items less that over the rest, over its standard error (Q); 0 where all values are equal."""
    n, size = len(values_N), own_QN[0].sum()
    sums_Q, squares_Q = own_QN @ values_N, own_QN @ values_N**2
    rest_sums_Q, rest_squares_Q = values_N.sum() - sums_Q, (values_N**2).sum() - squares_Q
    error_Q = np.zeros(len(own_QN))
    for count, total_Q, squared_Q in ((size, sums_Q, squares_Q), (n - size, rest_sums_Q, rest_squares_Q)):
        error_Q += np.maximum(squared_Q - total_Q**2 / count, 0.0) / (count * (count - 1))
    gap_Q = sums_Q / size - rest_sums_Q / (n - size)
    least = 1e-12 * float((values_N**2).mean())  # rounding, where a side's values are all equal
    return gap_Q / np.sqrt(np.maximum(error_Q, max(least, 1e-300)))


def _rank1(moved_FN: np.ndarray, members: list[np.ndarray], counts: list[np.ndarray]) -> tuple[float, float, float]:
    """Share of the noise-free M M^T in one dimension with the ends of its interval, as `cross_talk` says."""
    f, resamples = len(moved_FN), len(counts[0])
    cross_FF, boot_BFF = np.zeros((f, f)), np.zeros((resamples, f, f))
    for own, drawn_BM in zip(members, counts, strict=True):
        rows_FM, size = moved_FN[:, own], len(own)
        sums_F, sums_BF = rows_FM.sum(axis=1), drawn_BM @ rows_FM.T
        self_MFF = rows_FM.T[:, :, None] * rows_FM.T[:, None, :]
        cross_FF += (np.outer(sums_F, sums_F) - self_MFF.sum(axis=0)) / (size * (size - 1))
        self_BFF = (drawn_BM**2 @ self_MFF.reshape(size, -1)).reshape(resamples, f, f)
        pairs_B = np.maximum(size**2 - (drawn_BM**2).sum(axis=1), 1.0)
        boot_BFF += (sums_BF[:, :, None] * sums_BF[:, None, :] - self_BFF) / pairs_B[:, None, None]
    shares_B = _leading_share(np.concatenate([cross_FF[None], boot_BFF]))
    low, high = _ends(shares_B)
    share, middle = float(shares_B[0]), float(np.median(shares_B[1:]))
    return 2 * share - middle, 2 * share - float(high), 2 * share - float(low)


def _leading_share(cross_BFF: np.ndarray) -> np.ndarray:
    """Largest eigenvalue over the trace (B); NaN where the trace is not positive."""
    values_BF = np.linalg.eigvalsh(cross_BFF)
    total_B = values_BF.sum(axis=1)
    return np.divide(values_BF[:, -1], total_B, out=np.full(len(total_B), np.nan), where=total_B > 0)


def _split_half_rank1(moved_FN: np.ndarray, members: list[np.ndarray], *, rng: np.random.Generator) -> float:
    """Leading eigenvalue of the symmetrised split-half cross-product over its positive eigenvalues' sum, averaged over splits."""
    one, two = [], []  # a group each: F directions x S splits
    for own in members:
        rows_FSM = moved_FN[:, rng.permuted(np.tile(own, (_SPLITS, 1)), axis=1)]
        one.append(rows_FSM[:, :, : len(own) // 2].mean(axis=2))
        two.append(rows_FSM[:, :, len(own) // 2 :].mean(axis=2))
    cross_SFF = np.einsum("jis,jks->sik", np.stack(one), np.stack(two))
    values_SF = np.linalg.eigvalsh((cross_SFF + cross_SFF.transpose(0, 2, 1)) / 2)
    positive_S = np.where(values_SF > 0, values_SF, 0.0).sum(axis=1)
    fine_S = positive_S > 0
    return float((values_SF[fine_S, -1] / positive_S[fine_S]).mean()) if fine_S.any() else float("nan")
