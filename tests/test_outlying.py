"""Sinks and massive coordinates: planted ones are found, ordinary noise has none."""

from __future__ import annotations

import numpy as np

from unmask.models.outlying import count_sinks, massive_coordinates


def test_planted_sinks_are_counted_by_text() -> None:
    rng = np.random.default_rng(0)
    norms = rng.uniform(8, 12, 60)
    offsets = np.array([0, 20, 20, 50, 60])
    norms[[3, 4, 25]] = [400, 150, 9000]
    found = count_sinks(norms, offsets, ratio=10)
    assert found.counts_N.tolist() == [2, 0, 1, 0]
    assert np.isnan(found.peaks_N[1])
    assert found.peaks_N[2] > 700 and found.peaks_N[3] < 2


def test_tokens_of_one_size_have_no_sinks() -> None:
    found = count_sinks(np.full(30, 7.0), np.array([0, 10, 30]), ratio=10)
    assert found.counts_N.tolist() == [0, 0]
    np.testing.assert_allclose(found.peaks_N, 1)


def test_a_text_of_zeros_has_no_ratio() -> None:
    found = count_sinks(np.zeros(4), np.array([0, 4]), ratio=10)
    assert found.counts_N.tolist() == [0] and np.isnan(found.peaks_N).all()


def test_planted_coordinates_are_found_largest_first_whatever_their_sign() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(0, 1, (50, 64))
    means[:, 7] += 300
    means[:, 40] -= 900
    found = massive_coordinates(means, ratio=100)
    assert [each.coordinate for each in found] == [40, 7]
    assert found[0].ratio > found[1].ratio > 100


def test_noise_has_none_even_where_one_text_is_wild() -> None:
    means = np.random.default_rng(2).normal(0, 1, (50, 64))
    means[3, 5] = 1e6
    assert massive_coordinates(means, ratio=100) == ()


def test_missing_texts_are_left_out() -> None:
    means = np.full((3, 4), np.nan)
    assert massive_coordinates(means, ratio=10) == ()
    assert massive_coordinates(np.zeros((3, 4)), ratio=10) == ()
