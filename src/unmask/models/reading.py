"""Read texts with a model: response-token means at sites, and the log-probability of the response.

Shapes: B rows, T tokens, D width, S response tokens of one row, N response tokens of a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.models.recording import record_means
from unmask.models.sites import body, head_logits

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.records import Site

_LOGIT_ROWS = 1024
"""Response positions whose logits are held at once: 1024 x 49152 float32 = 200 MB."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the response to be read behind it, as token ids. The response holds no end mark."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader saw in a batch, rows as given. An empty response has NaN everywhere."""

    means_BD: dict[Site, np.ndarray]
    norms_B: dict[Site, np.ndarray]
    log_prob_B: np.ndarray
    """Mean over response tokens of log p(token | what stands before), in nats (float64)."""


def plan_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Cut rows into batches of like length: sorted by length, at most `token_budget` padded tokens each, at least one row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batches and (len(batches[-1]) + 1) * lengths[row] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@torch.inference_mode()
def read_texts(loaded: LoadedModel, texts: Sequence[Text], sites: Sequence[Site]) -> Reading:
    """Read a batch with one model. Padding stands on the right, where a causal model cannot see it."""
    device = loaded.device
    longest = max(text.length for text in texts)
    ids_BT = torch.full((len(texts), longest), loaded.tokenizer.pad_token_id or 0, dtype=torch.long)
    weights_BT = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        ids_BT[row, : text.length] = torch.tensor(text.prompt_ids + text.response_ids)
        if text.response_ids:
            weights_BT[row, len(text.prompt_ids) : text.length] = 1.0 / len(text.response_ids)
    ids_BT, weights_BT = ids_BT.to(device), weights_BT.to(device)
    with record_means(loaded.model, sites, weights_BT) as recorded:
        hidden_BTD = body(loaded.model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    log_prob_B = _response_log_prob(loaded, hidden_BTD, ids_BT, weights_BT)
    empty_B = np.array([not text.response_ids for text in texts])
    return Reading(
        means_BD={site: _blank(array, empty_B) for site, array in recorded.means_BD.items()},
        norms_B={site: _blank(array, empty_B) for site, array in recorded.norms_B.items()},
        log_prob_B=np.where(empty_B, np.nan, log_prob_B),
    )


def _response_log_prob(
    loaded: LoadedModel, hidden_BTD: torch.Tensor, ids_BT: torch.Tensor, weights_BT: torch.Tensor
) -> np.ndarray:
    rows_N, columns_N = weights_BT.nonzero(as_tuple=True)
    total_B = np.zeros(len(ids_BT))
    for start in range(0, len(rows_N), _LOGIT_ROWS):
        rows, columns = rows_N[start : start + _LOGIT_ROWS], columns_N[start : start + _LOGIT_ROWS]
        logits_NV = head_logits(loaded.model, hidden_BTD[rows, columns - 1])
        picked_N = logits_NV.gather(1, ids_BT[rows, columns].unsqueeze(1)).squeeze(1)
        log_prob_N = (picked_N - torch.logsumexp(logits_NV, dim=1)) * weights_BT[rows, columns]
        np.add.at(total_B, rows.cpu().numpy(), log_prob_N.cpu().double().numpy())
    return total_B


def _blank(array: torch.Tensor, empty_B: np.ndarray) -> np.ndarray:
    values = array.float().cpu().numpy()
    values[empty_B] = np.nan
    return values
