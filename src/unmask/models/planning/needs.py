"""What a collection needs: memory at its peak, and room on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.models.passes import LOGITS, pooled_width
from unmask.models.planning.work import batches_of, continuations_of
from unmask.models.sites import site_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unmask.models.planning.architecture import Architecture
    from unmask.models.planning.workload import Chunk, Workload
    from unmask.records import Site

_PER_SITE = 4 + 4 + 4
"""Bytes a response, reader and site: mean norm, count of sinks, largest ratio."""
_PER_READER = 8
"""Bytes a response and reader: the log-probability, float64."""
_OFFSET = 8
_HEADER = 96
"""Bytes of a shard's header a tensor: its name, dtype, shape and place, as JSON; and 24 a response for its id."""
_ID = 24


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak, part by part. All but `kept` is on the model's device, `kept` in main memory; on a CPU both are one.

    - `weights`: copies x parameters x bytes of a weight; one copy where readers share it. Where answers are written in float32,
      at most one more copy of each one's matrices (`packed_weights`, on a CPU only). What the program itself takes, and buffers
      that a library holds back, are not in it
    - `activations`: padded tokens of the largest batch x numbers a token x bytes of one. While the MLP runs: the stream, its
      normed copy and three vectors of `widest`; while attention runs: three of the stream, three of `query_width`, and twice
      keys and values; the larger of both
    - `logits`: two arrays (the logits, and what their log-sum-exp takes) of at most `LOGITS` float32 each
    - `caches`: keys and values of the largest chunk's prompts, each padded to the longest, of every model that keeps them at
      once; and of one batch's rows, prompt and response
    - `kept`: float32 means of the largest chunk, and token rows three times (as they came, joined, in order)
    """

    weights: int
    activations: int
    logits: int
    caches: int
    kept: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.logits + self.caches + self.kept

    def larger(self, other: Memory) -> Memory:
        """Of two works that follow one another: the one with the higher peak."""
        return self if self.total >= other.total else other


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that are left on the disk, level by level.

    - `responses`: readers x responses x aggregations x coordinates x bytes of a stored number, over all sites; beside them, a
      reader and response, 12 bytes a site and 8 for the log-probability
    - `tokens`: readers x response tokens x coordinates x bytes of a stored number, over the sites whose tokens are kept; where
      sinks are left out of means, a byte a token and site. Special tokens are not kept, so this is an upper bound
    - `headers`: what the shards say of themselves, estimated
    """

    responses: int
    tokens: int
    headers: int

    @property
    def total(self) -> int:
        return self.responses + self.tokens + self.headers

    def __add__(self, other: Disk) -> Disk:
        return Disk(self.responses + other.responses, self.tokens + other.tokens, self.headers + other.headers)


def disk_of(config: Any, workload: Workload) -> Disk:
    """What the shards of a workload take."""
    readout, readers = workload.readout, workload.readers if workload.reads else 0
    widths = _width(config, workload.sites)
    numbers = len(readout.aggregations) * widths * workload.stored_bytes
    scalars = _PER_SITE * len(workload.sites) + _PER_READER * readout.log_probs
    marks = len(workload.sites) * workload.response_tokens if readout.sink_ratio is not None and readers else 0
    offsets = _OFFSET * (workload.texts + len(workload.chunks)) if (readout.tokens or marks) and readers else 0
    kept = readers * workload.response_tokens * _width(config, readout.tokens) * workload.stored_bytes
    per_reader = (len(readout.aggregations) + 3) * len(workload.sites) + len(readout.tokens) + readout.log_probs
    return Disk(
        responses=readers * workload.texts * (numbers + scalars),
        tokens=kept + marks + offsets,
        headers=(readers > 0) * (_HEADER * readers * per_reader * len(workload.chunks) + _ID * workload.texts),
    )


def memory_of(architecture: Architecture, config: Any, workload: Workload) -> Memory:
    """The peak of a workload."""
    size = workload.weight_bytes
    copies = 1 if workload.one_copy else workload.readers
    matrices = architecture.multiply_adds(len(architecture.layers)) + architecture.head
    packed = copies * matrices * size if workload.answering and size == 4 else 0
    mlp = 2 * architecture.hidden + 3 * architecture.widest
    attention = 3 * architecture.hidden + 3 * architecture.query_width + 2 * architecture.cache_width
    taken = [_passes(architecture, workload, chunk) for chunk in workload.chunks]
    per_token = architecture.cache_width * len(architecture.layers) * size
    return Memory(
        weights=copies * architecture.parameters * size + packed,
        activations=max((batch for batch, _, _ in taken), default=0) * max(mlp, attention) * size,
        logits=2 * 4 * min(LOGITS, max((positions for _, positions, _ in taken), default=0) * architecture.vocabulary),
        caches=max((cached for _, _, cached in taken), default=0) * per_token,
        kept=max((_kept(config, workload, chunk) for chunk in workload.chunks), default=0),
    )


def _passes(architecture: Architecture, workload: Workload, chunk: Chunk) -> tuple[int, int, int]:
    """Padded tokens of the largest batch, positions whose logits are taken at once, and tokens whose keys and values are held."""
    budget, prompts_N = workload.token_budget, chunk.prompt_tokens_P[chunk.prompt_of_N]
    with_logits = workload.readout.log_probs
    if not workload.shares_prompts(chunk, num_layers=len(architecture.layers)):
        batches = list(batches_of(chunk.text_tokens_N, token_budget=budget))
        logits = max(int(chunk.response_tokens_N[rows].sum()) for rows, _ in batches) if with_logits else 0
        return max(len(rows) * longest for rows, longest in batches), logits, 0
    prompts = max(len(rows) * longest for rows, longest in batches_of(chunk.prompt_tokens_P, token_budget=budget))
    models = (
        workload.readers if workload.answering else 1
    )  # when they answer, each keeps the caches for the other's answers
    held = models * len(chunk.prompt_tokens_P) * int(chunk.prompt_tokens_P.max())
    rows_of = [np.flatnonzero(chunk.writer_N == writer) for writer in np.unique(chunk.writer_N)]
    batches, positions, expanded = [prompts], [0], [0]
    for rows in rows_of:
        if workload.answering:
            positions.append(len(rows))
            expanded.append(len(rows) * int(prompts_N[rows].max() + chunk.response_tokens_N[rows].max()))
        if workload.reads:
            for batch, longest in continuations_of(chunk, rows, token_budget=budget):
                batches.append(len(batch) * longest)
                positions.append(int(chunk.response_tokens_N[batch].sum()) * with_logits)
                expanded.append(len(batch) * (int(prompts_N[batch].max()) + longest))
    return max(batches), max(positions), held + max(expanded)


def _kept(config: Any, workload: Workload, chunk: Chunk) -> int:
    if not workload.reads:
        return 0
    readout = workload.readout
    means = len(chunk.response_tokens_N) * len(readout.aggregations) * _width(config, workload.sites)
    rows = int(chunk.response_tokens_N.sum()) * _width(config, readout.tokens)
    return 4 * workload.readers * (means + rows) + 4 * 2 * rows


def _width(config: Any, sites: Iterable[Site]) -> int:
    """Numbers of one token at all of these sites."""
    return sum(pooled_width(site_shape(config, site)) for site in sites)
