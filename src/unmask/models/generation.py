"""Answer a batch of prompts by sampling, each row from its own random numbers.

A row draws one uniform number per step from its own seed and takes the token where the filtered distribution's cumulative sum
passes it. Its answer depends on its prompt, its seed and the model, not on the order of the work.

Shapes: B rows, T tokens, V vocabulary, K candidates left by top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.models.intervening import Addition
from unmask.models.prompts import end_token_ids

if TYPE_CHECKING:
    from transformers import Cache

    from unmask.models.loading import LoadedModel
    from unmask.records import Sampling, Site, StopReason


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: token ids without the end mark, and why it stopped."""

    token_ids: tuple[int, ...]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Steering:
    """What is added to each row while it is answered: `delta_BD` at `site`, over all positions."""

    site: Site
    delta_BD: np.ndarray


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    steering: Steering | None = None,
) -> list[Generated]:
    """Answer `prompts` (token ids), one seed each, optionally steered. Returns one answer per prompt, in order."""
    if steering is None:
        return _generate(loaded, prompts, sampling=sampling, seeds=seeds, addition=None)
    with Addition(loaded.model, steering.site, torch.from_numpy(steering.delta_BD)) as addition:
        return _generate(loaded, prompts, sampling=sampling, seeds=seeds, addition=addition)


@torch.inference_mode()
def _generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    addition: Addition | None,
) -> list[Generated]:
    model, device = loaded.model, loaded.device
    generation = model.generation_config
    ends = end_token_ids(loaded.tokenizer, generation.eos_token_id if generation is not None else None)
    uniforms_BT = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
    ids_BT, mask_BT = _left_padded(prompts, pad=loaded.tokenizer.pad_token_id or 0, device=device)
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    stopped: list[StopReason] = ["length"] * len(prompts)
    rows = np.arange(len(prompts))  # which prompt each row of the running batch answers
    finished = np.zeros(len(prompts), dtype=bool)
    cache: Cache | None = None
    for step in range(sampling.max_new_tokens):
        output = model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = output.past_key_values
        tokens = pick_tokens(output.logits[:, -1], uniforms_BT[rows, step], sampling=sampling)
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if finished[index]:
                continue
            if token in ends:
                finished[index], stopped[row] = True, "end"
            else:
                answers[row].append(token)
        if finished.all():
            break
        next_positions = positions_BT[:, -1:] + 1
        if finished.mean() >= 0.25:  # dropping rows costs a copy of the cache, so not at every one that ends
            kept = np.flatnonzero(~finished)
            keep = torch.from_numpy(kept).to(device)
            assert cache is not None
            cache.batch_select_indices(keep)
            if addition is not None:
                addition.select(keep)
            tokens, mask_BT, next_positions = tokens[keep], mask_BT[keep], next_positions[keep]
            rows, finished = rows[kept], finished[kept]
        ids_BT, positions_BT = tokens.unsqueeze(1), next_positions
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
    return [Generated(tuple(ids), reason) for ids, reason in zip(answers, stopped, strict=True)]


def pick_tokens(logits_BV: torch.Tensor, uniforms_B: np.ndarray, *, sampling: Sampling) -> torch.Tensor:
    """One token per row by inverse transform sampling of the tempered, top-k and top-p filtered distribution.

    Candidates stand in falling order of probability; top-p keeps those whose preceding mass is below `top_p`, so the first
    always stays (the order and rule of transformers' own filters).
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / sampling.temperature
    width = logits_BV.shape[-1]
    if 0 < sampling.top_k < width:
        logits_BK, tokens_BK = logits_BV.topk(sampling.top_k, dim=-1)
    else:
        logits_BK, tokens_BK = logits_BV.sort(dim=-1, descending=True)
    probs_BK = logits_BK.softmax(dim=-1)
    cumulative_BK = probs_BK.cumsum(dim=-1)
    if sampling.top_p < 1:
        probs_BK = probs_BK.masked_fill(cumulative_BK - probs_BK >= sampling.top_p, 0.0)
        cumulative_BK = probs_BK.cumsum(dim=-1)
    threshold_B = torch.from_numpy(uniforms_B).to(cumulative_BK) * cumulative_BK[:, -1]
    choice_B = (cumulative_BK <= threshold_B.unsqueeze(1)).sum(dim=-1)
    last_B = (probs_BK > 0).sum(dim=-1) - 1
    return tokens_BK.gather(1, torch.minimum(choice_B, last_B).unsqueeze(1)).squeeze(1)


def _left_padded(
    prompts: Sequence[Sequence[int]], *, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
