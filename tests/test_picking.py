"""Picking: sampled tokens have the distribution of transformers, whatever filters are on and however wide the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unmask.errors import ModelError
from unmask.models.picking import highest, pick_tokens
from unmask.records import Sampling

GREEDY = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=1)

FILTERS = [
    Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1),
    Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=1),
    Sampling(temperature=1.5, top_p=0.5, top_k=0, max_new_tokens=1),
    Sampling(temperature=0.3, top_p=0.95, top_k=5, max_new_tokens=1),
    Sampling(temperature=1.0, top_p=1.0, top_k=7, max_new_tokens=1),
    Sampling(temperature=2.0, top_p=1e-6, top_k=0, max_new_tokens=1),
    Sampling(temperature=1.0, top_p=0.9, top_k=500, max_new_tokens=1),
]


def transformers_distribution(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids: Any = None
    logits_BV = TemperatureLogitsWarper(sampling.temperature)(ids, logits_BV)
    if sampling.top_k > 0:
        logits_BV = TopKLogitsWarper(sampling.top_k)(ids, logits_BV)
    if sampling.top_p < 1:
        logits_BV = TopPLogitsWarper(sampling.top_p)(ids, logits_BV)
    return logits_BV.softmax(dim=-1)


@pytest.mark.parametrize("sampling", FILTERS, ids=lambda s: f"{s.temperature}-{s.top_p}-{s.top_k}")
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_tokens_have_the_distribution_of_transformers(sampling: Sampling, spread: float) -> None:
    steps = 5_000
    uniforms = (np.arange(steps) + 0.5) / steps
    logits = spread * torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    for row_logits in logits:
        wanted = transformers_distribution(row_logits.unsqueeze(0), sampling)[0].numpy()
        picked = pick_tokens(row_logits.expand(steps, -1), uniforms, sampling=sampling).numpy()
        counts = np.bincount(picked, minlength=len(wanted))
        assert not counts[wanted == 0].any()
        assert counts[wanted > 2 / steps].all()
        # A grid meets each token's interval to within one point at either end.
        np.testing.assert_allclose(counts / steps, wanted, atol=2 / steps)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 0.0, 0.0, 0.0]])
    assert pick_tokens(logits, np.array([0.99, 0.99]), sampling=GREEDY).tolist() == [1, 0]


@pytest.mark.parametrize("sampling", FILTERS, ids=lambda s: f"{s.temperature}-{s.top_p}-{s.top_k}")
def test_the_ends_of_the_unit_interval_pick_allowed_tokens(sampling: Sampling) -> None:
    logits = 3 * torch.randn(1, 200, generator=torch.Generator().manual_seed(2))
    allowed = transformers_distribution(logits, sampling)[0]
    for uniform in (0.0, np.nextafter(1.0, 0.0)):
        token = pick_tokens(logits, np.array([uniform]), sampling=sampling).item()
        assert allowed[int(token)] > 0
    assert pick_tokens(logits, np.array([0.0]), sampling=sampling).item() == logits.argmax()


def test_forbidden_tokens_are_never_picked() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [7, 9]] = torch.tensor([1.0, 0.0])
    wide = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=1)
    uniforms = np.append(np.linspace(0, 1, 100, endpoint=False), np.nextafter(1.0, 0.0))
    picked = pick_tokens(logits.expand(len(uniforms), -1), uniforms, sampling=wide)
    assert set(picked.tolist()) == {7, 9}


def test_half_precision_logits_are_tempered_in_float32() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3)).bfloat16().expand(500, -1)
    uniforms = (np.arange(500) + 0.5) / 500
    wide = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=1)
    assert torch.equal(
        pick_tokens(logits, uniforms, sampling=wide), pick_tokens(logits.float(), uniforms, sampling=wide)
    )


@pytest.mark.parametrize("width", [2048, 49_152, 49_153, 50_000])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_highest_logits_are_those_of_a_full_sort(width: int, k: int) -> None:
    logits = torch.randn(7, width, generator=torch.Generator().manual_seed(4))
    logits[1, -1], logits[2, 0], logits[3, :k] = 9.0, 9.0, 7.0 + torch.rand(k)
    logits[4, 300:] = -torch.inf
    wanted = logits.sort(dim=-1, descending=True)
    found, places = highest(logits, k)
    assert torch.equal(found, wanted.values[:, :k])
    assert torch.equal(places, wanted.indices[:, :k])


@pytest.mark.parametrize("sampling", [GREEDY, *FILTERS])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(sampling: Sampling, wrong: float) -> None:
    logits = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))
    logits[1, 700] = wrong
    with pytest.raises(ModelError, match=r"logits are not finite.*bfloat16"):
        pick_tokens(logits, np.full(3, 0.5), sampling=sampling)
    logits[1, 700] = -torch.inf  # a token that a model never says
    pick_tokens(logits, np.full(3, 0.5), sampling=sampling)
