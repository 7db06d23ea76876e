"""What can be done to the residual stream, as records of arrays and as formulas; who hooks them into a model is `intervening`.

Each operation has one row of parameters for each row of a batch, or one for all.

Shapes: B rows, T tokens, D width of the residual stream, K directions that span what is removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unmask.models.changes import Change, Intervention, Parameters, Positions

__all__ = [
    "Ablate",
    "Add",
    "Change",
    "Clamp",
    "Erase",
    "Intervention",
    "Positions",
    "Replace",
    "orthonormal",
]

_DEPENDENT = 1e-6
"""Length, relative to the row's own, below which what is left of a basis row beside the rows before it counts as rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Add(Intervention):
    """x + delta (Turner et al. 2023, arXiv 2308.10248). `delta_BD` is coefficient x typical norm x unit direction."""

    delta_BD: np.ndarray

    reads = "nothing"

    @property
    def acts_B(self) -> np.ndarray:
        return (self.delta_BD != 0).any(axis=1)

    def _compiled(self) -> tuple[np.ndarray, ...]:
        return (self.delta_BD[:, None, :],)

    @staticmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        return parameters[0]


@dataclass(frozen=True, slots=True, eq=False)
class _InSpan(Intervention):
    """What acts within the span of `basis_BKD`, as strongly as `strength_B` says.

    The rows of the basis are made orthonormal; rows of zeros, and rows in the span of those before them, do nothing.
    """

    basis_BKD: np.ndarray
    strength_B: np.ndarray

    def _settle(self) -> None:
        object.__setattr__(self, "basis_BKD", orthonormal(self.basis_BKD))

    @property
    def acts_B(self) -> np.ndarray:
        return (self.strength_B != 0) & self.basis_BKD.any(axis=(1, 2))

    def _compiled(self) -> tuple[np.ndarray, ...]:
        return self.basis_BKD, self.strength_B[:, None, None]


@dataclass(frozen=True, slots=True, eq=False)
class Ablate(_InSpan):
    """x - strength (x U^T) U: the part of x in the span of `basis_BKD` is taken out (Arditi et al. 2024, arXiv 2406.11717).

    The rows of the basis are made orthonormal; rows of zeros, and rows in the span of those before them, take nothing out.
    """

    @staticmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        basis_BKD, strength_B11 = parameters
        return (-strength_B11 * (hidden_BTD @ basis_BKD.mT)) @ basis_BKD


@dataclass(frozen=True, slots=True, eq=False)
class Erase(Intervention):
    """x - strength ((x - centre) right^T) left^T: an affine eraser, as LEACE's (Belrose et al. 2023, arXiv 2306.03819).

    With columns of `left_BDK` and rows of `right_BKD` that are zero, erasers of unequal rank stand side by side.
    """

    left_BDK: np.ndarray
    right_BKD: np.ndarray
    centre_BD: np.ndarray
    strength_B: np.ndarray

    def _settle(self) -> None:
        if self.left_BDK.shape[2] != self.right_BKD.shape[1]:
            raise ValueError("the two sides of an eraser must be of one rank")

    @property
    def acts_B(self) -> np.ndarray:
        return (self.strength_B != 0) & self.left_BDK.any(axis=(1, 2)) & self.right_BKD.any(axis=(1, 2))

    def _compiled(self) -> tuple[np.ndarray, ...]:
        return self.left_BDK, self.right_BKD, self.centre_BD[:, None, :], self.strength_B[:, None, None]

    @staticmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        left_BDK, right_BKD, centre_B1D, strength_B11 = parameters
        return (-strength_B11 * ((hidden_BTD - centre_B1D) @ right_BKD.mT)) @ left_BDK.mT


@dataclass(frozen=True, slots=True, eq=False)
class Clamp(Intervention):
    """x + strength (clip(x.u, low, high) - x.u) u: the component along `unit_BD` is kept in [low, high].

    low = high sets it, which is mean ablation where they are its mean. The direction's length does not matter; zeros do nothing.
    Raises ValueError for low > high.
    """

    unit_BD: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray
    strength_B: np.ndarray

    unbounded = ("low_B", "high_B")

    def _settle(self) -> None:
        if (self.low_B > self.high_B).any() or (self.low_B == np.inf).any() or (self.high_B == -np.inf).any():
            raise ValueError("a component is clamped between a low and a high end: low <= high, and one of them finite")
        object.__setattr__(self, "unit_BD", orthonormal(self.unit_BD[:, None, :])[:, 0, :])

    @property
    def acts_B(self) -> np.ndarray:
        bounded_B = np.isfinite(self.low_B) | np.isfinite(self.high_B)
        return (self.strength_B != 0) & self.unit_BD.any(axis=1) & bounded_B

    def _compiled(self) -> tuple[np.ndarray, ...]:
        low_B11, high_B11, strength_B11 = (each[:, None, None] for each in (self.low_B, self.high_B, self.strength_B))
        return self.unit_BD[:, None, :], low_B11, high_B11, strength_B11

    @staticmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        unit_B1D, low_B11, high_B11, strength_B11 = parameters
        component_BT1 = hidden_BTD @ unit_B1D.mT
        clipped_BT1 = torch.minimum(torch.maximum(component_BT1, low_B11), high_B11)
        return strength_B11 * (clipped_BT1 - component_BT1) * unit_B1D


@dataclass(frozen=True, slots=True, eq=False)
class Replace(_InSpan):
    """x + strength ((r - x) U^T) U: the part of x in the span of the basis becomes that of a reference stream r.

    The reference is another model's stream on the same tokens (activation patching; Vig et al. 2020, arXiv 2004.12265), handed
    over for each pass. The basis is treated as `Ablate` treats it.
    """

    reads = "reference"

    @staticmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        basis_BKD, strength_B11 = parameters
        assert reference_BTD is not None
        return (strength_B11 * ((reference_BTD - hidden_BTD) @ basis_BKD.mT)) @ basis_BKD


def orthonormal(basis_BKD: np.ndarray) -> np.ndarray:
    """Rows of the same spans, orthonormal, in the array's dtype; rows that add nothing to the span are zeros.

    Gram-Schmidt in float64, twice over ("twice is enough": Giraud et al. 2005). Rows that are orthonormal already stay so.
    """
    basis = basis_BKD.astype(np.float64)
    gram_BKK = basis @ basis.transpose(0, 2, 1)
    diagonal_BK = np.diagonal(gram_BKK, axis1=1, axis2=2)
    if (
        np.abs(gram_BKK - np.where(diagonal_BK > 0.5, 1.0, 0.0)[:, :, None] * np.eye(basis.shape[1])).max(initial=0)
        < 1e-6
    ):
        return basis_BKD
    done = np.zeros_like(basis)
    for k in range(basis.shape[1]):
        row_BD = basis[:, k]
        length_B1 = np.linalg.norm(row_BD, axis=1, keepdims=True)
        row_BD = row_BD / np.where(length_B1 > 0, length_B1, 1)
        for _ in range(2):
            row_BD = row_BD - np.einsum("bkd,bd,bke->be", done, row_BD, done, optimize=True)
        left_B1 = np.linalg.norm(row_BD, axis=1, keepdims=True)
        done[:, k] = np.where(left_B1 > _DEPENDENT, row_BD / np.where(left_B1 > 0, left_B1, 1), 0)
    return done.astype(basis_BKD.dtype)
