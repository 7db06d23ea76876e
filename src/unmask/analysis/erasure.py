"""Taking what is linearly readable of a label out of activations: LEACE and iterative nullspace projection.

Shapes: N questions, D width, C exact coordinates, K erased dimensions or label columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.extraction import logistic_weights, standardise
from unmask.analysis.nulls import ledoit_wolf_whitening
from unmask.analysis.preparation import finite_rows
from unmask.analysis.threads import one_thread

_RANK_TOLERANCE = 1e-10
"""Of squared singular values, against the largest."""


@dataclass(frozen=True, slots=True)
class Eraser:
    """The affine projection x -> x - (x - centre) right^T left^T; right @ left is the identity (K x K).

    K may be 0, where there was nothing to erase: nothing is changed.
    """

    left_DK: np.ndarray
    right_KD: np.ndarray
    centre_D: np.ndarray

    def apply(self, x_ND: np.ndarray) -> np.ndarray:
        """Rows without the erased dimensions; any leading axes."""
        return x_ND - ((x_ND - self.centre_D) @ self.right_KD.T) @ self.left_DK.T


def leace(acts_ND: np.ndarray, labels_NK: np.ndarray, *, shrunk: bool = True) -> Eraser:
    """LEACE (Belrose et al. 2306.03819): labels become uncorrelated with activations at the least change.

    r(x) = x - W^+ P W (x - mean), W whitens the covariance of x and P projects orthogonally on the columns of W Cov(x, z). Labels
    are numbers, one column for two classes or one-hot columns for more; K is the rank of Cov(x, z). Whatever W is, the rows
    given are uncorrelated with the labels afterwards. `shrunk` whitens by the Ledoit-Wolf covariance of standardised coordinates
    instead of the sample's: with N near D the sample's has directions of hardly any variance, by which new rows are torn about.
    Only without it is the change the least (in every norm, on these rows); a covariance that is not of full rank is then
    pseudo-inverted. Raises ValueError for labels that do not fit the rows or values that are not finite.
    """
    labels_NK = np.asarray(labels_NK, dtype=float)
    labels_NK = labels_NK[:, None] if labels_NK.ndim == 1 else labels_NK
    if labels_NK.ndim != 2 or len(labels_NK) != len(acts_ND) or not np.isfinite(labels_NK).all():
        raise ValueError(f"labels of shape {labels_NK.shape} do not fit {len(acts_ND)} rows, or are not finite")
    centred_NK = labels_NK - labels_NK.mean(axis=0)
    spread_K = centred_NK.std(axis=0)
    varies_K = spread_K > 1e-12 * np.maximum(np.abs(labels_NK).max(axis=0, initial=0.0), 1e-300)
    centred_NK = centred_NK[:, varies_K] / spread_K[varies_K]
    with one_thread():
        made = standardise(acts_ND)
        rotate_CR, scale_R = ledoit_wolf_whitening(made.rows_NC) if shrunk else _whitening(made.rows_NC)
        cross_RK = scale_R[:, None] * (rotate_CR.T @ (made.rows_NC.T @ centred_NK)) / len(centred_NK)
        basis_RK = _column_space(cross_RK)
        return Eraser(
            left_DK=made.vectors((rotate_CR @ (basis_RK / scale_R[:, None])).T).T,
            right_KD=made.weights((rotate_CR @ (basis_RK * scale_R[:, None])).T),
            centre_D=made.centre_D,
        )


def _whitening(rows_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors (C x R) of the covariance of centred rows that it has a part in, and what whitens along them (R)."""
    values_C, rotate_CC = np.linalg.eigh(rows_NC.T @ rows_NC / len(rows_NC))
    kept = values_C > _RANK_TOLERANCE * max(float(values_C.max(initial=0.0)), 1e-300)
    return rotate_CC[:, kept], 1 / np.sqrt(values_C[kept])


def _column_space(columns_RK: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns; without any where all are zero up to rounding (labels and rows have unit scale)."""
    if not columns_RK.size:
        return np.zeros((len(columns_RK), 0))
    left_RK, singular_K, _ = np.linalg.svd(columns_RK, full_matrices=False)
    return left_RK[:, singular_K > max(1e-9 * float(singular_K[0]), 1e-12)]


def inlp(acts_ND: np.ndarray, labels_N: np.ndarray, *, steps: int, penalty: float | None = None) -> Eraser:
    """Iterative nullspace projection (Ravfogel et al. 2004.07667): `steps` times fit a classifier and project its weights out.

    An orthogonal projection about the mean. The classifier is a logistic regression on standardised coordinates, of weights that
    `penalty` holds back (`extraction.logistic_weights`; None is 1 / N, scikit-learn's default C = 1); with more than two labels
    every step takes out one dimension less than there are labels. Ends sooner where nothing is left that varies. As weights are
    in the inverse of a coordinate's units, a massive coordinate is hardly turned from, and what it tells takes many more steps.
    Raises ValueError for a single label, labels that do not fit the rows, or fewer than 1 step.
    """
    rows_ND = finite_rows(acts_ND, name="the activations")
    if steps < 1:
        raise ValueError(f"nullspace projection needs at least 1 step, not {steps}")
    centre_D = rows_ND.mean(axis=0)
    rest_ND = rows_ND - centre_D
    most = float(np.abs(rest_ND).max())
    basis_DK = np.zeros((rows_ND.shape[1], 0))
    with one_thread():
        for _ in range(steps):
            weights_KD = logistic_weights(rest_ND, labels_N, penalty=1 / len(rows_ND) if penalty is None else penalty)
            new_DK = weights_KD.T
            for _again in range(2):  # once leaves rounding of the size of the part taken off
                new_DK = new_DK - basis_DK @ (basis_DK.T @ new_DK)
            left_DK, singular_K, _ = np.linalg.svd(new_DK, full_matrices=False)
            found_DK = left_DK[:, singular_K > 1e-8 * max(float(np.linalg.norm(weights_KD)), 1e-300)]
            if not found_DK.size:
                break
            basis_DK = np.hstack([basis_DK, found_DK])
            rest_ND = rest_ND - (rest_ND @ found_DK) @ found_DK.T
            if float(np.abs(rest_ND).max()) <= 1e-10 * most:
                break
    return Eraser(basis_DK, basis_DK.T, centre_D)
