"""One forward pass over texts: whole, or responses behind prompts that were run before.

Shapes: B rows, T tokens of the longest row, D width of the residual stream, V vocabulary, K positions of logits held at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unmask.models.pooling import OUTSIDE, SEGMENTS, Pool, Reading
from unmask.models.recording import observe
from unmask.models.sites import SiteShape, body, head_logits, site_shape
from unmask.records import RESPONSE_MEAN, Aggregation, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unmask.models.loading import LoadedModel
    from unmask.models.prompt_cache import PromptCache

LOGITS = 50_000_000
"""Logits held at once: 1,024 positions of a vocabulary of 49,152, or 200 MB in float32."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the response to be read behind it, as token ids. The response holds no end mark.

    `mask` marks the response tokens over which the aggregation `mask` is taken. `sinks` marks, at each site, the counted response
    tokens that are left out of its means; None: what the readout's `sink_ratio` says.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    mask: tuple[bool, ...] | None = field(default=None, compare=False)
    sinks: Mapping[Site, np.ndarray] | None = field(default=None, compare=False)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Readout:
    """What is wanted of a text. `tokens` are the sites of which every counted token is kept.

    With `sink_ratio`, tokens whose norm exceeds that many times their response's median are left out of the means, of texts that
    do not say themselves which (`Text.sinks`).
    """

    sites: tuple[Site, ...]
    aggregations: tuple[Aggregation, ...] = (RESPONSE_MEAN,)
    tokens: tuple[Site, ...] = ()
    log_probs: bool = True
    sink_ratio: float | None = None

    def depth(self, num_layers: int) -> int:
        """How many layers must be run for the sites alone."""
        depths = [num_layers if site.point == "normalized" else _layers_before(site) for site in self.sites]
        return max(depths, default=0)

    def reading_depth(self, num_layers: int) -> int:
        """How many layers a pass runs: all of them where log-probabilities are wanted."""
        return num_layers if self.log_probs else self.depth(num_layers)

    @property
    def needs_whole_texts(self) -> bool:
        """Whether prompt and response must stand in one pass: an attention pattern looks at both."""
        return any(site.point == "pattern" for site in self.sites)

    def without(self, aggregation: Aggregation) -> Readout:
        """The same but for one aggregation."""
        return replace(self, aggregations=tuple(name for name in self.aggregations if name != aggregation))

    def pool(self, loaded: LoadedModel, rows: int) -> Pool:
        """A pool for that many texts that this model reads. Raises ModelError for a site that the model lacks."""
        return Pool(
            {site: pooled_width(site_shape(loaded.model, site)) for site in self.sites},
            rows=rows,
            device=loaded.device,
            aggregations=self.aggregations,
            keep_tokens=self.tokens,
            wants_log_probs=self.log_probs,
            sink_ratio=self.sink_ratio,
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Texts side by side, padded on the right, where a causal model cannot see it. Columns before `start_B` are prompt."""

    ids_BT: torch.Tensor
    present_BT: torch.Tensor
    index_BT: torch.Tensor
    mask_BT: torch.Tensor
    start_B: torch.Tensor
    sinks: Mapping[Site, torch.Tensor] | None


@torch.inference_mode()
def read_whole(loaded: LoadedModel, texts: Sequence[Text], readout: Readout) -> Reading:
    """Read texts, prompt and response in one pass. Raises ModelError for a site that the model lacks."""
    rows = _laid_out(loaded, texts, with_prompts=True)
    pool = readout.pool(loaded, len(texts))
    everyone_B = torch.arange(len(texts), device=loaded.device)
    pool.tokens(
        everyone_B,
        rows.index_BT,
        prompt_last_B=rows.start_B - 1,
        mask_BT=rows.mask_BT,
        sinks=rows.sinks,
        segments_BK=_segments(rows) if readout.needs_whole_texts else None,
    )
    hidden_BTD = _run(loaded, readout, pool, input_ids=rows.ids_BT, use_cache=False)
    if readout.log_probs:
        where_B, columns_N = _positions(rows)
        _keep_log_probs(loaded, pool, hidden_BTD[where_B, columns_N - 1], rows.ids_BT[where_B, columns_N], where_B)
    return pool.finish()


@torch.inference_mode()
def read_continuations(
    loaded: LoadedModel, cache: PromptCache, prompt_rows: Sequence[int], texts: Sequence[Text], readout: Readout
) -> Reading:
    """Read the responses of `texts`, none empty, each behind its row of the prompt cache."""
    rows = _laid_out(loaded, texts, with_prompts=False)
    behind_B = torch.tensor(prompt_rows, device=loaded.device)
    length = rows.ids_BT.shape[1]
    past, prompt_mask_BP = cache.expand(behind_B, room=length)
    pool = readout.pool(loaded, len(texts))
    everyone_B = torch.arange(len(texts), device=loaded.device)
    pool.tokens(everyone_B, rows.index_BT, mask_BT=rows.mask_BT, sinks=rows.sinks)
    positions_BT = cache.lengths_P[behind_B].unsqueeze(1) + torch.arange(length, device=loaded.device)
    hidden_BTD = _run(
        loaded,
        readout,
        pool,
        input_ids=rows.ids_BT,
        attention_mask=torch.cat([prompt_mask_BP, rows.present_BT.to(prompt_mask_BP)], dim=1),
        position_ids=positions_BT,
        past_key_values=past,
        use_cache=True,
    )
    if readout.log_probs:
        before_BTD = torch.cat([cache.last_hidden_PD[behind_B].unsqueeze(1), hidden_BTD[:, :-1]], dim=1)
        where_N, columns_N = _positions(rows)
        _keep_log_probs(loaded, pool, before_BTD[where_N, columns_N], rows.ids_BT[where_N, columns_N], where_N)
    return pool.finish()


def _run(loaded: LoadedModel, readout: Readout, pool: Pool, **inputs: Any) -> torch.Tensor:
    """The model's body, its sites observed; ended after the deepest site, with nothing to return, where no logits follow."""
    stop = not readout.log_probs
    watching = observe(loaded.model, readout.sites, pool.keep, stop=stop) if readout.sites else nullcontext()
    output = None
    with watching:
        output = body(loaded.model)(**inputs)
    return output.last_hidden_state if output is not None else torch.empty(0)


def _laid_out(loaded: LoadedModel, texts: Sequence[Text], *, with_prompts: bool) -> _Rows:
    starts = [len(text.prompt_ids) if with_prompts else 0 for text in texts]
    longest = max(start + len(text.response_ids) for start, text in zip(starts, texts, strict=True))
    ids_BT = np.full((len(texts), longest), loaded.tokenizer.pad_token_id or 0, dtype=np.int64)
    present_BT = np.zeros((len(texts), longest), dtype=bool)
    index_BT = np.full((len(texts), longest), OUTSIDE, dtype=np.int64)
    mask_BT = np.zeros((len(texts), longest), dtype=bool)
    special = np.array(loaded.tokenizer.all_special_ids, dtype=np.int64)
    for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
        end = start + len(text.response_ids)
        ids_BT[row, :start] = text.prompt_ids[:start]
        ids_BT[row, start:end] = text.response_ids
        present_BT[row, :end] = True
        counted = ~np.isin(ids_BT[row, start:end], special)
        index_BT[row, start:end] = np.where(counted, counted.cumsum() - 1, OUTSIDE)
        if text.mask is not None:
            mask_BT[row, start:end] = text.mask
    arrays = [torch.from_numpy(array).to(loaded.device) for array in (ids_BT, present_BT, index_BT, mask_BT)]
    return _Rows(
        *arrays, start_B=torch.tensor(starts, device=loaded.device), sinks=_sinks(texts, index_BT, device=loaded.device)
    )


def _sinks(texts: Sequence[Text], index_BT: np.ndarray, *, device: torch.device) -> dict[Site, torch.Tensor] | None:
    """Where the sinks of texts that know them stand, site by site; None where one does not."""
    given = [text.sinks for text in texts if text.sinks is not None]
    if len(given) < len(texts):
        return None
    found: dict[Site, torch.Tensor] = {}
    for site in given[0]:
        sinks_BT = np.zeros(index_BT.shape, dtype=bool)
        sinks_BT[index_BT >= 0] = np.concatenate([sinks[site] for sinks in given])
        found[site] = torch.from_numpy(sinks_BT).to(device)
    return found


def _positions(rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every response token."""
    columns_T = torch.arange(rows.ids_BT.shape[1], device=rows.ids_BT.device)
    response_BT = rows.present_BT & (columns_T >= rows.start_B.unsqueeze(1))
    where_N, columns_N = response_BT.nonzero(as_tuple=True)
    return where_N, columns_N


def _segments(rows: _Rows) -> torch.Tensor:
    """Segment of every position, as `pooling.SEGMENTS` numbers them; -1 for padding."""
    columns_1T = torch.arange(rows.ids_BT.shape[1], device=rows.ids_BT.device).unsqueeze(0)
    inside_BT = torch.where(columns_1T < rows.start_B.unsqueeze(1), 1, 2)
    return torch.where(rows.present_BT, inside_BT.masked_fill(columns_1T == 0, 0), -1)


def _keep_log_probs(
    loaded: LoadedModel, pool: Pool, before_ND: torch.Tensor, ids_N: torch.Tensor, rows_N: torch.Tensor
) -> None:
    """Hand the pool log p(token) of every response token, from the normed hidden state before it."""
    for held, log_prob_K in token_log_probs(loaded.model, before_ND, ids_N):
        pool.keep_log_probs(rows_N[held], log_prob_K)


def token_log_probs(
    model: PreTrainedModel, before_ND: torch.Tensor, ids_N: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """log p(token) from the normed hidden state before each (N x D), a few positions at a time: which ones, and theirs (K)."""
    step = max(1, LOGITS // int(model.config.get_text_config().vocab_size))
    for start in range(0, len(ids_N), step):
        held = slice(start, start + step)
        logits_KV = head_logits(model, before_ND[held])
        picked_K = logits_KV.gather(1, ids_N[held].unsqueeze(1)).squeeze(1)
        yield held, picked_K - torch.logsumexp(logits_KV, dim=1)


def pooled_width(shape: SiteShape) -> int:
    """Numbers that a pool holds of one token: an attention pattern, as wide as its text is long, is summed over segments."""
    return shape.width if shape.width is not None else (shape.heads or 1) * len(SEGMENTS)


def _layers_before(site: Site) -> int:
    if site.layer is None:
        return 0
    return site.layer + (site.point != "resid_pre")
