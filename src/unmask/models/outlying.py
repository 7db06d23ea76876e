"""Tokens and coordinates that dwarf the rest: attention sinks and massive activations.

Shapes: M tokens of all texts, N texts, B rows, T tokens of the longest row, D coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class Sinks(NamedTuple):
    """Which tokens are sinks; per text how many, and the largest ratio of a norm to the text's median (NaN: no tokens)."""

    found_M: np.ndarray
    counts_N: np.ndarray
    peaks_N: np.ndarray


def find_sinks(norms_M: np.ndarray, offsets: np.ndarray, *, ratio: float) -> Sinks:
    """Tokens whose L2 norm exceeds `ratio` times the median norm of their text; `offsets` (N + 1) cut the tokens into texts.

    Attention sinks (Xiao et al. 2024, arXiv 2309.17453) carry norms tens to thousands of times those around them.
    """
    lengths_N = np.diff(offsets)
    counted_NT = torch.from_numpy(np.arange(max(lengths_N.max(initial=0), 1)) < lengths_N[:, np.newaxis])
    norms_NT = torch.zeros(counted_NT.shape, dtype=torch.from_numpy(norms_M).dtype)
    norms_NT[counted_NT] = torch.from_numpy(norms_M)
    found_NT = sinks(norms_NT, counted_NT, ratio=ratio)
    peaks_N = norms_NT.amax(dim=1) / median_norms(norms_NT, counted_NT).squeeze(1)
    return Sinks(found_NT[counted_NT].numpy(), found_NT.sum(dim=1).int().numpy(), peaks_N.float().numpy())


def sinks(norms_BT: torch.Tensor, counted_BT: torch.Tensor, *, ratio: float) -> torch.Tensor:
    """Counted tokens (B x T, bool) whose norm exceeds `ratio` times the median norm of the counted tokens of their row."""
    return counted_BT & (norms_BT > ratio * median_norms(norms_BT, counted_BT))


def median_norms(norms_BT: torch.Tensor, counted_BT: torch.Tensor) -> torch.Tensor:
    """The median norm (B x 1) of each row's counted tokens, of an even number the mean of the middle two; NaN for none or 0."""
    sorted_BT = norms_BT.masked_fill(~counted_BT, torch.inf).sort(dim=1).values
    counts_B1 = counted_BT.sum(dim=1, keepdim=True)
    lower_B1 = sorted_BT.gather(1, ((counts_B1 - 1) // 2).clamp(min=0))
    middle_B1 = (lower_B1 + sorted_BT.gather(1, (counts_B1 // 2).clamp(max=sorted_BT.shape[1] - 1))) / 2
    return middle_B1.masked_fill((counts_B1 == 0) | (middle_B1 == 0), torch.nan)


@dataclass(frozen=True, slots=True)
class MassiveCoordinate:
    """A coordinate whose typical magnitude is `ratio` times that of the median coordinate."""

    coordinate: int
    ratio: float


def massive_coordinates(means_ND: np.ndarray, *, ratio: float) -> tuple[MassiveCoordinate, ...]:
    """Coordinates whose median magnitude over texts exceeds `ratio` times the median coordinate's, the largest first.

    Massive activations sit at the same few coordinates whatever the input (Sun et al. 2024, arXiv 2402.17762), hence medians over
    texts. Rows with a NaN are left out; no rows give no coordinates.
    """
    sound_ND = means_ND[np.isfinite(means_ND).all(axis=1)]
    if not len(sound_ND):
        return ()
    typical_D = np.median(np.abs(sound_ND), axis=0)
    middle = float(np.median(typical_D))
    if middle == 0:
        return ()
    found = np.flatnonzero(typical_D > ratio * middle)
    return tuple(MassiveCoordinate(int(c), float(typical_D[c] / middle)) for c in found[np.argsort(-typical_D[found])])
