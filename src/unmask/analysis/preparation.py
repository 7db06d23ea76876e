"""Rows made ready for the tests: coordinates on one scale, single rows that cannot dominate, exact small coordinates.

Shapes: N questions, D width of the site, C = min(N, D) exact coordinates, S responses a question, F groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALE_FLOOR = 0.1
"""A coordinate's SD is floored at this share of the median SD: a nearly constant coordinate is not blown up."""

SHIFT_CAP = 3.0
BASE_CAP = 4.0
"""Rows longer than this many median norms are shortened to it; their direction stays."""

_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows in exact coordinates: inner products are those of the scaled and capped rows.

    `basis_DC` takes a row in the site's own units, divided by `scale_D` and multiplied by its `cap_N`, to the coordinates.
    """

    rows_NC: np.ndarray
    scale_D: np.ndarray
    cap_N: np.ndarray
    basis_DC: np.ndarray

    @property
    def capped(self) -> int:
        """Rows that were shortened."""
        return int((self.cap_N < 1).sum())

    def coordinates(self, rows_ND: np.ndarray) -> np.ndarray:
        """Further rows of the same questions (a replicate, a control), scaled and capped like theirs (N x C)."""
        return (np.asarray(rows_ND, dtype=np.float64) / self.scale_D * self.cap_N[:, None]) @ self.basis_DC

    def original(self, vectors_FC: np.ndarray) -> np.ndarray:
        """Vectors of this space in the site's own units (F x D)."""
        return (vectors_FC @ self.basis_DC.T) * self.scale_D


def finite_rows(rows_ND: np.ndarray, *, name: str) -> np.ndarray:
    """`rows_ND` in float64. Raises ValueError when it is no table of finite numbers."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} must be a table of questions by coordinates, not of shape {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise ValueError(f"{name} holds values that are not finite, in {bad} of {len(rows)} rows")
    return rows


def coordinate_scale(rows_ND: np.ndarray) -> np.ndarray:
    """SD of each coordinate over questions, floored at a tenth of the median SD (D).

    Constant coordinates count neither for the median nor as information; when all are constant the scale is 1.
    """
    sd_D = rows_ND.std(axis=0)
    return _floored(sd_D, sd_D > 1e-12 * max(float(np.abs(rows_ND).max()), 1e-300))


def _floored(spread_D: np.ndarray, varying_D: np.ndarray) -> np.ndarray:
    if not varying_D.any():
        return np.ones(len(spread_D))
    return np.maximum(spread_D, SCALE_FLOOR * float(np.median(spread_D[varying_D])))


def cap_factors(rows_ND: np.ndarray, *, limit: float) -> np.ndarray:
    """Factor per row (N) that brings it to at most `limit` median norms."""
    norms_N = np.linalg.norm(rows_ND, axis=1)
    ceiling = limit * float(np.median(norms_N))
    if ceiling <= 0:
        return np.ones(len(rows_ND))
    return np.minimum(1.0, ceiling / np.maximum(norms_N, 1e-300))


def flip_rows(rows_ND: np.ndarray) -> np.ndarray:
    """Rows for tests that flip whole rows (N x D): each coordinate over its root mean square, rows capped at 3 median norms.

    A flipped row leaves both as they are, unlike an SD about the mean: with few questions the mean shift would shrink what it is
    measured by. Raises ValueError for values that are not finite.
    """
    rows = finite_rows(rows_ND, name="the shift")
    rms_D = np.sqrt((rows**2).mean(axis=0))
    scaled = rows / _floored(rms_D, rms_D > 1e-12 * max(float(np.abs(rows).max()), 1e-300))
    return scaled * cap_factors(scaled, limit=SHIFT_CAP)[:, None]


def prepare_shift(shift_ND: np.ndarray) -> Prepared:
    """Scale each coordinate by its SD, cap rows at 3 median norms, rotate to exact coordinates through the Gram matrix.

    Raises ValueError for values that are not finite.
    """
    rows = finite_rows(shift_ND, name="the shift")
    scale_D = coordinate_scale(rows)
    scaled = rows / scale_D
    cap_N = cap_factors(scaled, limit=SHIFT_CAP)
    capped = scaled * cap_N[:, None]
    n, d = capped.shape
    if d <= n:
        return Prepared(capped, scale_D, cap_N, np.eye(d))
    values, vectors_NC = np.linalg.eigh(capped @ capped.T)
    kept = values > _RANK_TOLERANCE * max(float(values[-1]), 1e-300)
    singular_C = np.sqrt(values[kept])[::-1]
    left_NC = vectors_NC[:, kept][:, ::-1]
    if singular_C.size == 0:  # every row is zero
        return Prepared(np.zeros((n, 1)), scale_D, cap_N, np.eye(d)[:, :1])
    return Prepared(left_NC * singular_C, scale_D, cap_N, (capped.T @ left_NC) / singular_C)


def prepare_base(base_ND: np.ndarray) -> np.ndarray:
    """Centre, scale each coordinate by its SD, cap rows at 4 median norms (N x D)."""
    rows = finite_rows(base_ND, name="the base activations")
    centred = rows - rows.mean(axis=0)
    scaled = centred / coordinate_scale(rows)
    return scaled * cap_factors(scaled, limit=BASE_CAP)[:, None]


@dataclass(frozen=True, slots=True)
class Groups:
    """Which group a question belongs to: codes 0..F-1 (N), names and sizes (F)."""

    codes_N: np.ndarray
    names: tuple[str, ...]
    sizes_F: np.ndarray

    @classmethod
    def of(cls, labels_N: np.ndarray) -> Groups:
        """Groups in the order of their names."""
        names, codes_N = np.unique(np.asarray(labels_N).astype(str), return_inverse=True)
        return cls(codes_N, tuple(str(name) for name in names), np.bincount(codes_N))

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def weights_F(self) -> np.ndarray:
        """Share of the questions in each group."""
        return self.sizes_F / self.sizes_F.sum()

    @property
    def indicator_NF(self) -> np.ndarray:
        return np.eye(self.count)[self.codes_N]

    def means(self, rows_NC: np.ndarray) -> np.ndarray:
        """Mean of each group's rows (F x C)."""
        return (self.indicator_NF.T @ rows_NC) / self.sizes_F[:, None]

    def centred(self, rows_NC: np.ndarray) -> np.ndarray:
        """Rows less their group's mean (N x C)."""
        return rows_NC - self.means(rows_NC)[self.codes_N]


def row_energy(rows_NC: np.ndarray) -> np.ndarray:
    """Squared norm of each row (N)."""
    return np.einsum("nc,nc->n", rows_NC, rows_NC)
