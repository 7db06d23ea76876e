"""Mean, covariance and principal components of rows that do not fit in memory: one pass, exact to float64 rounding.

Shapes: N rows (tokens), D width, C components, P rows of a panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from unmask.analysis.reduction import axis_signs, leading_vectors, shares_of

PANEL = 1024
"""Rows of one symmetric update, the last of them the means' own: with fewer, OpenBLAS leaves narrow rows to one thread."""

MIRRORED = 512
"""Columns of a triangle that are copied to the other side at once."""


@dataclass(frozen=True, slots=True)
class Covariance:
    """Count, mean (D) and covariance (D x D, divided by count - 1) of all rows that came, in float64."""

    count: int
    mean_D: np.ndarray
    covariance_DD: np.ndarray


@dataclass(slots=True)
class _Sums:
    """Count, mean and co-moments about the mean: the lower triangle alone, in Fortran's order; the upper one stays zero."""

    count: int
    mean_D: np.ndarray
    comoment_DD: np.ndarray

    def add(self, panel_PD: np.ndarray, *, rows: int) -> None:
        """Take in the first `rows` of a panel; they are centred in place, and the row after them is overwritten.

        S += sum (x - m)(x - m)' + n r / (n + r) (m - M)(m - M)' with m the panel's mean and M the one so far (Chan, Golub &
        LeVeque 1983): the last term is one row more of the same `dsyrk`.
        """
        from scipy.linalg import get_blas_funcs

        part_PD = panel_PD[:rows]
        mean_D = part_PD.mean(axis=0)  # not by NumPy's BLAS: its idle threads would spin while SciPy's compute
        part_PD -= mean_D
        total = self.count + rows
        delta_D = mean_D - self.mean_D
        panel_PD[rows] = delta_D * np.sqrt(self.count * rows / total)
        syrk = get_blas_funcs("syrk", dtype=np.float64)
        syrk(1.0, panel_PD[: rows + 1].T, beta=1.0, c=self.comoment_DD, lower=1, overwrite_c=1)
        self.mean_D += delta_D * (rows / total)
        self.count = total

    def join(self, other: _Sums) -> None:
        """Take in another stream's sums, by the same formula."""
        from scipy.linalg import get_blas_funcs

        if not other.count:
            return
        total = self.count + other.count
        delta_D = other.mean_D - self.mean_D
        self.comoment_DD += other.comoment_DD
        syr = get_blas_funcs("syr", dtype=np.float64)
        syr(self.count * other.count / total, delta_D, lower=1, a=self.comoment_DD, overwrite_a=1)
        self.mean_D += delta_D * (other.count / total)
        self.count = total

    def copy(self) -> _Sums:
        return _Sums(self.count, self.mean_D.copy(), self.comoment_DD.copy(order="F"))


class Moments:
    """Mean and covariance of the rows so far, whatever their number; how the stream is cut into blocks changes no bit.

    Rows are staged in panels of `PANEL` - 1, each centred by its own mean and added by one symmetric rank-k update (BLAS `dsyrk`,
    one triangle), all in float64. Single precision was 1.7 times as fast and is not enough: its error is relative to the largest
    eigenvalue. Behind one oblique direction 1,000 times as large as the rest, the others were wrong by up to 3e-3, not 1e-9.

    Memory, at any number of rows: 8 D (D + P) bytes; `finish` holds 8 D (D + P) more; with `pca` it is 8 D (3 D + 2 P) in all for
    a few components (C < D / 4) and 8 D (6 D + 2 P) for all: 0.5 and 0.9 GB at D = 4,096. The last bits may depend on BLAS's
    number of threads; where they must not, wrap all in `threads.one_thread`. Raises ValueError for a width below 1.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"moments need rows of at least 1 number, not {width}")
        self.width = width
        self._sums = _Sums(0, np.zeros(width), np.zeros((width, width), order="F"))
        self._panel_PD = np.empty((PANEL, width))
        self._staged = 0

    @property
    def count(self) -> int:
        """Rows taken in."""
        return self._sums.count + self._staged

    def update(self, rows_ND: np.ndarray) -> None:
        """Take in a block (N x D) of any number of rows, of float16, float32, float64 or integers.

        Raises ValueError for another shape or type, and for NaN or infinity, naming the row; a refused block changes nothing.
        """
        rows_ND = checked(rows_ND, width=self.width, before=self.count)
        start = 0
        while start < len(rows_ND):
            part_ND = rows_ND[start : start + PANEL - 1 - self._staged]
            self._panel_PD[self._staged : self._staged + len(part_ND)] = part_ND
            self._staged += len(part_ND)
            start += len(part_ND)
            if self._staged == PANEL - 1:
                self._sums.add(self._panel_PD, rows=self._staged)
                self._staged = 0

    def merge(self, other: Moments) -> None:
        """Take in the rows of another stream, which is left as it was. Raises ValueError for another width."""
        if other.width != self.width:
            raise ValueError(f"moments of rows of {other.width} numbers cannot join those of rows of {self.width}")
        staged_PD = other._panel_PD[: other._staged].copy()
        self._sums.join(other._sums)
        self.update(staged_PD)

    def finish(self) -> Covariance:
        """The result so far; rows may come afterwards. Raises ValueError for fewer than 2 rows or squares beyond float64."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, {self.count} came")
        sums = self._sums.copy()
        if self._staged:
            sums.add(self._panel_PD[: self._staged + 1].copy(), rows=self._staged)
        covariance_DD = sums.comoment_DD
        if not np.isfinite(np.diagonal(covariance_DD)).all():
            raise ValueError("values are too large: their squares are beyond float64")
        _mirror(covariance_DD)
        covariance_DD /= sums.count - 1
        return Covariance(sums.count, sums.mean_D, covariance_DD)


def stream_moments(blocks: Iterable[np.ndarray]) -> Moments:
    """Moments of all rows of all blocks (N x D each), in one pass. Raises ValueError for no block, else as `Moments.update`."""
    moments: Moments | None = None
    for block_ND in blocks:
        if moments is None:
            moments = Moments(block_ND.shape[-1] if block_ND.ndim else 0)
        moments.update(block_ND)
    if moments is None:
        raise ValueError("there are no blocks: the stream is empty, or an iterator that was read before")
    return moments


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """Axes (C x D, orthonormal), their variances (C) and shares of all variance (C), the rows' mean (D) and count."""

    count: int
    mean_D: np.ndarray
    axes_CD: np.ndarray
    variances_C: np.ndarray
    share_C: np.ndarray

    def project(self, rows_ND: np.ndarray) -> np.ndarray:
        """Scores (N x C, float64) of a block, by panels: no float64 copy of all of it. Raises ValueError as `Moments.update`."""
        rows_ND = checked(rows_ND, width=len(self.mean_D), before=0)
        scores_NC = np.empty((len(rows_ND), len(self.axes_CD)))
        for start in range(0, len(rows_ND), PANEL):
            part_PD = rows_ND[start : start + PANEL] - self.mean_D
            np.matmul(part_PD, self.axes_CD.T, out=scores_NC[start : start + PANEL])
        return scores_NC


@dataclass(frozen=True, slots=True)
class Projected:
    """Blocks of scores (N x C) from blocks of rows (N x D), computed anew at every pass and never kept.

    `blocks` must be readable as often as this is: a list or an object with `__iter__`, no iterator.
    """

    components: PrincipalComponents
    blocks: Iterable[np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.components.project(block_ND) for block_ND in self.blocks)


def pca(moments: Moments, *, components: int) -> PrincipalComponents:
    """Exact PCA of all rows that came; the largest loading of an axis is positive, as in `reduction.pca`.

    At most min(N - 1, D) components are returned. Raises ValueError as `Moments.finish`.
    """
    found = moments.finish()
    kept = max(1, min(components, found.count - 1, moments.width))
    values_C, vectors_DC = leading_vectors(found.covariance_DD, kept)
    axes_CD = np.ascontiguousarray(vectors_DC.T)
    axes_CD *= axis_signs(axes_CD)[:, None]
    return PrincipalComponents(
        count=found.count,
        mean_D=found.mean_D,
        axes_CD=axes_CD,
        variances_C=np.maximum(values_C, 0.0),
        share_C=shares_of(values_C, float(np.trace(found.covariance_DD))),
    )


def checked(rows_ND: np.ndarray, *, width: int, before: int) -> np.ndarray:
    """A block that is N x `width`, real and finite; `before` rows came before it. Else ValueError, naming the first bad row."""
    rows_ND = np.asarray(rows_ND)
    if rows_ND.ndim != 2 or rows_ND.shape[1] != width:
        raise ValueError(f"a block must be rows x {width}, not {' x '.join(map(str, rows_ND.shape)) or 'a number'}")
    if rows_ND.dtype.kind not in "fiu":
        raise ValueError(f"a block must hold real numbers (bfloat16 as float32), not {rows_ND.dtype}")
    bad = [
        start + np.flatnonzero(~np.isfinite(rows_ND[start : start + PANEL]).all(axis=1))
        for start in range(0, len(rows_ND), PANEL)
        if not _finite(rows_ND[start : start + PANEL])
    ]
    if bad:
        row, count = int(bad[0][0]), sum(map(len, bad))
        place = f"row {row} of the block" + (f", {before + row} of the stream," if before else "")
        raise ValueError(f"{place} holds NaN or infinity; {count} of the block's {len(rows_ND)} rows do")
    return rows_ND


def _finite(rows_ND: np.ndarray) -> bool:
    """Whether all values are finite; of half precision the exponents' bits are read, as `isfinite` is 17 times slower there."""
    if rows_ND.dtype == np.float16:
        return int((rows_ND.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    return bool(np.isfinite(rows_ND).all())


def _mirror(lower_DD: np.ndarray) -> None:
    """Fill the upper triangle, zero so far, from the lower one, in place."""
    for start in range(0, len(lower_DD), MIRRORED):
        stop = start + MIRRORED
        square = lower_DD[start:stop, start:stop]
        square += np.tril(square, -1).T
        lower_DD[start:stop, stop:] = lower_DD[stop:, start:stop].T
