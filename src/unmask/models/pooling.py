"""Take means over response tokens while a model runs, so that memory does not grow with layers x tokens.

A `Pool` is told by whoever runs the model which row and which token each position of the coming pass is, and is then handed the
activations at every site by `recording.observe`. It serves teacher-forced reading and generation alike.

Shapes: N rows (texts), B rows of one pass, T positions of one pass, W width of a site, M counted tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from unmask.models.outlying import sinks
from unmask.records import RESPONSE_MEAN, Aggregation, Site, first_tokens

OUTSIDE = -1
"""Index of a position that is no counted response token: prompt, padding, special token, end mark."""

SEGMENTS = ("first", "prompt", "response")
"""What an attention pattern is summed over: the text's first token (a common sink), the rest of the prompt, the response."""


@dataclass(frozen=True, slots=True)
class SiteReading:
    """What was read at one site, in float32. A text without counted tokens is NaN."""

    means_NW: dict[Aggregation, np.ndarray]
    norms_N: np.ndarray
    """Mean L2 norm of the averaged tokens."""
    token_norms_M: np.ndarray
    tokens_MW: np.ndarray | None
    """The counted tokens, text by text, in order; None where only means were asked for."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one model saw in N texts. `offsets` (N + 1) cut the M counted tokens into texts."""

    sites: dict[Site, SiteReading]
    offsets: np.ndarray
    log_prob_N: np.ndarray
    """Mean over response tokens of log p(token | what stands before), in nats (float64); NaN where not asked for or empty."""

    def mean(self, site: Site) -> np.ndarray:
        """The response mean at a site (N x W)."""
        return self.sites[site].means_NW[RESPONSE_MEAN]

    def norms(self, site: Site) -> np.ndarray:
        """Mean L2 norm of the averaged tokens at a site (N)."""
        return self.sites[site].norms_N

    def with_prompt_lasts(self, pool: Pool, prompt_rows: Sequence[int]) -> Reading:
        """The same, with what each text's prompt showed at its last token, from the pool that saw the prompts."""
        sites = {
            site: replace(seen, means_NW=seen.means_NW | {"prompt_last": pool.prompt_lasts(site)[list(prompt_rows)]})
            for site, seen in self.sites.items()
        }
        return replace(self, sites=sites)


@dataclass(slots=True)
class _Sums:
    """What has been seen at one site, on the model's device. `sums` and `counts` have a spare row for what belongs to no text."""

    sums: dict[Aggregation, torch.Tensor]
    counts: dict[Aggregation, torch.Tensor]
    norm_sum_N: torch.Tensor
    norms: list[torch.Tensor] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Which text and which token each position of the pass under way is. `prompts_only`: rows are prompts, not texts."""

    rows_B: torch.Tensor
    counted_BT: torch.Tensor
    weights: dict[Aggregation, torch.Tensor]
    prompt_last_B: torch.Tensor | None
    segments_BK: torch.Tensor | None
    sinks: Mapping[Site, torch.Tensor] | None = None
    prompts_only: bool = False


class Pool:
    """Running sums over `rows` texts at sites of the given widths; see the module. Implements `Recorder`.

    With `sink_ratio`, tokens whose norm exceeds that many times the median of their response at a site are left out of its means
    (only where a response is read in one pass, and where no pass is told of other sinks). `keep_tokens` keeps every counted token
    at those sites.
    """

    def __init__(
        self,
        widths: Mapping[Site, int],
        *,
        rows: int,
        device: torch.device,
        aggregations: Sequence[Aggregation] = (RESPONSE_MEAN,),
        keep_tokens: Sequence[Site] = (),
        wants_log_probs: bool = False,
        sink_ratio: float | None = None,
    ) -> None:
        self.sites: Sequence[Site] = tuple(widths)
        self.wants_log_probs = wants_log_probs
        self._rows, self._device = rows, device
        self._aggregations = tuple(dict.fromkeys((RESPONSE_MEAN, *aggregations)))
        self._first = {name: first_tokens(name) for name in self._aggregations}
        self._keep_tokens = frozenset(keep_tokens)
        self._sink_ratio = sink_ratio
        self._seen = {site: self._empty(width) for site, width in widths.items()}
        self._places: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # (text, ordinal) of every position told of, pass by pass
        self._prompt_last: dict[Site, dict[int, torch.Tensor]] = {}
        self._pass: _Pass | None = None
        self._log_probs: list[tuple[torch.Tensor, torch.Tensor]] = []  # of tokens as they came: text, log-probability

    def prompts(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> None:
        """The coming pass runs prompts: their indices and the column of each one's last token."""
        nothing_BT = torch.zeros(len(rows_B), 0, dtype=torch.bool, device=self._device)
        self._pass = _Pass(rows_B, nothing_BT, {}, last_B, None, prompts_only=True)

    def tokens(
        self,
        rows_B: torch.Tensor,
        index_BT: torch.Tensor,
        *,
        prompt_last_B: torch.Tensor | None = None,
        mask_BT: torch.Tensor | None = None,
        sinks: Mapping[Site, torch.Tensor] | None = None,
        segments_BK: torch.Tensor | None = None,
    ) -> None:
        """The coming pass runs response tokens: texts, and the ordinal of the token that each position is (OUTSIDE: none).

        `prompt_last_B` is the column of the prompt's last token where the pass runs prompts too, `mask_BT` marks the user's
        tokens, `sinks` at every site the tokens (B x T) that are left out of its means, `segments_BK` the segment (index into
        SEGMENTS, -1: none) of every key that attention can look at.
        """
        counted_BT = index_BT >= 0
        weights: dict[Aggregation, torch.Tensor] = {RESPONSE_MEAN: counted_BT.float()}
        for name, first in self._first.items():
            if first is not None:
                weights[name] = (counted_BT & (index_BT < first)).float()
            elif name == "mask":
                weights[name] = (counted_BT & (False if mask_BT is None else mask_BT)).float()
            elif name == "response_last":
                last_B1 = index_BT.max(dim=1, keepdim=True).values
                weights[name] = (counted_BT & (index_BT == last_B1)).float()
        self._places.append((rows_B.unsqueeze(1).expand_as(index_BT), index_BT))
        self._pass = _Pass(rows_B, counted_BT, weights, prompt_last_B, segments_BK, sinks)

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        """Add what a site shows in the pass that was told of."""
        now = self._pass
        assert now is not None, "a pass must be told of before it is run"
        if site.point == "pattern":
            if now.segments_BK is None:
                return
            activation = _by_segment(activation, now.segments_BK)
        if now.prompt_last_B is not None and "prompt_last" in self._aggregations:
            self._keep_prompt_last(site, activation, now)
        if now.prompts_only:
            return
        seen, hidden_BTW = self._seen[site], activation.float()
        norms_BT = torch.linalg.vector_norm(hidden_BTW, dim=-1)
        sound_BT = self._sound(site, norms_BT, now)
        for name, weights_BT in now.weights.items():
            used_BT = weights_BT if sound_BT is None or name == "response_last" else weights_BT * sound_BT
            summed_BW = torch.bmm(used_BT.unsqueeze(1), hidden_BTW).squeeze(1)
            if name == "response_last":  # a later pass holds a later token; a row that holds none goes to the spare row
                has_B = used_BT.sum(dim=1) > 0
                target_B = torch.where(has_B, now.rows_B, self._rows)
                seen.sums[name][target_B] = summed_BW
                seen.counts[name][target_B] = 1.0
                continue
            seen.sums[name].index_add_(0, now.rows_B, summed_BW)
            seen.counts[name].index_add_(0, now.rows_B, used_BT.sum(dim=1))
            if name == RESPONSE_MEAN:
                seen.norm_sum_N.index_add_(0, now.rows_B, (norms_BT * used_BT).sum(dim=1))
        seen.norms.append(norms_BT)
        if site in self._keep_tokens:
            seen.tokens.append(hidden_BTW[now.counted_BT].cpu())

    def keep_log_probs(self, rows_B: torch.Tensor, log_prob_B: torch.Tensor) -> None:
        """Add one response token's log-probability for each of these texts (a text may come more than once)."""
        self._log_probs.append((rows_B, log_prob_B))

    def finish(self) -> Reading:
        """Divide the sums and put tokens in the order of the texts."""
        rows_P, index_P = self._all_places()
        counted_P = index_P >= 0
        order_M = np.lexsort((index_P[counted_P], rows_P[counted_P]))
        per_text_N = np.bincount(rows_P[counted_P], minlength=self._rows)
        # One after the other, on the CPU: a GPU adds what belongs to one text in any order, and the last digits differ.
        told_K = _flat([rows for rows, _ in self._log_probs])
        sums_N = np.bincount(told_K, weights=_flat([each for _, each in self._log_probs]), minlength=self._rows)
        counts_N = np.bincount(told_K, minlength=self._rows)
        return Reading(
            sites={site: self._finish_site(site, counted_P, order_M) for site in self.sites},
            offsets=np.concatenate([[0], per_text_N.cumsum()]),
            log_prob_N=sums_N / np.where(counts_N > 0, counts_N, np.nan),
        )

    def _finish_site(self, site: Site, counted_P: np.ndarray, order_M: np.ndarray) -> SiteReading:
        seen = self._seen[site]
        means_NW = {name: _divided(seen.sums[name], seen.counts[name])[:-1] for name in seen.sums}
        if "prompt_last" in self._aggregations:
            means_NW["prompt_last"] = self.prompt_lasts(site)
        token_norms_P = _flat(seen.norms)
        return SiteReading(
            means_NW=means_NW,
            norms_N=_divided(seen.norm_sum_N.unsqueeze(1), seen.counts[RESPONSE_MEAN][:-1])[:, 0],
            token_norms_M=token_norms_P[counted_P][order_M],
            tokens_MW=self._ordered_tokens(site, order_M) if site in self._keep_tokens else None,
        )

    def _empty(self, width: int) -> _Sums:
        names = [name for name in self._aggregations if name != "prompt_last"]
        return _Sums(
            sums={name: torch.zeros(self._rows + 1, width, device=self._device) for name in names},
            counts={name: torch.zeros(self._rows + 1, device=self._device) for name in names},
            norm_sum_N=torch.zeros(self._rows, device=self._device),
        )

    def _sound(self, site: Site, norms_BT: torch.Tensor, now: _Pass) -> torch.Tensor | None:
        """The tokens that are no sinks; None where all are used."""
        if now.sinks is not None:
            return ~now.sinks[site]
        if self._sink_ratio is None:
            return None
        return ~sinks(norms_BT, now.counted_BT, ratio=self._sink_ratio)

    def _keep_prompt_last(self, site: Site, activation: torch.Tensor, now: _Pass) -> None:
        assert now.prompt_last_B is not None
        last_BW = activation[torch.arange(len(now.rows_B), device=self._device), now.prompt_last_B].float().cpu()
        kept = self._prompt_last.setdefault(site, {})
        kept.update(zip(now.rows_B.tolist(), last_BW, strict=True))

    def prompt_lasts(self, site: Site) -> np.ndarray:
        """What the last token of every prompt showed (prompts x W)."""
        kept = self._prompt_last[site]
        return torch.stack([kept[row] for row in range(len(kept))]).numpy()

    def _all_places(self) -> tuple[np.ndarray, np.ndarray]:
        return _flat([rows for rows, _ in self._places]), _flat([index for _, index in self._places])

    def _ordered_tokens(self, site: Site, order_M: np.ndarray) -> np.ndarray:
        seen = self._seen[site]
        width = seen.sums[RESPONSE_MEAN].shape[1]
        return torch.cat([torch.zeros(0, width), *seen.tokens]).numpy()[order_M]


def _by_segment(pattern_BHQK: torch.Tensor, segments_BK: torch.Tensor) -> torch.Tensor:
    """Attention summed over the keys of each segment: B x Q x (heads * len(SEGMENTS)), head by head."""
    one_hot_BKS = torch.stack([segments_BK == number for number in range(len(SEGMENTS))], dim=-1).float()
    shares_BHQS = pattern_BHQK.float() @ one_hot_BKS.unsqueeze(1)
    return shares_BHQS.permute(0, 2, 1, 3).flatten(2)


def _flat(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """All numbers of the parts, one after the other; integers where there are none, to serve as indices."""
    if not parts:
        return np.zeros(0, dtype=np.int64)
    return torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()


def _divided(sums_NW: torch.Tensor, counts_N: torch.Tensor) -> np.ndarray:
    return (sums_NW / torch.where(counts_N > 0, counts_N, torch.nan).unsqueeze(1)).cpu().numpy()


def joined(parts: Sequence[tuple[Sequence[int], Reading]], *, rows: int) -> Reading:
    """Readings of batches as one, each text at its row; a row that no batch holds is NaN. Raises ValueError without parts."""
    if not parts:
        raise ValueError("nothing was read")
    per_text_N = np.zeros(rows, dtype=np.int64)
    log_prob_N = np.full(rows, np.nan)
    for batch, reading in parts:
        per_text_N[list(batch)] = np.diff(reading.offsets)
        log_prob_N[list(batch)] = reading.log_prob_N
    offsets = np.concatenate([[0], per_text_N.cumsum()])
    places = [
        np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in batch]) if len(batch) else np.zeros(0, int)
        for batch, _ in parts
    ]
    return Reading(
        {site: _joined_site(site, parts, places, offsets) for site in parts[0][1].sites}, offsets, log_prob_N
    )


def _joined_site(
    site: Site, parts: Sequence[tuple[Sequence[int], Reading]], places: Sequence[np.ndarray], offsets: np.ndarray
) -> SiteReading:
    rows, tokens = len(offsets) - 1, int(offsets[-1])
    first = parts[0][1].sites[site]
    means = {name: np.full((rows, mean_BW.shape[1]), np.nan, np.float32) for name, mean_BW in first.means_NW.items()}
    norms_N = np.full(rows, np.nan, dtype=np.float32)
    token_norms_M = np.empty(tokens, dtype=np.float32)
    tokens_MW = None if first.tokens_MW is None else np.empty((tokens, first.tokens_MW.shape[1]), dtype=np.float32)
    for (batch, reading), place_M in zip(parts, places, strict=True):
        seen = reading.sites[site]
        for name, mean_BW in seen.means_NW.items():
            means[name][list(batch)] = mean_BW
        norms_N[list(batch)] = seen.norms_N
        token_norms_M[place_M] = seen.token_norms_M
        if tokens_MW is not None and seen.tokens_MW is not None:
            tokens_MW[place_M] = seen.tokens_MW
    return SiteReading(means, norms_N, token_norms_M, tokens_MW)
