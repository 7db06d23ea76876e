"""Pick one token per row by inverse transform sampling: one uniform number and the filtered distribution decide it.

Shapes: B rows, V vocabulary, K candidates left by top-k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.models.loading import not_finite

if TYPE_CHECKING:
    from unmask.records import Sampling

_BLOCK = 128
"""Logits are looked through in blocks of so many: the best k of all stand in the k blocks with the highest maxima."""


def pick_tokens(logits_BV: torch.Tensor, uniforms_B: np.ndarray, *, sampling: Sampling) -> torch.Tensor:
    """One token per row by inverse transform sampling of the tempered, top-k and top-p filtered distribution.

    Candidates stand in falling order of probability; top-p keeps those whose preceding mass is below `top_p`, so the first
    always stays (the order and rule of transformers' own filters).

    Raises ModelError where the highest logit of a row is no finite number.
    """
    if sampling.temperature == 0:
        best_B = logits_BV.argmax(dim=-1)  # of a row that holds a NaN this is the NaN, as in every order below
        _check_finite(logits_BV.gather(1, best_B.unsqueeze(1)))
        return best_B
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BK, tokens_BK = highest(logits_BV, sampling.top_k)
    else:
        logits_BK, tokens_BK = logits_BV.sort(dim=-1, descending=True)
    _check_finite(logits_BK[:, 0])
    probs_BK = (logits_BK.float() / sampling.temperature).softmax(dim=-1)
    cumulative_BK = probs_BK.cumsum(dim=-1)
    if sampling.top_p < 1:
        probs_BK = probs_BK.masked_fill(cumulative_BK - probs_BK >= sampling.top_p, 0.0)
        cumulative_BK = probs_BK.cumsum(dim=-1)
    threshold_B = torch.from_numpy(uniforms_B).to(cumulative_BK) * cumulative_BK[:, -1]
    choice_B = (cumulative_BK <= threshold_B.unsqueeze(1)).sum(dim=-1)
    last_B = (probs_BK > 0).sum(dim=-1) - 1
    return tokens_BK.gather(1, torch.minimum(choice_B, last_B).unsqueeze(1)).squeeze(1)


def _check_finite(best: torch.Tensor) -> None:
    if not best.isfinite().all():
        raise not_finite("a model's logits are not finite numbers")


def highest(logits_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest logits of each row in falling order, and where they stand, as `topk` but by way of block maxima."""
    width = logits_BV.shape[-1]
    blocks = width // _BLOCK
    if blocks <= 2 * k:
        return logits_BV.topk(k, dim=-1)
    whole_BNE = logits_BV[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK))
    best_BK = whole_BNE.amax(dim=-1).topk(k, dim=-1).indices
    inside_BKE = whole_BNE.gather(1, best_BK.unsqueeze(-1).expand(-1, -1, _BLOCK))
    places_BKE = best_BK.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=logits_BV.device)
    rest_BR = torch.arange(blocks * _BLOCK, width, device=logits_BV.device).expand(len(logits_BV), -1)
    found_BC = torch.cat([inside_BKE.flatten(1), logits_BV[:, blocks * _BLOCK :]], dim=1)
    places_BC = torch.cat([places_BKE.flatten(1), rest_BR], dim=1)
    logits_BK, chosen_BK = found_BC.topk(k, dim=-1)
    return logits_BK, places_BC.gather(1, chosen_BK)
