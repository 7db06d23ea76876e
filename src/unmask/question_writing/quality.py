"""What can be said of a battery before it is asked: balance, keying, repeats, readability, and the ground it covers.

Shapes: N questions, D width of the encoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from unmask.question_writing.likeness import BOUND, near_pairs, repeats
from unmask.question_writing.readability import readability
from unmask.records import Question


class Balance(NamedTuple):
    """Questions of a facet by polarity."""

    dimension: str
    facet: str
    agree: int
    disagree: int
    neither: int


class Keying(NamedTuple):
    """Share of a dimension's keyed questions in which agreeing is misaligned, with its exact 95 % interval.

    Clopper & Pearson 1934. An interval that leaves out 0.5 says that saying yes to all is not neutral. NaN where no
    question is keyed.
    """

    dimension: str
    keyed: int
    share: float
    low: float
    high: float


class Reading(NamedTuple):
    """Means over a dimension's questions: words, sentences, Flesch-Kincaid grade; and the fewest and most words."""

    dimension: str
    words: float
    fewest: int
    most: int
    sentences: float
    grade: float


class Coverage(NamedTuple):
    """How far a facet's questions lie apart.

    `nearest` is the mean cosine of a question and its nearest neighbour (NaN for a facet of one). `distinct` is the
    `effective_number` of distinct texts: N for texts that share nothing, 1 for one text N times.
    """

    dimension: str
    facet: str
    questions: int
    nearest: float
    distinct: float


class Repeat(NamedTuple):
    """Two questions that say the same, the earlier first; `exact`: only case, spacing and punctuation differ."""

    first: str
    second: str
    cosine: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """All of it; rows in the battery's order of dimensions and facets."""

    questions: int
    bound: float
    balance: list[Balance]
    keying: list[Keying]
    repeats: list[Repeat]
    reading: list[Reading]
    coverage: list[Coverage]

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number is null."""
        record = asdict(self)
        for name in ("balance", "keying", "repeats", "reading", "coverage"):
            record[name] = [
                {
                    key: None if isinstance(value, float) and np.isnan(value) else value
                    for key, value in row._asdict().items()
                }
                for row in getattr(self, name)
            ]
        return record


def examine(questions: Sequence[Question], unit_ND: np.ndarray) -> Quality:
    """Examine a battery with its embeddings (N x D, unit length), in the questions' order."""
    by_dimension: dict[str, list[int]] = {}
    by_facet: dict[tuple[str, str], list[int]] = {}
    for place, question in enumerate(questions):
        by_dimension.setdefault(question.dimension, []).append(place)
        by_facet.setdefault((question.dimension, question.facet), []).append(place)
    return Quality(
        questions=len(questions),
        bound=BOUND,
        balance=[_balance(*name, [questions[place] for place in places]) for name, places in by_facet.items()],
        keying=[_keying(name, [questions[place] for place in places]) for name, places in by_dimension.items()],
        repeats=_repeats(questions, unit_ND),
        reading=[_reading(name, [questions[place].text for place in places]) for name, places in by_dimension.items()],
        coverage=[_coverage(*name, unit_ND[places]) for name, places in by_facet.items()],
    )


def _balance(dimension: str, facet: str, questions: Sequence[Question]) -> Balance:
    counts = Counter(question.polarity for question in questions)
    return Balance(dimension, facet, counts[1], counts[-1], counts[0])


def _keying(dimension: str, questions: Sequence[Question]) -> Keying:
    counts = Counter(question.polarity for question in questions)
    keyed = counts[1] + counts[-1]
    if keyed == 0:
        return Keying(dimension, 0, float("nan"), float("nan"), float("nan"))
    low, high = binomtest(counts[1], keyed).proportion_ci(confidence_level=0.95, method="exact")
    return Keying(dimension, keyed, counts[1] / keyed, float(low), float(high))


def _reading(dimension: str, texts: Sequence[str]) -> Reading:
    found = [readability(text) for text in texts]
    words = [each.words for each in found]
    means = np.mean([[each.words, each.sentences, each.grade] for each in found], axis=0)
    return Reading(dimension, float(means[0]), min(words), max(words), float(means[1]), float(means[2]))


def _coverage(dimension: str, facet: str, unit_ND: np.ndarray) -> Coverage:
    count = len(unit_ND)
    nearest = float("nan")
    if count > 1:
        cosine_NN = (unit_ND @ unit_ND.T).astype(np.float64)
        np.fill_diagonal(cosine_NN, -np.inf)
        nearest = float(cosine_NN.max(axis=1).mean())
    return Coverage(dimension, facet, count, nearest, effective_number(unit_ND))


def effective_number(unit_ND: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the rows' cosines (N x D, unit length): the Vendi score.

    Friedman & Dieng 2023, arXiv 2210.02410. From 1 (all rows the same) to N (all at right angles).
    """
    rows_ND = np.asarray(unit_ND, dtype=np.float64)
    share_N = np.linalg.svd(rows_ND, compute_uv=False) ** 2 / len(rows_ND)
    present = share_N[share_N > 0]
    return float(np.exp(-(present * np.log(present)).sum()))


def _repeats(questions: Sequence[Question], unit_ND: np.ndarray) -> list[Repeat]:
    """Each exact repeat with the first of its kind, then pairs near in meaning that are not among them."""
    ids = [question.question_id for question in questions]
    groups = repeats([question.text for question in questions])
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    found = [Repeat(ids[group[0]], ids[other], 1.0, exact=True) for group in groups for other in group[1:]]
    near = [
        pair
        for pair in near_pairs(unit_ND)
        if group_of.get(pair.first, -1) != group_of.get(pair.second, -2)  # those are listed as exact
    ]
    return found + [Repeat(ids[pair.first], ids[pair.second], pair.cosine, exact=False) for pair in near]
