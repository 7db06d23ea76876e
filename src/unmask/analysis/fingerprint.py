"""Fingerprint removal: what any tuning of this kind adds to the activations is taken from the organism's shift.

The control organism was tuned the same way on harmless data and read the same tokens; its shift estimates the fingerprint.

Shapes: N questions, D width, C coordinates, F groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.geometry import gram_of
from unmask.analysis.preparation import Groups, Prepared

Removal = Literal["mean", "question"]

ORIGIN_SHARE = 0.35
"""How wrong the control may be: one dimension beyond topic is enough for separability (k* = 1) only when a fingerprint left
over after the subtraction had to be at least this large, against the control's own, to make one graded axis look like it."""


def remove_control(shift_ND: np.ndarray, control_ND: np.ndarray, *, removal: Removal) -> np.ndarray:
    """The shift less the control's: its mean over questions, or question by question (N x D).

    Rows of `control_ND` that are missing (NaN) count for the mean only where they are there; "question" gives NaN for them.
    Raises ValueError when the control has no row, or another shape.
    """
    control = np.asarray(control_ND, dtype=np.float64)
    if control.shape != shift_ND.shape:
        raise ValueError(f"the control's shift has shape {control.shape}, the organism's {shift_ND.shape}")
    there_N = np.isfinite(control).all(axis=1)
    if not there_N.any():
        raise ValueError("the control's shift holds no row without missing values")
    if removal == "question":
        return shift_ND - np.where(np.expand_dims(there_N, 1), control, np.nan)
    return shift_ND - control[there_N].mean(axis=0)


@dataclass(frozen=True, slots=True)
class Origin:
    """How far from the origin the line through the group means passes, and what that says about a graded axis."""

    distance: float
    fingerprint: float

    @property
    def share(self) -> float:
        """The left-over fingerprint that a single graded axis would need, over the control's own; infinite without one."""
        return self.distance / self.fingerprint if self.fingerprint > 0 else float("inf")

    @property
    def k_star(self) -> int:
        """Dimensions beyond topic that separability needs."""
        return 1 if self.share >= ORIGIN_SHARE else 2


def origin(prepared: Prepared, groups: Groups, control_ND: np.ndarray) -> Origin:
    """The smallest constant that would make the corrected group means one graded axis, against the control's mean shift.

    Means on one axis through the origin need no constant. Otherwise the constant is at least the distance from the origin to the
    best line through the means; in the prepared scale, without the sampling noise of the means and of the control's own mean,
    which was taken off every row.
    """
    w_F = groups.weights_F
    root_F = np.sqrt(w_F)
    inner_FF = gram_of(prepared.rows_NC, groups) / np.outer(root_F, root_F)
    centring_FF = np.eye(groups.count) - np.outer(np.ones(groups.count), w_F)
    spread_FF = root_F[:, None] * (centring_FF @ inner_FF @ centring_FF.T) * root_F[None, :]
    values_F, vectors_FF = np.linalg.eigh(spread_FF)
    squared = float(w_F @ inner_FF @ w_F)
    if values_F[-1] > 0:
        along = float(w_F @ inner_FF @ centring_FF.T @ (root_F * vectors_FF[:, -1]))
        squared -= along**2 / float(values_F[-1])
    rows_ND = control_ND[np.isfinite(control_ND).all(axis=1)] / prepared.scale_D
    own = rows_ND.mean(axis=0)
    noise = float(rows_ND.var(axis=0, ddof=1).sum()) / len(rows_ND) if len(rows_ND) > 1 else 0.0
    fingerprint = float(np.sqrt(max(float(own @ own) - noise, 0.0)))
    return Origin(float(np.sqrt(max(squared - noise, 0.0))), fingerprint)
