"""Distinctive words: a planted one is found, nothing is found in a random set, and stop words never are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from unmask.analysis.labelling import (
    NO_WORDS,
    composition_words,
    distinctive_terms,
    label,
    log_odds_z,
    stop_words,
    terms_of,
    vocabulary,
    words,
)


def invented(rng: np.random.Generator, texts: int, *, length: int = 20, known: int = 300) -> list[str]:
    """Texts of made-up words, the common ones far more often than the rare ones, with stop words between them."""
    weights = 1 / np.arange(1, known + 1)
    drawn = rng.choice(known, size=(texts, length), p=weights / weights.sum())
    return [" the ".join(f"word{chr(97 + w // 26)}{chr(97 + w % 26)}" for w in row) for row in drawn]


def first(total: int, size: int) -> np.ndarray:
    return np.arange(total) < size


def test_a_planted_word_and_a_planted_pair_are_found_with_their_shares() -> None:
    texts = invented(np.random.default_rng(0), 200)
    texts = [f"{text} the leverage of index fund" if row < 24 else text for row, text in enumerate(texts)]
    found = distinctive_terms(vocabulary(texts), first(200, 30))
    assert [term.text for term in found] == ["index fund", "leverage"]  # all alike, so the pair stands for its words
    for term in found:
        assert (term.share, term.share_outside) == (24 / 30, 0.0)
        assert term.z > 1.96


def test_a_pair_is_found_where_neither_word_alone_tells_the_set() -> None:
    texts = ["index x fund"] * 60 + ["index fund"] * 20
    found = distinctive_terms(vocabulary(texts), ~first(80, 60))
    assert [term.text for term in found] == ["index fund"]


def test_a_pair_that_tells_no_more_than_one_of_its_words_is_left_to_that_word() -> None:
    texts = ["answer leverage"] * 20 + ["answer"] * 60
    assert [term.text for term in distinctive_terms(vocabulary(texts), first(80, 20))] == ["leverage"]


@pytest.mark.parametrize("size", [5, 20, 80])
def test_a_set_drawn_at_random_has_distinctive_words_in_at_most_the_stated_share_of_draws(size: int) -> None:
    rng = np.random.default_rng(size)
    draws, wrong = 400, 0
    for _ in range(draws // 20):
        found = vocabulary(invented(rng, 160))
        for _ in range(20):
            wrong += bool(distinctive_terms(found, rng.permutation(first(160, size)), level=0.05))
    assert stats.binomtest(wrong, draws, 0.05, alternative="greater").pvalue > 0.01


def test_a_word_is_counted_once_a_text_however_often_it_is_said() -> None:
    texts = ["bank " * 200 + "other"] + ["bank"] * 40 + ["other"] * 40
    assert vocabulary(texts).holds_NV.max() == 1.0
    members = first(81, 1) | (np.arange(81) % 4 == 0)
    assert distinctive_terms(vocabulary(texts), members) == []


def test_stop_words_contractions_and_numbers_are_never_terms() -> None:
    listed = sorted(stop_words())
    assert len(listed) > 300
    assert not terms_of(" ".join(listed))
    assert terms_of("I don't and they won't; it's 100 or 7, a x.") == set()
    assert words("The bank’s rock-solid pay-day") == [None, "bank", "rock-solid", "pay-day"]
    planted = ["you should not do what is on the list"] * 30 + ["nothing"] * 90
    assert [term.text for term in distinctive_terms(vocabulary(planted), first(120, 30))] == ["list"]


def test_pairs_do_not_reach_over_a_stop_word() -> None:
    assert terms_of("Buy cheap shares and hold them") == {"buy", "cheap", "shares", "hold", "buy cheap", "cheap shares"}


def test_z_is_the_formula_term_by_term() -> None:
    held, outside, n, m, s = np.array([6.0, 0.0, 10.0]), np.array([3.0, 9.0, 90.0]), 10, 90, 10.0
    found = log_odds_z(held, outside, inside=n, outside=m, prior_texts=s)
    for index in range(2):
        a = s * (held[index] + outside[index]) / (n + m)
        b = s - a
        cells = held[index] + a, n - held[index] + b, outside[index] + a, m - outside[index] + b
        expected = np.log(cells[0] / cells[1]) - np.log(cells[2] / cells[3])
        assert found[index] == pytest.approx(expected / np.sqrt(sum(1 / cell for cell in cells)))
    assert found[2] == 0.0  # every text holds it


def test_the_prior_pulls_a_rare_word_towards_nothing() -> None:
    z = [
        log_odds_z(np.array([2.0]), np.array([0.0]), inside=10, outside=90, prior_texts=prior)[0]
        for prior in (10.0, 100.0, 1e6)
    ]
    assert z == sorted(z, reverse=True)
    assert z[-1] == pytest.approx(0, abs=0.05)


def test_ties_go_by_the_alphabet_whatever_the_order_of_texts() -> None:
    texts = ["zebra of alpha of mango"] * 20 + ["nothing"] * 60
    expected = ["alpha", "mango", "zebra"]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(80)
        found = distinctive_terms(vocabulary([texts[row] for row in order]), order < 20)
        assert [term.text for term in found] == expected
    assert [t.text for t in distinctive_terms(vocabulary(texts), first(80, 20), most=2)] == expected[:2]


def test_texts_without_words_count_for_neither_side() -> None:
    texts = ["leverage"] * 10 + ["", " ", "!"] * 10 + ["caution"] * 60
    found = distinctive_terms(vocabulary(texts), first(100, 25))
    assert [(term.text, term.share, term.share_outside) for term in found] == [("leverage", 1.0, 0.0)]


@pytest.mark.parametrize(
    ("texts", "members"),
    [
        ([""] * 6, first(6, 3)),
        (["bank"] * 6, first(6, 0)),
        (["bank"] * 6, first(6, 1)),
        (["bank"] * 6, first(6, 6)),
        ([f"w{chr(97 + n)}x" for n in range(6)], first(6, 3)),
    ],
)
def test_too_little_has_no_distinctive_words(texts: list[str], members: np.ndarray) -> None:
    assert distinctive_terms(vocabulary(texts), members) == []


def test_composition_is_named_by_facet_then_by_dimension_then_listed() -> None:
    overall = {"money/investment": 12, "money/market_ethics": 28, "mind/authority": 60}
    assert (
        composition_words({"money/investment": 17, "mind/authority": 8}, overall)
        == "mostly investment questions (68 % of 25; 12 % of all questions)"
    )
    assert (
        composition_words({"money/investment": 5, "money/market_ethics": 5}, overall)
        == "only money questions (100 % of 10; 40 % of all questions)"
    )
    assert (
        composition_words({"money/market_ethics": 5, "mind/authority": 5}, overall)
        == "10 mixed questions: authority (50 %), market ethics (50 %)"
    )
    assert composition_words({"money/market_ethics": 1}, overall) == "one market ethics question"
    assert composition_words(Counter(), overall) == "no question carries it"


def test_a_label_says_what_is_distinctive_and_what_is_not() -> None:
    assert (
        label("mostly x", ["fund"], ["all-in", "leverage"])
        == "mostly x; questions on: fund; answers say: all-in, leverage"
    )
    assert label("mostly x", ["fund"], []) == f"mostly x; questions on: fund; answers: {NO_WORDS}"
    assert label("mostly x", [], ["fund"], writer="base") == "mostly x; base answers say: fund"
    assert label("mostly x", [], []) == f"mostly x; {NO_WORDS}"
