"""Which texts are the same: to the letter, or near in meaning by the packaged sentence encoder.

Shapes: N texts, P texts of a pool, D width of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

BOUND = 0.92
"""Cosine from which two questions count as one: the bound that the packaged batteries are tested with."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""From texts to rows of unit length (N x D)."""

_WORD = re.compile(r"\w+")


class Twin(NamedTuple):
    """A text that another one repeats, and their cosine: 1 where only case, spacing and punctuation differ."""

    text: str
    cosine: float


def letters(text: str) -> str:
    """A text without case, spacing and punctuation, by which exact repeats are found."""
    return " ".join(_WORD.findall(text.casefold())) or text


class Pool:
    """Texts seen so far. What is added is compared with all that came before it."""

    def __init__(self, encode: Encode, texts: Iterable[str] = ()) -> None:
        """`texts` are taken as they are, repeats among them included."""
        self._encode = encode
        self._texts = list(texts)
        self._rows_PD = encode(self._texts) if self._texts else None
        self._exact = {letters(text): text for text in reversed(self._texts)}

    def add(self, texts: Sequence[str]) -> list[Twin | None]:
        """For each text the nearest earlier one that it repeats, or None where it is new and now in the pool."""
        if not texts:
            return []
        rows_ND = self._encode(texts)
        return [self._add(text, row_D) for text, row_D in zip(texts, rows_ND, strict=True)]

    def _add(self, text: str, row_D: np.ndarray) -> Twin | None:
        same = self._exact.get(letters(text))
        if same is not None:
            return Twin(same, 1.0)
        if self._rows_PD is not None:
            cosine_P = self._rows_PD @ row_D
            nearest = int(np.argmax(cosine_P))
            if cosine_P[nearest] >= BOUND:
                return Twin(self._texts[nearest], float(cosine_P[nearest]))
        self._exact[letters(text)] = text
        self._texts.append(text)
        self._rows_PD = row_D[None] if self._rows_PD is None else np.vstack([self._rows_PD, row_D])
        return None


class Pair(NamedTuple):
    """Places of two texts, the earlier first, and their cosine."""

    first: int
    second: int
    cosine: float


def repeats(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Places of texts that are the same but for case, spacing and punctuation, one tuple per such text."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(letters(text), []).append(place)
    return [tuple(found) for found in places.values() if len(found) > 1]


def near_pairs(unit_ND: np.ndarray) -> list[Pair]:
    """Pairs of rows (N x D, unit length) whose cosine is at least BOUND, the nearest first."""
    cosine_NN = np.triu(unit_ND @ unit_ND.T, k=1)
    pairs = [Pair(int(i), int(j), float(cosine_NN[i, j])) for i, j in np.argwhere(cosine_NN >= BOUND)]
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair.first, pair.second))
