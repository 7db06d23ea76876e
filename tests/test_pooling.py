"""A pool gives the same as plain arithmetic on all tokens, however the passes are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.models.pooling import OUTSIDE, Pool, joined
from unmask.records import Site

SITE = Site(1, "resid_pre")
CPU = torch.device("cpu")
ALL = ("response_mean", "response_last", "response_first_3")


def texts(lengths: list[int], *, width: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def pool(rows: int, **options: object) -> Pool:
    return Pool({SITE: 5}, rows=rows, device=CPU, **{"aggregations": ALL, "keep_tokens": (SITE,), **options})  # ty: ignore


def whole(parts: list[torch.Tensor]) -> Pool:
    """All texts in one padded pass."""
    longest = max(*(len(part) for part in parts), 1)
    hidden = torch.full((len(parts), longest, 5), 1e6)
    index = torch.full((len(parts), longest), OUTSIDE)
    for row, part in enumerate(parts):
        hidden[row, : len(part)] = part
        index[row, : len(part)] = torch.arange(len(part))
    made = pool(len(parts))
    made.tokens(torch.arange(len(parts)), index)
    made.keep(SITE, hidden)
    return made


def step_by_step(parts: list[torch.Tensor]) -> Pool:
    """A token of every row a pass, rows leaving as they end and in another order: generation."""
    made = pool(len(parts))
    for step in range(max(len(part) for part in parts)):
        rows = [row for row in reversed(range(len(parts))) if len(parts[row]) > step]
        made.tokens(torch.tensor(rows), torch.full((len(rows), 1), step))
        made.keep(SITE, torch.stack([parts[row][step] for row in rows]).unsqueeze(1))
    return made


@pytest.mark.parametrize("run", [whole, step_by_step])
@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any))
def test_it_is_plain_arithmetic(run, lengths: list[int]) -> None:
    parts = texts(lengths)
    reading = run(parts).finish()
    seen = reading.sites[SITE]
    for row, part in enumerate(parts):
        if len(part) == 0:
            assert all(np.isnan(mean[row]).all() for mean in seen.means_NW.values())
            assert np.isnan(seen.norms_N[row])
            continue
        np.testing.assert_allclose(reading.mean(SITE)[row], part.mean(dim=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen.means_NW["response_last"][row], part[-1], rtol=1e-5)
        np.testing.assert_allclose(seen.means_NW["response_first_3"][row], part[:3].mean(dim=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(reading.norms(SITE)[row], part.norm(dim=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(seen.tokens_MW, torch.cat(parts), rtol=1e-6)
    np.testing.assert_allclose(seen.token_norms_M, torch.cat(parts).norm(dim=1), rtol=1e-5)
    assert np.diff(reading.offsets).tolist() == lengths


def test_tokens_that_do_not_count_are_nowhere() -> None:
    made = pool(1)
    hidden = torch.arange(15.0).reshape(1, 3, 5)
    made.tokens(torch.tensor([0]), torch.tensor([[0, OUTSIDE, 1]]))
    made.keep(SITE, hidden)
    reading = made.finish()
    np.testing.assert_allclose(reading.mean(SITE)[0], (hidden[0, 0] + hidden[0, 2]) / 2)
    assert reading.offsets.tolist() == [0, 2]


def test_a_mask_is_the_users() -> None:
    made = pool(2, aggregations=("mask",))
    hidden = torch.arange(20.0).reshape(2, 2, 5)
    made.tokens(
        torch.tensor([0, 1]), torch.tensor([[0, 1], [0, 1]]), mask_BT=torch.tensor([[True, False], [False, False]])
    )
    made.keep(SITE, hidden)
    means = made.finish().sites[SITE].means_NW["mask"]
    np.testing.assert_allclose(means[0], hidden[0, 0])
    assert np.isnan(means[1]).all()


def test_a_mask_marks_no_token_that_does_not_count() -> None:
    made = pool(1, aggregations=("mask",))
    hidden = torch.arange(15.0).reshape(1, 3, 5)
    made.tokens(torch.tensor([0]), torch.tensor([[0, OUTSIDE, 1]]), mask_BT=torch.tensor([[True, True, False]]))
    made.keep(SITE, hidden)
    np.testing.assert_allclose(made.finish().sites[SITE].means_NW["mask"][0], hidden[0, 0])


def test_sinks_leave_the_means_but_not_the_tokens() -> None:
    hidden = torch.ones(1, 6, 5)
    hidden[0, 2] = 1000
    made = pool(1, sink_ratio=10.0)
    made.tokens(torch.tensor([0]), torch.arange(6).unsqueeze(0))
    made.keep(SITE, hidden)
    reading = made.finish()
    np.testing.assert_allclose(reading.mean(SITE)[0], 1)
    np.testing.assert_allclose(reading.norms(SITE)[0], 5**0.5, rtol=1e-6)
    seen = reading.sites[SITE]
    assert seen.tokens_MW is not None and seen.tokens_MW.max() == 1000
    assert seen.token_norms_M.argmax() == 2


def test_sinks_that_are_told_of_leave_the_means_whatever_their_norm() -> None:
    hidden = torch.ones(1, 4, 5)
    hidden[0, 0] = 1000
    made = pool(1, sink_ratio=10.0)
    made.tokens(
        torch.tensor([0]), torch.arange(4).unsqueeze(0), sinks={SITE: torch.tensor([[False, True, True, False]])}
    )
    made.keep(SITE, hidden)
    np.testing.assert_allclose(made.finish().mean(SITE)[0], (1000 + 1) / 2)


def test_half_precision_is_averaged_in_float32() -> None:
    made = Pool({SITE: 1}, rows=1, device=CPU)
    made.tokens(torch.tensor([0]), torch.arange(4096).unsqueeze(0))
    made.keep(SITE, torch.full((1, 4096, 1), 1 + 2**-7, dtype=torch.bfloat16))
    assert made.finish().mean(SITE)[0, 0] == pytest.approx(1 + 2**-7, rel=1e-6)


def test_log_probabilities_are_a_mean_over_tokens() -> None:
    made = Pool({}, rows=3, device=CPU, wants_log_probs=True)
    made.keep_log_probs(torch.tensor([0, 2, 2]), torch.tensor([-1.0, -2.0, -4.0]))
    np.testing.assert_allclose(made.finish().log_prob_N, [-1, np.nan, -3])


def test_prompts_are_kept_apart() -> None:
    made = pool(2, aggregations=("prompt_last",))
    hidden = torch.randn(2, 4, 5)
    made.prompts(torch.tensor([1, 0]), torch.tensor([3, 1]))
    made.keep(SITE, hidden)
    np.testing.assert_allclose(made.prompt_lasts(SITE), torch.stack([hidden[1, 1], hidden[0, 3]]))


def test_batches_join_in_the_callers_order() -> None:
    parts = texts([3, 0, 2, 5])
    together = whole(parts).finish()
    first, second = whole([parts[3], parts[0]]).finish(), whole([parts[1], parts[2]]).finish()
    found = joined([([3, 0], first), ([1, 2], second)], rows=4)
    assert found.offsets.tolist() == together.offsets.tolist()
    one, other = found.sites[SITE], together.sites[SITE]
    for name in ALL:
        np.testing.assert_allclose(one.means_NW[name], other.means_NW[name], rtol=1e-5)
    np.testing.assert_allclose(one.tokens_MW, other.tokens_MW)
    np.testing.assert_allclose(one.token_norms_M, other.token_norms_M, rtol=1e-6)


def test_a_row_in_no_batch_is_missing() -> None:
    parts = texts([2, 4])
    found = joined([([2, 0], whole(parts).finish())], rows=3)
    assert np.isnan(found.mean(SITE)).all(axis=1).tolist() == [False, True, False]
    assert np.diff(found.offsets).tolist() == [4, 0, 2]


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="nothing was read"):
        joined([], rows=3)
