"""From a site's arrays to directions: means, contrasts, components, probes, and random ones to compare with. All in float64.

Means, contrasts and components are in the site's units, so that their length says how far answers move; a probe's weights are in
units of 1 / activation and a random direction has no meaningful length: only their orientation is used.
Shapes: N questions, D width, C = min(N, D) exact coordinates, F groups, K directions or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unmask.analysis.preparation import Groups, coordinate_scale, finite_rows
from unmask.analysis.threads import one_thread

_RANK_TOLERANCE = 1e-10
"""Of squared singular values, against the largest."""

LEAST_IN_CONTRAST = 2
"""Answers that either end of a contrast needs."""


def unit(vector_D: np.ndarray) -> np.ndarray:
    """The vector at length 1 (D, float64); zeros stay zeros."""
    wide_D = vector_D.astype(np.float64)
    return wide_D / (float(np.linalg.norm(wide_D)) or 1.0)


def halves(units_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A random half of the questions (bool, N): half of every stratum in `units_N`.

    The odd ones out go this way and that in turn, in a random order of the strata: the halves differ by one question at most.
    """
    codes_N = np.unique(np.asarray(units_N).astype(str), return_inverse=True)[1]
    half_N = np.zeros(len(codes_N), dtype=bool)
    more = bool(rng.integers(2))
    for code in rng.permutation(int(codes_N.max(initial=-1)) + 1):
        members = rng.permutation(np.flatnonzero(codes_N == code))
        half_N[members[: (len(members) + more) // 2]] = True
        more ^= len(members) % 2 == 1
    return half_N


def mean_shift(shift_ND: np.ndarray, rows_N: np.ndarray | None = None) -> np.ndarray:
    """Mean over the questions of `rows_N` (booleans or indices; all by default) (D). Raises ValueError for none of them."""
    rows_ND = np.asarray(shift_ND)
    return finite_rows(rows_ND if rows_N is None else rows_ND[rows_N], name="the shift").mean(axis=0)


def group_means(shift_ND: np.ndarray, groups_N: np.ndarray) -> dict[str, np.ndarray]:
    """Mean shift of each group's questions (D each), in the order of names."""
    groups = Groups.of(groups_N)
    return dict(zip(groups.names, groups.means(finite_rows(shift_ND, name="the shift")), strict=True))


def specific_parts(shift_ND: np.ndarray, groups_N: np.ndarray) -> dict[str, np.ndarray]:
    """Each group's mean shift less the mean of the group means weighted by size, which is the mean over all questions (D each).

    Weighted by size, the parts sum to zero.
    """
    shared_D = mean_shift(shift_ND)
    return {name: mean_D - shared_D for name, mean_D in group_means(shift_ND, groups_N).items()}


def score_contrast(acts_ND: np.ndarray, scores_N: np.ndarray, *, share: float = 0.3) -> np.ndarray:
    """Mean of the highest-scored share of the answers minus mean of the lowest-scored (D).

    Answers without a score (NaN) are left out. Answers whose scores tie at a cut share the places left there equally, so that
    the order of the rows does not matter. Raises ValueError where an end has fewer than 2 answers, where the scores are all
    equal, or for a share outside (0, 0.5].
    """
    scores_N = np.asarray(scores_N, dtype=float)
    scored_N = np.isfinite(scores_N)
    scores_N, count = scores_N[scored_N], int(share * scored_N.sum() + 1e-9)
    if not 0 < share <= 0.5 or count < LEAST_IN_CONTRAST:
        raise ValueError(
            f"a share of {share:g} of {int(scored_N.sum())} scored answers is fewer than {LEAST_IN_CONTRAST}"
        )
    if np.ptp(scores_N) == 0:
        raise ValueError("all scores are equal: there is nothing to contrast")
    rows_ND = finite_rows(np.asarray(acts_ND)[scored_N], name="the activations")
    return (_places(scores_N, count) - _places(-scores_N, count)) @ rows_ND / count


def in_order_of(parts_KD: np.ndarray, reference_KD: np.ndarray) -> np.ndarray:
    """Components (K x D) put into the order, and given the signs, of those reference components that they are most like.

    The assignment with the largest sum of |cosines|. Two halves' components may stand in another order, and a sign is arbitrary.
    """
    from scipy.optimize import linear_sum_assignment

    units, others = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (parts_KD, reference_KD)
    )
    cosines_KK = others @ units.T
    rows, columns = linear_sum_assignment(-np.abs(cosines_KK))
    signs = np.where(cosines_KK[rows, columns] < 0, -1.0, 1.0)
    return parts_KD[columns] * signs[:, None]


def _places(scores_N: np.ndarray, count: int) -> np.ndarray:
    """How much of each answer is among the `count` highest (0 to 1): those tied at the cut share what is left."""
    cut = np.sort(scores_N)[-count]
    above_N, tied_N = scores_N > cut, scores_N == cut
    return above_N + tied_N * ((count - above_N.sum()) / tied_N.sum())


def shift_components(shift_ND: np.ndarray, count: int) -> np.ndarray:
    """The leading principal components of the shift, as long as the questions' SD along them (count x D).

    The mean shift does not point against any of them. Raises ValueError for more components than the shift has.
    """
    rows_ND = finite_rows(shift_ND, name="the shift")
    mean_D = rows_ND.mean(axis=0)
    centred_ND = rows_ND - mean_D
    with one_thread():
        wide = centred_ND.shape[0] < centred_ND.shape[1]
        values, vectors = np.linalg.eigh(centred_ND @ centred_ND.T if wide else centred_ND.T @ centred_ND)
    rank = int((values > _RANK_TOLERANCE * max(float(values[-1]), 1e-300)).sum())
    if not 1 <= count <= rank:
        raise ValueError(f"the shift of {len(rows_ND)} questions has {rank} components, not {count}")
    leading = vectors[:, ::-1][:, :count].T
    lengths_K = np.sqrt(values[::-1][:count])
    units_KD = leading @ centred_ND / lengths_K[:, None] if wide else leading
    along_K = units_KD @ mean_D
    largest_K = np.take_along_axis(units_KD, np.abs(units_KD).argmax(axis=1)[:, None], axis=1)[:, 0]
    undecided_K = np.abs(along_K) <= 1e-12 * lengths_K  # the mean's rounding: it has no part in this component
    signs_K = np.where(np.where(undecided_K, largest_K, along_K) < 0, -1.0, 1.0)
    return units_KD * (signs_K * lengths_K / np.sqrt(max(len(rows_ND) - 1, 1)))[:, None]


@dataclass(frozen=True, slots=True)
class Standardised:
    """Rows centred, each coordinate over its SD (floored as in `preparation`), in exact coordinates where N < D: the dual."""

    rows_NC: np.ndarray
    centre_D: np.ndarray
    scale_D: np.ndarray
    basis_DC: np.ndarray | None
    """None: the coordinates are those of the site."""

    def weights(self, weights_KC: np.ndarray) -> np.ndarray:
        """Weights of coordinates as weights of activations in the site's own units (K x D)."""
        return (weights_KC if self.basis_DC is None else weights_KC @ self.basis_DC.T) / self.scale_D

    def vectors(self, vectors_KC: np.ndarray) -> np.ndarray:
        """Vectors of this space in the site's own units (K x D)."""
        return (vectors_KC if self.basis_DC is None else vectors_KC @ self.basis_DC.T) * self.scale_D


def standardise(acts_ND: np.ndarray) -> Standardised:
    """Rows on one scale; with fewer questions than coordinates rotated to at most N of them, which changes no inner product."""
    rows_ND = finite_rows(acts_ND, name="the activations")
    centre_D, scale_D = rows_ND.mean(axis=0), coordinate_scale(rows_ND)
    scaled_ND = (rows_ND - centre_D) / scale_D
    n, d = scaled_ND.shape
    if d <= n:
        return Standardised(scaled_ND, centre_D, scale_D, None)
    values, vectors_NN = np.linalg.eigh(scaled_ND @ scaled_ND.T)
    kept = values > _RANK_TOLERANCE * max(float(values[-1]), 1e-300)
    singular_C, left_NC = np.sqrt(values[kept])[::-1], vectors_NN[:, kept][:, ::-1]
    return Standardised(left_NC * singular_C, centre_D, scale_D, (scaled_ND.T @ left_NC) / singular_C)


def ridge_probe(acts_ND: np.ndarray, labels_N: np.ndarray, *, penalty: float) -> np.ndarray:
    """Weights (D) of the ridge regression of labels (booleans or numbers) on activations, in the activations' own units.

    Minimises the mean of (y - b - w.z)^2 plus `penalty` |w|^2 over standardised coordinates z; the weights returned are w over
    the coordinates' scale, so that acts @ weights + constant is the prediction. Raises ValueError for labels that are all equal
    or missing, or a penalty that is not positive.
    """
    labels_N = np.asarray(labels_N, dtype=float)
    if not penalty > 0:
        raise ValueError(f"a penalty must be positive, not {penalty:g}")
    if labels_N.shape != np.shape(acts_ND)[:1] or not np.isfinite(labels_N).all() or np.ptp(labels_N) == 0:
        raise ValueError("a probe needs a finite label for each row, and labels that differ")
    with one_thread():
        made = standardise(acts_ND)
        n, c = made.rows_NC.shape
        normal_CC = made.rows_NC.T @ made.rows_NC / n + penalty * np.eye(c)
        weights_C = np.linalg.solve(normal_CC, made.rows_NC.T @ (labels_N - labels_N.mean()) / n)
        return made.weights(weights_C[None])[0]


def logistic_weights(acts_ND: np.ndarray, labels_N: np.ndarray, *, penalty: float) -> np.ndarray:
    """Weights of a logistic regression, a row for two labels and a row a label for more (K x D).

    Minimises the mean log loss plus `penalty` / 2 |w|^2 over standardised coordinates (scikit-learn's C is 1 / (N penalty));
    the weights returned are w over the coordinates' scale, so that acts @ weights.T + constant are the log-odds.
    """
    from sklearn.linear_model import LogisticRegression

    labels_N = np.asarray(labels_N)
    if not penalty > 0:
        raise ValueError(f"a penalty must be positive, not {penalty:g}")
    if labels_N.shape != np.shape(acts_ND)[:1] or len(np.unique(labels_N)) < 2:
        raise ValueError("a probe needs a label for each row, and labels that differ")
    with one_thread():
        made = standardise(acts_ND)
        model = LogisticRegression(C=1 / (len(labels_N) * penalty), max_iter=2000, tol=1e-6)
        model.fit(made.rows_NC, labels_N)
        return made.weights(np.asarray(model.coef_, dtype=np.float64))


def random_isotropic(rng: np.random.Generator, width: int) -> np.ndarray:
    """A unit vector, uniform over the sphere (D)."""
    vector_D = rng.standard_normal(width)
    return vector_D / np.linalg.norm(vector_D)


def random_in_span(rng: np.random.Generator, acts_ND: np.ndarray) -> np.ndarray:
    """A Gaussian vector whose covariance is that of the activations: a Gaussian combination of centred rows (D).

    Unlike an isotropic one it lies where the model's activations vary: the harder comparison.
    """
    rows_ND = finite_rows(acts_ND, name="the activations")
    return rng.standard_normal(len(rows_ND)) @ (rows_ND - rows_ND.mean(axis=0)) / np.sqrt(max(len(rows_ND) - 1, 1))


def shuffled_group_means(shift_ND: np.ndarray, sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Mean shift of disjoint random sets of questions, as large as the groups (F x D).

    Raises ValueError for more questions than there are, or an empty set.
    """
    rows_ND = finite_rows(shift_ND, name="the shift")
    if min(sizes, default=0) < 1 or sum(sizes) > len(rows_ND):
        raise ValueError(f"{len(rows_ND)} questions do not make disjoint sets of {list(sizes)}")
    order, ends = rng.permutation(len(rows_ND)), np.cumsum([0, *sizes])
    return np.stack([rows_ND[order[start:end]].mean(axis=0) for start, end in pairwise(ends)])
