"""Sinks and massive coordinates: planted ones are found, ordinary noise has none."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.models.outlying import find_sinks, massive_coordinates, sinks


def test_planted_sinks_are_counted_by_text() -> None:
    rng = np.random.default_rng(0)
    norms = rng.uniform(8, 12, 60)
    offsets = np.array([0, 20, 20, 50, 60])
    norms[[3, 4, 25]] = [400, 150, 9000]
    found = find_sinks(norms, offsets, ratio=10)
    assert found.counts_N.tolist() == [2, 0, 1, 0]
    assert np.isnan(found.peaks_N[1])
    assert found.peaks_N[2] > 700 and found.peaks_N[3] < 2


def test_tokens_of_one_size_have_no_sinks() -> None:
    found = find_sinks(np.full(30, 7.0), np.array([0, 10, 30]), ratio=10)
    assert found.counts_N.tolist() == [0, 0]
    np.testing.assert_allclose(found.peaks_N, 1)


def test_a_text_of_zeros_has_no_ratio() -> None:
    found = find_sinks(np.zeros(4), np.array([0, 4]), ratio=10)
    assert found.counts_N.tolist() == [0] and np.isnan(found.peaks_N).all()


def test_sinks_are_counted_tokens_only() -> None:
    norms = torch.tensor([[9000.0, 1, 1, 50, 1]])
    counted = torch.tensor([[False, True, True, True, True]])
    assert sinks(norms, counted, ratio=10).tolist() == [[False, False, False, True, False]]


@given(texts=st.lists(st.lists(st.floats(0, 100, width=32), max_size=7), max_size=5))
def test_sinks_exceed_so_many_medians_of_their_text(texts: list[list[float]]) -> None:
    norms = np.array([norm for text in texts for norm in text], dtype=np.float32)
    offsets = np.cumsum([0, *(len(text) for text in texts)])
    found = find_sinks(norms, offsets, ratio=1.5)
    wanted = [np.array(text, np.float32) for text in texts]
    marks = [
        text > 1.5 * np.median(text) if len(text) and np.median(text) else np.zeros(len(text), bool) for text in wanted
    ]
    np.testing.assert_array_equal(found.found_M, np.concatenate([np.zeros(0, bool), *marks]))
    assert found.counts_N.tolist() == [int(each.sum()) for each in marks]
    for peak, text in zip(found.peaks_N, wanted, strict=True):
        assert np.isnan(peak) if not len(text) or np.median(text) == 0 else peak == text.max() / np.median(text)


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
