"""Which response each token row belongs to, as offsets: eight bytes a response, however many tokens it has.

Shapes: R responses, T token rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class TokenIndex:
    """Token rows of response r (its place among `response_ids`) are offsets[r] to offsets[r + 1]; none where those are equal."""

    offsets: np.ndarray
    """int64 (R + 1), from 0 to the number of token rows; never falls."""

    @property
    def lengths(self) -> np.ndarray:
        """Token rows of each response (R)."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self, response: int) -> slice:
        """The token rows of one response. Raises IndexError when there is none of that number."""
        if not 0 <= response < len(self.offsets) - 1:
            raise IndexError(f"there is no response {response} among {len(self.offsets) - 1}")
        return slice(int(self.offsets[response]), int(self.offsets[response + 1]))

    def responses(self, rows: np.ndarray) -> np.ndarray:
        """The response (int64) of each token row. Raises IndexError for a row that is not there."""
        import numpy as np

        wanted = np.asarray(rows)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.offsets[-1]):
            raise IndexError(f"a row is not among the {self.offsets[-1]} token rows")
        return np.searchsorted(self.offsets, wanted, side="right") - 1
