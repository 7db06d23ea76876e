"""Prompts run once: what is read behind them is what one full pass reads, however they were batched, as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from unmask.errors import ModelError
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.loading import LoadedModel
from unmask.models.prompt_cache import PromptCache, prefill
from unmask.models.sites import body, head_logits
from unmask.records import Site

PROMPTS = (3, 17, 8, 1, 12, 25)
"""Lengths: unequal, and on both sides of the sliding windows of 8."""
CONTINUATIONS = (11, 2, 5, 19, 1, 7, 4, 9)
BEHIND = (0, 1, 2, 3, 4, 5, 3, 1)
"""Which prompt each continuation stands behind: two prompts serve twice."""
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def texts(lengths: Sequence[int], *, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 2048, length).tolist() for length in lengths]


@torch.inference_mode()
def whole(loaded: LoadedModel, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normed hidden states and logits of one text in one pass, alone."""
    model: Any = loaded.model
    input_ids = torch.tensor([list(ids)])
    return body(model)(input_ids=input_ids).last_hidden_state[0], model(input_ids=input_ids).logits[0].float()


@torch.inference_mode()
def continued(
    loaded: LoadedModel, cache: PromptCache, behind: Sequence[int], texts: Sequence[Sequence[int]], *, room: int = 0
) -> list[torch.Tensor]:
    """Normed hidden states of each text behind its prompt: one pass over all of them, padded on the right."""
    longest = max(len(ids) for ids in texts)
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts])
    own_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    past, mask_BT = cache.expand(torch.tensor(behind), room=longest + room)
    positions_BT = cache.lengths_P[list(behind)].unsqueeze(1) + torch.arange(longest)
    hidden_BTD = body(loaded.model)(
        input_ids=ids_BT, attention_mask=torch.cat([mask_BT, own_BT], dim=1), position_ids=positions_BT,
        past_key_values=past, use_cache=True,
    ).last_hidden_state  # fmt: skip
    return [hidden_TD[: len(ids)] for hidden_TD, ids in zip(hidden_BTD, texts, strict=True)]


@pytest.mark.parametrize("token_budget", [2048, 30, 1])
@torch.inference_mode()
def test_a_continuation_behind_cached_prompts_reads_as_one_full_pass(
    each_model: LoadedModel, token_budget: int
) -> None:
    prompts, continuations = texts(PROMPTS, seed=0), texts(CONTINUATIONS, seed=1)
    cache = prefill(each_model, prompts, token_budget=token_budget)
    assert cache.lengths_P.tolist() == list(PROMPTS)
    found = continued(each_model, cache, BEHIND, continuations)
    for row, (ids, hidden_TD) in enumerate(zip(continuations, found, strict=True)):
        prompt = prompts[BEHIND[row]]
        wanted_TD, logits_TV = whole(each_model, [*prompt, *ids])
        torch.testing.assert_close(hidden_TD, wanted_TD[len(prompt) :], **CLOSE)
        torch.testing.assert_close(head_logits(each_model.model, hidden_TD), logits_TV[len(prompt) :], **CLOSE)
        last_D = cache.last_hidden_PD[BEHIND[row]]
        torch.testing.assert_close(last_D, wanted_TD[len(prompt) - 1], **CLOSE)
        torch.testing.assert_close(
            head_logits(each_model.model, last_D.unsqueeze(0))[0], logits_TV[len(prompt) - 1], **CLOSE
        )


@torch.inference_mode()
def test_a_continuation_may_come_in_pieces(each_model: LoadedModel) -> None:
    prompts, (ids,) = texts([12], seed=2), texts([14], seed=3)
    cache = prefill(each_model, prompts)
    past, mask_BT = cache.expand(torch.tensor([0]), room=14)
    pieces = []
    for start, stop in ((0, 1), (1, 2), (2, 7), (7, 14)):
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(1, stop - start)], dim=1)
        output = body(each_model.model)(
            input_ids=torch.tensor([ids[start:stop]]), attention_mask=mask_BT,
            position_ids=12 + torch.arange(start, stop).unsqueeze(0), past_key_values=past, use_cache=True,
        )  # fmt: skip
        assert output.past_key_values is past
        pieces.append(output.last_hidden_state[0])
    torch.testing.assert_close(torch.cat(pieces), whole(each_model, [*prompts[0], *ids])[0][12:], **CLOSE)
    assert past.get_seq_length() == past.layers[0].get_max_length() == 26


def test_a_prompt_cache_serves_again_and_again(each_model: LoadedModel) -> None:
    prompts, continuations = texts(PROMPTS, seed=0), texts(CONTINUATIONS, seed=1)
    cache = prefill(each_model, prompts)
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values, cache.last_hidden_PD)]
    first = continued(each_model, cache, BEHIND, continuations)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*cache.keys, *cache.values, cache.last_hidden_PD), strict=True)
    )
    again = continued(each_model, cache, BEHIND, continuations, room=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@torch.inference_mode()
def test_rows_may_be_dropped_from_an_expanded_cache(each_model: LoadedModel) -> None:
    prompts = texts(PROMPTS, seed=0)
    cache = prefill(each_model, prompts)
    past, mask_BT = cache.expand(torch.tensor([1, 0, 2, 4]), room=2)
    kept = torch.tensor([0, 3])
    past.batch_select_indices(kept)
    hidden_BTD = body(each_model.model)(
        input_ids=torch.tensor([[7], [9]]), attention_mask=torch.cat([mask_BT[kept], mask_BT.new_ones(2, 1)], dim=1),
        position_ids=torch.tensor([[17], [12]]), past_key_values=past, use_cache=True,
    ).last_hidden_state  # fmt: skip
    for row, ids in enumerate(([*prompts[1], 7], [*prompts[4], 9])):
        torch.testing.assert_close(hidden_BTD[row, 0], whole(each_model, ids)[0][-1], **CLOSE)


def test_expanding_cuts_to_the_longest_of_its_rows(llama: LoadedModel) -> None:
    cache = prefill(llama, texts(PROMPTS, seed=0))
    past, mask_BT = cache.expand(torch.tensor([2, 0, 3]), room=4)
    assert mask_BT.tolist() == [[1] * 8, [0] * 5 + [1] * 3, [0] * 7 + [1]]
    assert {layer.keys.shape for layer in past.layers} == {(3, 2, 12, 12)}
    assert past.get_seq_length() == 8


class Lasts:
    """A recorder that keeps what the last token of every prompt shows."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites, self.wants_log_probs = sites, False
        self.found: dict[tuple[Site, int], torch.Tensor] = {}

    def prompts(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> None:
        self.now = rows_B.tolist(), last_B.tolist()

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        for here, (row, last) in enumerate(zip(*self.now, strict=True)):
            self.found[site, row] = activation[here, last].clone()

    def tokens(self, rows_B: torch.Tensor, index_BT: torch.Tensor) -> None:
        raise AssertionError("no response token was run")

    def keep_log_probs(self, rows_B: torch.Tensor, log_prob_B: torch.Tensor) -> None:
        raise AssertionError("no response token was run")


def test_a_recorder_is_told_where_each_prompt_ends(each_model: LoadedModel) -> None:
    sites = [Site(1, "resid_pre"), Site(each_model.num_layers - 1, "resid_pre")]
    prompts = texts(PROMPTS, seed=0)
    together, alone = Lasts(sites), Lasts(sites)
    prefill(each_model, prompts, token_budget=40, recorder=together)
    for row, prompt in enumerate(prompts):
        single = Lasts(sites)
        prefill(each_model, [prompt], recorder=single)
        alone.found |= {(site, row): seen for (site, _), seen in single.found.items()}
    assert together.found.keys() == alone.found.keys()
    for key, seen in alone.found.items():
        torch.testing.assert_close(together.found[key], seen, **CLOSE)


def test_a_model_whose_past_is_no_keys_and_values_is_refused(llama: LoadedModel) -> None:
    assert keeps_keys_and_values(llama.model.config)
    llama.model.config.layer_types = ["full_attention", "linear_attention", "full_attention", "full_attention"]
    with pytest.raises(ModelError, match="cannot be shared"):
        prefill(llama, texts([3], seed=0))
