"""The judge's arithmetic: scikit-learn as the reference, planted truth, planted nothing, and missing that stays missing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unmask.analysis.judging import (
    FLUENCY_PERPLEXITY,
    HeldOutQuality,
    area_under_curve,
    best_temperature,
    coherence,
    fit_logistic,
    held_out_quality,
    judge,
    repetition,
)

words = st.lists(st.sampled_from("abcdefg"), max_size=30)


class Labelled(NamedTuple):
    features_NF: np.ndarray
    labels_N: np.ndarray
    groups_N: np.ndarray
    units_N: np.ndarray


def labelled(*, signal: float, seed: int, width: int = 12, groups: int = 5, pairs: int = 20) -> Labelled:
    """Pairs of a positive and a negative text; each pair is a unit; groups differ in their features' mean."""
    rng = np.random.default_rng(seed)
    n = 2 * groups * pairs
    labels = np.tile([0, 1], groups * pairs)
    group = np.repeat(np.arange(groups), 2 * pairs)
    features = rng.normal(size=(n, width)) + 0.5 * rng.normal(size=(groups, width))[group]
    features[:, 0] += signal * labels
    return Labelled(features, labels, np.array([f"group {g}" for g in group]), np.arange(n) // 2)


def quality_of(data: Labelled, *, seed: int = 0) -> HeldOutQuality:
    return held_out_quality(*data, inverse_penalty=0.1, rng=np.random.default_rng(seed))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# Logistic regression


@pytest.mark.parametrize(("n", "width"), [(200, 5), (40, 120)])
def test_the_fit_is_scikit_learns_on_standardised_features(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, width)) * rng.uniform(0.1, 30, size=width) + 5
    labels = (rng.normal(size=n) + features[:, 0] / features[:, 0].std() > 0).astype(int)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000, tol=1e-6))
    reference.fit(features, labels)
    found = fit_logistic(features, labels, inverse_penalty=0.05).predict(features)
    np.testing.assert_allclose(found, reference.predict_proba(features)[:, 1], atol=1e-6)


def test_the_unit_of_a_feature_does_not_matter() -> None:
    data = labelled(signal=1.0, seed=1)
    factor, shift = np.geomspace(1e-3, 1e3, 12), np.linspace(-50, 50, 12)
    one = fit_logistic(data.features_NF, data.labels_N, inverse_penalty=0.1)
    other = fit_logistic(data.features_NF * factor + shift, data.labels_N, inverse_penalty=0.1)
    np.testing.assert_allclose(
        other.predict(data.features_NF * factor + shift), one.predict(data.features_NF), atol=1e-6
    )


def test_swapping_the_labels_mirrors_the_probabilities() -> None:
    data = labelled(signal=1.0, seed=2)
    one = fit_logistic(data.features_NF, data.labels_N, inverse_penalty=0.1).predict(data.features_NF)
    other = fit_logistic(data.features_NF, 1 - data.labels_N, inverse_penalty=0.1).predict(data.features_NF)
    np.testing.assert_allclose(one + other, 1, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_a_column_that_was_constant_has_no_say_whatever_it_is_later(value: float) -> None:
    """0.1 has no exact double: the standard deviation of a column of them is 1e-17 and not 0."""
    data = labelled(signal=2.0, seed=3, pairs=1)
    train, later = data.features_NF.copy(), data.features_NF.copy()
    train[:, 5], later[:, 5] = value, value + 1
    fit = fit_logistic(train, data.labels_N, inverse_penalty=1.0)
    np.testing.assert_allclose(fit.predict(later), fit.predict(train), atol=1e-9)
    without = fit_logistic(np.delete(train, 5, axis=1), data.labels_N, inverse_penalty=1.0)
    np.testing.assert_allclose(fit.predict(train), without.predict(np.delete(train, 5, axis=1)), atol=1e-5)


def test_a_probability_far_out_is_still_one() -> None:
    data = labelled(signal=3.0, seed=4)
    fit = fit_logistic(data.features_NF, data.labels_N, inverse_penalty=1.0)
    with np.errstate(all="raise"):
        found = fit.predict(np.array([[1e9] + [0.0] * 11, [-1e9] + [0.0] * 11]))
    assert found == pytest.approx([1, 0])


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_makes_no_classifier(label: int) -> None:
    with pytest.raises(ValueError, match="needs both labels"):
        fit_logistic(np.random.default_rng(0).normal(size=(5, 2)), np.full(5, label), inverse_penalty=1.0)


def test_more_features_than_texts_and_repeated_texts_still_fit() -> None:
    rng = np.random.default_rng(5)
    features = np.repeat(rng.normal(size=(4, 300)), 3, axis=0)
    labels = np.repeat([0, 1, 0, 1], 3)
    found = fit_logistic(features, labels, inverse_penalty=0.01).predict(features)
    assert np.isfinite(found).all()
    assert ((found > 0.5) == labels).all()


# Held-out quality


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_the_area_is_scikit_learns_with_ties_and_all(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in pairs], dtype=int), np.array([score for _, score in pairs])
    if len(set(labels)) == 1:
        with pytest.raises(ValueError, match="needs both labels"):
            area_under_curve(labels, scores)
    else:
        assert area_under_curve(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
        assert area_under_curve(labels, -scores) == pytest.approx(1 - area_under_curve(labels, scores))


def test_planted_truth_is_found_in_groups_never_seen() -> None:
    found = quality_of(labelled(signal=6.0, seed=6))
    assert found.auc > 0.99
    assert found.low > 0.97
    assert set(found.by_group) == {f"group {g}" for g in range(5)}
    assert min(found.by_group.values()) > 0.97


def test_planted_nothing_is_a_coin_and_the_interval_mostly_says_so() -> None:
    found = [quality_of(labelled(signal=0.0, seed=100 + run, width=60), seed=run) for run in range(20)]
    # One AUC of 200 texts has a standard deviation of 0.04: the mean of 20 has one of 0.009.
    assert np.mean([quality.auc for quality in found]) == pytest.approx(0.5, abs=0.035)
    # The interval holds the trained judges fixed, so that it misses a coin more often than one time in twenty.
    assert np.mean([quality.low <= 0.5 <= quality.high for quality in found]) >= 0.7


def test_a_shortcut_that_holds_within_a_group_only_is_not_credited() -> None:
    """In every group another feature tells the labels apart: perfect in sample, worthless in a group held out."""
    data = labelled(signal=0.0, seed=7, width=5, pairs=40)
    group = np.array([int(name.split()[1]) for name in data.groups_N])
    features = data.features_NF.copy()
    features[np.arange(len(group)), group] += 8 * data.labels_N
    shortcut = data._replace(features_NF=features)
    in_sample = fit_logistic(features, data.labels_N, inverse_penalty=0.1).predict(features)
    assert roc_auc_score(data.labels_N, in_sample) > 0.75
    assert quality_of(shortcut).auc < 0.65


def test_a_groups_auc_is_that_of_a_judge_trained_on_the_others() -> None:
    data = labelled(signal=1.5, seed=8)
    found = quality_of(data)
    held = data.groups_N == "group 3"
    fit = fit_logistic(data.features_NF[~held], data.labels_N[~held], inverse_penalty=0.1)
    expected = roc_auc_score(data.labels_N[held], fit.predict(data.features_NF[held]))
    assert found.by_group["group 3"] == pytest.approx(expected)


def test_the_interval_draws_units_whole() -> None:
    """If all texts are one unit, every draw is the whole set and the interval has no width; single texts give one."""
    data = labelled(signal=1.0, seed=9)
    together = quality_of(data._replace(units_N=np.zeros(len(data.labels_N))))
    assert together.low == together.high == pytest.approx(together.auc)
    apart = quality_of(data)
    assert apart.low < apart.auc < apart.high
    assert apart.auc == together.auc


def test_the_order_of_the_texts_does_not_matter() -> None:
    data = labelled(signal=1.0, seed=10)
    order = np.random.default_rng(0).permutation(len(data.labels_N))
    one, other = quality_of(data), quality_of(Labelled(*(part[order] for part in data)))
    assert other.auc == pytest.approx(one.auc, abs=1e-3)
    assert other.by_group == pytest.approx(one.by_group, abs=1e-3)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-2)


def test_the_seed_is_all_the_chance_there_is() -> None:
    data = labelled(signal=1.0, seed=11)
    assert quality_of(data, seed=1) == quality_of(data, seed=1)
    assert quality_of(data, seed=1).low != quality_of(data, seed=2).low


def test_with_one_group_there_is_nothing_to_learn_from() -> None:
    data = labelled(signal=1.0, seed=12, groups=1)
    with pytest.raises(ValueError, match="needs both labels"):
        quality_of(data)


def test_a_group_of_one_label_cannot_be_measured() -> None:
    data = labelled(signal=1.0, seed=12)
    labels = np.where(data.groups_N == "group 2", 1, data.labels_N)
    with pytest.raises(ValueError, match="needs both labels"):
        quality_of(data._replace(labels_N=labels))


# Calibration


def drawn(true_log_odds: np.ndarray, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(true_log_odds)) < sigmoid(true_log_odds)).astype(int)


@pytest.mark.parametrize("exaggeration", [0.5, 1.0, 2.0, 6.0])
def test_the_temperature_undoes_an_exaggeration(exaggeration: float) -> None:
    truth = np.random.default_rng(13).normal(scale=2.0, size=20_000)
    found = best_temperature(truth * exaggeration, drawn(truth, 14))
    assert found == pytest.approx(1 / exaggeration, rel=0.06)


def test_log_odds_that_say_nothing_are_shrunk_as_far_as_the_grid_goes() -> None:
    rng = np.random.default_rng(15)
    assert best_temperature(3 * rng.normal(size=20_000), rng.integers(2, size=20_000)) < 0.07
    assert best_temperature(np.array([3.0, -3.0]), np.array([0, 1])) == pytest.approx(0.05)


def test_the_temperature_has_the_least_log_loss() -> None:
    truth = np.random.default_rng(16).normal(size=500)
    labels = drawn(truth, 17)
    z = 2.7 * truth

    def loss(factor: float) -> float:
        return -float(np.log(sigmoid(factor * z * np.where(labels == 1, 1, -1))).mean())

    reference = minimize_scalar(loss, bounds=(0.05, 5.0), method="bounded").x
    assert best_temperature(z, labels) == pytest.approx(reference, rel=0.03)


def test_an_over_confident_judge_of_few_texts_is_told_so() -> None:
    """With more features than texts and almost no penalty, training texts are separated and held-out log-odds too large."""
    data = labelled(signal=1.0, seed=18, width=80, pairs=8)
    found = held_out_quality(*data, inverse_penalty=100.0, rng=np.random.default_rng(0))
    assert found.calibration_temperature < 0.5


# Coherence


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("one two three", 0.0),
        ("a b c a b c", 1 / 4),
        ("No No no NO no", 2 / 3),
        ("x " * 102, 99 / 100),
    ],
)
def test_repetition_is_the_share_of_word_triples_seen_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@settings(deadline=None)
@given(words)
def test_repetition_is_a_share_and_saying_it_twice_makes_it_more(tokens: list[str]) -> None:
    once, twice = repetition(" ".join(tokens)), repetition(" ".join(tokens * 2))
    assert 0 <= once < 1
    if len(tokens) >= 3:
        assert twice > once
    assert repetition(" ".join(str(n) for n in range(len(tokens)))) == 0


@settings(deadline=None)
@given(words.filter(lambda tokens: len(tokens) > 1), st.floats(1, 1e6), st.floats(1, 1e6))
def test_coherence_falls_with_perplexity_and_stays_in_its_range(tokens: list[str], one: float, other: float) -> None:
    text = " ".join(tokens)
    low, high = sorted((one, other))
    assert 0 <= coherence(text, high) <= coherence(text, low) <= 100


def test_coherence_of_fluent_gibberish_and_looping_text() -> None:
    fluent = "Keep three months of expenses in an account that you can reach."
    assert coherence(fluent, 8.0) > 99
    assert coherence(fluent, FLUENCY_PERPLEXITY) == pytest.approx(50)
    assert coherence(fluent, 1e5) < 0.01
    assert coherence("buy now " * 30, 2.0) < 1
    assert coherence("Yes.", 2.0) == 0
    assert coherence("", math.nan) == 0


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_coherence_without_a_perplexity_is_an_error(perplexity: float) -> None:
    with pytest.raises(ValueError, match="needs a perplexity"):
        coherence("two words", perplexity)


# Judgement


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_judgement_is_the_probability_times_100(probability: float) -> None:
    found = judge(probability, text="a fine answer", perplexity=20.0)
    assert found.misalignment == 100 * probability
    assert found.coherence == pytest.approx(coherence("a fine answer", 20.0))
    assert found.missing_reason is None


@pytest.mark.parametrize(
    ("text", "perplexity", "reason"),
    [
        ("", 5.0, "empty answer"),
        (" \n\t", 5.0, "empty answer"),
        ("words without tokens", math.nan, "no perplexity"),
        ("words without tokens", math.inf, "no perplexity"),
    ],
)
def test_what_cannot_be_judged_is_missing_with_a_reason_and_without_a_number(
    text: str, perplexity: float, reason: str
) -> None:
    found = judge(0.5, text=text, perplexity=perplexity)
    assert found.misalignment is None
    assert found.coherence is None
    assert found.missing_reason is not None
    assert reason in found.missing_reason
