"""Principal components: one Gram eigendecomposition serves every number of components.

Shapes: N questions, D width, C components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.threads import one_thread

FEW = 0.25
"""Below this share of all eigenvectors, asking LAPACK for the leading ones only is about twice as fast (n = 885)."""


@dataclass(frozen=True, slots=True)
class Pca:
    """Principal components of centred rows: scores (N x C), loadings (C x D), share of variance per component (C)."""

    scores_NC: np.ndarray
    loadings_CD: np.ndarray
    variance_ratio_C: np.ndarray

    def first(self, components: int) -> Pca:
        """The leading components: what `pca` would give for that number, without computing again."""
        return Pca(self.scores_NC[:, :components], self.loadings_CD[:components], self.variance_ratio_C[:components])


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Principal coordinates of rows known by their Gram matrix only: scores (N x C), share of variance (C)."""

    scores_NC: np.ndarray
    variance_ratio_C: np.ndarray

    def first(self, components: int) -> Coordinates:
        """The leading coordinates."""
        return Coordinates(self.scores_NC[:, :components], self.variance_ratio_C[:components])


def pca(rows_ND: np.ndarray, *, components: int) -> Pca:
    """Exact PCA by the smaller of the two Gram matrices, in float64; the largest loading of a component is positive.

    At most min(N - 1, D) components are returned. Raises ValueError for fewer than 2 rows or values that are not finite.
    """
    centred = _centred(rows_ND)
    n, d = centred.shape
    kept = max(1, min(components, n - 1, d))
    with one_thread():
        gram = centred @ centred.T if n <= d else centred.T @ centred
        values, vectors = leading_vectors(gram, kept)
        if n <= d:
            singular = np.sqrt(np.maximum(values, 0.0))
            scores = vectors * singular
            loadings = (centred.T @ vectors / np.where(singular > 0, singular, 1.0)).T
        else:
            scores, loadings = centred @ vectors, vectors.T
    signs = axis_signs(loadings)
    return Pca(
        scores_NC=scores * signs,
        loadings_CD=loadings * signs[:, None],
        variance_ratio_C=shares_of(values, float(np.trace(gram))),
    )


def centred_gram(rows_ND: np.ndarray) -> np.ndarray:
    """Inner products (N x N) of the centred rows: with `coordinates`, PCA without loadings. Raises ValueError as `pca`."""
    centred = _centred(rows_ND)
    with one_thread():
        return centred @ centred.T


def scaled_gram(rows_ND: np.ndarray) -> np.ndarray:
    """Inner products (N x N) of the centred rows, divided by the mean squared norm of the rows.

    Their sum over layers is the centred Gram matrix of all layers side by side, each divided by the RMS norm of its rows: no
    layer outweighs another by its scale alone, and the wide array is never made. Zeros stay zeros. Raises ValueError as `pca`.
    """
    gram_NN = centred_gram(rows_ND)
    energy = float(np.mean(np.sum(np.asarray(rows_ND, dtype=np.float64) ** 2, axis=1)))
    return gram_NN / (energy if energy > 0 else 1.0)


def coordinates(gram_NN: np.ndarray, *, components: int) -> Coordinates:
    """Principal coordinates from a centred Gram matrix; the largest score of a component is positive.

    At most N - 1 are returned. Raises ValueError for fewer than 2 rows, another shape or values that are not finite.
    """
    n = len(gram_NN)
    if n < 2 or gram_NN.shape != (n, n):
        raise ValueError(f"principal coordinates need a square Gram matrix of at least 2 rows, not {gram_NN.shape}")
    if not np.isfinite(gram_NN).all():
        raise ValueError("principal coordinates need finite values")
    with one_thread():
        values, vectors_NC = leading_vectors(gram_NN, max(1, min(components, n - 1)))
    scores = vectors_NC * np.sqrt(np.maximum(values, 0.0))
    return Coordinates(scores * axis_signs(scores.T), shares_of(values, float(np.trace(gram_NN))))


def _centred(rows_ND: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows_ND, dtype=np.float64)
    if len(rows) < 2:
        raise ValueError("principal components need at least 2 rows")
    if not np.isfinite(rows).all():
        raise ValueError("principal components need finite values")
    return rows - rows.mean(axis=0)


def leading_vectors(gram: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, falling, and their eigenvectors in columns."""
    if kept < FEW * len(gram):
        from scipy.linalg import eigh

        values, vectors = eigh(gram, subset_by_index=(len(gram) - kept, len(gram) - 1), check_finite=False)
    else:
        values, vectors = np.linalg.eigh(gram)
    return values[::-1][:kept], vectors[:, ::-1][:, :kept]


def axis_signs(loadings_CD: np.ndarray) -> np.ndarray:
    largest = np.abs(loadings_CD).argmax(axis=1)
    signs = np.sign(loadings_CD[np.arange(len(loadings_CD)), largest])
    signs[signs == 0] = 1.0
    return signs


def shares_of(values_C: np.ndarray, total: float) -> np.ndarray:
    return np.maximum(values_C, 0.0) / total if total > 0 else np.zeros(len(values_C))
