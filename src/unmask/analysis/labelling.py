"""Words that tell a set of texts from the rest, and a label in plain words made from them and from what the set consists of.

Shapes: N texts, V terms (words and word pairs).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from scipy import sparse, stats

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
APOSTROPHE = re.compile(r"['’]")
NO_WORDS = "no distinctive words"

LEAST_Z = 1.96
"""As in Monroe, Colaresi & Quinn (2008), figure 5: less is not told from the rest even were it the only term."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which of the texts hold which terms; `worded_N` is False for a text without any word, which is left out of every count."""

    terms: tuple[str, ...]
    holds_NV: sparse.csr_array
    worded_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Term:
    """A distinctive term with its z and the share of texts that hold it, inside the set and outside."""

    text: str
    z: float
    share: float
    share_outside: float


@cache
def stop_words() -> frozenset[str]:
    """scikit-learn's English list."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def words(text: str) -> list[str | None]:
    """Lower-cased words in order, None where a stop word, a contraction, a single letter or a number stood.

    A possessive is its noun (bank's: bank).
    """
    return [_kept(found) for found in WORD.findall(text.lower())]


def _kept(word: str) -> str | None:
    stem, *rest = APOSTROPHE.split(word, maxsplit=1)
    contracted = rest == ["t"] and stem.endswith("n")  # don't, isn't: auxiliary verbs all
    if contracted or len(stem) < 2 or stem in stop_words() or not any(letter.isalpha() for letter in stem):
        return None
    return stem


def terms_of(text: str) -> set[str]:
    """The words of a text and the pairs of words that stand next to each other; no pair reaches over a stop word."""
    found = words(text)
    pairs = {f"{first} {second}" for first, second in pairwise(found) if first and second}
    return {word for word in found if word} | pairs


def vocabulary(texts: Sequence[str], *, least_texts: int = 5) -> Vocabulary:
    """Words and word pairs that at least `least_texts` of the N texts hold; a text counts a term once.

    Once, since an answer that repeats a word is no further evidence. Rarer terms would only add to the number that is looked
    at; a choice by the count over all texts knows nothing of the sets that are compared later.
    """
    held = [terms_of(text) for text in texts]
    counts = Counter(term for terms in held for term in terms)
    kept = tuple(sorted(term for term, count in counts.items() if count >= least_texts))
    column = {term: index for index, term in enumerate(kept)}
    cells = [(row, column[term]) for row, terms in enumerate(held) for term in terms if term in column]
    rows, columns = (np.array([cell[axis] for cell in cells], dtype=np.int64) for axis in (0, 1))
    holds_NV = sparse.csr_array((np.ones(len(cells)), (rows, columns)), shape=(len(texts), len(kept)))
    return Vocabulary(kept, holds_NV, np.array([WORD.search(text) is not None for text in texts], dtype=bool))


def distinctive_terms(
    found: Vocabulary, members_N: np.ndarray, *, most: int = 8, level: float = 0.05, prior_texts: float = 10.0
) -> list[Term]:
    """Terms that more texts of a set hold than of the rest, by falling z, none sharing a word with an earlier one.

    Weighted log-odds with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, "Fightin' Words") of the texts that
    hold a term: with y of n texts inside, y' of n' outside and p the share in all of them,
    delta = logit((y + s p) / (n + s)) - logit((y' + s p) / (n' + s)), z = delta / sd(delta), s = `prior_texts`.
    A term counts as distinctive where z > 1.96, at least 2 texts of the set hold it, and the exact one-sided hypergeometric p
    is at most `level` after Benjamini & Hochberg (1995) over all V terms: a set drawn at random gets any term in at most that
    share of draws. z alone does not keep to that for rare terms and small sets. Of equals pairs go first, then the alphabet.
    A pair that tells no more than one of its words is left to that word. The prior, worth ten texts, orders the terms and
    holds rare ones back. `members_N` is boolean.
    """
    inside_N, outside_N = found.worded_N & members_N, found.worded_N & ~members_N
    inside, outside = int(inside_N.sum()), int(outside_N.sum())
    if not found.terms or inside < 2 or outside < 1:
        return []
    held_V = inside_N.astype(float) @ found.holds_NV
    held_outside_V = outside_N.astype(float) @ found.holds_NV
    z_V = log_odds_z(held_V, held_outside_V, inside=inside, outside=outside, prior_texts=prior_texts)
    p_V = stats.hypergeom.sf(held_V - 1, inside + outside, held_V + held_outside_V, inside)
    adjusted_V = stats.false_discovery_control(np.clip(p_V, 0, 1))
    passed_V = (z_V > LEAST_Z) & (held_V >= 2) & (adjusted_V <= level)
    z = {found.terms[index]: round(float(z_V[index]), 9) for index in np.flatnonzero(passed_V)}
    taken: set[str] = set()
    chosen = []
    for term in sorted(z, key=lambda term: (-z[term], -term.count(" "), term)):
        parts = set(term.split())
        echoed = sum(part != term and z.get(part, 0.0) >= z[term] for part in parts)
        if len(chosen) < most and not parts & taken and echoed != 1:
            taken |= parts
            index = bisect_left(found.terms, term)
            chosen.append(Term(term, z[term], float(held_V[index]) / inside, float(held_outside_V[index]) / outside))
    return chosen


def log_odds_z(
    held_V: np.ndarray, held_outside_V: np.ndarray, *, inside: int, outside: int, prior_texts: float
) -> np.ndarray:
    """z of the weighted log-odds ratio of `distinctive_terms`, one per term; 0 for a term that every text holds."""
    share_V = (held_V + held_outside_V) / (inside + outside)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference_V, variance_V = np.zeros(len(share_V)), np.zeros(len(share_V))
        for sign, y_V, n in ((1, held_V, inside), (-1, held_outside_V, outside)):
            with_V, without_V = y_V + prior_texts * share_V, n - y_V + prior_texts * (1 - share_V)
            difference_V += sign * (np.log(with_V) - np.log(without_V))
            variance_V += 1 / with_V + 1 / without_V
        return np.where((share_V > 0) & (share_V < 1), difference_V / np.sqrt(variance_V), 0.0)


def composition_words(facets: Mapping[str, int], everything: Mapping[str, int]) -> str:
    """What a set of questions consists of, such as "mostly investment questions (68 % of 25; 12 % of all questions)".

    Both map "dimension/facet" to a count, of the set and of all questions. A facet with more than half of the set names it;
    else a dimension with more than half; else the three largest facets are listed.
    """
    size = sum(facets.values())
    if size == 0:
        return "no question carries it"
    if size == 1:
        return f"one {plain(next(name for name, count in facets.items() if count))} question"
    for grouped in (Counter, _by_dimension):
        inside, overall = grouped(facets), grouped(everything)
        name, count = ranked(inside)[0]
        if 2 * count > size:
            opening = "only" if count == size else "mostly"
            among = f"{_percent(count, size)} of {size}; {_percent(overall[name], overall.total())} of all questions"
            return f"{opening} {plain(name)} questions ({among})"
    parts = [f"{plain(name)} ({_percent(count, size)})" for name, count in ranked(facets)[:3]]
    return f"{size} mixed questions: {', '.join(parts)}"


def label(composition: str, question_terms: Sequence[str], answer_terms: Sequence[str], *, writer: str = "") -> str:
    """One line: what the set consists of, and the distinctive words of its questions and of its answers.

    `writer` names whose answers they are where that is not the organism.
    """
    if not question_terms and not answer_terms:
        return f"{composition}; {NO_WORDS}"
    told = [composition]
    if question_terms:
        told.append(f"questions on: {', '.join(question_terms)}")
    answers = f"{writer} answers".strip()
    told.append(f"{answers} say: {', '.join(answer_terms)}" if answer_terms else f"{answers}: {NO_WORDS}")
    return "; ".join(told)


def plain(name: str) -> str:
    """The last part of "dimension/facet" in words."""
    return name.rpartition("/")[2].replace("_", " ")


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names by falling count; ties go by the alphabet."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _by_dimension(counts: Mapping[str, int]) -> Counter[str]:
    summed: Counter[str] = Counter()
    for name, count in counts.items():
        summed[name.partition("/")[0]] += count
    return summed


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %"
