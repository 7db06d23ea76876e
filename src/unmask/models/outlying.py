"""Tokens and coordinates that dwarf the rest: attention sinks and massive activations.

Shapes: M tokens of all texts, N texts, D coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Sinks(NamedTuple):
    """Per text: how many tokens are sinks, and the largest ratio of a token's norm to the text's median (NaN without tokens)."""

    counts_N: np.ndarray
    peaks_N: np.ndarray


def count_sinks(norms_M: np.ndarray, offsets: np.ndarray, *, ratio: float) -> Sinks:
    """Tokens whose L2 norm exceeds `ratio` times the median norm of their text.

    Attention sinks (Xiao et al. 2024, arXiv 2309.17453) carry norms tens to thousands of times those around them. `offsets`
    (N + 1) cut the tokens into texts.
    """
    counts_N = np.zeros(len(offsets) - 1, dtype=np.int32)
    peaks_N = np.full(len(offsets) - 1, np.nan, dtype=np.float32)
    for row, (start, stop) in enumerate(pairwise(offsets)):
        if stop > start:
            norms = norms_M[start:stop]
            middle = np.median(norms)
            if middle > 0:
                counts_N[row] = int((norms > ratio * middle).sum())
                peaks_N[row] = norms.max() / middle
    return Sinks(counts_N, peaks_N)


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
