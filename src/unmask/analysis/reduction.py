"""Principal components.

Shapes: N questions, D width, C components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pca:
    """Principal components of centred rows: scores (N x C), loadings (C x D), share of variance per component (C)."""

    scores_NC: np.ndarray
    loadings_CD: np.ndarray
    variance_ratio_C: np.ndarray


def pca(rows_ND: np.ndarray, *, components: int) -> Pca:
    """Exact PCA by the smaller of the two Gram matrices, in float64; the largest loading of a component is positive.

    At most min(N - 1, D) components are returned. Raises ValueError for fewer than 2 rows or values that are not finite.
    """
    rows = np.asarray(rows_ND, dtype=np.float64)
    n, d = rows.shape
    if n < 2:
        raise ValueError("principal components need at least 2 rows")
    if not np.isfinite(rows).all():
        raise ValueError("principal components need finite values")
    centred = rows - rows.mean(axis=0)
    kept = max(1, min(components, n - 1, d))
    if n <= d:
        values, vectors_NC = np.linalg.eigh(centred @ centred.T)
        values, vectors_NC = values[::-1][:kept], vectors_NC[:, ::-1][:, :kept]
        singular = np.sqrt(np.maximum(values, 0.0))
        scores = vectors_NC * singular
        loadings = (centred.T @ vectors_NC / np.where(singular > 0, singular, 1.0)).T
    else:
        values, vectors_DC = np.linalg.eigh(centred.T @ centred)
        values, vectors_DC = values[::-1][:kept], vectors_DC[:, ::-1][:, :kept]
        scores, loadings = centred @ vectors_DC, vectors_DC.T
    largest = np.abs(loadings).argmax(axis=1)
    signs = np.sign(loadings[np.arange(len(loadings)), largest])
    signs[signs == 0] = 1.0
    total = float((centred**2).sum())
    ratio = np.maximum(values, 0.0) / total if total > 0 else np.zeros(len(values))
    return Pca(scores_NC=scores * signs, loadings_CD=loadings * signs[:, None], variance_ratio_C=ratio)
