"""What an intervention on the residual stream is: a record of arrays, a row for each row of a batch, and its form on a device.

Every intervention is `x -> x + change(x)`. Strength 0 and what adds nothing change exactly nothing: 0 times finite numbers is 0,
and x + 0 = x to the bit. Formulas are computed in float32 at least, whatever the stream's dtype is.

Shapes: B rows, T tokens, D width of the residual stream. Records hold NumPy arrays, the compiled form tensors.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch

if TYPE_CHECKING:
    from unmask.records import Site

Positions = Literal["all", "prompt", "response"]
"""`response`: where a response token is predicted, so the prompt's last token and all response tokens. `prompt`: those before."""

Parameters = tuple[torch.Tensor, ...]
Formula = Callable[[Parameters, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Given the compiled parameters, the stream (B x T x D) and the reference stream or None: what is added to the stream."""


@dataclass(frozen=True, slots=True)
class Change:
    """An intervention compiled for a device: `change(stream)` is what is to be added to it.

    `reads` says what the formula needs: nothing, the stream, or a reference stream beside it.
    """

    site: Site
    positions: Positions
    reads: Literal["nothing", "stream", "reference"]
    idle: bool
    formula: Formula
    parameters: Parameters

    def change(self, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """What is added to a stream (B x T x D, or B x 1 x D where all positions get the same), in the stream's dtype.

        Raises ValueError where the reference is missing, or is not of the stream's shape.
        """
        if self.reads == "reference" and (reference_BTD is None or reference_BTD.shape != hidden_BTD.shape):
            found = None if reference_BTD is None else tuple(reference_BTD.shape)
            raise ValueError(
                f"what replaces {self.site.name} must be of the shape {tuple(hidden_BTD.shape)}, not {found}"
            )
        dtype = self.parameters[0].dtype
        reference_BTD = None if reference_BTD is None else reference_BTD.to(dtype)
        return self.formula(self.parameters, hidden_BTD.to(dtype), reference_BTD).to(hidden_BTD.dtype)

    def rows(self, indices: torch.Tensor) -> Change:
        """The same for these rows. Parameters of one row serve every row."""
        return replace(
            self,
            parameters=tuple(each if len(each) == 1 else each[indices.to(each.device)] for each in self.parameters),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Intervention(ABC):
    """Something done to the residual stream at a site: `Add`, `Ablate`, `Erase`, `Clamp` or `Replace`.

    Raises ValueError for arrays that do not fit each other or hold no finite numbers.
    """

    site: Site
    positions: Positions = field(default="all", kw_only=True)

    reads: ClassVar[Literal["nothing", "stream", "reference"]] = "stream"
    unbounded: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays that may hold infinities."""

    def __post_init__(self) -> None:
        if self.positions not in ("all", "prompt", "response"):
            raise ValueError(f"positions are all, prompt or response, not {self.positions!r}")
        counts, widths = set(), set()
        for name, array in self.arrays.items():
            kept = np.asarray(array)
            kept = kept if kept.dtype in (np.float32, np.float64) else kept.astype(np.float32)
            _, _, shape = name.rpartition("_")
            if kept.ndim != len(shape) or np.isnan(kept).any():
                raise ValueError(f"{name} must hold numbers of {len(shape)} dimensions")
            if name not in self.unbounded and not np.isfinite(kept).all():
                raise ValueError(f"{name} must hold finite numbers")
            counts.add(len(kept))
            widths |= {size for size, axis in zip(kept.shape, shape, strict=True) if axis == "D"}
            object.__setattr__(self, name, kept)
        if len(counts) != 1 or len(widths) != 1:
            raise ValueError(f"arrays of {sorted(counts)} rows and widths {sorted(widths)} do not fit each other")
        self._settle()

    def _settle(self) -> None:  # noqa: B027  most have nothing to settle
        """What an operation makes of its arrays once they are known to fit."""

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name; the first axis of each are the rows."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("site", "positions")}

    @property
    def width(self) -> int:
        name, array = next(iter(self.arrays.items()))
        return array.shape[name.rpartition("_")[2].index("D")]

    @property
    @abstractmethod
    def acts_B(self) -> np.ndarray:
        """Which rows do anything at all."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The same for these rows."""
        taken = copy.copy(self)  # what the constructor did to the arrays is done
        for name, array in self.arrays.items():
            object.__setattr__(taken, name, array[np.asarray(indices, dtype=np.int64)])
        return taken

    def digests(self) -> list[bytes]:
        """For each row what tells it from others; empty where the row does nothing."""
        arrays = [np.ascontiguousarray(array) for array in self.arrays.values()]
        return [
            hashlib.sha256(b"".join(array[row].tobytes() for array in arrays)).digest() if acts else b""
            for row, acts in enumerate(self.acts_B)
        ]

    def on(self, device: torch.device, dtype: torch.dtype) -> Change:
        """The compiled form, for a stream of that dtype."""
        wide = dtype if self.reads == "nothing" else torch.promote_types(dtype, torch.float32)
        parameters = tuple(torch.tensor(array, dtype=wide).to(device) for array in self._compiled())
        return Change(self.site, self.positions, self.reads, not self.acts_B.any(), self.formula, parameters)

    @abstractmethod
    def _compiled(self) -> tuple[np.ndarray, ...]:
        """The parameters as the formula takes them: with an axis for the positions of a row."""

    @staticmethod
    @abstractmethod
    def formula(parameters: Parameters, hidden_BTD: torch.Tensor, reference_BTD: torch.Tensor | None) -> torch.Tensor:
        """What is added to the stream (B x T x D), given the compiled parameters; in their dtype."""
