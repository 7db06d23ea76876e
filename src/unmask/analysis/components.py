"""Parts that add up: independent components, non-negative factors, and how far parts come back.

Descriptive: parts that come back are parts of this cloud of points, not yet of a persona.
Shapes: N questions, C coordinates, P parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.threads import one_thread

FactorName = Literal["ica", "nmf"]

SIGNED: frozenset[str] = frozenset({"pc", "ica"})
"""Parts whose sign is a convention; the others are non-negative."""


@dataclass(frozen=True, slots=True)
class Parts:
    """rows = loadings @ atoms + mean: how much of each part a question has (N x P), and unit vectors (P x C), strongest first.

    `strength_P`: share of the variance lost when that part alone is left out. `explained`: share kept by all together.
    """

    loadings_NP: np.ndarray
    atoms_PC: np.ndarray
    strength_P: np.ndarray
    explained: float
    converged: bool


Factorizer = Callable[[np.ndarray, int, int], Parts]
"""Rows (N x C), number of parts, seed -> parts."""


def independent_components(rows_NC: np.ndarray, *, parts: int, seed: int) -> Parts:
    """FastICA (Hyvarinen 1999, logcosh, symmetric) on whitened principal components; the heavier tail of a part is positive.

    At most the rank of the centred rows. `converged` is False where the iterations ran out. Raises ValueError for fewer than 3
    rows, rows without variance, or values that are not finite.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    centred_NC = _centred(rows_NC)
    with one_thread():
        left_NR, singular_R, _ = np.linalg.svd(centred_NC, full_matrices=False)
        rank = int((singular_R > 1e-10 * singular_R[0]).sum()) if singular_R[0] > 0 else 0
        kept = min(parts, rank)
        if kept < 1:
            raise ValueError("independent components need rows with variance")
        white_NP = left_NR[:, :kept] * np.sqrt(len(centred_NC))
        if kept == 1:
            sources_NP, converged = white_NP, True
        else:
            model = FastICA(whiten=False, fun="logcosh", random_state=seed, max_iter=500, tol=1e-4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                sources_NP = model.fit_transform(white_NP)
            converged = int(model.n_iter_) < 500
        tails_P = (sources_NP**3).sum(axis=0)
        sources_NP = sources_NP * np.where(tails_P < 0, -1.0, 1.0)
        mixing_PC = sources_NP.T @ centred_NC / (sources_NP**2).sum(axis=0)[:, None]
    return assembled(centred_NC, sources_NP, mixing_PC, converged=converged)


def nonnegative_factors(rows_NC: np.ndarray, *, parts: int, seed: int) -> Parts:
    """NMF of split signs: [max(X, 0), max(-X, 0)] = W H with W, H >= 0 (Lee & Seung 1999), X the centred rows.

    A part's direction is H+ - H-, its loadings W. Coordinate descent (Cichocki & Phan 2009) from a random start: the optimum is
    local, and starting from singular vectors would hide that from `seed_stability`. The split depends on the axes: principal
    components are axes of the data, a residual stream's are not. Raises ValueError for fewer than 3 rows, rows without variance,
    or values that are not finite.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    centred_NC = _centred(rows_NC)
    scale = float(np.abs(centred_NC).max())
    if scale == 0:
        raise ValueError("non-negative factors need rows with variance")
    split_NC = np.hstack([np.maximum(centred_NC, 0), np.maximum(-centred_NC, 0)]) / scale
    model = NMF(min(parts, *split_NC.shape), init="random", random_state=seed, max_iter=400, tol=1e-4)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        loadings_NP = model.fit_transform(split_NC)
    width = centred_NC.shape[1]
    joint_PC = (model.components_[:, :width] - model.components_[:, width:]) * scale
    return assembled(centred_NC, loadings_NP, joint_PC, converged=int(model.n_iter_) < 400)


FACTORIZERS: dict[FactorName, Factorizer] = {
    "ica": lambda rows_NC, parts, seed: independent_components(rows_NC, parts=parts, seed=seed),
    "nmf": lambda rows_NC, parts, seed: nonnegative_factors(rows_NC, parts=parts, seed=seed),
}


def assembled(centred_NC: np.ndarray, loadings_NP: np.ndarray, atoms_PC: np.ndarray, *, converged: bool) -> Parts:
    """Parts of unit length ordered by strength, with what they explain of the centred rows."""
    lengths_P = np.linalg.norm(atoms_PC, axis=1)
    unit_PC = atoms_PC / np.where(lengths_P > 0, lengths_P, 1.0)[:, None]
    scaled_NP = loadings_NP * lengths_P
    total = float((centred_NC**2).sum())
    missed_NC = centred_NC - scaled_NP @ unit_PC
    # |missed + w h|^2 - |missed|^2 = 2 w . (missed h) + |w|^2, for a part w h with |h| = 1
    lost_P = 2 * (scaled_NP * (missed_NC @ unit_PC.T)).sum(axis=0) + (scaled_NP**2).sum(axis=0)
    strength_P = lost_P / total if total > 0 else np.zeros(len(lost_P))
    order = np.argsort(-strength_P, kind="stable")
    explained = 1 - float((missed_NC**2).sum()) / total if total > 0 else float("nan")
    return Parts(scaled_NP[:, order], unit_PC[order], strength_P[order], explained, converged)


def matched_cosines(atoms_PC: np.ndarray, other_QC: np.ndarray, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Best one-to-one match of each part among others (Kuhn 1955): its cosine (P) and its index (P), NaN and -1 for none.

    `signed`: a sign is a convention, so |cosine| counts; else the cosine.
    """
    from scipy.optimize import linear_sum_assignment

    cosine_PQ = _unit(atoms_PC) @ _unit(other_QC).T
    cosine_PQ = np.abs(cosine_PQ) if signed else cosine_PQ
    rows, columns = linear_sum_assignment(-cosine_PQ)
    found_P, index_P = np.full(len(atoms_PC), np.nan), np.full(len(atoms_PC), -1)
    found_P[rows], index_P[rows] = cosine_PQ[rows, columns], columns
    return found_P, index_P


def seed_stability(parts: Parts, refit: Callable[[int], Parts], *, seeds: tuple[int, ...], signed: bool) -> np.ndarray:
    """Mean matched cosine of each part with refits under other seeds (P). Raises ValueError without a seed."""
    if not seeds:
        raise ValueError("stability over seeds needs another seed")
    found = [matched_cosines(parts.atoms_PC, refit(seed).atoms_PC, signed=signed)[0] for seed in seeds]
    return np.nan_to_num(np.stack(found)).mean(axis=0)


def half_stability(
    rows_NC: np.ndarray,
    parts: Parts,
    fit: Callable[[np.ndarray], Parts],
    *,
    signed: bool,
    splits: int = 1,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cosine between each part's matches in two random halves of the questions, mean over splits (P).

    The halves share no question, so a part that chance made does not come back; an unmatched part counts 0, as do all where
    the rows of a half do not differ. Raises ValueError for fewer than 6 rows or no split.
    """
    if len(rows_NC) < 6 or splits < 1:
        raise ValueError("stability over halves needs at least 6 rows and 1 split")
    found_SP = np.zeros((splits, len(parts.atoms_PC)))
    for split in range(splits):
        order = rng.permutation(len(rows_NC))
        drawn = [rows_NC[np.sort(half)] for half in np.array_split(order, 2)]
        if any(not np.ptp(half_MC, axis=0).any() for half_MC in drawn):
            continue
        halves = [fit(half_MC).atoms_PC for half_MC in drawn]
        matches = [matched_cosines(parts.atoms_PC, half, signed=signed)[1] for half in halves]
        both = (matches[0] >= 0) & (matches[1] >= 0)
        cosine = (_unit(halves[0])[matches[0][both]] * _unit(halves[1])[matches[1][both]]).sum(axis=1)
        found_SP[split, both] = np.abs(cosine) if signed else cosine
    return found_SP.mean(axis=0)


def _unit(atoms_PC: np.ndarray) -> np.ndarray:
    lengths_P = np.linalg.norm(atoms_PC, axis=1, keepdims=True)
    return atoms_PC / np.where(lengths_P > 0, lengths_P, 1.0)


def _centred(rows_NC: np.ndarray) -> np.ndarray:
    rows_NC = np.asarray(rows_NC, dtype=np.float64)
    if len(rows_NC) < 3:
        raise ValueError("components need at least 3 rows")
    if not np.isfinite(rows_NC).all():
        raise ValueError("components need finite values")
    return rows_NC - rows_NC.mean(axis=0)
