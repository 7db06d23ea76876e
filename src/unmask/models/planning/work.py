"""The work of a collection, kind by kind: forward passes, tokens, FLOPs, and bytes that have to be fetched for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from unmask.models.batches import plan_batches, plan_continuations
from unmask.models.passes import LOGITS

if TYPE_CHECKING:
    from unmask.models.planning.architecture import Architecture
    from unmask.models.planning.workload import Chunk, Workload

Kind = Literal["prompts", "answers", "responses", "texts"]
"""`prompts`: run once, their keys and values kept. `answers`: written, one token a row and step. `responses`: read behind such
prompts. `texts`: read whole, prompt and response."""

KINDS: tuple[Kind, ...] = ("prompts", "answers", "responses", "texts")


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of one kind, over all readers. Tokens are run tokens, `padded_tokens` with what pads a batch's shorter rows.
    `blocks` says how many times a model is made ready for answers (`packed_weights`).

    - `linear_flops`: 2 x multiply-adds of the run layers' matrices x padded tokens (a bias is not counted)
    - `attention_flops`: 2 x (query width + value width) x pairs of tokens that look at one another, the causal half, padded
      rows whole; QK^T and AV
    - `head_flops`: 2 x hidden width x vocabulary x positions whose logits are taken
    - `weight_bytes`: weights of the run layers, once a pass, and the head's, once every `LOGITS` logits
    - `cache_bytes`: keys and values of past tokens, once a pass
    """

    kind: Kind
    blocks: int = 0
    passes: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    linear_flops: int = 0
    attention_flops: int = 0
    head_flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops + self.head_flops

    @property
    def bytes_read(self) -> int:
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: Work) -> Work:
        """Both together; of the same kind."""
        assert self.kind == other.kind
        counts = [field.name for field in fields(self) if field.name != "kind"]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in counts})

    def times(self, factor: int) -> Work:
        """The same work `factor` times."""
        counts = [field.name for field in fields(self) if field.name != "kind"]
        return replace(self, **{name: getattr(self, name) * factor for name in counts})


def pass_of(
    architecture: Architecture, kind: Kind, *, depth: int, rows: int, length: int, past: int = 0, weight_bytes: int = 4
) -> Work:
    """One pass of `rows` rows of `length` tokens behind `past` through the first `depth` layers."""
    pairs = architecture.attention_pairs(depth, past=past, length=length)
    return Work(
        kind,
        passes=1,
        tokens=rows * length,
        padded_tokens=rows * length,
        linear_flops=2 * architecture.multiply_adds(depth) * rows * length,
        attention_flops=2 * (architecture.query_width + architecture.value_width) * rows * pairs,
        weight_bytes=architecture.layer_parameters(depth) * weight_bytes,
        cache_bytes=rows * past * architecture.cache_width * depth * weight_bytes,
    )


def head_of(architecture: Architecture, kind: Kind, *, positions: int, weight_bytes: int = 4) -> Work:
    """Logits at so many positions, `LOGITS` of them at a time."""
    parts = -(-positions * architecture.vocabulary // LOGITS)
    return Work(
        kind,
        head_flops=2 * architecture.hidden * architecture.vocabulary * positions,
        weight_bytes=parts * architecture.head * weight_bytes,
    )


def work_of(architecture: Architecture, workload: Workload) -> tuple[Work, ...]:
    """All work, one entry a kind that occurs, in the order in which it is done."""
    found: dict[Kind, Work] = {}
    for chunk in workload.chunks:
        for work in _of_chunk(architecture, workload, chunk):
            found[work.kind] = found[work.kind] + work if work.kind in found else work
    return tuple(found[kind] for kind in KINDS if kind in found)


def batches_of(lengths: np.ndarray, *, token_budget: int) -> Iterator[tuple[np.ndarray, int]]:
    """The batches in which rows of these lengths are run, as `plan_batches` cuts them: the rows, and the longest's length."""
    for batch in plan_batches(lengths.tolist(), token_budget=token_budget):
        rows = np.array(batch)
        yield rows, int(lengths[rows].max())


def continuations_of(chunk: Chunk, rows: np.ndarray, *, token_budget: int) -> Iterator[tuple[np.ndarray, int]]:
    """The batches in which these texts' responses are run behind their prompts: texts, and the longest response's length."""
    prompts, responses = chunk.prompt_tokens_P[chunk.prompt_of_N[rows]], chunk.response_tokens_N[rows]
    for batch in plan_continuations(prompts.tolist(), responses.tolist(), token_budget=token_budget):
        yield rows[batch], int(responses[batch].max())


def _of_chunk(architecture: Architecture, workload: Workload, chunk: Chunk) -> Iterator[Work]:
    layers = len(architecture.layers)
    if not workload.shares_prompts(chunk, num_layers=layers):
        if workload.reads:
            yield from (work.times(workload.readers) for work in _whole(architecture, workload, chunk))
        return
    yield from (work.times(workload.readers) for work in _prompts(architecture, workload, chunk))
    written = sorted(set(chunk.writer_N.tolist()) - {-1})
    for writer in written:
        yield _answers(architecture, workload, chunk, np.flatnonzero(chunk.writer_N == writer))
    if workload.reads:
        for writer in written or [-1]:
            readers = workload.readers - (writer in written)
            rows = np.flatnonzero((chunk.writer_N == writer) & (chunk.response_tokens_N > 0))
            yield from (work.times(readers) for work in _responses(architecture, workload, chunk, rows))


def _prompts(architecture: Architecture, workload: Workload, chunk: Chunk) -> Iterator[Work]:
    depth = len(architecture.layers)
    for rows, longest in batches_of(chunk.prompt_tokens_P, token_budget=workload.token_budget):
        work = pass_of(
            architecture, "prompts", depth=depth, rows=len(rows), length=longest, weight_bytes=workload.weight_bytes
        )
        yield replace(work, tokens=int(chunk.prompt_tokens_P[rows].sum()))


def _answers(architecture: Architecture, workload: Workload, chunk: Chunk, rows: np.ndarray) -> Work:
    """Writing: a step runs one token of every row at full depth, with logits; as many steps as the longest answer has tokens."""
    depth, size = len(architecture.layers), workload.weight_bytes
    steps = int(chunk.response_tokens_N[rows].max())
    past = int(chunk.prompt_tokens_P[chunk.prompt_of_N[rows]].max())
    whole = pass_of(architecture, "answers", depth=depth, rows=len(rows), length=steps, past=past, weight_bytes=size)
    step = head_of(architecture, "answers", positions=len(rows), weight_bytes=size).times(steps)
    return replace(
        whole,
        blocks=1,
        passes=steps,
        tokens=int(chunk.response_tokens_N[rows].sum()),
        head_flops=step.head_flops,
        weight_bytes=whole.weight_bytes * steps + step.weight_bytes,
        cache_bytes=len(rows) * (steps * past + steps * (steps - 1) // 2) * architecture.cache_width * depth * size,
    )


def _responses(architecture: Architecture, workload: Workload, chunk: Chunk, rows: np.ndarray) -> Iterator[Work]:
    depth, size = workload.reading_depth(len(architecture.layers)), workload.weight_bytes
    prompts_N = chunk.prompt_tokens_P[chunk.prompt_of_N]
    for batch, longest in continuations_of(chunk, rows, token_budget=workload.token_budget):
        past = int(prompts_N[batch].max())
        work = pass_of(
            architecture, "responses", depth=depth, rows=len(batch), length=longest, past=past, weight_bytes=size
        )
        yield replace(work, tokens=int(chunk.response_tokens_N[batch].sum()))
        yield _log_probs(architecture, workload, "responses", chunk.response_tokens_N[batch])


def _whole(architecture: Architecture, workload: Workload, chunk: Chunk) -> Iterator[Work]:
    depth, size = workload.reading_depth(len(architecture.layers)), workload.weight_bytes
    for batch, longest in batches_of(chunk.text_tokens_N, token_budget=workload.token_budget):
        work = pass_of(architecture, "texts", depth=depth, rows=len(batch), length=longest, weight_bytes=size)
        yield replace(work, tokens=int(chunk.text_tokens_N[batch].sum()))
        yield _log_probs(architecture, workload, "texts", chunk.response_tokens_N[batch])


def _log_probs(architecture: Architecture, workload: Workload, kind: Kind, response_tokens: Sequence[int]) -> Work:
    if not workload.readout.log_probs:
        return Work(kind)
    return head_of(architecture, kind, positions=int(sum(response_tokens)), weight_bytes=workload.weight_bytes)
